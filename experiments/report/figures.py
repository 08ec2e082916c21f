"""The paper figures: the page's figures drawn by matplotlib into figures/*.png and *.pdf."""

import math
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.report import aggregate, canvas, explorers, interactive, run_figures, style
from experiments.report.aggregate import Group
from experiments.report.axes import Axis
from experiments.report.canvas import new_figure
from experiments.report.conditions import MAX_LABEL, whole
from experiments.report.results import Results


def write_figures(results: Results, folder: pathlib.Path) -> list[pathlib.Path]:
    """Writes every figure that the results allow, as PNG and PDF.

    Args:
      results: what the folder holds.
      folder: where the files go; made if absent.

    Returns:
      The written paths.
    """

    groups = aggregate.groups(results)
    folder.mkdir(parents=True, exist_ok=True)
    drawings: list[tuple[str, Callable[[], Any]]] = [
        (f"ablation_{_file_name(axis.field)}", lambda axis=axis: ablation(results, axis))
        for axis in aggregate.plotted(results, groups)
    ]
    if not aggregate.crossed(results, groups):
        drawings.append(("conditions", lambda: conditions(results, groups)))
    drawings += [
        ("rate_distortion", lambda: rate_distortion(results)),
        ("training_curves", lambda: training_curves(results, groups)),
        ("layer_norms", lambda: run_figures.layer_norms(results, groups)),
        ("gallery", lambda: run_figures.gallery(groups)),
    ]
    written = []
    with canvas.drawing():
        for name, draw in drawings:
            figure = draw()
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
    below = 0 if axis.numeric else 0.05 * max(map(len, _tick_labels(axis)))
    figure, panels = new_figure(
        rows, columns, width=2.35 * columns, height=(1.75 + below) * rows + 0.4 * bool(by)
    )
    for panel, metric in zip(panels, metrics, strict=False):
        lines = aggregate.ablation(results, axis, by, metric.key)
        for line, (_, points) in enumerate(lines):
            if not points:
                continue
            places = [
                interactive.x_beside(axis, point.position, line, len(lines)) for point in points
            ]
            errors = np.array([point.estimate.error for point in points])
            whole = [point.runs == point.expected for point in points]
            panel.errorbar(
                places,
                [point.estimate.mean for point in points],
                yerr=np.nan_to_num(errors) if np.isfinite(errors).any() else None,
                color=colors[line],
                marker="o",
                markersize=3.5,
                linestyle="-" if axis.numeric else "none",
                linewidth=1.3,
                elinewidth=0.9,
                capsize=2,
                label=style.clipped(f"{by.label} = {by.labels()[line]}") if by else None,
            )
            hollow = [i for i, full in enumerate(whole) if not full]
            panel.plot(
                [places[i] for i in hollow],
                [points[i].estimate.mean for i in hollow],
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
        _legend_above(figure, panels)
    return figure


def conditions(results: Results, groups: Sequence[Group]):
    """One panel per metric, one row per group; None where nothing was measured."""
    metrics = interactive.measured(results)
    if not metrics:
        return None
    columns = min(3, len(metrics))
    rows = -(-len(metrics) // columns)
    places = np.arange(len(groups))
    labels = [style.clipped(group.label, MAX_LABEL) for group in groups]
    width = 1.9 * columns + 0.065 * max(map(len, labels))
    height = (0.6 + 0.16 * len(groups)) * rows
    figure, panels = new_figure(rows, columns, width=width, height=height)
    for i, (panel, metric) in enumerate(zip(panels, metrics, strict=False)):
        seen = [group.estimate(metric.key) for group in groups]
        means = np.array([one.mean for one in seen])
        panel.errorbar(
            means,
            places,
            xerr=np.nan_to_num([one.error for one in seen]),
            color=style.ACCENT,
            linestyle="none",
            elinewidth=0.9,
            capsize=2,
        )
        for full in (True, False):
            chosen = np.array([whole(group) is full for group in groups])
            face = style.ACCENT if full else "white"
            panel.plot(
                means[chosen],
                places[chosen],
                marker="o",
                markersize=3.5,
                linestyle="none",
                color=style.ACCENT,
                markerfacecolor=face,
            )
        panel.set_title(metric.axis_title)
        panel.set_ylim(len(groups) - 0.5, -0.5)
        panel.set_yticks(places, labels if i % columns == 0 else [""] * len(groups), fontsize=7)
        panel.locator_params(axis="x", nbins=4)
    for panel in panels[len(metrics) :]:
        panel.set_axis_off()
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
        panel.text(
            x0,
            y0,
            interactive.level_label(level, levels),
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
    # Where not every combination was run, a group is more than its value on one axis.
    alone = len(results.swept) > 1 and not aggregate.crossed(results, groups)
    at = results.axes.index(axis) if axis else 0
    named = [
        (group.label if alone else f"{axis.label} = {axis.labels()[group.index[at]]}")
        if axis
        else ""
        for group in shown
    ]
    colors = style.axis_colors(axis)
    colors = (
        style.category_colors(len(shown))
        if alone
        else [colors[group.index[at] if axis else 0] for group in shown]
    )
    metrics = [
        metric
        for metric in explorers.MAIN
        if any(aggregate.training_curve(group, metric.key).step.size for group in shown)
    ]
    if not metrics:
        return None
    handles = [_line(style.MUTED, "-", "test"), _line(style.MUTED, ":", "train")]
    handles += [
        _line(color, "-", style.clipped(name, 60))
        for color, name in zip(colors, named, strict=True)
        if name
    ]
    width = 0.2 + 2.3 * len(metrics)
    columns = _legend_columns(width, [handle.get_label() for handle in handles])
    lines = -(-len(handles) // columns)
    figure, panels = new_figure(1, len(metrics), width=width, height=2.35 + 0.16 * lines)
    for panel, metric in zip(panels, metrics, strict=True):
        for group, color in zip(shown, colors, strict=True):
            test = aggregate.training_curve(group, metric.key)
            train = aggregate.training_curve(group, explorers.of_training(metric))
            error = np.nan_to_num(test.error)
            panel.fill_between(
                test.step, test.mean - error, test.mean + error, color=color, alpha=0.2, linewidth=0
            )
            panel.plot(train.step, train.mean, color=color, linewidth=0.9, linestyle=":")
            panel.plot(test.step, test.mean, color=color, linewidth=1.4)
        panel.set_title(metric.axis_title)
        panel.set_xlabel("step")
    others = [other for other in results.axes if other is not axis]
    fixed = [shown[0].values[results.axes.index(other)] for other in others]
    legend = figure.legend(handles=handles, loc="outside upper left", ncols=columns)
    if len(results.swept) > 1 and not alone:
        legend.set_title(
            style.clipped(aggregate.group_label(others, fixed), 100), prop={"size": 7.5}
        )
        legend.set_alignment("left")
    return figure


_MARKERS = ("o", "s", "D", "^", "P", "*", "X", "p")


def _tick_labels(axis: Axis) -> list[str]:
    return [style.clipped(label, 14) for label in axis.labels()]


def _set_x(panel, axis: Axis) -> None:
    positions = [interactive.x_position(axis, i) for i in range(len(axis.values))]
    if axis.log:
        panel.set_xscale("log")
    keep = aggregate.thin(len(positions), 7 if axis.numeric else 24)
    labels = [_tick_labels(axis)[i] for i in keep]
    panel.set_xticks([positions[i] for i in keep], labels)
    if not axis.numeric:
        panel.set_xlim(-0.5, len(positions) - 0.5)
    if sum(map(len, labels)) > 24 or len(labels) > 7:
        panel.tick_params(axis="x", labelrotation=30 if axis.numeric else 60, labelsize=7)
    panel.minorticks_off()


def _legend_above(figure, panels: Sequence) -> None:
    """Each line once, whichever panels it is in."""
    named = {}
    for panel in panels:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            named.setdefault(label, handle)
    if named:
        columns = _legend_columns(figure.get_figwidth(), list(named))
        figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=columns)


def _legend_columns(width: float, labels: Sequence[str]) -> int:
    """As many as fit: about 15 characters an inch, and five for the sample and the gaps."""
    fitting = int(15 * width / (max(map(len, labels)) + 5))
    return max(1, min(8, len(labels), fitting))


def _line(color: str, dash: str, label: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, linestyle=dash, linewidth=1.4, label=label)


def _key(color: str, marker: str, label: str):
    from matplotlib.lines import Line2D

    return Line2D([], [], color=color, marker=marker, markersize=5, linestyle="none", label=label)


def _file_name(field: str) -> str:
    """A dotted field as part of a file name: letters, digits and "_" only."""
    return re.sub(r"[^A-Za-z0-9]+", "_", field)
