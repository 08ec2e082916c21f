"""A row of the benchmark's table, and the timing of things that are to be compared."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
      quick: as little as shows that everything runs; the numbers mean nothing.
      full: runs all that is otherwise extrapolated from a sample.
      data_dir: TFDS folder with MNIST; None: synthetic images of its shape and number.
    """

    quick: bool = False
    full: bool = False
    data_dir: str | None = None

    def pick(self, normal: Any, quick: Any) -> Any:
        return quick if self.quick else normal


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
      benchmark: its name on the command line. what: the quantity. unit: "ratio", "ms", "s", ...
      value: median over the repetitions; low, high: their least and largest.
      target: such as ("<=", 1.3); None for a row that only informs.
      note: what one must know to read it.
    """

    benchmark: str
    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: tuple[str, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        sign, limit = self.target
        return self.value <= limit if sign == "<=" else self.value >= limit

    def as_dict(self) -> dict[str, Any]:
        """What the JSON file says of it."""
        target = None if self.target is None else f"{self.target[0]} {self.target[1]:g}"
        return {**dataclasses.asdict(self), "target": target, "met": self.met}


def in_turns(
    functions: Mapping[str, Callable[[int], Any]], count: int, repeats: int
) -> dict[str, np.ndarray]:
    """Seconds per step of each function, [repeats].

    A machine that others use too changes its speed from second to second. So the functions take
    turns, A B A B ..., and are compared by the ratios within a turn, see `ratio`.

    Args:
      functions: each does `count` steps and returns when they are done. All run once unmeasured.
    """
    for function in functions.values():
        function(count)
    seconds = {name: np.empty(repeats) for name in functions}
    for turn in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function(count)
            seconds[name][turn] = (time.perf_counter() - start) / count
    return seconds


def spread(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Median, least and largest, as the fields of a `Row`."""
    return {
        "value": float(np.median(values)),
        "low": float(np.min(values)),
        "high": float(np.max(values)),
    }


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> dict[str, float]:
    """Of two timings `in_turns`: the spread of the ratios turn by turn."""
    return spread(numerator / denominator)


def table(rows: Sequence[Row]) -> str:
    """The rows as text, one line each."""
    lines = [("benchmark", "what", "measured", "least..largest", "target", "met", "")]
    for row in rows:
        between = "" if row.low is None else f"{_number(row.low)}..{_number(row.high)}"
        target = "" if row.target is None else f"{row.target[0]} {row.target[1]:g}"
        met = {None: "", True: "yes", False: "NO"}[row.met]
        measured = f"{_number(row.value)} {row.unit}"
        lines.append((row.benchmark, row.what, measured, between, target, met, row.note))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
