"""Runs a config, or an ablation over it, and writes a report.

    python -m experiments.run --config=configs/quickstart.py --workdir=results/quickstart
    python -m experiments.run --config=configs/default.py --config.model.depth=3 \\
        --sweep objective.beta=0.5,1,2 --sweep seed=0:5 --workdir=results/beta

The same command again finishes what is missing. Fields are listed in configs/default.py.
"""

import errno
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

from absl import app, flags, logging

from experiments import config as configs
from experiments import sweep as sweeps
from vae.errors import UserError

_STARTED = time.monotonic()

_CONFIG = flags.DEFINE_string("config", None, "The config file, such as configs/default.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The results folder; made where it is absent.")
_SWEEP = flags.DEFINE_multi_string(
    "sweep", [], "FIELD=V1,V2,... or 0:5, linspace(a,b,n), logspace(a,b,n); several multiply."
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and train nothing.")
_PACK = flags.DEFINE_enum(
    "pack",
    "auto",
    ["auto", "vmap", "map"],
    "How the runs of a population share the machine: together (vmap) or in turn (map). "
    "The results are the same; auto chooses the faster.",
)
_MEMORY = flags.DEFINE_float(
    "memory_gib", None, "Memory for one population; default: most of what is free.", lower_bound=0
)
_CHECKPOINT = flags.DEFINE_float(
    "checkpoint_seconds", 60.0, "Least time between two checkpoints; 0: at every evaluation."
)
_REPORT = flags.DEFINE_bool("report", True, "Write report.html and figures/ at the end.")


def main(argv: Sequence[str], overrides: Sequence[tuple[str, str]]) -> int:
    """Config -> plan -> populations -> results -> report; returns the exit status."""
    if len(argv) > 1:
        raise UserError(
            f"{argv[1]}: not a flag. Write --config.FIELD=VALUE to set a field, "
            "--sweep FIELD=V1,V2 to sweep one."
        )
    for flag, value in (("--config", _CONFIG.value), ("--workdir", _WORKDIR.value)):
        if not value and not (flag == "--workdir" and _DRY_RUN.value):
            raise UserError(f"{flag}: missing. See python -m experiments.run --help.")
    # 1. What is asked. No JAX yet: a typo is reported at once.
    base, runs = configs.from_args(_CONFIG.value, overrides, _SWEEP.value)
    workdir = pathlib.Path(_WORKDIR.value or "(no workdir)")

    # 2. How to do it.
    from experiments import execute
    from experiments import plan as plans

    def make_plan(packed=None):
        budget = None if _MEMORY.value is None else int(_MEMORY.value * 2**30)
        axes = sweeps.axes(runs)
        return plans.make(base, runs, axes, budget=budget, pack=_PACK.value, packed=packed)

    if _DRY_RUN.value:
        print(plans.describe(make_plan(), workdir))
        return 0

    # 3. Do it, unless done.
    stop = _StopOnSignal()
    return execute.execute(
        make_plan,
        workdir,
        started=_STARTED,
        stop=stop,
        checkpoint_seconds=_CHECKPOINT.value,
        report=_REPORT.value,
    )


class _StopOnSignal:
    """Turns the first Ctrl-C or SIGTERM into a request to save and stop; the second one kills."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: object) -> None:
        del frame
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        print("\nStopping: saving first (once more to stop at once).", file=sys.stderr, flush=True)

    def __call__(self) -> bool:
        return self.signal is not None


def _parse_flags(argv: Sequence[str]) -> Sequence[str]:
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(f"{error} (python -m experiments.run --help lists the flags)") from None


def _leave(status: int) -> None:
    """Ends the process at once: what the device still computes cannot be cancelled, only awaited,
    and threads of libraries would report that they were interrupted.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def entry() -> None:
    """The command line: prints what the user can mend without a traceback, status 2."""
    try:
        overrides, rest = configs.split_argv(sys.argv)

        def with_overrides(argv: Sequence[str]) -> int:
            logging.set_verbosity(logging.WARNING)
            status = main(argv, overrides)
            if status > 128:
                _leave(status)
            return status

        app.run(with_overrides, argv=rest, flags_parser=_parse_flags)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before training began; from then on it is heard by _StopOnSignal
        print("Stopped; nothing had begun.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        print(
            f"error: {error.filename or _WORKDIR.value}: {error.strerror}. Nothing that was "
            "written is lost: make room and run the same command again.",
            file=sys.stderr,
        )
        _leave(1)


if __name__ == "__main__":
    entry()
