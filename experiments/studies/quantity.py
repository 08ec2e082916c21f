"""What is measured of the runs of a study, beside what was seen elsewhere and what is asked."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from experiments.report.aggregate import Estimate, estimate
from experiments.report.results import Results


@dataclasses.dataclass(frozen=True)
class Quantity:
    """One row of a study's verdict.

    Attributes:
      name: what it is, with its unit. seen: mean and standard error over seeds.
      elsewhere: what others saw, and who; or "".
      at_least: what it must be, for the claim to hold here; None: it is only reported.
    """

    name: str
    seen: Estimate
    elsewhere: str = ""
    at_least: float | None = None

    @property
    def verdict(self) -> str:
        """`met` or `not met`, by the mean; `–` where nothing is asked or nothing was seen."""
        if self.at_least is None or math.isnan(self.seen.mean):
            return "–"
        return "met" if self.seen.mean >= self.at_least else "not met"


def by_seed(results: Results, metric: str, **values: Any) -> dict[int, float]:
    """The metric of each finished run that has these values of swept fields, `__` for dots."""
    wanted = {name.replace("__", "."): value for name, value in values.items()}
    return {
        run.seed: run.number(metric)
        for run in results.runs
        if run.status == "ok" and all(run.setting(n) == v for n, v in wanted.items())
    }


def mean(of: Mapping[int, float]) -> Estimate:
    """Over the seeds."""
    return estimate(of.values())


def difference(of: Mapping[int, float], less: Mapping[int, float]) -> Estimate:
    """Of runs of the same seed, which start alike and see the same batches, over the seeds."""
    return estimate(of[seed] - less[seed] for seed in of.keys() & less.keys())
