"""Interactive figures as plain plotly JSON: dicts of `data` and `layout`, drawn in the page by
plotly.js.

Plain dicts rather than `plotly.graph_objects`: the same JSON without the seconds that its
validators take. Plotly renders a subset of HTML in every text, so each label passes through `text`
on its way in.
"""

import html
import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report import aggregate, style
from experiments.report.axes import Axis, value_key
from experiments.report.results import Results, Run

Figure = dict[str, Any]

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "pentagon")
SYMBOL_GLYPHS = ("●", "■", "◆", "▲", "✚", "★", "✖", "⬟")


def text(value: str) -> str:
    """Escapes a label for plotly, which reads <b>, <a>, <br> and character references."""
    return html.escape(value, quote=False)


def base_layout() -> dict[str, Any]:
    """What every figure shares; the page's own script starts its figures from it, too."""
    return {
        "font": {"family": FONT, "size": 13, "color": style.INK},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 62, "r": 16, "t": 40, "b": 48},
        "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left"},
        "hovermode": "closest",
        "colorway": list(style.PETROFF),
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#98a1b0", "activecolor": style.ACCENT},
    }


def axis_layout(title: str = "", **extra: Any) -> dict[str, Any]:
    layout = {
        "gridcolor": "#eceff4",
        "linecolor": style.RULE,
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "tickcolor": style.RULE,
        "ticklen": 4,
        "tickfont": {"size": 11.5},
        "automargin": True,
    }
    if title:
        layout["title"] = {"text": title, "standoff": 8, "font": {"size": 12.5}}
    return layout | extra


def ablation(results: Results, axis: Axis) -> Figure:
    """One panel per metric over a swept axis, one line per value of the companion axis."""
    by = aggregate.companion(results, axis)
    metrics = measured(results)
    columns = min(3, len(metrics))
    gap = 58 if _upright(axis) else 108
    layout = base_layout() | panels(len(metrics), columns, panel_height=210, gap=gap)
    colors = style.axis_colors(by)
    data, named = [], set()
    for panel, metric in enumerate(metrics):
        suffix = "" if panel == 0 else str(panel + 1)
        last_row = panel + columns >= len(metrics)
        layout[f"xaxis{suffix}"] |= x_scale(axis, text(axis.field) if last_row else "")
        lines = aggregate.ablation(results, axis, by, metric.key)
        layout["annotations"].append(
            panel_title(
                layout,
                suffix,
                f"<b>{metric.title}</b>" + (f" ({metric.unit})" if metric.unit else ""),
            )
        )
        for line, (value, points) in enumerate(lines):
            label = f"{by.label} = {by.labels()[line]}" if by else f"mean over {results.repeats}"
            label = style.clipped(label)
            whole = [point.runs == point.expected for point in points]
            data.append(
                {
                    "type": "scatter",
                    # Between categories there is nothing that a line could pass through.
                    "mode": "lines+markers" if axis.numeric else "markers",
                    "x": [x_beside(axis, point.position, line, len(lines)) for point in points],
                    "y": rounded([point.estimate.mean for point in points]),
                    "error_y": {
                        "type": "data",
                        "array": [_zero(point.estimate.error) for point in points],
                        "visible": any(math.isfinite(point.estimate.error) for point in points),
                        "color": colors[line],
                        "thickness": 1.3,
                        "width": 3,
                    },
                    "line": {"color": colors[line], "width": 2},
                    "marker": {
                        "size": 7,
                        "color": [colors[line] if full else "#ffffff" for full in whole],
                        "line": {"color": colors[line], "width": 1.6},
                    },
                    "name": text(label),
                    "legendgroup": str(line),
                    "showlegend": bool(by is not None and points and line not in named),
                    "hoverinfo": "text",
                    "text": [
                        _point_text(results, axis, by, value, point, metric) for point in points
                    ],
                    "xaxis": f"x{suffix}",
                    "yaxis": f"y{suffix}",
                }
            )
            named |= {line} if points else set()
    layout["legend"] = legend_above()
    # Room for the legend above: about 100 characters fit a line, and a line's sample takes seven.
    entries = [len(by.label) + len(label) + 7 for label in by.labels()] if by else []
    lines = -(-sum(entries) // 100)
    layout["margin"]["t"] = 40 + 24 * lines
    layout["height"] += 24 * lines
    return {"data": data, "layout": layout}


def rate_distortion(results: Results) -> Figure | None:
    """Every run in the plane of rate and distortion, coloured by the first numeric axis, with lines
    of equal ELBO.
    """
    runs = [
        run
        for run in results.runs
        if math.isfinite(run.number("test/rate") + run.number("test/distortion"))
    ]
    if not runs:
        return None
    color_axis, symbol_axis = rate_distortion_axes(results)
    colors = style.axis_colors(color_axis)
    (x_range, y_range), levels = rate_distortion_frame(runs)

    data, annotations = [], []
    for level in levels:
        ends = clip_level(level, x_range, y_range)
        if ends is None:
            continue
        (x0, y0), (x1, y1) = ends
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "x": [x0, x1],
                "y": [y0, y1],
                "line": {"color": "#c3c9d4", "width": 1, "dash": "dot"},
                "hoverinfo": "skip",
                "showlegend": False,
            }
        )
        label = {
            "x": x0,
            "y": y0,
            "text": level_label(level, levels),
            "showarrow": False,
        }
        annotations.append(
            label
            | {"xanchor": "left", "yanchor": "bottom", "font": {"size": 11, "color": style.MUTED}}
        )
    for line, value in enumerate(color_axis.values if color_axis else (None,)):
        members = [
            run
            for run in runs
            if color_axis is None or value_key(run.values[color_axis.field]) == value_key(value)
        ]
        symbols = [
            SYMBOLS[symbol_axis.index(run.values[symbol_axis.field]) % len(SYMBOLS)]
            if symbol_axis
            else "circle"
            for run in members
        ]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [run.number("test/rate") for run in members],
                "y": [run.number("test/distortion") for run in members],
                "marker": {
                    "size": 10,
                    "color": colors[line],
                    "symbol": symbols,
                    "opacity": 0.85,
                    "line": {"color": "#ffffff", "width": 0.8},
                },
                "name": text(style.clipped(f"{color_axis.label} = {color_axis.labels()[line]}"))
                if color_axis
                else "runs",
                "showlegend": color_axis is not None,
                "hoverinfo": "text",
                "text": [_run_text(results, run) for run in members],
            }
        )
    layout = base_layout() | {
        "xaxis": axis_layout("Rate (nats)", range=list(x_range)),
        "yaxis": axis_layout("Distortion (nats)", range=list(y_range)),
        "annotations": annotations,
        "legend": {"orientation": "v", "font": {"size": 12}},
        "height": 520,
    }
    layout["margin"]["t"] = 36
    return {"data": data, "layout": layout}


