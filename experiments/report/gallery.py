"""The section that shows what the models make: reconstructions, samples, traversals, latents and KL
per latent dim.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report import aggregate, latents, pictures, style
from experiments.report.aggregate import Group
from experiments.report.markup import caption, escape, pairs, plot
from experiments.report.results import Results, Run


def representatives(groups: Sequence[Group]) -> list[tuple[Group, Run]]:
    """The runs with pictures that stand for the sweep, in the order of the axes."""
    with_pictures = [
        (group, run)
        for group in groups
        if (run := aggregate.first_shown(group)) is not None and run.gallery
    ]
    chosen = aggregate.representatives([group for group, _ in with_pictures])
    return [(group, run) for group, run in with_pictures if group in chosen]


def gallery_section(results: Results, groups: Sequence[Group], figures: dict[str, Any]) -> str:
    """The section's markup; its plotly figures are added to `figures`."""
    shown = representatives(groups)
    if not shown:
        return "<p>No run has left pictures yet.</p>"
    parts = [f"<p>{_which(groups, shown)}</p>", _specimens(results, shown)]
    return "\n".join([*parts, *_latent_space(shown, figures), *_rates(shown, figures)])


def _which(groups: Sequence[Group], shown: Sequence[tuple[Group, Run]]) -> str:
    if len(shown) == len(groups):
        every = " of every group" * (len(groups) > 1)
        return f"The first run{every}; the test examples and their order are the same throughout."
    return (
        f"The first run of {len(shown)} of the {len(groups)} groups, chosen by their place in the "
        "sweep and never by result: the middle of all axes, each axis' extremes with the others "
        "at the middle, then the corners. Always the same test examples in the same order."
    )


def _specimens(results: Results, shown: Sequence[tuple[Group, Run]]) -> str:
    vectors = shown[0][1].gallery.get("originals", shown[0][1].gallery.get("samples")).ndim == 2
    if vectors:
        heads = (
            "Examples (grey), reconstructions (blue)",
            "Samples from the prior",
            "Latent traversals, dark to light",
        )
    else:
        heads = (
            "Examples above reconstructions",
            "Samples from the prior",
            "Latent traversals, a row per latent",
        )
    cells = [f'<div class="head">{head}</div>' for head in heads]
    for group, run in shown:
        numbers = ", ".join(
            f"{metric.title} {style.fixed(run.number(metric.key), 2)}"
            for metric in (style.ELBO, style.RATE, style.DISTORTION)
            if math.isfinite(run.number(metric.key))
        )
        numbers += " nats · " * bool(numbers)
        where = f"{run.replicate_label}, " if run.replicate_label else ""
        cells.append(
            f'<div class="title"><h4>{escape(group.label)}</h4>'
            f'<span class="note">{numbers}{escape(where)}run '
            f"<code>{escape(run.run_id)}</code></span></div>"
        )
        drawn = (
            (pictures.reconstructions(run.gallery), heads[0]),
            (pictures.samples(run.gallery), heads[1]),
            (pictures.traversals(run.gallery), f"{heads[2]}: {_traversed(run)}"),
        )
        for picture, what in drawn:
            shown_as = (
                pictures.to_html(picture, f"{what}; {group.label}")
                if picture
                else '<p class="note">none</p>'
            )
            note = (
                f'<div class="note">{escape(_traversed(run))}</div>'
                if picture is drawn[2][0] and picture
                else ""
            )
            cells.append(f"<div>{shown_as}{note}</div>")
    reading = (
        "<b>Reconstructions</b> decode the z inferred from the example, <b>samples</b> decode "
        "draws of z from the prior, <b>traversals</b> move one latent"
    )
    leading = _leading([run for _, run in shown])
    reading += f", those {leading} first. " if leading else ". "
    continuous = [run for _, run in shown if "traversal_values" in run.gallery]
    if continuous:
        reading += "All other dimensions are then 0. "
    if len(continuous) < len(shown):
        reading += "Discrete latents are those of the first example but for the code that changes. "
    if not all(latents.has_prior(run) for _, run in shown):
        reading += (
            "An autoencoder has no prior: its samples decode z ~ N(0, I), where its codes need not "
            "be. "
        )
    if vectors:
        reading += " Each cell draws one vector: the value upwards, the dimension's index across."
    return caption(f'<div class="specimens">{"".join(cells)}</div>', reading)


