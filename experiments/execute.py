"""Carries out a plan in a results folder: compile, train, evaluate, write, report."""

import pathlib
import shlex
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from experiments import environment, population
from experiments.plan import Plan, describe
from experiments.population import DeviceData, Stopped, Trainer
from experiments.programs import Programs, use_float32, use_persistent_cache
from experiments.progress import Progress
from experiments.workdir import Workdir
from vae import writers

# Populations whose programs are compiled, or being compiled, at a time: see `Programs`.
AHEAD = 8


class StopOnSignal:
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


def execute(
    make_plan: Callable[..., Plan],
    path: pathlib.Path,
    *,
    started: float,
    stop: Any,
    checkpoint_seconds: float,
    report: bool,
) -> int:
    """Finishes what the folder lacks; returns the exit status: 128 + signal when stopped.

    Args:
      make_plan: packed populations of an earlier execution, or None -> the plan.
      started: when the process began, by time.monotonic.
      stop: a `StopOnSignal`, or its like.
    """
    use_persistent_cache()
    use_float32()
    workdir = Workdir(path)
    workdir.open()
    try:
        plan = make_plan(workdir.packed())
        workdir.claim(plan.base, plan.axes, plan.runs)
        workdir.write_packed(plan.populations)
        todo = population.pending(plan.populations, workdir)
        if todo:
            print(describe(plan, path), flush=True)
            record = environment.describe(plan, environment.command_line())
            workdir.check_data(record["dataset"])
            workdir.write_environment(record)
            done = _train(plan, todo, workdir, started, stop, checkpoint_seconds)
            if not done:
                return say_how_to_go_on(stop)
        rows = workdir.write_results(plan.runs, list(plan.axes))
        if report and (todo or not (path / "report.html").exists()):
            _report(path)
        _summarise(path, rows, todo, time.monotonic() - started, report)
        return 0
    finally:
        workdir.close()


def _train(
    plan: Plan,
    todo: list,
    workdir: Workdir,
    started: float,
    stop: Any,
    checkpoint_seconds: float,
) -> bool:
    """Trains the populations that lack results, one after the other; False when stopped."""
    programs = Programs()
    tensorboard = writers.TensorBoard(workdir.path / "tensorboard")
    progress = Progress(todo)
    on_device: dict[int, DeviceData] = {}
    first_step: float | None = None
    try:
        for number, plan_ in enumerate(todo):
            if stop():
                return False
            for soon in todo[number : number + AHEAD]:
                programs.prepare(soon)
            progress.begin(plan_)
            examples = on_device.setdefault(id(plan_.dataset), DeviceData(plan_.dataset))
            trainer = Trainer(
                plan_,
                programs,
                examples,
                workdir,
                tensorboard,
                stop=stop,
                progress=progress,
                checkpoint_seconds=checkpoint_seconds,
            )
            trainer.run()
            programs.forget(plan_)
            later = {id(other.dataset) for other in todo[number + 1 :]}
            on_device = {key: held for key, held in on_device.items() if key in later}
            first_step = first_step or trainer.first_step
            workdir.write_results(plan.runs, list(plan.axes))
    except Stopped:
        return False
    finally:
        progress.close()
        programs.close()
    if first_step:
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
