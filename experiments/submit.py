"""Submits a config, or an ablation over it, to a cluster: one task for each population.

    python -m experiments.submit --cluster=slurm --config=configs/ablations/beta.py \\
        --workdir=/shared/beta --time=2:00:00 --gpus_per_node=1 --partition=gpu

Takes the flags of experiments.run, of which each task is one, and those below. The same command
again submits what is neither finished nor queued nor running. --dry_run prints the script;
python -m experiments.status shows how the tasks stand. --cluster=local runs the tasks on this
machine, --array_parallelism at a time, and waits for them.
"""

import dataclasses
import os
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import config as configs
from experiments import entry, locks
from experiments import run as runs_
from experiments import sweep as sweeps
from experiments.cluster import array_job, local_tasks, slurm, submissions, survey
from experiments.workdir import Workdir
from vae.errors import UserError

_CLUSTER = flags.DEFINE_enum("cluster", None, ["slurm", "local"], "Where the tasks run.")
_PARALLEL = flags.DEFINE_integer(
    "array_parallelism",
    None,
    "Tasks at a time; default: as many as Slurm starts; of --cluster=local, 1.",
    lower_bound=1,
)
_PER_TASK = flags.DEFINE_integer(
    "runs_per_task",
    None,
    "About so many runs in a task: larger populations are split, smaller ones share a task.",
    lower_bound=1,
)
_FAILED = flags.DEFINE_bool("failed_only", False, "Submit only what failed.")
_SETUP = flags.DEFINE_multi_string(
    "setup", [], "A shell line before the task's command, such as 'module load cuda'."
)
# Of Slurm alone; as sbatch has them.
_NODES = flags.DEFINE_integer(
    "nodes", None, "Nodes of a task, with one process on each.", lower_bound=1
)
_GPUS = flags.DEFINE_integer("gpus_per_node", None, "GPUs on each node.", lower_bound=1)
_CPUS = flags.DEFINE_integer("cpus_per_task", None, "Cores of each process.", lower_bound=1)
_MEM = flags.DEFINE_string("mem", None, "Memory on each node, such as 16G.")
_TIME = flags.DEFINE_string(
    "time",
    None,
    "Time limit of a task: MINUTES, H:MM:SS, D-HH:MM:SS. A task that needs longer saves, and is "
    "queued again. Default: the partition's.",
)
_PARTITION = flags.DEFINE_string("partition", None, "Partition.")
_ACCOUNT = flags.DEFINE_string("account", None, "Account to charge.")
_QOS = flags.DEFINE_string("qos", None, "Quality of service.")
_SLURM_ONLY = (_NODES, _GPUS, _CPUS, _MEM, _TIME, _PARTITION, _ACCOUNT, _QOS)


def main(overrides: entry.Overrides) -> int:
    """Config -> plan -> tasks -> cluster; returns the exit status."""
    given = _checked()
    # 1. What is asked, as in experiments.run.
    base, runs = configs.from_args(given.config, overrides, given.sweep, folds=given.folds)
    path = pathlib.Path(os.path.abspath(given.workdir))
    if _CLUSTER.value == "slurm" and not given.dry_run:
        slurm.check_present()

    # 2. The plan: which runs train together is settled here, and tasks keep to it.
    from experiments import plan as plans

    def make_plan(packed=None):
        axes, budget = sweeps.axes(runs), _budget()
        return plans.make(
            base,
            runs,
            axes,
            budget=budget,
            pack=given.pack,
            pack_structures=given.pack_structures,
            packed=packed,
            there=_devices(),
        )

    command = _command(overrides, path)
    workdir = Workdir(path)
    if given.dry_run:
        plan = _packed(make_plan, workdir if path.exists() else None)
        tasks = _tasks({p.id: len(p.runs) for p in plan.populations})
        print(plans.describe(plan, path))
        shown = submissions.Submission(path / "submissions" / "N-RANDOM", _CLUSTER.value, tasks)
        if _CLUSTER.value == "slurm":
            print("\n" + array_job.script(shown, _job(command)))
        else:
            print("\n" + "\n".join(map(shlex.join, _commands(shown, command))))
        return 0
    workdir.open(shared=True)
    try:
        with workdir.writing():
            plan = _packed(make_plan, workdir)
            workdir.claim(plan.base, plan.axes, plan.runs)
            if workdir.packed() is None:
                workdir.write_packed(plan.populations)
            tasks = _tasks(_open(path))
            if not tasks:
                return 0
            if _CLUSTER.value == "slurm":
                return _to_slurm(path, tasks, _job(command))
            submission = submissions.create(path, "local", tasks)
            attended = locks.acquire(submission.folder / ".lock")
        with attended:
            return _here(submission, command)
    finally:
        workdir.close()


