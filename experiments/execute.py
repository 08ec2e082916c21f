"""Carries out a plan in a results folder: compile, train, evaluate, write, report."""

import contextlib
import dataclasses
import gc
import pathlib
import shlex
import signal
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax

from experiments import distributed, environment, population
from experiments.plan import Plan, PopulationPlan, describe
from experiments.population import DeviceData, Stopped, Trainer
from experiments.programs import Programs, use_float32, use_persistent_cache
from experiments.progress import Progress
from experiments.workdir import Workdir
from vae import checkpoint, writers
from vae.errors import UserError

# Populations whose programs are compiled, or being compiled, at a time: see `Programs`.
AHEAD = 8

# An exception is lost where Python happens to be in a callback of its garbage collection, or in a
# destructor. In the first it is not raised yet, in the second once more: after so many seconds.
SOON_SECONDS, AGAIN_SECONDS = 0.02, 2.0

# What asks to save and stop.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopOnSignal:
    """Turns the first Ctrl-C, SIGTERM or SIGUSR1 into a request to save and stop.

    The second one of its kind kills. SIGUSR1 is what Slurm can send ahead of a time limit.
    """

    def __init__(self, numbers: Iterable[int] = STOPPING) -> None:
        self.signal: int | None = None
        self._raising = False
        for number in numbers:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)
        if self._raising:
            self._raise(number, frame)
            return
        print("\nStopping: saving first (once more to stop at once).", file=sys.stderr, flush=True)

    def _raise(self, number: int, frame: types.FrameType | None) -> None:
        if not self._raising:
            return
        collecting = {getattr(callback, "__code__", None) for callback in gc.callbacks}
        lost = frame is not None and frame.f_code in collecting
        signal.signal(signal.SIGALRM, self._raise)
        signal.setitimer(signal.ITIMER_REAL, SOON_SECONDS if lost else AGAIN_SECONDS)
        if not lost:
            raise Stopped

    def __call__(self) -> bool:
        return self.signal is not None

    def agreed(self) -> bool:
        """Whether any process has had a signal; all must ask."""
        self.signal = int(distributed.gather(self.signal or 0).max()) or None
        return self()

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """For what has nothing to save, such as loading data or a report: a signal ends it.

        Raises:
          Stopped: in the midst of it, or because a signal came before.
        """
        self._raising = True
        try:
            if self():
                raise Stopped
            yield
            if self():  # it came too late to be raised again
                raise Stopped
        finally:
            self._raising = False
            signal.setitimer(signal.ITIMER_REAL, 0)


def execute(
    make_plan: Callable[..., Plan],
    path: pathlib.Path,
    *,
    started: float,
    stop: StopOnSignal,
    checkpoint_seconds: float,
    report: bool,
    keep_checkpoints: int = checkpoint.KEEP,
    only: Sequence[str] | None = None,
    submission: str | None = None,
) -> int:
    """Finishes what the folder lacks; returns the exit status: 128 + signal when stopped.

    Args:
      make_plan: packed populations of an earlier execution, or None -> the plan.
      started: when the process began, by time.monotonic.
      only: ids of the populations to train, beside other processes that share the folder; None:
        all, with the folder for this process alone.
      submission: the name of the record that `experiments.submit` left in the folder.
    """
    use_persistent_cache()
    use_float32()
    workdir = Workdir(path)
    leads = distributed.writes()
    try:
        plan, todo = _prepared(make_plan, workdir, stop, only, submission)
        if todo:
            done = _train(plan, todo, workdir, started, stop, checkpoint_seconds, keep_checkpoints)
            if not done:
                return say_how_to_go_on(stop)
        distributed.leave()
        if not leads:
            return 0
        rows = workdir.write_results(plan.runs, list(plan.axes))
        if len(rows) < len(plan.runs):  # other tasks have them
            print(f"{len(rows)} of the {len(plan.runs)} runs of the sweep are finished.")
            return 0
        # The task that finishes last sees all results; where two do, one writes after the other.
        if report and (todo or not (path / "report.html").exists()):
            with stop.at_once(), workdir.writing():
                _report(path)
        _summarise(path, rows, todo, time.monotonic() - started, report)
        return 0
    except Stopped:
        return say_how_to_go_on(stop)
    except jax.errors.JaxRuntimeError as error:
        if not distributed.several():
            raise
        raise distributed.lost(error) from error
    finally:
        workdir.close()


