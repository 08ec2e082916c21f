"""How the populations of a results folder stand, from its files and from what Slurm says."""

import collections
import dataclasses
import pathlib
import re
import signal

from experiments import locks
from experiments.cluster import slurm, submissions
from experiments.workdir import Workdir
from vae.errors import UserError

_LINES = 10  # of a failed task's log

DONE, RUNNING, WAITING, FAILED, IDLE = "done", "running", "waiting", "failed", "idle"


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a population stands.

    Attributes:
      state: `idle` is one that is not finished and that nobody works on or will.
      where: the process, job or node; "" for none. why: the reason; "" for none.
      logs: of the processes that failed.
    """

    id: str
    runs: tuple[str, ...]
    state: str
    where: str = ""
    why: str = ""
    logs: tuple[pathlib.Path, ...] = ()


@dataclasses.dataclass(frozen=True)
class Survey:
    """How the populations of a folder stand. silent: why Slurm, which was needed, says nothing."""

    populations: tuple[Standing, ...]
    silent: str = ""


def survey(path: pathlib.Path) -> Survey:
    """How each population of a results folder stands, from its files and from Slurm.

    Raises:
      UserError: this is no results folder.
    """
    workdir = Workdir(path)
    planned = workdir.populations()
    if planned is None:
        raise UserError(
            f"--workdir: {path} has no populations.json, so no run has begun there. Give the "
            "--workdir of experiments.run or experiments.submit."
        )
    newest = {}  # by population: its last submission, and the task's place in it
    for submission in submissions.recorded(path):
        for index, ids in enumerate(submission.tasks):
            newest |= dict.fromkeys(ids, (submission, index))
    finished = {name for name, runs in planned.items() if all(workdir.result(run) for run in runs)}
    jobs = {s.job for name, (s, _) in newest.items() if name not in finished}
    jobs = {s.job for s, _ in newest.values() if s.cluster == "slurm" and s.job in jobs} - {None}
    silent = ""
    known, down = {}, {}
    if jobs:
        try:
            known, down = slurm.tasks(sorted(jobs)), slurm.down_nodes()
        except slurm.Silent as error:
            silent = str(error)
    alone = locks.is_held(path / ".lock")
    standings = []
    for name, runs in planned.items():
        found = Standing(name, tuple(runs), DONE)
        if name not in finished:
            lock = path / ("populations/" + name) / ".lock"
            if alone:
                found = _is(found, RUNNING, locks.holder(path / ".lock"))
            elif locks.is_held(lock):
                found = _is(found, RUNNING, locks.holder(lock))
            elif name in newest:
                submission, index = newest[name]
                task = known.get((submission.job, index))
                found = _submitted(found, submission, index, task, silent)
                if task and found.state == WAITING and task.restarts:
                    found = _requeued(found, task, locks.holder(lock), down)
            else:
                found = _is(found, IDLE, why="nobody works on it")
        standings.append(found)
    return Survey(tuple(standings), silent)


def _is(standing: Standing, state: str, where: str = "", why: str = "", logs=()) -> Standing:
    return dataclasses.replace(standing, state=state, where=where, why=why, logs=tuple(logs))


def _submitted(
    standing: Standing,
    submission: submissions.Submission,
    index: int,
    task: slurm.Task | None,
    silent: str,
) -> Standing:
    """Of a population that was submitted, is not finished, and whose lock nobody holds."""
    logs = submission.logs(index)
    status = submission.exit_status(index)
    if submission.job is None:
        return _is(standing, IDLE, why="its submission did not come to its end")
    if submission.cluster == "local":
        where = f"submission {submission.name}"
        if status is not None:
            return _is(standing, FAILED, where, _of_status(status, logs), logs)
        if submission.is_attended():
            return _is(standing, WAITING, where, "for its turn (--array_parallelism)")
        return _is(standing, IDLE, where, "the submitting process ended before it")
    where = f"Slurm job {submission.job}_{index}"
    if task is None:
        if status is not None:
            return _is(standing, FAILED, where, _of_status(status, logs), logs)
        if silent:
            return _is(standing, WAITING, where, f"unknown: {silent}")
        why = "ended without a word, and Slurm no longer knows of it"
        return _is(standing, FAILED, where, why, logs)
    state = task.state
    if state in slurm.WAITING:
        return _is(standing, WAITING, where, slurm.REASONS.get(task.reason, task.reason))
    if state in slurm.RUNNING:
        return _is(standing, RUNNING, f"{where} on {task.nodes}" if task.nodes else where, "")
    if state == "FAILED" or state == "COMPLETED":
        why = _of_status(status, logs) if status is not None else _of_code(task, logs)
    else:
        why = _ENDS.get(state, state.lower()).format(nodes=task.nodes or "a node")
    return _is(standing, FAILED, where, why, logs)


# How Slurm ended a task.
_ENDS = {
    "TIMEOUT": "ran into the time limit and could not save in time: give more --time",
    "OUT_OF_MEMORY": "out of memory: give more --mem, or fewer --runs_per_task",
    "NODE_FAIL": "{nodes} failed, and Slurm did not requeue it",
    "BOOT_FAIL": "{nodes} did not start",
    "CANCELLED": "cancelled (scancel)",
    "PREEMPTED": "preempted, and Slurm did not requeue it",
    "DEADLINE": "could not end before its deadline",
}


def _requeued(standing: Standing, task: slurm.Task, before: str, down: dict[str, str]) -> Standing:
    """Of a task that waits to be started again: why, as far as one can see."""
    why = f"requeued {task.restarts} time{'s' * (task.restarts != 1)}"
    # For some seconds after a requeue Slurm has not looked at it yet.
    why += "" if task.reason in ("None", "BeginTime") else f", waits {standing.why}"
    if (match := re.search(r" on ([^\s,]+)", before)) and match[1] in down:
        why = f"its node {match[1]} is lost ({down[match[1]]}); {why}"
    return dataclasses.replace(standing, why=why)


def _of_code(task: slurm.Task, logs: list[pathlib.Path]) -> str:
    """Of a task that left no exit status, from Slurm's."""
    status, _, number = task.exit_code.partition(":")
    if number == "53" or not logs:  # 53: Slurm could not open the log
        return (
            f"left no log: {task.nodes or 'its node'} does not see --workdir (exit code "
            f"{task.exit_code}). Give a folder on a disk that all nodes share"
        )
    if number.isdigit() and int(number):
        return _of_status(128 + int(number), logs)
    return _of_status(int(status), logs)


