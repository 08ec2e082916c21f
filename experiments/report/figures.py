"""The paper figures: the page's figures drawn by matplotlib into figures/*.png and *.pdf."""

import math
import pathlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.report import aggregate, canvas, interactive, run_figures, style
from experiments.report.aggregate import Group
from experiments.report.canvas import new_figure
from experiments.report.results import Axis, Results


def write_figures(results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes every figure that the results allow, as PNG and PDF.

    Args:
      results: what the folder holds.
      folder: where the files go; made if absent.

    Returns:
      The written paths.
    """
    import matplotlib

    groups = aggregate.groups(results)
    folder.mkdir(parents=True, exist_ok=True)
    drawings: list[tuple[str, Callable[[], Any]]] = [
        (f"ablation_{_file_name(axis.field)}", lambda axis=axis: ablation(results, axis))
        for axis in results.swept
    ]
    drawings += [
        ("rate_distortion", lambda: rate_distortion(results)),
        ("training_curves", lambda: training_curves(results, groups)),
        ("layer_norms", lambda: run_figures.layer_norms(results, groups)),
        ("gallery", lambda: run_figures.gallery(groups)),
    ]
    written = []
    # text.parse_math is off, so a "$" in a label is a dollar sign; tick labels that want powers are
    # written by hand.
    # A label in a script that the font lacks is drawn as boxes, and names too long for any layout
    # leave it as it is: neither is a reason to warn whoever runs a sweep.
    with matplotlib.rc_context(canvas.RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        for name, drawing in drawings:
            figure = drawing()
            if figure is not None:
                written += canvas.save(figure, folder / name)
    return written


def ablation(results: Results, axis: Axis):
    """One panel per metric over the axis, one line per value of the companion axis; None where
    nothing was measured.
    """
    metrics = interactive.measured(results)
    if not metrics:
        return None
    by = aggregate.companion(results, axis)
    colors = style.axis_colors(by)
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, panels = new_figure(
        rows, columns, width=2.35 * columns, height=1.75 * rows + 0.4 * bool(by)
    )
    for panel, metric in zip(panels, metrics, strict=False):
        for line, (_, points) in enumerate(aggregate.ablation(results, axis, by, metric.key)):
            if not points:
                continue
            errors = np.array([point.estimate.error for point in points])
            whole = [point.runs == point.expected for point in points]
            panel.errorbar(
                [interactive.x_position(axis, point.position) for point in points],
                [point.estimate.mean for point in points],
                yerr=np.nan_to_num(errors) if np.isfinite(errors).any() else None,
                color=colors[line],
                marker="o",
                markersize=3.5,
                linewidth=1.3,
                elinewidth=0.9,
                capsize=2,
                label=style.clipped(f"{by.label} = {by.labels()[line]}") if by else None,
            )
            hollow = [point for point, full in zip(points, whole, strict=True) if not full]
            panel.plot(
                [interactive.x_position(axis, point.position) for point in hollow],
                [point.estimate.mean for point in hollow],
                color=colors[line],
                marker="o",
                markersize=3.5,
                markerfacecolor="white",
                linestyle="none",
                zorder=3,
            )
        panel.set_title(metric.axis_title)
        _set_x(panel, axis)
    for panel in panels[max(0, len(metrics) - columns) : len(metrics)]:
        panel.set_xlabel(style.clipped(axis.field))
    if by:
        _legend_above(figure, panels[0])
    return figure


def rate_distortion(results: Results):
    """Every run in the rate-distortion plane with lines of equal ELBO; None where no run has
    finished.
    """
    runs = [
        run
        for run in results.runs
        if math.isfinite(run.number("test/rate") + run.number("test/distortion"))
    ]
    if not runs:
        return None
    color_axis, symbol_axis = interactive.rate_distortion_axes(results)
    colors = style.axis_colors(color_axis)
    (x_range, y_range), levels = interactive.rate_distortion_frame(runs)
    figure, (panel,) = new_figure(1, 1, width=5.4, height=3.7)
    panel.grid(False)
    for level in levels:
        ends = interactive.clip_level(level, x_range, y_range)
        if ends is None:
            continue
        (x0, y0), (x1, y1) = ends
        panel.plot([x0, x1], [y0, y1], color="#c3c9d4", linewidth=0.7, linestyle=":")
        places = 0 if level == int(level) else 2
        panel.text(
            x0,
            y0,
            style.fixed(-level, places),
            fontsize=6.5,
            color=style.MUTED,
            va="bottom",
            ha="left",
        )
    for run in runs:
        color = colors[color_axis.index(run.values[color_axis.field])] if color_axis else colors[0]
        marker = _MARKERS[symbol_axis.index(run.values[symbol_axis.field])] if symbol_axis else "o"
        panel.plot(
            run.number("test/rate"),
            run.number("test/distortion"),
            marker=marker,
            color=color,
            markersize=5.5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            linestyle="none",
        )
    panel.set_xlim(*x_range)
    panel.set_ylim(*y_range)
    panel.set_xlabel("Rate (nats)")
    panel.set_ylabel("Distortion (nats)")
    handles = []
    if color_axis:
        labels = [style.clipped(f"{color_axis.label} = {label}") for label in color_axis.labels()]
        handles += [_key(color, "o", label) for color, label in zip(colors, labels, strict=True)]
    if symbol_axis:
        labels = [style.clipped(f"{symbol_axis.label} = {label}") for label in symbol_axis.labels()]
        handles += [
            _key(style.MUTED, marker, label)
            for marker, label in zip(_MARKERS, labels, strict=False)
        ]
    if handles:
        figure.legend(handles=handles, loc="outside right upper")
    return figure


def training_curves(results: Results, groups: Sequence[Group]):
    """ELBO, rate and distortion over training along the first swept axis, the others at their
    middle value.
    """
    axis = results.swept[0] if results.swept else None
    shown = [
        group
        for group in aggregate.middle_groups(results, groups, axis)
        if any(run.step.size for run in group.runs)
    ]
    shown = aggregate.few(shown, 6)
    if not shown:
        return None
    colors = style.axis_colors(axis)
    panels_of = (
        ("elbo", "ELBO (nats)"),
        ("rate", "Rate (nats)"),
        ("distortion", "Distortion (nats)"),
    )
    figure, panels = new_figure(1, 3, width=7.1, height=2.5)
    handles = [_line(style.MUTED, "-", "test"), _line(style.MUTED, ":", "train")]
    for panel, (key, title) in zip(panels, panels_of, strict=True):
        for group in shown:
            color = colors[group.index[results.axes.index(axis)]] if axis else colors[0]
            test = aggregate.training_curve(group, f"test/{key}")
            train = aggregate.training_curve(group, f"train/{key}")
            error = np.nan_to_num(test.error)
            panel.fill_between(
                test.step, test.mean - error, test.mean + error, color=color, alpha=0.2, linewidth=0
            )
            panel.plot(train.step, train.mean, color=color, linewidth=0.9, linestyle=":")
            panel.plot(test.step, test.mean, color=color, linewidth=1.4)
            if axis and panel is panels[0]:
                value = axis.labels()[group.index[results.axes.index(axis)]]
                handles.append(_line(color, "-", style.clipped(f"{axis.label} = {value}")))
        panel.set_title(title)
        panel.set_xlabel("step")
    others = [other for other in results.axes if other is not axis]
    fixed = [shown[0].values[results.axes.index(other)] for other in others]
    legend = figure.legend(handles=handles, loc="outside upper left", ncols=min(8, len(handles)))
    if len(results.swept) > 1:
        legend.set_title(
            style.clipped(aggregate.group_label(others, fixed), 100), prop={"size": 7.5}
        )
        legend.set_alignment("left")
    return figure


_MARKERS = ("o", "s", "D", "^", "P", "*", "X", "p")


def _set_x(panel, axis: Axis) -> None:
    positions = [interactive.x_position(axis, i) for i in range(len(axis.values))]
    if axis.log:
        panel.set_xscale("log")
    keep = aggregate.thin(len(positions), 7)
    labels = [style.clipped(axis.labels()[i], 14) for i in keep]
    panel.set_xticks([positions[i] for i in keep], labels)
    if sum(map(len, labels)) > 24:
        panel.tick_params(axis="x", labelrotation=30, labelsize=7)
    panel.minorticks_off()


def _legend_above(figure, panel, columns: int = 6) -> None:
    handles, labels = panel.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside upper left", ncols=min(columns, len(handles)))


def _line(color: str, dash: str, label: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=dash, linewidth=1.4, label=label)


def _key(color: str, marker: str, label: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, marker=marker, markersize=5, linestyle="none", label=label)


def _file_name(field: str) -> str:
    """A dotted field as part of a file name: letters, digits and "_" only."""
    return re.sub(r"[^A-Za-z0-9]+", "_", field)
