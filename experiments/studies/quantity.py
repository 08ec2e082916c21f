"""What is measured in a study, beside what was expected; and the verdict, by an interval.

A quantity is a mean over seeds with its 95% confidence interval (Student's t). What is expected is
a region: expected ± tolerance, or all from `expected` up (or down). The claim about it is

  reproduced      where the interval lies in the region
  not reproduced  where the interval lies outside of it
  inconclusive    where it does neither, or where seeds are missing because their runs diverged

That is the two one-sided tests of equivalence at 2.5% each (Schuirmann 1987), and its mirror.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from experiments.report.results import Results

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, OPEN = (
    "reproduced",
    "not reproduced",
    "inconclusive",
    "–",
)
VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One row of a study's verdict.

    Attributes:
      name: what it is, with its unit.
      values: one for each seed; nan where the seed's run diverged or is missing. A single value
        is exact: no seed would change it.
      expected, relation, tolerance: the region: `=` expected ± tolerance, `>=` or `<=` expected;
        None: it is only reported.
      source: where `expected` is from: authors, year, equation or table; or what others measured.
      interval: the 95% interval, where it is not that of a mean over `values`.
      note: what a reader should know of the verdict, such as the probable cause of a failure.
    """

    name: str
    values: tuple[float, ...]
    expected: float | None = None
    tolerance: float = 0.0
    relation: str = "="
    source: str = ""
    interval: tuple[float, float] | None = None
    note: str = ""

    @property
    def finite(self) -> np.ndarray:
        """The values there are."""
        values = np.asarray(self.values, np.float64)
        return values[np.isfinite(values)]

    @property
    def measured(self) -> float:
        return float(self.finite.mean()) if self.finite.size else math.nan

    @property
    def seeds(self) -> int:
        return int(self.finite.size)

    @property
    def missing(self) -> int:
        return len(self.values) - self.seeds

    @property
    def error(self) -> float:
        """Standard error of the mean; nan of fewer than two values."""
        n = self.seeds
        return float(self.finite.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan

    @property
    def ci(self) -> tuple[float, float]:
        """The 95% confidence interval; of a single value the value itself."""
        if self.interval is not None:
            return self.interval
        if self.seeds < 2:
            return self.measured, self.measured
        from scipy import stats

        half = float(stats.t.ppf(0.975, self.seeds - 1)) * self.error
        return self.measured - half, self.measured + half

    @property
    def region(self) -> tuple[float, float]:
        """Within which the claim holds."""
        if self.expected is None:
            return -math.inf, math.inf
        if self.relation == ">=":
            return self.expected, math.inf
        if self.relation == "<=":
            return -math.inf, self.expected
        return self.expected - self.tolerance, self.expected + self.tolerance

    @property
    def asked(self) -> bool:
        """Whether anything is expected of it."""
        return self.expected is not None

    @property
    def verdict(self) -> str:
        """One of `VERDICTS`, or `OPEN` where nothing is expected or nothing was measured."""
        if not self.asked:
            return OPEN
        if self.missing or not self.seeds:
            return INCONCLUSIVE
        (low, high), (least, most) = self.ci, self.region
        if least <= low and high <= most:
            return REPRODUCED
        return NOT_REPRODUCED if high < least or low > most else INCONCLUSIVE

    @property
    def remark(self) -> str:
        """The note, and how many seeds are missing."""
        if not self.missing:
            return self.note
        lost = f"{self.missing} of {len(self.values)} seeds diverged or have no result"
        return f"{lost}; {self.note}" if self.note else lost

    def expectation(self) -> str:
        """`0.5 ± 0.07`, `≥ 1.3`, or "" where nothing is expected."""
        if self.expected is None:
            return ""
        sign = {"=": "", ">=": "≥ ", "<=": "≤ "}[self.relation]
        spread = f" ± {self.tolerance:g}" if self.relation == "=" else ""
        return f"{sign}{self.expected:g}{spread}"


def exact(name: str, value: float, *expectation: Any, **more: Any) -> Quantity:
    """A quantity without seeds."""
    return Quantity(name, (float(value),), *expectation, **more)


def of_seeds(name: str, values: Iterable[float], *expectation: Any, **more: Any) -> Quantity:
    """A quantity of one value for each seed."""
    return Quantity(name, tuple(float(v) for v in values), *expectation, **more)


def by_seed(results: Results, metric: str, **values: Any) -> dict[int, float]:
    """The metric of each run that has these values of swept fields, `__` for dots.

    nan where the run diverged or has not finished.
    """
    wanted = {name.replace("__", "."): value for name, value in values.items()}
    return {
        run.seed: run.number(metric) if run.status == "ok" else math.nan
        for run in results.runs
        if all(run.setting(n) == v for n, v in wanted.items())
    }


def difference(of: Mapping[int, float], less: Mapping[int, float]) -> list[float]:
    """Of runs of the same seed, which start alike and see the same batches, for each seed."""
    return [of.get(seed, math.nan) - less.get(seed, math.nan) for seed in sorted({*of, *less})]