def rate_distortion_axes(results: Results) -> tuple[Axis | None, Axis | None]:
    """The axes that colour and shape say: the first numeric one (of conditions that are named by
    what they change, the first), and the next if symbols suffice for its values.
    """
    swept = list(results.swept)
    numeric = [axis for axis in swept if axis.numeric and not any(a.unsaid for a in swept)]
    color = next(iter([*numeric, *swept]), None)
    symbol = next(
        (axis for axis in swept if axis is not color and len(axis.values) <= len(SYMBOLS)), None
    )
    return color, symbol


def rate_distortion_frame(
    runs: Sequence[Run],
) -> tuple[tuple[tuple[float, float], tuple[float, float]], list[float]]:
    """Axis ranges around the runs and the levels of rate + distortion that cross them."""
    ranges = []
    for key in ("test/rate", "test/distortion"):
        numbers = [run.number(key) for run in runs]
        low, high = min(numbers), max(numbers)
        pad = 0.08 * (high - low) or max(0.05 * abs(high), 0.5)
        ranges.append((low - pad, high + pad))
    (x0, x1), (y0, y1) = ranges
    return ((x0, x1), (y0, y1)), aggregate.elbo_levels(x0 + y0, x1 + y1, 10)


def level_label(level: float, levels: Sequence[float]) -> str:
    """The ELBO on a line, with the digits that tell it from the next line."""
    step = levels[1] - levels[0] if len(levels) > 1 else 1.0
    return style.fixed(-level, max(0, -math.floor(math.log10(step) + 1e-9)))


