"""Progress: one bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from experiments.plan import PopulationPlan

LINE_SECONDS = 10.0


class Progress:
    """Runs and populations done, steps a second, time left and the current score.

    A step here is a step of one run, so that speed and time left hold across populations of
    different size.
    """

    def __init__(self, plans: Sequence[PopulationPlan], *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._total = sum(p.num_steps * len(p.runs) for p in plans)
        self._populations = len(plans)
        self._runs = sum(len(p.runs) for p in plans)
        self._done = 0  # run-steps of finished populations
        self._runs_done = 0
        self._position = 0
        self._started: float | None = None  # when the first steps were done: compiling is apart
        self._not_timed = 0  # run-steps that were done before, or by an earlier process
        self._last_line = -LINE_SECONDS
        self._status = ""  # of the training
        self._bar: Any = None
        if sys.stderr.isatty() and not quiet:
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

    def update(self, step: int, score: tuple[str, float] | None) -> None:
        """The current population has reached `step`; `score` is what to show for it, by name."""
        runs = len(self._plan.runs)
        now = time.monotonic()
        done = self._done + step * runs
        if self._first is None:
            self._first = step
            self._not_timed += step * runs
        elif self._started is None:
            self._started, self._not_timed = now, done
        if step == self._plan.num_steps:
            self._done = done
            self._runs_done += runs
        status = (
            f"{self._runs_done}/{self._runs} runs, population {self._position}/{self._populations}"
        )
        if self._started is None:
            status += ", compiling"
        elif done > self._not_timed:
            speed = (done - self._not_timed) / max(now - self._started, 1e-3)
            left = _clock((self._total - done) / speed)
            status += f", {speed:,.0f} run-steps/s, {left} left"
        if score is not None:
            name, value = score
            status += f", {name} {value:.2f}"
        percent = f"{100 * done / self._total:3.0f}%"
        if self._bar:
            self._status = status
            self._bar.update(self._task, completed=done, description="training", status=status)
        else:
            self._line(f"{percent}  {status}", now=done == self._total)

    def note(self, text: str) -> None:
        """What is done beside training, such as a long evaluation."""
        if self._bar:
            self._bar.update(self._task, description="evaluating", status=text)
        else:
            self._line(f"      {text}")

    def _line(self, text: str, now: bool = False) -> None:
        if not self._quiet and (now or time.monotonic() - self._last_line >= LINE_SECONDS):
            self._last_line = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._bar:  # what stays on the screen is how far it came, and not the last note
            self._bar.update(self._task, description="training", status=self._status)
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
