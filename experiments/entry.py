"""The way into a command that trains: flags, exit status, and how it says what went wrong."""

import os
import signal
import sys
from collections.abc import Callable, Sequence

from absl import app, flags, logging

from experiments import config as configs
from experiments import distributed
from vae.errors import FULL, UserError

Overrides = Sequence[tuple[str, str]]


def start(module: str, main: Callable[[Overrides], int]) -> None:
    """Runs `main` with the command line; does not return unless it returns 0.

    What the user can mend is printed without a traceback, with status 2.

    Args:
      module: after `python -m`. main: field and text of each `--config.FIELD=VALUE` -> exit status,
        128 + signal when stopped.
    """
    try:
        overrides, rest = configs.split_argv(sys.argv)

        def with_overrides(argv: Sequence[str]) -> int:
            logging.set_verbosity(logging.WARNING)
            if len(argv) > 1:
                raise UserError(
                    f"{argv[1]}: not a flag. Write --config.FIELD=VALUE to set a field; "
                    f"python -m {module} --help lists the flags."
                )
            status = main(overrides)
            if status > 128:
                _leave(status)
            return status

        def parse(argv: Sequence[str]) -> Sequence[str]:
            try:
                return flags.FLAGS(argv)
            except flags.Error as error:
                raise UserError(f"{error} (python -m {module} --help lists the flags)") from None

        app.run(with_overrides, argv=rest, flags_parser=parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except distributed.Lost as error:
        print(f"error: {error}", file=sys.stderr)
        _leave(1)  # JAX would wait for the one that is gone, and then end by a trace of its own
    except KeyboardInterrupt:  # before training began; from then on it is heard by StopOnSignal
        print("Stopped; nothing had begun.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in FULL:
            raise
        where = error.filename or flags.FLAGS["workdir"].value
        print(
            f"error: {where}: {error.strerror}. Nothing that was written is lost: make room and "
            "run the same command again.",
            file=sys.stderr,
        )
        _leave(1)


def _leave(status: int) -> None:
    """Ends the process at once: what the device still computes cannot be cancelled, only awaited,
    and threads of libraries would report that they were interrupted.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
