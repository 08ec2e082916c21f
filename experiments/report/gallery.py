"""The section that shows what the models make: reconstructions, samples, traversals, latents and KL
per latent dim.
"""

from collections.abc import Sequence
from typing import Any

from experiments.report import aggregate, explorers, pictures, style
from experiments.report.aggregate import Group
from experiments.report.markup import caption, escape, plot
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
    latents = explorers.latents(shown)
    if latents:
        figures["figure-latents"] = latents
        parts += ["<h3>Latent space</h3>", _latents(latents)]
    rates = explorers.kl_per_dim(shown)
    if rates:
        figures["figure-kl"] = rates
        reading = (
            "<b>Mean KL(q(z|x) ‖ p(z)) of each latent dimension on the test set</b>, largest "
            "first; their sum is the rate. Dimensions near zero carry nothing (collapsed to the "
            "prior). All panels share one scale; hover for the dimension."
        )
        parts += ["<h3>Rate per latent dimension</h3>", caption(plot("figure-kl", rates), reading)]
    return "\n".join(parts)


def _which(groups: Sequence[Group], shown: Sequence[tuple[Group, Run]]) -> str:
    if len(shown) == len(groups):
        every = " of every group" * (len(groups) > 1)
        return f"The first seed{every}; the test examples and their order are the same throughout."
    return (
        f"The first seed of {len(shown)} of the {len(groups)} groups, chosen by their place in the "
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
            "Latent traversals, a row per dim",
        )
    cells = [f'<div class="head">{head}</div>' for head in heads]
    for group, run in shown:
        numbers = ", ".join(
            f"{metric.title} {style.fixed(run.number(metric.key), 2)}"
            for metric in (style.ELBO, style.RATE, style.DISTORTION)
        )
        where = f"seed {run.seed}, " if run.seed is not None else ""
        cells.append(
            f'<div class="title"><h4>{escape(group.label)}</h4>'
            f'<span class="note">{numbers} nats · {escape(where)}run '
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
        "<b>Reconstructions</b> decode the z inferred from the example, <b>samples</b> decode z ~ "
        "N(0, I), <b>traversals</b> move one latent dimension, those with the largest rate first."
    )
    if vectors:
        reading += " Each cell draws one vector: the value upwards, the dimension's index across."
    return caption(f'<div class="specimens">{"".join(cells)}</div>', reading)


def _traversed(run: Run) -> str:
    """Which dims the traversal's rows move, and how far: z dim 3, 7, 1; −3.0 to 3.0 prior sd."""
    dims = run.gallery.get("traversal_dims", ())
    values = run.gallery.get("traversal_values", ())
    if len(dims) == 0 or len(values) == 0:
        return ""
    names = ", ".join(str(int(dim)) for dim in dims[: pictures.MAX_ROWS])
    ends = " to ".join(style.fixed(float(v), 1) for v in (values[0], values[-1]))
    return f"z dim {names}; {ends} prior sd"


def _latents(figure: dict[str, Any]) -> str:
    labelled = any(t["showlegend"] or "colorscale" in t["marker"] for t in figure["data"])
    flat = any(trace["type"] == "bar" for trace in figure["data"])
    reading = (
        "<b>Posterior means of test examples</b> in the two latent dimensions with the largest rate"
    )
    reading += ", coloured by label" * labelled + ". "
    if flat:
        reading += "Where the latent has one dimension: its histogram. "
    reading += (
        "Dashed circle: two standard deviations of the prior, which holds 86% of it. Points "
        "heaped at the origin carry no information in these dimensions. At most 600 examples per "
        "panel."
    )
    return caption(plot("figure-latents", figure), reading)