def _checked() -> Any:
    """The flags, each checked as far as one can without the plan.

    Raises:
      UserError: one that is missing, or that means nothing here.
    """
    given = flags.FLAGS
    for name in ("cluster", "config", "workdir"):
        if not given[name].value:
            raise UserError(f"--{name}: missing. See python -m experiments.submit --help.")
    for name in ("populations", "submission", "coordinator", "num_processes", "process_id"):
        if given[name].value is not None:
            raise UserError(
                f"--{name}: is for the tasks, which are told by experiments.submit, or by Slurm. "
                "Leave it out."
            )
    if _CLUSTER.value == "local":
        for flag in _SLURM_ONLY:
            if flag.value is not None:
                raise UserError(
                    f"--{flag.name}: means nothing with --cluster=local, whose tasks have this "
                    "machine as it is. Leave it out."
                )
    if _TIME.value is not None and _seconds(_TIME.value) < 2 * array_job.SAVE_SECONDS + 60:
        raise UserError(
            f"--time: {_TIME.value} is too short: {array_job.SAVE_SECONDS} s before the limit a "
            "task is told to save. Give 5 minutes or more."
        )
    if _MEM.value is not None:
        _bytes(_MEM.value)
    return given


def _seconds(text: str) -> int:
    """A time as sbatch reads it: MINUTES, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise UserError(
            f"--time: {text!r} is no time. Write minutes, H:MM:SS, or D-HH:MM:SS, such as 2:00:00."
        )
    days, *parts = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None or match[4] is not None:  # begins with hours
        hours, minutes, seconds = parts
    else:  # begins with minutes
        hours, minutes, seconds = 0, parts[0], parts[1]
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _bytes(text: str) -> int:
    """Memory as sbatch reads it: a number, of MiB or with K, M, G or T."""
    match = re.fullmatch(r"(\d+)([KMGT]?)B?", text, re.I)
    if not match or not int(match[1]):
        raise UserError(f"--mem: {text!r} is no amount of memory. Write one such as 16G.")
    return int(match[1]) * 2 ** {"K": 10, "M": 20, "": 20, "G": 30, "T": 40}[match[2].upper()]


def _budget() -> int | None:
    """Bytes that a population may take in a task; None: as much as on this machine.

    As everywhere 60% of the memory: the rest is Python's, the compiler's and the report's.
    """
    from experiments import budget as budgets

    if flags.FLAGS.memory_gib is not None:
        return int(flags.FLAGS.memory_gib * 2**30)
    if _MEM.value is not None and _GPUS.value is None:
        return int(0.6 * _bytes(_MEM.value))
    if _CLUSTER.value == "local":
        return budgets.default_budget() // (_PARALLEL.value or 1)
    return None


def _devices() -> Any:
    """The devices of a task, for which the plan is made; None: those of this machine.

    Of a CPU as many on each node as here: one, unless XLA_FLAGS, which tasks inherit, says more.
    """
    import jax

    from experiments.devices import Devices

    if _CLUSTER.value == "local":
        return None
    on_cpu = jax.default_backend() == "cpu"
    each = _GPUS.value or (jax.local_device_count() if on_cpu else 1)
    return Devices(each * (_NODES.value or 1), _NODES.value or 1)


def _packed(make_plan: Any, workdir: Workdir | None) -> Any:
    """The plan, packed as the folder's earlier executions were, else into --runs_per_task."""
    packed = workdir.packed() if workdir else None
    plan = make_plan(packed)
    if packed is not None or _PER_TASK.value is None:
        return plan
    parts = []
    for population in plan.populations:
        ids = [run.run_id for run in population.runs]
        count = -(-len(ids) // _PER_TASK.value)
        parts += [ids[i * len(ids) // count : (i + 1) * len(ids) // count] for i in range(count)]
    return make_plan([{"runs": part} for part in parts])


def _open(path: pathlib.Path) -> dict[str, int]:
    """The populations to submit and their numbers of runs; says what is left out and why."""
    found = survey.survey(path)
    if found.silent:
        raise UserError(
            f"--cluster: {path} has been submitted before, and Slurm does not say what became of "
            f"it ({found.silent}). Try again when it answers."
        )
    wanted = (survey.FAILED,) if _FAILED.value else (survey.FAILED, survey.IDLE)
    for state in (survey.DONE, survey.RUNNING, survey.WAITING, survey.IDLE):
        those = [p for p in found.populations if p.state == state]
        if those and state not in wanted:
            where = ", ".join(dict.fromkeys(p.where for p in those if p.where))
            print(f"Left out: {_counted(len(those), 'population')} {state}", end="")
            print(f" ({where})." if where else ".")
    chosen = {p.id: len(p.runs) for p in found.populations if p.state in wanted}
    if not chosen:
        print("Nothing to submit.")
    return chosen


def _tasks(populations: dict[str, int]) -> tuple[tuple[str, ...], ...]:
    """One task for each population, or of small ones several in a task of --runs_per_task."""
    tasks: list[list[str]] = []
    full = 0
    for name, runs in populations.items():
        if _PER_TASK.value is None or not tasks or full + runs > _PER_TASK.value:
            tasks.append([])
            full = 0
        tasks[-1].append(name)
        full += runs
    return tuple(map(tuple, tasks))


def _command(overrides: entry.Overrides, path: pathlib.Path) -> list[str]:
    """The command of every task, but for which populations are its own."""
    # As it was started: with -P where the current folder is not to be imported from.
    python = [sys.executable, *(["-P"] if sys.flags.safe_path else [])]
    words = [*python, "-u", "-m", runs_.__name__]
    for flag in flags.FLAGS.flags_by_module_dict()[runs_.__name__]:
        if not flag.present or flag.name in ("dry_run", "workdir"):
            continue
        values = flag.value if isinstance(flag.value, list) else [flag.value]
        for value in values:
            switch = f"--{'' if value else 'no'}{flag.name}"
            words.append(switch if isinstance(value, bool) else f"--{flag.name}={value}")
    words += [f"--config.{name}={text}" for name, text in overrides]
    return [*words, f"--workdir={path}"]


def _job(command: list[str]) -> array_job.Job:
    options = {flag.name: flag.value for flag in _SLURM_ONLY if flag.value is not None}
    return array_job.Job(command, options, _PARALLEL.value, _SETUP.value)


def _to_slurm(path: pathlib.Path, tasks: Sequence[Sequence[str]], job: array_job.Job) -> int:
    """One array job. To be called under the folder's write lock; returns the exit status."""
    array_job.check_size(len(tasks))
    made = array_job.submit(submissions.create(path, "slurm", tasks), job)
    print(f"Submitted {_counted(len(tasks), 'task')} as Slurm job {made.job}.")
    print(f"Status: python -m experiments.status --workdir={shlex.quote(str(path))}")
    return 0


def _here(submission: submissions.Submission, command: list[str]) -> int:
    """Runs the tasks on this machine.

    Returns:
      The exit status: 0 when all ended well, 1 when some failed, 128 + signal when stopped.
    """
    from experiments import execute

    stop = execute.StopOnSignal()
    submission = dataclasses.replace(submission, job="local")
    submission.write()
    parallel = _PARALLEL.value or 1
    print(f"{_counted(len(submission.tasks), 'task')}, {parallel} at a time.", flush=True)
    commands = _commands(submission, command)
    ended = local_tasks.run(submission, commands, parallel, lambda: stop.signal)
    if stop():
        return execute.say_how_to_go_on(stop)
    if failed := sum(status != 0 for status in ended.values()):
        where = shlex.quote(str(submission.folder.parents[1]))
        print(f"{_counted(failed, 'task')} failed: python -m experiments.status --workdir={where}")
    return 1 if failed else 0


def _commands(submission: submissions.Submission, command: list[str]) -> list[list[str]]:
    setup = _SETUP.value
    return [local_tasks.command(submission, task, command, setup) for task in submission.tasks]


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


if __name__ == "__main__":
    entry.start("experiments.submit", main)
