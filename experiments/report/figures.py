"""The paper figures: the page's figures drawn by matplotlib into figures/*.png and *.pdf.

Object-oriented API with the Agg and PDF canvases only: no pyplot, no global state, no display.
Fonts are embedded as Type 42 (TrueType), which conference submission systems accept; Type 3 they
refuse.
"""

import io
import math
import pathlib
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from experiments.report import aggregate, explorers, interactive, pictures, style
from experiments.report.aggregate import Group
from experiments.report.gallery import representatives
from experiments.report.results import Axis, Results, Run, value_key

# Dots per inch of the PNGs and of rasters inside the PDFs: sharp in print at this size, megabytes
# smaller than 300.
DPI = 160

_RC = {
    "pdf.fonttype": 42,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.edgecolor": "#9aa3b2",
    "axes.labelcolor": style.INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": "#eceff4",
    "xtick.color": "#667085",
    "ytick.color": "#667085",
    "xtick.labelcolor": style.INK,
    "ytick.labelcolor": style.INK,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "text.parse_math": False,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
}


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
        ("layer_norms", lambda: layer_norms(results, groups)),
        ("gallery", lambda: gallery(groups)),
    ]
    written = []
    # text.parse_math is off, so a "$" in a label is a dollar sign; tick labels that want powers are
    # written by hand.
    # A label in a script that the font lacks is drawn as boxes, and names too long for any layout
    # leave it as it is: neither is a reason to warn whoever runs a sweep.
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        for name, drawing in drawings:
            figure = drawing()
            if figure is not None:
                written += _save(figure, folder / name)
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
    figure, panels = _figure(
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
    figure, (panel,) = _figure(1, 1, width=5.4, height=3.7)
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
        for group in middle_groups(results, groups, axis)
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
    figure, panels = _figure(1, 3, width=7.1, height=2.5)
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


def layer_norms(results: Results, groups: Sequence[Group], limit: int = 4):
    """Gradient norm by depth and step as heat maps, update / parameter norm as lines, one column
    per run.
    """
    import matplotlib

    along = middle_groups(results, groups, layer_axis(results))
    runs = [
        run for group in along if (run := aggregate.first_shown(group)) is not None and run.layers
    ]
    runs = aggregate.few(runs, limit)
    if not runs:
        return None
    log_norms = []
    for run in runs:
        grad = np.stack([run.curves[f"grad/{layer}/norm"] for layer in run.layers])
        log_norms.append(np.log10(np.where(grad > 0, grad, np.nan)))
    finite = np.concatenate([norms[np.isfinite(norms)] for norms in log_norms])
    low, high = (finite.min(), finite.max()) if finite.size else (-1.0, 0.0)
    deepest = max(len(run.layers) for run in runs)
    figure, panels = _figure(
        2, len(runs), width=1.2 + 1.75 * len(runs), height=2.4 + 0.13 * deepest
    )
    for column, (run, norms) in enumerate(zip(runs, log_norms, strict=True)):
        top, bottom = panels[column], panels[len(runs) + column]
        mesh = _heat_map(top, run, norms, float(low), float(high))
        if column and run.layers == runs[column - 1].layers:
            top.set_yticklabels([])
        label = _stacked(aggregate.run_label(results, run))
        top.set_title(label, fontsize=7, fontweight="normal")
        colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(run.layers)))
        for layer, color in zip(run.layers, colors, strict=True):
            blank = np.full(run.step.size, np.nan)
            param = run.curves.get(f"param/{layer}/norm", blank)
            ratio = run.curves.get(f"update/{layer}/norm", blank) / np.where(
                param > 0, param, np.nan
            )
            dash = "--" if layer.startswith("decoder") else "-"
            bottom.plot(
                run.step,
                np.where(ratio > 0, ratio, np.nan),
                color=color,
                linewidth=1,
                linestyle=dash,
            )
        bottom.set_yscale("log")
        if column:
            bottom.sharey(panels[len(runs)])
        bottom.yaxis.set_major_formatter(_power_label)
        bottom.yaxis.set_minor_formatter(lambda value, position: "")
        bottom.set_xlabel("step")
    panels[len(runs)].set_ylabel("update / parameter")
    bar = figure.colorbar(mesh, ax=panels[: len(runs)], shrink=0.9, pad=0.02)
    bar.set_label("log₁₀ gradient norm")
    bar.outline.set_visible(False)
    return figure


def gallery(groups: Sequence[Group]):
    """One row per representative run: reconstructions, samples, traversals, latent space, KL per
    latent dim.
    """
    shown = representatives(groups)
    if not shown:
        return None
    titles = ("Reconstructions", "Samples", "Traversals", "Latents", "KL (nats)")
    ratios = (2.4, 2.4, 2.4, 1, 1)
    figure, panels = _figure(
        len(shown), 5, width=7.6, height=0.92 * len(shown) + 0.3, ratios=ratios
    )
    extent = max(
        (explorers.latent_extent(run) for _, run in shown if "latents" in run.gallery), default=3.0
    )
    top = max(
        (float(run.gallery["kl_per_dim"].max()) for _, run in shown if "kl_per_dim" in run.gallery),
        default=1.0,
    )
    for row, (group, run) in enumerate(shown):
        cells = panels[5 * row : 5 * row + 5]
        makers = (pictures.reconstructions, pictures.samples, pictures.traversals)
        for cell, maker in zip(cells[:3], makers, strict=True):
            cell.grid(False)
            cell.set_anchor("N")
            picture = maker(run.gallery)
            if picture is None:
                cell.set_axis_off()
            else:
                pictures.draw(picture, cell)
        cells[0].set_ylabel(
            _stacked(group.label), fontsize=6.5, rotation=0, ha="right", va="center"
        )
        _draw_latents(cells[3], run, extent)
        _draw_rates(cells[4], run, top)
        if row == 0:
            for cell, title in zip(cells, titles, strict=True):
                cell.set_title(title, fontsize=7.5)
    return figure


