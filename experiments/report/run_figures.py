"""Paper figures of single runs: norms layer by layer, and what the models make."""

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from experiments.report import aggregate, explorers, latents, pictures, style
from experiments.report.aggregate import Group
from experiments.report.axes import Axis, value_key
from experiments.report.canvas import new_figure
from experiments.report.gallery import representatives
from experiments.report.latents import Frame
from experiments.report.results import Results, Run

_DASHES = {"solid": "-", "dash": "--", "dashdot": "-.", "dot": ":"}


def layer_norms(results: Results, groups: Sequence[Group], limit: int = 4):
    """Gradient norm by depth and step as heat maps, update / parameter norm as lines, one column
    per run.
    """
    import matplotlib

    along = aggregate.middle_groups(results, groups, layer_axis(results))
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
    figure, panels = new_figure(
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
            dash = _DASHES[explorers.DASHES.get(layer.split("/")[0], "solid")]
            bottom.plot(
                run.step,
                np.where(ratio > 0, ratio, np.nan),
                color=color,
                linewidth=1,
                linestyle=dash,
            )
        bottom.set_xlabel("step")
    _log_scale(panels[len(runs) :])
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
    figure, panels = new_figure(
        len(shown), 5, width=7.6, height=0.92 * len(shown) + 0.3, ratios=ratios
    )
    planar = [run for _, run in shown if run.gallery.get("latents", np.zeros(0)).size]
    frames = {run.run_id: frame for run, frame in zip(planar, latents.frames(planar), strict=True)}
    divided = [rate for _, run in shown if (rate := latents.rates(run)[0]) is not None]
    top = max((float(rate.max()) for rate in divided), default=1.0)
    for row, (group, run) in enumerate(shown):
        cells = panels[5 * row : 5 * row + 5]
        makers = (pictures.reconstructions, pictures.samples, pictures.traversals)
        for cell, maker in zip(cells[:3], makers, strict=True):
            cell.grid(False)
            cell.set_anchor("NW")
            picture = maker(run.gallery)
            if picture is None:
                cell.set_axis_off()
            else:
                pictures.draw(picture, cell)
        cells[0].set_ylabel(
            _stacked(group.label), fontsize=6.5, rotation=0, ha="right", va="center"
        )
        _draw_latents(cells[3], run, frames.get(run.run_id))
        _draw_rates(cells[4], run, top)
        if row == 0:
            for cell, title in zip(cells, titles, strict=True):
                cell.set_title(title, fontsize=7.5)
    return figure


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


def _heat_map(panel, run: Run, norms: np.ndarray, low: float, high: float):
    """Layers downwards, steps across at their true place, log10 norms as colour."""
    step = run.step.astype(np.float64)
    if step.size > 1:
        between = (step[1:] + step[:-1]) / 2
        edges = np.array([2 * step[0] - between[0], *between, 2 * step[-1] - between[-1]])
    else:
        edges = step[0] + np.array([-0.5, 0.5])
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


def _draw_latents(panel, run: Run, frame: Frame | None) -> None:
    """Where examples lie; of discrete latents, how often each variable (down) has each code."""
    shares = latents.code_shares(run)
    if shares is not None:
        panel.grid(False)
        panel.tick_params(labelsize=5.5)
        panel.imshow(
            shares[: latents.MAX_VARIABLES], cmap="Blues", vmin=0, aspect="auto", rasterized=True
        )
        panel.set_xlabel("code", fontsize=5.5)
        return
    if frame is None:
        panel.set_axis_off()
        return
    points, _ = latents.latent_points(run)
    keep = aggregate.thin(len(points), 800)
    labels = run.gallery.get("labels")
    classes = np.unique(labels) if labels is not None else np.zeros(1)
    colors = np.array(style.category_colors(len(classes)) if labels is not None else [style.ACCENT])
    which = (
        np.searchsorted(classes, labels[keep]) if labels is not None else np.zeros(keep.size, int)
    )
    panel.grid(False)
    panel.set_xlim(*frame.x)
    panel.locator_params(nbins=3)
    if frame.standard:
        panel.set_xticks([-2, 0, 2])
    panel.tick_params(labelsize=5.5)
    if points.shape[1] == 1:
        members = [points[keep][which == i, 0] for i in range(len(colors))]
        panel.hist(members, bins=40, range=frame.x, stacked=True, color=list(colors))
        return
    panel.set_ylim(*frame.y)
    panel.set_aspect("equal")
    if frame.standard:
        panel.set_yticks([-2, 0, 2])
    panel.scatter(*points[keep].T, s=1.5, c=colors[which], linewidths=0, rasterized=True)


def _draw_rates(panel, run: Run, top: float) -> None:
    rate, text = latents.rates(run)
    if rate is None:
        panel.set_axis_off()
        lines = "\n".join(textwrap.wrap(text, 16)[:5])
        panel.text(0.5, 0.5, lines, fontsize=5.5, ha="center", va="center")
        return
    panel.bar(np.arange(1, rate.size + 1), np.sort(rate)[::-1], color=style.ACCENT)
    panel.set_ylim(0, 1.08 * top or 1)
    panel.set_xticks(range(1, rate.size + 1, -(-rate.size // 4)))
    panel.tick_params(labelsize=5.5)


def _stacked(label: str) -> str:
    """A group's or run's label with a line per field."""
    return "\n".join(style.clipped(part, 26) for part in label.split(", ")[:6])


def _log_scale(panels: Sequence) -> None:
    """One logarithmic y scale for all: ticks at whole decades, or four plain numbers where lines
    cross fewer than two.
    """
    values = [line.get_ydata() for panel in panels for line in panel.get_lines()]
    logs = np.log10(np.concatenate([v[np.isfinite(v)] for v in values] or [np.ones(1)]))
    low, high = (float(logs.min()), float(logs.max())) if logs.size else (-1.0, 0.0)
    decades = np.arange(math.ceil(low), math.floor(high) + 1)
    if decades.size > 1:
        ticks, labels = 10.0**decades, [_power(int(exponent)) for exponent in decades]
    else:
        ticks = 10 ** np.linspace(low, high, 4)
        labels = [f"{tick:.2g}" for tick in ticks]
    pad = 0.05 * (high - low) or 0.1
    for i, panel in enumerate(panels):
        panel.set_yscale("log")
        panel.set_ylim(10 ** (low - pad), 10 ** (high + pad))
        panel.set_yticks(ticks, labels if i == 0 else [""] * len(labels))
        panel.minorticks_off()


def _power(exponent: int) -> str:
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
