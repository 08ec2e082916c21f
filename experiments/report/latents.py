"""Interactive figures of what latents carry: where examples lie, which codes they use, and the rate
of each dimension.

As in `interactive`, everything is plain plotly JSON. What there is to show depends on the
posterior: a point has no rate, codes lie in no plane, and where the KL has no closed form it is one
number.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report import aggregate, interactive, style
from experiments.report.aggregate import Group
from experiments.report.results import Run

# Past this many labels a legend tells nothing; their order is shown as a shade instead.
MAX_CLASSES = 20

# Of latents that are codes: variables shown, and numbers in the figure of all runs.
MAX_VARIABLES = 32
MAX_CELLS = 100_000

COLUMNS = 4


@dataclasses.dataclass(frozen=True)
class Frame:
    """The part of the latent plane that is shown; `standard`: with the prior N(0, I) in it."""

    x: tuple[float, float]
    y: tuple[float, float]
    standard: bool


def has_prior(run: Run) -> bool:
    """Whether anything draws the run's z towards a prior: not so of codes without a KL to it."""
    return run.setting("objective.name") not in ("autoencoder", "log_softmax", "tied")


def standard_prior(run: Run) -> bool:
    """Whether z has the prior N(0, I)."""
    return has_prior(run) and run.setting("model.prior", "standard") == "standard"


def rates(run: Run) -> tuple[np.ndarray | None, str]:
    """(KL of each latent dimension [d], "") or, where it does not divide so, (None, what it is)."""
    kl = run.gallery.get("kl_per_dim", np.zeros(0))
    if run.setting("model.posterior") in ("point", "squashed", "tied"):
        return None, "none: a point has no density, and so no rate"
    if run.setting("model.posterior") == "vq" and kl.size:
        codes = run.setting("model.codes", "the number of codes")
        whole = style.fixed(float(kl.sum()), 2)
        return None, f"{whole} nats: ln {codes} for each of {kl.size} variables, whatever it learns"
    if kl.size == 1 and run.setting("model.latent_dim", 1) != 1:
        whole = style.fixed(float(kl[0]), 3)
        return None, f"{whole} nats in all: sampled, for this KL has no closed form"
    return (kl, "") if kl.size else (None, "")


def frames(runs: Sequence[Run]) -> list[Frame]:
    """One frame for all runs with the prior N(0, I): it holds two standard deviations of it and
    99.5% of each run's points. Runs without lie anywhere, each in a frame of its own.
    """
    far = [
        float(np.quantile(np.abs(latent_points(run)[0]), 0.995))
        for run in runs
        if standard_prior(run)
    ]
    extent = max([2.6, *(1.1 * value for value in far)])
    return [
        Frame((-extent, extent), (-extent, extent), True) if standard_prior(run) else _around(run)
        for run in runs
    ]


def _around(run: Run) -> Frame:
    """A square around 99% of the points in either dimension."""
    points, _ = latent_points(run)
    low, high = np.quantile(points, (0.005, 0.995), axis=0)
    half = max(0.55 * float((high - low).max()), 1e-3)
    middle = (low + high) / 2
    x, y = ((float(m) - half, float(m) + half) for m in (middle[0], middle[-1]))
    return Frame(x, y, False)