def middle_groups(results: Results, groups: Sequence[Group], axis: Axis | None) -> list[Group]:
    """The groups along one axis with every other at its middle value; all groups where there are
    none such.
    """
    middle = [(len(other.values) - 1) // 2 for other in results.axes]
    along = [
        group
        for group in groups
        if all(i == middle[k] for k, i in enumerate(group.index) if results.axes[k] is not axis)
    ]
    return along or list(groups)


def layer_axis(results: Results) -> Axis | None:
    """The swept axis to show layers along: the first that changes which layers there are, else the
    first.
    """
    for axis in results.swept:
        layers: dict[str, set[tuple[str, ...]]] = {}
        for run in results.runs:
            if run.layers:
                others = [run.values[other.field] for other in results.axes if other is not axis]
                layers.setdefault(value_key(others), set()).add(run.layers)
        if any(len(kinds) > 1 for kinds in layers.values()):
            return axis
    return results.swept[0] if results.swept else None


_MARKERS = ("o", "s", "D", "^", "P", "*", "X", "p")


def _figure(
    rows: int, columns: int, width: float, height: float, ratios: Sequence[float] | None = None
):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
    return figure, list(panels.ravel())


def _save(figure, stem: pathlib.Path) -> list[pathlib.Path]:
    from experiments.report import write_whole

    paths = []
    for suffix, metadata in ((".png", {}), (".pdf", {"CreationDate": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=suffix[1:], metadata=metadata, facecolor="white")
        # The layout is solved once; solving it again for the PDF would cost as much as drawing it.
        figure.set_layout_engine("none")
        paths.append(stem.with_name(stem.name + suffix))
        write_whole(paths[-1], buffer.getvalue())
    return paths


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


def _heat_map(panel, run: Run, norms: np.ndarray, low: float, high: float):
    """Layers downwards, steps across at their true place, log10 norms as colour."""
    step = run.step.astype(np.float64)
    between = (step[1:] + step[:-1]) / 2
    edges = (
        np.concatenate([[step[0] - 0.5], between, [step[-1] + 0.5]])
        if step.size > 1
        else step[0] + np.array([-0.5, 0.5])
    )
    mesh = panel.pcolormesh(
        edges,
        np.arange(len(run.layers) + 1) - 0.5,
        norms,
        vmin=low,
        vmax=high,
        cmap="viridis",
        rasterized=True,
    )
    panel.grid(False)
    panel.set_yticks(range(len(run.layers)), run.layers, fontsize=6)
    panel.invert_yaxis()
    return mesh


def _draw_latents(panel, run: Run, extent: float) -> None:
    if not run.gallery.get("latents", np.zeros(0)).size:
        panel.set_axis_off()
        return
    points, _ = explorers.latent_points(run)
    keep = aggregate.thin(len(points), 800)
    labels = run.gallery.get("labels")
    classes = np.unique(labels) if labels is not None else np.zeros(1)
    colors = np.array(style.category_colors(len(classes)) if labels is not None else [style.ACCENT])
    which = (
        np.searchsorted(classes, labels[keep]) if labels is not None else np.zeros(keep.size, int)
    )
    panel.grid(False)
    panel.set_xlim(-extent, extent)
    panel.set_xticks([-2, 0, 2])
    panel.tick_params(labelsize=5.5)
    if points.shape[1] == 1:
        members = [points[keep][which == i, 0] for i in range(len(colors))]
        panel.hist(members, bins=40, range=(-extent, extent), stacked=True, color=list(colors))
        return
    panel.set_ylim(-extent, extent)
    panel.set_aspect("equal")
    panel.set_yticks([-2, 0, 2])
    panel.scatter(*points[keep].T, s=1.5, c=colors[which], linewidths=0, rasterized=True)


def _draw_rates(panel, run: Run, top: float) -> None:
    rate = run.gallery.get("kl_per_dim", np.zeros(0))
    if not rate.size:
        panel.set_axis_off()
        return
    panel.bar(np.arange(1, rate.size + 1), np.sort(rate)[::-1], color=style.ACCENT)
    panel.set_ylim(0, 1.08 * top or 1)
    panel.set_xticks(range(1, rate.size + 1, -(-rate.size // 4)))
    panel.tick_params(labelsize=5.5)


def _stacked(label: str) -> str:
    """A group's or run's label with a line per field."""
    return "\n".join(style.clipped(part, 26) for part in label.split(", ")[:6])


def _power_label(value: float, position: int) -> str:
    exponent = round(math.log10(value))
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _file_name(field: str) -> str:
    """A dotted field as part of a file name: letters, digits and "_" only."""
    return re.sub(r"[^A-Za-z0-9]+", "_", field)