def _prepared(
    make_plan: Callable[..., Plan],
    workdir: Workdir,
    stop: StopOnSignal,
    only: Sequence[str] | None,
    submission: str | None,
) -> tuple[Plan, list[PopulationPlan]]:
    """The plan, and the populations that lack results: the same in all processes.

    Process 0 takes the folder and records what is asked; the others then read it.

    Raises:
      UserError: the folder is somebody else's, or of another config; the plan cannot be made.
      Stopped: the user asked to stop.
    """
    mark = int(distributed.first(time.time_ns() % 2**31))

    def lead() -> tuple[Plan, list[PopulationPlan]]:
        workdir.open(shared=only is not None)
        with stop.at_once():
            if submission is not None:
                workdir.await_submission(submission)
            if only is not None:
                _check_planned(only, workdir)
            plan = make_plan(workdir.packed())
        workdir.claim(plan.base, plan.axes, plan.runs)
        mine = plan.populations
        if only is None:
            workdir.write_packed(mine)
        else:
            mine = [p for p in mine if p.id in only]
            if not workdir.hold(mine, stop):
                raise Stopped
        todo = population.pending(mine, workdir)
        if todo:
            print(describe(plan if only is None else _part(plan, mine), workdir.path), flush=True)
            record = environment.describe(plan, _common(environment.command_line()))
            workdir.check_data(record["dataset"])
            workdir.write_environment(record)
        if distributed.several():
            workdir.write_mark(mark)
        return plan, todo

    def follow() -> tuple[Plan, list[PopulationPlan]]:
        workdir.await_mark(mark)
        plan = make_plan(workdir.packed())
        return plan, list(plan.populations)

    try:
        plan, todo = distributed.in_turn(lead, follow)
    finally:
        if distributed.writes():
            workdir.remove_mark(mark)
    ids = {p.id for p in todo}
    wanted = distributed.first([p.id in ids for p in plan.populations])
    return plan, [p for p, is_todo in zip(plan.populations, wanted, strict=True) if is_todo]


def _check_planned(only: Sequence[str], workdir: Workdir) -> None:
    """Raises UserError where a population is asked for that the folder's plan does not have."""
    planned = workdir.populations()
    if planned is None:
        raise UserError(
            f"--populations: {workdir.path} has no populations.json, which says what there is. "
            "experiments.submit writes it; if it did, its folder is not the one seen here: give "
            "a --workdir on a disk that all nodes share."
        )
    for name in only:
        if name not in planned:
            raise UserError(
                f"--populations: {workdir.path} has no population {name}. "
                f"There are {', '.join(planned)}."
            )


def _part(plan: Plan, populations: Sequence[PopulationPlan]) -> Plan:
    """The plan with these populations and their runs alone."""
    runs = tuple(run for p in populations for run in p.runs)
    return dataclasses.replace(plan, runs=runs, populations=tuple(populations))


def _common(command: Sequence[str]) -> list[str]:
    """The command without what differs between the tasks of a submission."""
    return [w for w in command if not w.startswith(("--populations=", "--submission="))]


def _train(
    plan: Plan,
    todo: list,
    workdir: Workdir,
    started: float,
    stop: Any,
    checkpoint_seconds: float,
    keep_checkpoints: int,
) -> bool:
    """Trains the populations that lack results, one after the other; False when stopped."""
    programs = Programs()
    leads = distributed.writes()
    tensorboard = writers.TensorBoard(workdir.path / "tensorboard")
    progress = Progress(todo, quiet=not leads)
    on_device: dict[tuple[int, Any], DeviceData] = {}
    first_step: float | None = None
    try:
        for number, plan_ in enumerate(todo):
            if stop.agreed():
                return False
            for soon in todo[number : number + AHEAD]:
                programs.prepare(soon)
            progress.begin(plan_)
            place = id(plan_.dataset), plan_.mesh
            examples = on_device.setdefault(place, DeviceData(plan_.dataset, plan_.mesh))
            trainer = Trainer(
                plan_,
                programs,
                examples,
                workdir,
                tensorboard,
                stop=stop.agreed,
                progress=progress,
                checkpoint_seconds=checkpoint_seconds,
                keep_checkpoints=keep_checkpoints,
            )
            trainer.run()
            programs.forget(plan_)
            later = {(id(other.dataset), other.mesh) for other in todo[number + 1 :]}
            on_device = {key: held for key, held in on_device.items() if key in later}
            first_step = first_step or trainer.first_step
            if leads:
                workdir.write_results(plan.runs, list(plan.axes))
    except Stopped:
        return False
    finally:
        progress.close()
        programs.close()
    if first_step and leads:
        print(f"First step after {first_step - started:.1f} s: start-up and compiling.")
    return True


def say_how_to_go_on(stop: Any) -> int:
    """Prints the command that goes on; returns the exit status, 128 + signal."""
    command = shlex.join(environment.command_line())
    name = signal.Signals(stop.signal).name
    print(f"Stopped by {name}; all is saved. To go on:\n  {command}", file=sys.stderr)
    return 128 + stop.signal


def _report(path: pathlib.Path) -> None:
    from experiments.report import write_report

    write_report(path)


def _summarise(
    path: pathlib.Path, rows: list[dict[str, Any]], todo: list, seconds: float, report: bool
) -> None:
    from experiments.table import results_table

    print(results_table(path))
    diverged = [row["run_id"] for row in rows if row["status"] == "diverged"]
    if diverged:
        print(f"{len(diverged)} of {len(rows)} runs diverged: {', '.join(diverged)}")
    count = f"{len(rows)} run{'s' * (len(rows) != 1)}"
    what = f"{count} finished in {seconds:.0f} s." if todo else f"{count}, finished earlier."
    print(f"\n{what}")
    print(f"Table:  {path / 'results.csv'}")
    if report:
        print(f"Report: {path / 'report.html'}")
