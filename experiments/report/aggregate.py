"""Statistics over runs: groups over seeds or folds, standard errors, ablation curves, and the
choice of runs to show.

Everything here is a pure function of the `Results`; the HTML, the interactive and the paper figures
draw the same numbers.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from experiments.report import style
from experiments.report.axes import Axis, value_key, value_label
from experiments.report.results import Results, Run
from experiments.report.style import Metric
from experiments.rules import BYTE_LIKELIHOODS

# Runs whose images, latents and layers are shown; more would be scrolled past, not looked at.
MAX_REPRESENTATIVES = 12

# The label of the one group of a sweep over nothing but seeds.
BASE = "base configuration"


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over n seeds with its standard error (ddof = 1; nan when n < 2)."""

    mean: float
    error: float
    n: int


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """The runs that share everything but seed and fold; `index` holds the position on each axis."""

    index: tuple[int, ...]
    values: tuple[Any, ...]
    label: str
    runs: tuple[Run, ...]

    def estimate(self, key: str) -> Estimate:
        """Over the replicates of the runs that came to their end."""
        return over_replicates((run, run.number(key)) for run in self.runs if run.status == "ok")


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of an ablation curve: `runs` of the `expected` runs entered it."""

    position: int
    estimate: Estimate
    runs: int
    expected: int


@dataclasses.dataclass(frozen=True)
class Curve:
    """A group's metric over training: step int64 [L], mean and standard error over seeds float64
    [L].
    """

    step: np.ndarray
    mean: np.ndarray
    error: np.ndarray


def estimate(values: Iterable[float]) -> Estimate:
    """Mean and standard error of the finite values: s / sqrt(n) with s the ddof = 1 standard
    deviation.
    """
    finite = np.array([value for value in values if math.isfinite(value)], np.float64)
    if finite.size == 0:
        return Estimate(math.nan, math.nan, 0)
    error = float(finite.std(ddof=1) / math.sqrt(finite.size)) if finite.size > 1 else math.nan
    return Estimate(float(finite.mean()), error, int(finite.size))


def over_replicates(values: Iterable[tuple[Run, float]]) -> Estimate:
    """Of the finite values of runs: where there are folds, over the folds' means over seeds.

    The standard error over K folds is the usual one, as if they were independent; they share
    training data, and no unbiased estimate of their variance exists (Bengio and Grandvalet 2004,
    "No Unbiased Estimator of the Variance of K-Fold Cross-Validation").
    """
    gathered: dict[Any, list[float]] = {}
    for run, value in values:
        if math.isfinite(value):
            # Runs of an unknown seed are each their own.
            name = run.run_id if run.replicate is None else run.replicate
            gathered.setdefault(name, []).append(value)
    return estimate(float(np.mean(of_one)) for of_one in gathered.values())


def group_label(axes: Sequence[Axis], values: Sequence[Any]) -> str:
    """As in beta = 0.5, depth = 2; axes that say nothing more (one value, implied) are left out,
    and so are values that need no word.
    """
    parts = [
        f"{axis.label} = {value_label(value)}"
        for axis, value in zip(axes, values, strict=True)
        if len(axis.values) > 1
        and not axis.implied
        and value_key(value) not in map(value_key, axis.unsaid)
    ]
    return ", ".join(parts) or BASE


def groups(results: Results) -> tuple[Group, ...]:
    """The runs gathered over seeds, in the order of the axes' values."""
    gathered: dict[tuple[int, ...], list[Run]] = {}
    for run in results.runs:
        index = tuple(axis.index(run.values[axis.field]) for axis in results.axes)
        gathered.setdefault(index, []).append(run)
    out = []
    for index in sorted(gathered):
        values = tuple(axis.values[i] for axis, i in zip(results.axes, index, strict=True))
        out.append(Group(index, values, group_label(results.axes, values), tuple(gathered[index])))
    return tuple(out)


def run_label(results: Results, run: Run) -> str:
    """The run's group, fold and seed: "beta = 0.5, depth = 2, seed = 0"."""
    label = group_label(results.axes, [run.values[axis.field] for axis in results.axes])
    parts = [*([] if label == BASE else [label]), run.replicate_label]
    return ", ".join(filter(None, parts)) or label