def latents(shown: Sequence[tuple[Group, Run]]) -> interactive.Figure | None:
    """The two latent dims with the largest rate, one panel per run; a histogram where there is one
    dim.
    """
    shown = [(group, run) for group, run in shown if run.gallery.get("latents", np.zeros(0)).size]
    if not shown:
        return None
    layout = interactive.base_layout() | interactive.panels(
        len(shown), COLUMNS, panel_height=190, gap=96
    )
    labels = np.unique(
        np.concatenate([run.gallery.get("labels", np.zeros(0, np.int32)) for _, run in shown])
    )
    data, seen = [], set()
    for panel, ((group, run), frame) in enumerate(
        zip(shown, frames([run for _, run in shown]), strict=True)
    ):
        suffix = "" if panel == 0 else str(panel + 1)
        points, dims = latent_points(run)
        flat = points.shape[1] == 1
        ticks = {"tickvals": [-2, 0, 2]} if frame.standard else {"nticks": 4}
        layout[f"xaxis{suffix}"] |= interactive.axis_layout(
            f"z<sub>{dims[0]}</sub>", range=list(frame.x), **ticks
        )
        layout[f"yaxis{suffix}"] |= (
            interactive.axis_layout("examples")
            if flat
            else interactive.axis_layout(f"z<sub>{dims[1]}</sub>", range=list(frame.y), **ticks)
        )
        layout["annotations"].append(
            interactive.panel_title(layout, suffix, interactive.wrapped(group.label), size=11.5)
        )
        for trace in _latent_traces(run, points, labels, frame):
            label = trace["legendgroup"]
            trace["showlegend"] = trace["showlegend"] and label not in seen
            seen.add(label)
            data.append(trace | {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"})
        if frame.standard and not flat:
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
    run: Run, points: np.ndarray, labels: np.ndarray, frame: Frame
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
            counts, edges = np.histogram(points[rows, 0], bins=40, range=frame.x)
            middles = interactive.rounded((edges[1:] + edges[:-1]) / 2)
            trace |= {"type": "bar", "x": middles, "y": counts, "width": edges[1] - edges[0]}
            trace |= {"marker": marker}
        else:
            trace |= {"type": "scatter", "mode": "markers", "hoverinfo": "name"}
            trace |= {"x": interactive.rounded(points[rows, 0])}
            trace |= {"y": interactive.rounded(points[rows, 1])}
            trace |= {"marker": marker | {"size": 4.5, "opacity": 0.75}}
        traces.append(trace)
    return traces


def codes(shown: Sequence[tuple[Group, Run]]) -> interactive.Figure | None:
    """How often each variable takes each code, as a share of the test examples; one panel per run
    whose latents are discrete.
    """
    shown = [(group, run) for group, run in shown if code_shares(run) is not None]
    if not shown:
        return None
    shares = [code_shares(run) for _, run in shown]
    widest = max(share.shape[1] for share in shares)
    variables = int(np.clip(MAX_CELLS // (len(shown) * widest), 1, MAX_VARIABLES))
    columns = min(2, len(shown))
    height = 80 + 11 * min(variables, max(len(share) for share in shares))
    layout = interactive.base_layout() | interactive.panels(
        len(shown), columns, panel_height=height, gap=96
    )
    data = []
    for panel, ((group, _), share) in enumerate(zip(shown, shares, strict=True)):
        suffix = "" if panel == 0 else str(panel + 1)
        kept = share[:variables]
        layout[f"xaxis{suffix}"] |= interactive.axis_layout(
            "code" if panel + columns >= len(shown) else "",
            tickvals=list(range(0, kept.shape[1], -(-kept.shape[1] // 8))),
            showgrid=False,
        )
        layout[f"yaxis{suffix}"] |= interactive.axis_layout(
            "variable",
            tickvals=list(range(0, len(kept), -(-len(kept) // 8))),
            autorange="reversed",
            showgrid=False,
        )
        layout["annotations"].append(
            interactive.panel_title(layout, suffix, interactive.wrapped(group.label, 60), size=11.5)
        )
        data.append(
            {
                "type": "heatmap",
                "z": [interactive.rounded(row, 3) for row in kept],
                "coloraxis": "coloraxis",
                "hovertemplate": "variable %{y}, code %{x}: %{z:.1%}<extra></extra>",
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
            }
        )
    layout["coloraxis"] = {
        "cmin": 0,
        "cmax": max(float(share.max()) for share in shares),
        "colorscale": [[0, "#ffffff"], [1, style.ACCENT]],
        "colorbar": {"thickness": 11, "outlinewidth": 0, "tickformat": ".0%"},
    }
    layout["margin"]["t"] = 56
    layout["height"] += 16
    return {"data": data, "layout": layout}


def code_shares(run: Run) -> np.ndarray | None:
    """[variables, codes], each row adds up to 1; None where the latents are continuous."""
    counts = run.gallery.get("code_counts", np.zeros(0))
    if not counts.size or not counts.any():
        return None
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def kl_per_dim(shown: Sequence[tuple[Group, Run]]) -> interactive.Figure | None:
    """Mean KL of each latent dim on the test set, largest first, one panel per run that has it."""
    bars = [(group, rate) for group, run in shown if (rate := rates(run)[0]) is not None]
    if not bars:
        return None
    layout = interactive.base_layout() | interactive.panels(
        len(bars), COLUMNS, panel_height=120, gap=78
    )
    layout["margin"]["t"] = 56
    layout["height"] += 16
    top = max(float(rate.max()) for _, rate in bars)
    data = []
    for panel, (group, rate) in enumerate(bars):
        suffix = "" if panel == 0 else str(panel + 1)
        order = np.argsort(-rate, kind="stable")
        layout[f"xaxis{suffix}"] |= interactive.axis_layout(
            "rank" if panel + COLUMNS >= len(bars) else "",
            tickvals=list(range(1, rate.size + 1, -(-rate.size // 5))),
        )
        layout[f"yaxis{suffix}"] |= interactive.axis_layout(
            "KL (nats)" if panel % COLUMNS == 0 else "", range=[0, 1.08 * top or 1]
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
    """Where examples lie, float [M, 1 or 2], and the latent dims they belong to; one column where
    the latent has one dim.
    """
    points = run.gallery["latents"].reshape(len(run.gallery["latents"]), -1)
    dims = run.gallery.get("latent_dims", np.arange(points.shape[1])).ravel().tolist()
    width = 1 if len(set(dims)) == 1 else 2
    return points[:, :width], dims[:width]