def clip_level(
    level: float, x_range: tuple[float, float], y_range: tuple[float, float]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """The part of distortion = level - rate inside the frame, upper left end first; None where it
    misses it.
    """
    x0, x1 = max(x_range[0], level - y_range[1]), min(x_range[1], level - y_range[0])
    return ((x0, level - x0), (x1, level - x1)) if x0 < x1 else None


def measured(results: Results) -> list[style.Metric]:
    """The ablated metrics that at least one run has."""
    return [
        style.with_samples(metric, [run.number("test/nll_samples") for run in results.runs])
        for metric in style.ABLATED
        if any(math.isfinite(run.number(metric.key)) for run in results.runs)
    ]


def wrapped(label: str, width: int = 27) -> str:
    """A label over at most three lines, escaped."""
    unbroken = label.replace(" = ", "\u00a0=\u00a0")
    lines = textwrap.wrap(unbroken, width, max_lines=3, placeholder=" …") or [""]
    return "<br>".join(text(line) for line in lines)


def rounded(values: Sequence[float] | np.ndarray, digits: int = 5) -> list[float | None]:
    """Five significant digits: finer than a pixel, half the page's size; None for nan."""
    return [float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in values]


def x_position(axis: Axis, position: int) -> float:
    """Numbers stand at their value, categories evenly spaced."""
    return float(axis.values[position]) if axis.numeric else float(position)


def x_beside(axis: Axis, position: int, line: int, lines: int) -> float:
    """`x_position`; in a category, the points of several lines stand side by side."""
    place = x_position(axis, position)
    if axis.numeric:
        return place
    return place + 0.5 * ((line + 0.5) / lines - 0.5)


def x_scale(axis: Axis, title: str) -> dict[str, Any]:
    """The x axis of an ablation: logarithmic where the numbers span a decade, ticks at the values
    themselves.
    """
    positions = [x_position(axis, i) for i in range(len(axis.values))]
    ends = [math.log10(v) if axis.log else v for v in (positions[0], positions[-1])]
    pad = 0.08 * (ends[1] - ends[0]) if axis.numeric else 0.5
    labels = _tick_labels(axis)
    # A number is read off between its neighbours, a category is not.
    few = (9 if sum(map(len, labels)) < 28 else 5) if axis.numeric else 24
    keep = aggregate.thin(len(positions), few)
    return axis_layout(
        title,
        tickangle=0 if _upright(axis) else -40,
        type="log" if axis.log else "linear",
        range=[ends[0] - pad, ends[1] + pad],
        tickvals=[positions[i] for i in keep],
        ticktext=[text(labels[i]) for i in keep],
    )


def _tick_labels(axis: Axis) -> list[str]:
    return [style.clipped(label, 16) for label in axis.labels()]


def _upright(axis: Axis) -> bool:
    """Whether the labels below a panel stand beside each other."""
    return axis.numeric or sum(len(label) + 2 for label in _tick_labels(axis)) < 40


def panels(count: int, columns: int, panel_height: int, gap: int = 58) -> dict[str, Any]:
    """Axes for `count` panels in rows of `columns`, with room for titles between the rows."""
    rows = -(-count // columns)
    inner = rows * panel_height + (rows - 1) * gap
    layout: dict[str, Any] = {"height": inner + 40 + 52, "annotations": [], "shapes": []}
    between = 0.075 if columns > 1 else 0.0
    width = (1 - between * (columns - 1)) / columns
    for panel in range(count):
        row, column = divmod(panel, columns)
        suffix = "" if panel == 0 else str(panel + 1)
        left = column * (width + between)
        top = 1 - row * (panel_height + gap) / inner
        layout[f"xaxis{suffix}"] = axis_layout(domain=[left, left + width], anchor=f"y{suffix}")
        bottom = max(0.0, top - panel_height / inner)
        layout[f"yaxis{suffix}"] = axis_layout(domain=[bottom, top], anchor=f"x{suffix}")
    # axis_layout(...) is merged over these later; domain and anchor survive because it does not
    # name them.
    return layout


def panel_title(
    layout: dict[str, Any], suffix: str, title: str, size: float = 13
) -> dict[str, Any]:
    return {
        "x": layout[f"xaxis{suffix}"]["domain"][0],
        "y": layout[f"yaxis{suffix}"]["domain"][1],
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "bottom",
        "yshift": 4,
        "text": title,
        "showarrow": False,
        "align": "left",
        "font": {"size": size},
    }


def legend_above() -> dict[str, Any]:
    return {
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "y": 1,
        "yref": "container",
        "yanchor": "top",
        "font": {"size": 12.5},
    }


def _point_text(
    results: Results,
    axis: Axis,
    by: Axis | None,
    value: Any,
    point: aggregate.Point,
    metric: style.Metric,
) -> str:
    lines = [f"{axis.field} = {axis.labels()[point.position]}"]
    if by is not None:
        lines.append(f"{by.field} = {by.labels()[by.index(value)]}")
    seen = point.estimate
    spread = f" ± {style.fixed(seen.error, 3)}" if math.isfinite(seen.error) else ""
    lines.append(f"{metric.axis_title}: {style.fixed(seen.mean, 3)}{spread}")
    lines.append(f"{results.counted(seen.n)}, {point.runs} of {point.expected} runs")
    return "<br>".join(text(line) for line in lines)


def _run_text(results: Results, run: Run) -> str:
    lines = [
        f"{axis.field} = {axis.labels()[axis.index(run.values[axis.field])]}"
        for axis in results.swept
    ]
    lines += [*filter(None, [run.replicate_label]), f"run {run.run_id}"]
    for metric in (style.RATE, style.DISTORTION, style.ELBO):
        lines.append(f"{metric.axis_title}: {style.fixed(run.number(metric.key), 2)}")
    return "<br>".join(text(line) for line in lines)


def _zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