def _traversed(run: Run) -> str:
    """What the traversal's rows move, and how far: z dim 3, 7, 1; −3.0 to 3.0 prior sd. Or, of
    discrete latents: variable 3, 7, 1; code 0, 5, 10, 15.
    """
    dims = run.gallery.get("traversal_dims", ())
    values = run.gallery.get("traversal_values", ())
    codes = run.gallery.get("traversal_codes", ())
    names = ", ".join(str(int(dim)) for dim in dims[: pictures.MAX_ROWS])
    if len(dims) and len(codes):
        return f"variable {names}; code {', '.join(str(int(code)) for code in codes)}"
    if len(dims) == 0 or len(values) == 0:
        return ""
    ends = " to ".join(style.fixed(float(v), 1) for v in (values[0], values[-1]))
    return f"z dim {names}; {ends}" + " prior sd" * latents.standard_prior(run)


def _latent_space(shown: Sequence[tuple[Group, Run]], figures: dict[str, Any]) -> list[str]:
    """Where examples lie, of continuous latents, and which codes they use, of discrete ones."""
    parts = []
    plane = latents.latents(shown)
    if plane:
        figures["figure-latents"] = plane
        parts += ["<h3>Latent space</h3>", _plane(shown, plane)]
    used = latents.codes(shown)
    if used:
        figures["figure-codes"] = used
        reading = (
            "<b>How often each code is used:</b> the share of the test examples that give a "
            "variable (row) a code (column), of a categorical posterior its most probable one. A "
            "row with one dark cell says the same of all examples; a column that is white "
            "throughout is a code that nothing uses."
        )
        most = max(run.gallery.get("code_counts", np.zeros((0, 0))).shape[0] for _, run in shown)
        drawn = max(len(trace["z"]) for trace in used["data"])
        reading += f" The first {drawn} variables." * (most > drawn)
        parts += ["<h3>Use of the codes</h3>", caption(plot("figure-codes", used), reading)]
    return parts


def _plane(shown: Sequence[tuple[Group, Run]], figure: dict[str, Any]) -> str:
    labelled = any(t["showlegend"] or "colorscale" in t["marker"] for t in figure["data"])
    flat = any(trace["type"] == "bar" for trace in figure["data"])
    runs = [run for _, run in shown if run.gallery.get("latents", np.zeros(0)).size]
    flows = any(run.setting("model.posterior") in ("iaf", "coupling") for run in runs)
    reading = "<b>Where test examples lie:</b> their posterior means"
    reading += " (of a flow, where the mean flows to)" * flows
    reading += f" in the two latent dimensions {_leading(runs)}"
    reading += ", coloured by label" * labelled + ". "
    if flat:
        reading += "Where the latent has one dimension: its histogram. "
    if any(map(latents.standard_prior, runs)):
        reading += (
            "Dashed circle: two standard deviations of the prior N(0, I), which holds 86% of it. "
            "Points heaped at the origin carry no information in these dimensions. "
        )
    if not all(map(latents.standard_prior, runs)):
        reading += "Panels without a circle have another prior, or none, and a scale of their own. "
    return caption(plot("figure-latents", figure), reading + "At most 600 examples per panel.")


def _leading(runs: Sequence[Run]) -> str:
    """By what latents are chosen and put in order: their rate, or how much z varies."""
    by_rate = any(latents.rates(run)[0] is not None for run in runs)
    varying = any(
        latents.rates(run)[0] is None and "traversal_codes" not in run.gallery for run in runs
    )
    if by_rate and varying:
        return "with the largest rate or, where it is one number or none, that vary most"
    return "with the largest rate" if by_rate else "that vary most" if varying else ""


def _rates(shown: Sequence[tuple[Group, Run]], figures: dict[str, Any]) -> list[str]:
    """The rate of each dimension, and in words where it is not made of such."""
    parts = []
    bars = latents.kl_per_dim(shown)
    if bars:
        figures["figure-kl"] = bars
        reading = (
            "<b>Mean KL(q(z|x) ‖ p(z)) of each latent dimension on the test set</b>, largest "
            "first; their sum is the rate. Dimensions near zero carry nothing (collapsed to the "
            "prior). All panels share one scale; hover for the dimension."
        )
        if any(run.setting("model.posterior") in ("full", "low_rank") for _, run in shown):
            reading += (
                " Where the posterior's dimensions are correlated, each is given those before it."
            )
        parts.append(caption(plot("figure-kl", bars), reading))
    whole = [(group.label, escape(text)) for group, run in shown if (text := latents.rates(run)[1])]
    if whole and not bars and len({text for _, text in whole}) == 1:
        parts.append(f"<p>Of every run: {whole[0][1]}.</p>")
    elif whole:
        parts.append("<p class='note'>Not a sum over dimensions:</p>" + pairs(whole))
    return ["<h3>Rate per latent dimension</h3>", *parts] if parts else []
