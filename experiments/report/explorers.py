"""Interactive figures of single runs and groups over training: what the page's explorers and the
latent section draw.

As in `interactive`, everything is plain plotly JSON; the explorers get their data as arrays and
build the traces in the page.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report import aggregate, interactive, style
from experiments.report.aggregate import Group
from experiments.report.results import Results, Run

# Upper bound on the numbers in one explorer's payload: about 8 bytes each, so the page stays near
# 10 MB beside plotly.js.
NUMBER_BUDGET = 400_000

# Past this many labels a legend tells nothing; their order is shown as a shade instead.
MAX_CLASSES = 20


def training(results: Results, groups: Sequence[Group]) -> dict[str, Any]:
    """The data behind the training-curve explorer: mean and standard error of every group on a
    thinned grid.
    """
    panels = [("elbo", "ELBO (nats)"), ("rate", "Rate (nats)"), ("distortion", "Distortion (nats)")]
    points = training_points(groups)
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
        "panels": [{"key": key, "title": title} for key, title in panels],
        "groups": [
            {
                "index": list(group.index),
                "label": interactive.text(style.clipped(group.label, 60)),
                "seeds": len(group.runs),
                "curves": {
                    f"{split}/{key}": _curve(
                        aggregate.training_curve(group, f"{split}/{key}"), points
                    )
                    for key, _ in panels
                    for split in ("train", "test")
                },
            }
            for group in groups
        ],
    }


def training_points(groups: Sequence[Group]) -> int:
    """Steps drawn of each training curve: six curves a group, each with x, y and error."""
    return int(np.clip(NUMBER_BUDGET // max(1, 18 * len(groups)), 20, 200))


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
                "step": run.step[keep],
                **norms,
            }
        )
    # One colour scale for all runs, so that changing the run changes only what is seen.
    return {"runs": shown, "range": [min(logs, default=-1.0), max(logs, default=0.0)]}


def latents(shown: Sequence[tuple[Group, Run]]) -> interactive.Figure | None:
    """The two latent dims with the largest rate, one panel per run; a histogram where there is one
    dim.
    """
    shown = [(group, run) for group, run in shown if run.gallery.get("latents", np.zeros(0)).size]
    if not shown:
        return None
    columns = 4
    layout = interactive.base_layout() | interactive.panels(
        len(shown), columns, panel_height=190, gap=96
    )
    labels = np.unique(
        np.concatenate([run.gallery.get("labels", np.zeros(0, np.int32)) for _, run in shown])
    )
    extent = max(latent_extent(run) for _, run in shown)
    data, seen = [], set()
    for panel, (group, run) in enumerate(shown):
        suffix = "" if panel == 0 else str(panel + 1)
        points, dims = latent_points(run)
        flat = points.shape[1] == 1
        layout[f"xaxis{suffix}"] |= interactive.axis_layout(
            f"z<sub>{dims[0]}</sub>", range=[-extent, extent], tickvals=[-2, 0, 2]
        )
        layout[f"yaxis{suffix}"] |= (
            interactive.axis_layout("examples")
            if flat
            else interactive.axis_layout(
                f"z<sub>{dims[1]}</sub>", range=[-extent, extent], tickvals=[-2, 0, 2]
            )
        )
        layout["annotations"].append(
            interactive.panel_title(layout, suffix, interactive.wrapped(group.label), size=11.5)
        )
        for trace in _latent_traces(run, points, labels, extent):
            label = trace["legendgroup"]
            trace["showlegend"] = trace["showlegend"] and label not in seen
            seen.add(label)
            data.append(trace | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"})
        if not flat:
            layout["shapes"].append(
                {
                    "type": "circle",
                    "xref": f"x{suffix}",
                    "yref": f"y{suffix}",
                    **{"x0": -2, "x1": 2, "y0": -2, "y1": 2},
                    "line": {"color": style.MUTED, "width": 1, "dash": "dash"},
                }
            )
    layout["barmode"] = "stack"
    layout["legend"] = interactive.legend_above() | {
        "title": {"text": "label "},
        "itemsizing": "constant",
    }
    layout["margin"]["t"] = 92
    layout["height"] += 52
    return {"data": data, "layout": layout}


def _latent_traces(
    run: Run, points: np.ndarray, labels: np.ndarray, extent: float
) -> list[dict[str, Any]]:
    """One trace per label; one in all where there are none, or more than a legend can hold."""
    # Scattered marks are heavy SVG nodes; 600 show the shape of ten classes.
    keep = aggregate.thin(len(points), 600)
    classes = run.gallery.get("labels")
    parts: list[tuple[str, np.ndarray, dict[str, Any]]]
    if classes is None or (labels.size > MAX_CLASSES and points.shape[1] == 1):
        parts = [("examples", keep, {"color": style.ACCENT})]
    elif labels.size > MAX_CLASSES:
        shades = {"color": classes[keep], "colorscale": "Viridis"}
        shades |= {"cmin": labels[0], "cmax": labels[-1]}
        parts = [("examples", keep, shades)]
    else:
        colors = style.category_colors(len(labels))
        parts = [
            (str(label), keep[classes[keep] == label], {"color": color})
            for label, color in zip(labels.tolist(), colors, strict=True)
        ]
    traces = []
    for name, rows, marker in parts:
        if rows.size == 0:
            continue
        trace = {"name": name, "legendgroup": name, "showlegend": name != "examples"}
        if points.shape[1] == 1:
            counts, edges = np.histogram(points[rows, 0], bins=40, range=(-extent, extent))
            middles = interactive.rounded((edges[1:] + edges[:-1]) / 2)
            trace |= {"type": "bar", "x": middles, "y": counts, "width": 2 * extent / 40}
            trace |= {"marker": marker}
        else:
            trace |= {"type": "scatter", "mode": "markers", "hoverinfo": "name"}
            trace |= {"x": interactive.rounded(points[rows, 0])}
            trace |= {"y": interactive.rounded(points[rows, 1])}
            trace |= {"marker": marker | {"size": 4.5, "opacity": 0.75}}
        traces.append(trace)
    return traces


def kl_per_dim(shown: Sequence[tuple[Group, Run]]) -> interactive.Figure | None:
    """Mean KL of each latent dim on the test set, largest first, one panel per run."""
    shown = [
        (group, run) for group, run in shown if run.gallery.get("kl_per_dim", np.zeros(0)).size
    ]
    if not shown:
        return None
    columns = 4
    layout = interactive.base_layout() | interactive.panels(
        len(shown), columns, panel_height=120, gap=78
    )
    layout["margin"]["t"] = 56
    layout["height"] += 16
    top = max(float(run.gallery["kl_per_dim"].max()) for _, run in shown)
    data = []
    for panel, (group, run) in enumerate(shown):
        suffix = "" if panel == 0 else str(panel + 1)
        rate = run.gallery["kl_per_dim"]
        order = np.argsort(-rate, kind="stable")
        layout[f"xaxis{suffix}"] |= interactive.axis_layout(
            "rank" if panel + columns >= len(shown) else "",
            tickvals=list(range(1, rate.size + 1, -(-rate.size // 5))),
        )
        layout[f"yaxis{suffix}"] |= interactive.axis_layout(
            "KL (nats)" if panel % columns == 0 else "", range=[0, 1.08 * top or 1]
        )
        layout["annotations"].append(
            interactive.panel_title(layout, suffix, interactive.wrapped(group.label), size=11.5)
        )
        data.append(
            {
                "type": "bar",
                "x": list(range(1, rate.size + 1)),
                "y": interactive.rounded(rate[order]),
                "text": [
                    f"latent dim {dim}: {style.fixed(float(rate[dim]), 3)} nats"
                    for dim in order.tolist()
                ],
                "hoverinfo": "text",
                "textposition": "none",
                "marker": {"color": style.ACCENT},
                "showlegend": False,
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
            }
        )
    return {"data": data, "layout": layout}


def latent_points(run: Run) -> tuple[np.ndarray, list[int]]:
    """Posterior means float [M, 1 or 2] and the latent dims they belong to; one column where the
    latent has one dim.
    """
    points = run.gallery["latents"].reshape(len(run.gallery["latents"]), -1)
    dims = run.gallery.get("latent_dims", np.arange(points.shape[1])).ravel().tolist()
    width = 1 if len(set(dims)) == 1 or run.gallery.get("kl_per_dim", np.zeros(2)).size == 1 else 2
    return points[:, :width], dims[:width]


def latent_extent(run: Run) -> float:
    """Half the width of a frame that holds the prior's two standard deviations and 99.5% of the
    run's points.
    """
    return max(2.6, 1.1 * float(np.quantile(np.abs(latent_points(run)[0]), 0.995)))


def _curve(curve: aggregate.Curve, points: int) -> dict[str, Any]:
    if curve.step.size == 0:
        return {"x": [], "y": [], "e": []}
    keep = aggregate.thin(curve.step.size, points)
    return {
        "x": curve.step[keep],
        "y": interactive.rounded(curve.mean[keep]),
        "e": interactive.rounded(curve.error[keep]),
    }
