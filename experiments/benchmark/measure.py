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
      value: median over the repetitions; low, high: their least and largest. None: there is
        none, as the note says, such as of a peer that is not installed.
      target: such as ("<=", 1.3), or ("within", 0.2) of 1; None for a row that only informs.
      note: what one must know to read it.
    """

    benchmark: str
    what: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    target: tuple[str, float] | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.target is None or self.value is None:
            return None
        sign, limit = self.target
        if sign == "within":
            return abs(self.value - 1) <= limit
        return self.value <= limit if sign == "<=" else self.value >= limit

    @property
    def goal(self) -> str:
        """The target as text; empty where there is none."""
        if self.target is None:
            return ""
        sign, limit = self.target
        return f"1 ± {limit:g}" if sign == "within" else f"{sign} {limit:g}"

    def as_dict(self) -> dict[str, Any]:
        """What the JSON file says of it."""
        return {**dataclasses.asdict(self), "target": self.goal or None, "met": self.met}


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
    lines += [cells(row) for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def cells(row: Row) -> tuple[str, str, str, str, str, str, str]:
    """A row as text: benchmark, what, measured, spread, target, whether it is met, note."""
    measured = "–" if row.value is None else f"{_number(row.value)} {row.unit}".rstrip()
    between = "" if row.low is None else f"{_number(row.low)}..{_number(row.high)}"
    met = {None: "", True: "yes", False: "NO"}[row.met]
    return row.benchmark, row.what, measured, between, row.goal, met, row.note


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