def companion(results: Results, axis: Axis) -> Axis | None:
    """The axis that colours the curves over `axis`: the next swept one, the first again after the
    last.
    """
    swept = results.swept
    if len(swept) < 2:
        return None
    return swept[([other.field for other in swept].index(axis.field) + 1) % len(swept)]


def ablation(
    results: Results, axis: Axis, by: Axis | None, key: str
) -> list[tuple[Any, list[Point]]]:
    """Ablation curves of a metric over one axis.

    Where more axes than these two are swept, a seed's (or fold's) values are first averaged over
    them; mean and standard error are then taken over the seeds' averages, so the error bar shows
    the spread between seeds and not between conditions. A seed that lacks one of those (diverged,
    unfinished) is left out of the point, for its average would be over other conditions than its
    neighbours'; a point with no whole seed is left out of the curve.

    Returns:
      One (value of `by`, points) per curve; the value is None where `by` is None.
    """
    cells: dict[tuple[str, str], list[Run]] = {}
    for run in results.runs:
        place = (value_key(run.values[by.field]) if by else "", value_key(run.values[axis.field]))
        cells.setdefault(place, []).append(run)
    curves = []
    for value in by.values if by else (None,):
        points = []
        for position, x in enumerate(axis.values):
            cell = cells.get((value_key(value) if by else "", value_key(x)), [])
            per_seed: dict[Any, list[float]] = {}
            for run in cell:
                per_seed.setdefault(run.replicate, []).append(run.number(key))
            whole = [numbers for numbers in per_seed.values() if np.isfinite(numbers).all()]
            if whole:
                seen = estimate(float(np.mean(numbers)) for numbers in whole)
                points.append(Point(position, seen, sum(map(len, whole)), len(cell)))
        curves.append((value, points))
    return curves


def plotted(results: Results, groups: Sequence[Group]) -> tuple[Axis, ...]:
    """The axes that metrics can be plotted against: all where every combination was run. Where not,
    of two axes those that are numeric: with one on the abscissa and one as lines, nothing is
    averaged; else none.
    """
    if crossed(results, groups):
        return results.swept
    if len(results.swept) > 2:
        return ()
    return tuple(axis for axis in results.swept if axis.numeric)


def main_effects(
    results: Results, keys: Sequence[str]
) -> list[tuple[Axis, dict[str, tuple[float, float]]]]:
    """For every numeric axis: each metric at the lowest and at the highest value, averaged over all
    the rest.
    """
    effects = []
    for axis in results.swept:
        if not axis.numeric:
            continue
        ends = {}
        for key in keys:
            points = {
                point.position: point.estimate.mean
                for point in ablation(results, axis, None, key)[0][1]
            }
            if 0 in points and len(axis.values) - 1 in points:
                ends[key] = (points[0], points[len(axis.values) - 1])
        effects.append((axis, ends))
    return effects


def tabulated(results: Results) -> tuple[Metric, ...]:
    """The columns of the tables: what at least one run has."""
    measured = [
        metric
        for metric in style.TABULATED
        if any(math.isfinite(run.number(metric.key)) for run in results.runs)
    ]
    return tuple(measured) or style.EXPECTED


def comparable(results: Results) -> bool:
    """Whether one ELBO can be better than another: all are of the same data, and all are
    log-probabilities of bytes, or of bits, or log-densities.
    """
    return len({_modelled(run) for run in results.runs}) < 2


def _modelled(run: Run) -> tuple[str, ...]:
    likelihood = run.setting("model.likelihood")
    kind = "bytes" if likelihood in BYTE_LIKELIHOODS else "density"
    fields = ["source", "binarization", "scaling", "seed"]
    fields += ["test_split"] if run.fold is None else ["train_split", "folds"]
    return (
        "bits" if likelihood == "bernoulli" else kind,
        *(value_key(run.setting(f"data.{field}")) for field in fields),
    )


def best_group(results: Results, all_groups: Sequence[Group]) -> Group | None:
    """The group with the highest mean test ELBO; None where none has one or they do not compare."""
    if not comparable(results):
        return None
    scored = [(group.estimate("test/elbo").mean, group) for group in all_groups]
    scored = [(mean, group) for mean, group in scored if math.isfinite(mean)]
    return max(scored, key=lambda pair: pair[0])[1] if scored else None


