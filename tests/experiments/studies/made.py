"""What a study found, made up."""

import math
from types import SimpleNamespace

import numpy as np

from experiments.studies.cases import Case, Found


def run(seed, row, **settings):
    """A finished run with these values of fields, `__` for dots, and this row of results."""
    fields = {name.replace("__", "."): value for name, value in settings.items()}
    return SimpleNamespace(
        seed=seed, status="ok", setting=fields.get, number=lambda key: row.get(key, math.nan)
    )


def found(cases, runs=(), environment=None):
    """Of (arguments, values) pairs, and of runs."""
    made = [Case(a, {n: np.asarray(v) for n, v in values.items()}, 1.0) for a, values in cases]
    results = SimpleNamespace(runs=tuple(runs), environment=environment or {})
    return Found("quick", results, tuple(made))


def verdicts(study, of):
    """The verdict of each quantity that is asked for, by name."""
    return {q.name: q.verdict for q in study.measure(of) if q.asked}
