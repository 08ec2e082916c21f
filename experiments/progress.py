"""Progress: one bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from experiments.plan import PopulationPlan

LINE_SECONDS = 10.0


class Progress:
    """Runs and populations done, steps a second, time left and the current elbo.

    A step here is a step of one run, so that speed and time left hold across populations of
    different size.
    """

    def __init__(self, plans: Sequence[PopulationPlan]) -> None:
        self._total = sum(p.num_steps * len(p.runs) for p in plans)
        self._populations = len(plans)
        self._runs = sum(len(p.runs) for p in plans)
        self._done = 0  # run-steps of finished populations
        self._runs_done = 0
        self._position = 0
        self._started = time.monotonic()
        self._resumed_at = 0
        self._last_line = 0.0
        self._bar: Any = None
        if sys.stderr.isatty():
            from rich import console, progress

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.fields[status]}"),
                console=console.Console(stderr=True),
            )
            self._task = self._bar.add_task("compiling", total=self._total, status="")
            self._bar.start()

    def begin(self, plan: PopulationPlan) -> None:
        """A population starts; its first `update` says from which step."""
        self._plan = plan
        self._position += 1
        self._first: int | None = None

    def update(self, step: int, elbo: float | None) -> None:
        """The current population has reached `step`."""
        runs = len(self._plan.runs)
        if self._first is None:
            self._first = step
            self._resumed_at += step * runs
        done = self._done + step * runs
        if step == self._plan.num_steps:
            self._done = done
            self._runs_done += runs
            self._first = step
        seconds = max(time.monotonic() - self._started, 1e-3)
        speed = max(done - self._resumed_at, 0) / seconds
        left = (self._total - done) / speed if speed > 0 else float("inf")
        status = (
            f"{self._runs_done}/{self._runs} runs, population {self._position}/{self._populations}"
            f", {speed:,.0f} run-steps/s, {_clock(left)} left"
        )
        if elbo is not None:
            status += f", test elbo {elbo:.2f}"
        if self._bar:
            self._bar.update(self._task, completed=done, description="training", status=status)
        elif time.monotonic() - self._last_line >= LINE_SECONDS or done == self._total:
            self._last_line = time.monotonic()
            print(f"{100 * done / self._total:3.0f}%  {status}", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:
            self._bar.stop()


def _clock(seconds: float) -> str:
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