def training_curve(group: Group, key: str) -> Curve:
    """A metric over training, averaged over the group's seeds and folds.

    A diverged run stops early, and a mean that suddenly loses a member jumps: such runs count only
    where a group has no other, and then up to the step at which they diverged.
    """
    members = [run for run in group.runs if run.status != "diverged"] or list(group.runs)
    series: dict[int, list[tuple[Run, float]]] = {}
    for run in members:
        end = run.number("diverged/step")
        for step, value in zip(run.step.tolist(), run.curves.get(key, ()), strict=False):
            if math.isfinite(value) and not step > end:
                series.setdefault(step, []).append((run, value))
    steps = sorted(series)
    seen = [over_replicates(series[step]) for step in steps]
    return Curve(
        np.array(steps, np.int64),
        np.array([point.mean for point in seen], np.float64),
        np.array([point.error for point in seen], np.float64),
    )


def middle_groups(results: Results, groups: Sequence[Group], axis: Axis | None) -> list[Group]:
    """The groups along one axis with every other at its middle value; all groups where there are
    none such, or where not every combination was run.
    """
    if not crossed(results, groups):
        return list(groups)
    middle = [(len(other.values) - 1) // 2 for other in results.axes]
    along = [
        group
        for group in groups
        if all(
            i == middle[k]
            for k, i in enumerate(group.index)
            if results.axes[k] is not axis and not results.axes[k].implied
        )
    ]
    return along or list(groups)


def crossed(results: Results, groups: Sequence[Group]) -> bool:
    """Whether every combination of the swept values was asked for."""
    return len(groups) == math.prod(len(axis.values) for axis in results.swept)


def first_shown(group: Group) -> Run | None:
    """The run that stands for a group: its first seed that left pictures, else the first that left
    curves.
    """
    with_gallery = [run for run in group.runs if (run.directory / "gallery.npz").is_file()]
    with_curves = [run for run in group.runs if run.step.size]
    return next(iter(with_gallery + with_curves), None)


def representatives(
    all_groups: Sequence[Group], limit: int = MAX_REPRESENTATIVES
) -> tuple[Group, ...]:
    """At most `limit` groups spread over the axes, chosen by position alone, never by result.

    In this order until the limit: the middle of every axis; each axis' extremes with the others at
    the middle; the corners of the box; then groups evenly spaced over what is left. Returned in the
    order of the axes.
    """
    if len(all_groups) <= limit:
        return tuple(all_groups)
    by_index = {group.index: group for group in all_groups}
    sizes = [max(index[axis] for index in by_index) + 1 for axis in range(len(all_groups[0].index))]
    middle = tuple((size - 1) // 2 for size in sizes)
    wanted = [middle]
    for axis, size in enumerate(sizes):
        wanted += [(*middle[:axis], end, *middle[axis + 1 :]) for end in (0, size - 1)]
    # Each corner with its opposite, so that a cut at the limit leaves no side out.
    for corner in itertools.islice(
        itertools.product(*((0, size - 1) for size in sizes)), 2 * limit
    ):
        wanted += [corner, tuple(size - 1 - i for size, i in zip(sizes, corner, strict=True))]
    chosen = [index for index in dict.fromkeys(wanted) if index in by_index][:limit]
    rest = [index for index in by_index if index not in chosen]
    missing = limit - len(chosen)
    chosen += [rest[i] for i in np.linspace(0, len(rest) - 1, missing).round().astype(int)]
    return tuple(by_index[index] for index in sorted(set(chosen)))


def few(items: Sequence[Any], limit: int) -> tuple[Any, ...]:
    """At most `limit` items, evenly spaced, the first and the last among them."""
    if len(items) <= limit:
        return tuple(items)
    return tuple(items[i] for i in thin(len(items), limit))


def thin(length: int, limit: int) -> np.ndarray:
    """At most `limit` indices into a curve, evenly spaced, the first and the last among them; int
    [min(length, limit)].
    """
    return np.unique(np.linspace(0, length - 1, min(length, limit)).round().astype(int))


def elbo_levels(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round values of rate + distortion between two sums, for the lines of equal
    ELBO.
    """
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
