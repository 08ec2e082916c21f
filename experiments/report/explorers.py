"""The data of the page's two explorers, of curves over training and of norms by layer: arrays, from
which the page's script builds the traces.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report import aggregate, interactive, style
from experiments.report.aggregate import Group
from experiments.report.reported import reported
from experiments.report.results import Results, Run
from experiments.report.style import Metric

# Upper bound on the numbers in one explorer's payload: about 8 bytes each, so the page stays near
# 10 MB beside plotly.js.
NUMBER_BUDGET = 400_000


# The lines of a layer's part of the model; every other part is solid.
DASHES = {"decoder": "dash", "likelihood": "dash", "discriminator": "dot"}
DASHES |= {"posterior": "dashdot", "prior": "dashdot"}


def training(results: Results, groups: Sequence[Group]) -> dict[str, Any]:
    """The data behind the training-curve explorer: mean and standard error of every group on a
    thinned grid, of what all runs log (`training`) and of what objectives report (`reported`).
    """
    panels = {
        "training": [_panel(metric, metric.key, of_training(metric)) for metric in MAIN],
        "reported": [_panel(metric, metric.key, "") for metric in reported(results)],
    }
    keys = [key for panel in sum(panels.values(), []) for key in (panel["solid"], panel["dotted"])]
    points = training_points(results, groups)
    return {
        "axes": [
            {
                "label": interactive.text(axis.label),
                "values": [interactive.text(label) for label in axis.labels()],
                "colors": style.axis_colors(axis),
                "start": (len(axis.values) - 1) // 2,
                "position": results.axes.index(axis),
            }
            for axis in results.swept
        ],
        "panels": panels,
        "palette": _palette(results, groups),
        "groups": [
            {
                "index": list(group.index),
                "label": interactive.text(style.clipped(group.label, 60)),
                "seeds": len(group.runs),
                "curves": {
                    key: _curve(aggregate.training_curve(group, key), points)
                    for key in keys
                    if _logged(group, key)
                },
            }
            for group in groups
        ],
    }


# The panels of the training curves: solid the test set, dotted the training batches.
MAIN = (style.ELBO, style.RATE, style.DISTORTION)


def of_training(metric: Metric) -> str:
    return metric.key.replace("test/", "train/")


def _panel(metric: Metric, solid: str, dotted: str) -> dict[str, str]:
    title, unit = interactive.text(metric.title), interactive.text(metric.unit)
    return {"solid": solid, "dotted": dotted, "title": title, "unit": unit}


def _palette(results: Results, groups: Sequence[Group]) -> list[str]:
    """A colour for each group where all are shown together: that of its value on the first axis, if
    there is no other, or not every combination was run, each its own.
    """
    if len(results.swept) > 1 and not aggregate.crossed(results, groups):
        return list(style.category_colors(len(groups)))
    if not results.swept:
        return [style.ACCENT] * len(groups)
    axis = results.swept[0]
    position, colors = results.axes.index(axis), style.axis_colors(axis)
    return [colors[group.index[position]] for group in groups]


def _logged(group: Group, key: str) -> bool:
    return any(np.isfinite(run.curves.get(key, np.nan)).any() for run in group.runs)


def training_points(results: Results, groups: Sequence[Group]) -> int:
    """Steps drawn of each training curve, which has x, y and error."""
    keys = [key for metric in MAIN for key in (metric.key, of_training(metric))]
    keys += [metric.key for metric in reported(results)]
    curves = sum(_logged(group, key) for group in groups for key in keys)
    return int(np.clip(NUMBER_BUDGET // max(1, 3 * curves), 20, 200))


def layer_points(runs: Sequence[Run]) -> int:
    """Steps drawn of each run's norms: three norms a layer."""
    deepest = max((len(run.layers) for run in runs), default=1)
    return int(np.clip(NUMBER_BUDGET // max(1, 3 * deepest * len(runs)), 10, 100))


def layers(runs: Sequence[Run]) -> dict[str, Any]:
    """The data behind the layer explorer: gradient, parameter and update norms [layers, steps] of
    each run.
    """
    points = layer_points(runs)
    shown, logs = [], []
    for run in runs:
        keep = aggregate.thin(run.step.size, points)
        norms = {
            kind: [
                interactive.rounded(
                    run.curves.get(f"{kind}/{layer}/norm", np.full(run.step.size, np.nan))[keep]
                )
                for layer in run.layers
            ]
            for kind in ("grad", "param", "update")
        }
        logs += [math.log10(v) for row in norms["grad"] for v in row if v]
        shown.append(
            {
                "layers": [interactive.text(layer) for layer in run.layers],
                "colors": style.viridis(len(run.layers)),
                "dashes": [DASHES.get(layer.split("/")[0], "solid") for layer in run.layers],
                "step": run.step[keep],
                **norms,
            }
        )
    # One colour scale for all runs, so that changing the run changes only what is seen.
    return {"runs": shown, "range": [min(logs, default=-1.0), max(logs, default=0.0)]}


def _curve(curve: aggregate.Curve, points: int) -> dict[str, Any]:
    if curve.step.size == 0:
        return {"x": [], "y": [], "e": []}
    keep = aggregate.thin(curve.step.size, points)
    return {
        "x": curve.step[keep],
        "y": interactive.rounded(curve.mean[keep]),
        "e": interactive.rounded(curve.error[keep]),
    }
