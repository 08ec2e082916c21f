"""Runs a config, or an ablation over it, and writes a report.

    python -m experiments.run --config=configs/quickstart.py --workdir=results/quickstart
    python -m experiments.run --config=configs/default.py --config.model.depth=3 \\
        --sweep objective.beta=0.5,1,2 --sweep seed=0:5 --workdir=results/beta

    python -m experiments.run --config=configs/default.py --sweep model.latent_dim=2,8,32 \\
        --folds=5 --workdir=results/folds

The same command again finishes what is missing. Fields are listed in configs/default.py.
"""

import os
import pathlib
import time

from absl import flags

from experiments import config as configs
from experiments import devices, distributed, entry
from experiments import sweep as sweeps
from vae.errors import UserError

_STARTED = time.monotonic()

_CONFIG = flags.DEFINE_string("config", None, "The config file, such as configs/default.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The results folder; made where it is absent.")
_SWEEP = flags.DEFINE_multi_string(
    "sweep", [], "FIELD=V1,V2,... or 0:5, linspace(a,b,n), logspace(a,b,n); several multiply."
)
_FOLDS = flags.DEFINE_integer(
    "folds",
    None,
    "K-fold cross-validation: every run K times, each with another K-th of the training split left "
    "out and evaluated in place of the test split, which stays unseen.",
    lower_bound=2,
)
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print the plan and train nothing.")
_PACK = flags.DEFINE_enum(
    "pack",
    "auto",
    ["auto", "vmap", "map"],
    "How the runs of a population share the machine: together (vmap) or in turn (map). "
    "The results are the same; auto takes the faster, by a rule, or measured where that is unsure.",
)
_PACK_STRUCTURES = flags.DEFINE_enum(
    "pack_structures",
    "never",
    ["auto", "always", "never"],
    "Whether MLPs of several latent dimensions and depths share one program, by masks. The results "
    "are the same; auto does it where compiling would take longer than the larger arithmetic.",
)
_MEMORY = flags.DEFINE_float(
    "memory_gib", None, "Memory for one population; default: most of what is free.", lower_bound=0
)
_CHECKPOINT = flags.DEFINE_float(
    "checkpoint_seconds", 60.0, "Least time between two checkpoints; 0: at every evaluation."
)
_KEEP = flags.DEFINE_integer(
    "keep_checkpoints",
    2,  # as vae.checkpoint.KEEP, which would import JAX
    "Checkpoints of a population that stay: so many of the newest, and the best.",
    lower_bound=1,
)
_REPORT = flags.DEFINE_bool("report", True, "Write report.html and figures/ at the end.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of process 0, where several processes train as one. Not needed under srun.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many they are.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
_DISTRIBUTED = flags.DEFINE_enum(
    "distributed",
    "auto",
    ["auto", "on", "off"],
    "auto: one of several processes where the flags, a Slurm step or GKE's TPU slice say so; on: "
    "JAX finds out the others, as on other TPU pods and in Kubernetes; off: alone.",
)
_TIMEOUT = flags.DEFINE_float(
    "coordinator_timeout", 120.0, "Seconds in which all processes have to meet.", lower_bound=1
)
_POPULATIONS = flags.DEFINE_list(
    "populations",
    None,
    "Train these populations of the folder's populations.json alone, beside other processes that "
    "train others: what a task of experiments.submit does.",
)
_SUBMISSION = flags.DEFINE_string(
    "submission", None, "Given by experiments.submit: the name under which it recorded this task."
)


def main(overrides: entry.Overrides) -> int:
    """Config -> plan -> populations -> results -> report; returns the exit status."""
    for flag, value in (("--config", _CONFIG.value), ("--workdir", _WORKDIR.value)):
        if not value and not (flag == "--workdir" and _DRY_RUN.value):
            raise UserError(f"{flag}: missing. See python -m experiments.run --help.")
    # 1. What is asked. No JAX yet: a typo is reported at once.
    base, runs = configs.from_args(_CONFIG.value, overrides, _SWEEP.value, folds=_FOLDS.value)
    workdir = pathlib.Path(_WORKDIR.value or "(no workdir)")

    # 2. How to do it, and with whom.
    if _DRY_RUN.value or not _join():
        devices.use_cores()

    from experiments import execute, trials
    from experiments import plan as plans

    def make_plan(packed=None, try_out=trials.fastest):
        budget = None if _MEMORY.value is None else int(_MEMORY.value * 2**30)
        axes = sweeps.axes(runs)
        return plans.make(
            base,
            runs,
            axes,
            budget=budget,
            pack=_PACK.value,
            pack_structures=_PACK_STRUCTURES.value,
            packed=packed,
            try_out=try_out,
        )

    if _DRY_RUN.value:
        print(plans.describe(make_plan(try_out=None), workdir))
        return 0

    # 3. Do it, unless done.
    stop = execute.StopOnSignal()
    return execute.execute(
        make_plan,
        workdir,
        started=_STARTED,
        stop=stop,
        checkpoint_seconds=_CHECKPOINT.value,
        keep_checkpoints=_KEEP.value,
        report=_REPORT.value,
        only=_POPULATIONS.value,
        submission=_SUBMISSION.value,
    )


def _join() -> bool:
    """Makes this process one of several where it is; whether it is."""
    given = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if _DISTRIBUTED.value == "off":
        return False
    found = _DISTRIBUTED.value == "on" or distributed.on_tpu_slice(os.environ)
    if found and given == (None, None, None):
        distributed.join_found()
        return True
    if group := distributed.find(os.environ, *given):
        distributed.join(group, _TIMEOUT.value)
        return True
    return False


def enter() -> None:
    """The command line."""
    entry.start("experiments.run", main)


if __name__ == "__main__":
    enter()