def _of_status(status: int, logs: list[pathlib.Path]) -> str:
    """What an exit status of experiments.run means, with what its log says of it."""
    if status == 0:
        return "ended well, but its results are not there any more"
    said = _complaint(logs)
    if status == 2 and said:
        return said
    if status > 128:
        try:
            name = signal.Signals(status - 128).name
        except ValueError:
            return f"exit status {status}"
        if name == "SIGKILL":
            return "killed (SIGKILL): by hand, or by the system for want of memory"
        if name in ("SIGUSR1", "SIGTERM", "SIGINT"):
            return f"stopped by {name}, with all saved"
        return f"crashed ({name})"
    return f"exit status {status}" + (f": {said}" if said else "")


def _complaint(logs: list[pathlib.Path]) -> str:
    """The last line that looks like an error in the logs of a task; "" for none."""
    for log in logs:
        for line in reversed(_last(log, 200)):
            if re.match(r"error: |[\w.]*(Error|Exception|Interrupt)\b", line):
                return line.removeprefix("error: ")
    return ""


def _last(log: pathlib.Path, count: int) -> list[str]:
    """The last lines of a log that are not blank, from its last 64 KiB."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - 2**16))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def describe(path: pathlib.Path, found: Survey) -> str:
    """The survey as text: counts, a table of the populations, and the logs of those that failed."""
    from experiments.table import aligned

    runs = collections.Counter()
    for standing in found.populations:
        runs[standing.state] += len(standing.runs)
    diverged = _diverged(path, [run for p in found.populations for run in p.runs])
    counts = [f"{runs[s]} {s}" for s in (DONE, RUNNING, WAITING, FAILED, IDLE) if runs[s]]
    lines = [f"{sum(runs.values())} runs in {path}: {', '.join(counts)}."]
    if found.silent:
        lines.append(f"Slurm: {found.silent}; what follows is from the files alone.")
    rows = [("population", "runs", "state", "where", "why")]
    rows += [(p.id, str(len(p.runs)), p.state, p.where, p.why) for p in found.populations]
    lines.append(aligned(rows, left=True))
    if diverged:
        lines.append(f"{len(diverged)} of the finished runs diverged:")
        lines += [f"  {text}" for text in diverged]
    for standing in found.populations:
        if standing.state == FAILED:
            for log in standing.logs:
                lines.append(f"\n{standing.id}, the end of {log}:")
                lines += [f"  | {line[:300]}" for line in _last(log, _LINES)]
    return "\n".join(lines)


def _diverged(path: pathlib.Path, runs: list[str]) -> list[str]:
    """The finished runs that diverged, with step, term and layer."""
    lines = []
    for run in runs:
        row = Workdir(path).result(run)
        if row and row["status"] == "diverged":
            cause = {name: row.get(f"diverged/{name}") for name in ("step", "term", "layer")}
            lines.append(f"{run}: " + ", ".join(f"{k} {v}" for k, v in cause.items() if v))
    return lines


def exit_status(found: Survey) -> int:
    """0: all finished; 1: some failed; 3: none failed, some are still to come."""
    states = {standing.state for standing in found.populations}
    return 1 if FAILED in states else 0 if states <= {DONE} else 3
