"""The HTML page: one self-contained file that opens offline.

Safety: what comes from the folder is escaped where it enters the markup (`escape`), the JSON
(`json_script`) or plotly's text (`interactive.text`); besides, a content security policy admits
only the scripts whose hashes it lists and no network at all.
"""

import base64
import hashlib
import html
import importlib.resources
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.report import aggregate, depth, explorers, interactive, question, style, tables
from experiments.report.aggregate import Group
from experiments.report.conditions import conditions
from experiments.report.depth import thinned
from experiments.report.gallery import gallery_section
from experiments.report.markup import caption, escape, plot, section, select
from experiments.report.reported import reported
from experiments.report.results import Results


def page(results: Results) -> str:
    """The whole report.html as text."""
    groups = aggregate.groups(results)
    figures: dict[str, Any] = {
        "base-layout": {
            "layout": interactive.base_layout(),
            "axis": interactive.axis_layout(),
            "accent": style.ACCENT,
        }
    }
    sections = [
        ("question", "The question", question.question(results)),
        ("results", "Results", tables.results_tables(results, groups)),
        ("ablations", "Ablation curves", _ablations(results, groups, figures)),
        ("rate-distortion", "Rate and distortion", _rate_distortion(results, figures)),
        ("training", "Training curves", _training(results, groups, figures)),
        ("layers", "Gradients by layer", depth.layers_section(results, groups, figures)),
        ("flow", "Gradient flow", depth.looks_section(results, groups, figures)),
        ("gallery", "What the models make", gallery_section(results, groups, figures)),
        ("diverged", "Diverged runs", tables.diverged(results)),
    ]
    subsections = {
        "ablations": [
            (f"ablation-{i}", axis.label)
            for i, axis in enumerate(aggregate.plotted(results, groups))
            if interactive.measured(results)
        ],
    }
    name = results.workdir.resolve().name
    sections = [row for row in sections if row[2]]
    body = "\n".join(
        section(anchor, f"{number}. {title}", content)
        for number, (anchor, title, content) in enumerate(sections, 1)
    )
    data = "\n".join(json_script(anchor, value) for anchor, value in figures.items())
    main = f"""<header>{question.header(results, groups, name)}</header>
<noscript><p class="callout">The plots need JavaScript; <code>figures/</code> beside this page holds
the same as PNG and PDF.</p></noscript>
{body}
<footer>{tables.footer(results)}</footer>"""
    contents = _contents(sections, subsections)
    scripts = [_plotly_js(), _asset("report.js")]
    return document(f"{name} · VAE report", name, contents, main, data, scripts)


def document(
    title: str, brand: str, contents: str, main: str, data: str = "", scripts: Sequence[str] = ()
) -> str:
    """A whole HTML file: contents beside the text, style and scripts within, no network.

    Args:
      title, brand: text: of the window, and over the contents.
      contents, main, data: markup. scripts: JavaScript.
    """
    code = "\n".join(f"<script>{script}</script>" for script in scripts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{_asset("report.css")}</style>
</head>
<body>
<div class="layout">
<nav aria-label="Contents"><div class="brand">{escape(brand)}</div>
{contents}</nav>
<main>
{main}
</main>
</div>
{data}
{code}
</body>
</html>
"""


def json_script(anchor: str, value: Any) -> str:
    """JSON in a <script> element that no string in it can end or comment out; nan becomes null."""
    text = json.dumps(_plain(value), allow_nan=False, separators=(",", ":"), ensure_ascii=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{escape(anchor)}">{text}</script>'


def _ablations(results: Results, groups: Sequence[Group], figures: dict[str, Any]) -> str:
    if not results.swept:
        return "<p>Nothing was swept but what repeats a run: there is nothing to plot against.</p>"
    if not interactive.measured(results):
        return "<p>No run has finished yet.</p>"
    parts = [
        f"<p>Error bars are ± one standard error over {results.repeats}; where a panel has none, "
        f"one {results.repeats[:-1]} was run."
    ]
    if any(math.isfinite(run.number("test/elbo")) for run in results.runs):
        parts[0] += (
            " ELBO = −(rate + distortion), always with β = 1, so runs trained with different β "
            "or objectives compare."
        )
    parts[0] += "</p>"
    if not aggregate.comparable(results):
        parts.append(f"<p>{escape(tables.NO_COMPARISON)}</p>")
    if not aggregate.crossed(results, groups):
        figures["figure-conditions"] = conditions(results, groups)
        reading = (
            "<b>Test metrics of each condition,</b> one by one: not every combination of the swept "
            f"fields was run. {escape(tables.UNSAID)}"
        )
        if any(run.status != "ok" for run in results.runs):
            reading += f" Hollow points are over fewer {results.repeats} than were asked for."
        reading += _without_rate(results, ", and panels of these are without them.")
        parts.append(caption(plot("figure-conditions", figures["figure-conditions"]), reading))
    for i, axis in enumerate(aggregate.plotted(results, groups)):
        by = aggregate.companion(results, axis)
        others = [other for other in results.swept if other not in (axis, by)]
        figures[f"figure-ablation-{i}"] = interactive.ablation(results, axis)
        reading = [f"<b>Test metrics over <code>{escape(axis.field)}</code></b>"]
        if by:
            mark = "line" if axis.numeric else "colour"
            reading.append(f", one {mark} per <code>{escape(by.field)}</code>")
        if others:
            names = " and ".join(f"<code>{escape(other.field)}</code>" for other in others)
            reading.append(
                f", averaged over {names} within each {results.repeats[:-1]} before the mean over "
                f"{results.repeats} is taken"
            )
        reading.append(".")
        if any(run.status != "ok" for run in results.runs):
            reading.append(
                f" Hollow points are over fewer {results.repeats}: one that lacks a run (diverged "
                f"or unfinished) is left out, and so is a point with no whole one."
            )
        reading.append(_without_rate(results, ", and panels of these are without them."))
        if axis.log:
            reading.append(" Logarithmic axis.")
        parts.append(f'<h3 id="ablation-{i}">{escape(axis.field)}</h3>')
        parts.append(
            caption(plot(f"figure-ablation-{i}", figures[f"figure-ablation-{i}"]), "".join(reading))
        )
    return "\n".join(parts)


def _rate_distortion(results: Results, figures: dict[str, Any]) -> str:
    figure = interactive.rate_distortion(results)
    if figure is None:
        none = _without_rate(results, ".")
        return f"<p>{none or 'No run has finished yet.'}</p>"
    figures["figure-rate-distortion"] = figure
    color, symbol = interactive.rate_distortion_axes(results)
    reading = [
        "<b>Each point is one run on the test set.</b> Rate is what the code costs, distortion "
        "what it misses."
    ]
    reading.append(
        " Dotted lines join points of equal ELBO (their number, in nats): moving along one trades "
        "rate for distortion at no gain; towards the lower left the bound improves."
    )
    if color:
        reading.append(f" Colour: <code>{escape(color.field)}</code>.")
    if symbol:
        shapes = ", ".join(
            f"{glyph}&nbsp;{escape(label)}"
            for glyph, label in zip(interactive.SYMBOL_GLYPHS, symbol.labels(), strict=False)
        )
        reading.append(f" Shape: <code>{escape(symbol.field)}</code> ({shapes}).")
    if not aggregate.comparable(results):
        reading.append(f" {escape(tables.NO_COMPARISON)}")
    reading.append(_without_rate(results, ", and are not here."))
    reading.append(" Hover a point for its configuration.")
    return caption(plot("figure-rate-distortion", figure), "".join(reading))


def _training(results: Results, groups: Sequence[Group], figures: dict[str, Any]) -> str:
    if not any(run.step.size for run in results.runs):
        return "<p>No run has logged anything yet.</p>"
    data = explorers.training(results, groups)
    figures["training-data"] = data
    controls = []
    if results.swept:
        # A choice of one value for each axis may name a combination that was never asked for.
        start = 0 if aggregate.crossed(results, groups) else len(results.swept)
        options = [(str(i), axis.field) for i, axis in enumerate(results.swept)] + [
            ("all", "all groups")
        ]
        controls.append(select("training-vary", "Compare", options, start))
        for i, axis in enumerate(results.swept):
            middle = (len(axis.values) - 1) // 2
            choices = [(str(k), label) for k, label in enumerate(axis.labels())]
            fixed = select(f"training-fix-{i}", f"{axis.label} =", choices, middle)
            controls.append(f'<span id="training-fix-box-{i}">{fixed}</span>')
    controls.append(
        select("training-scale", "Step axis", [("linear", "linear"), ("log", "logarithmic")], 0)
    )
    reading = (
        f"<b>{_curves(results)} against the training step.</b> Solid: test set, mean over "
        f"{results.repeats}, band ± one standard error. Dotted: training batches, averaged since "
        "the last logged step, so a little behind the test curve. At most five groups show at "
        "first; click the legend for the others, double-click to isolate one."
    )
    if any(run.status == "diverged" for run in results.runs):
        reading += " Diverged runs are left out of a mean that has other members."
    reading += _without_rate(results, ".")
    reading += thinned(results.runs, explorers.training_points(results, groups))
    parts = [f'<div class="controls" id="training-controls">{"".join(controls)}</div>']
    parts.append(caption(_explorer("training"), reading))
    metrics = reported(results)
    if metrics:
        parts.append("<h3>Objective and optimiser</h3>")
        reading = (
            "<b>The loss, the terms that only some objectives have, and what the optimiser "
            "did,</b> on training batches, averaged since the last logged step; mean over "
            f"{results.repeats}, "
            "band ± one standard error. The controls above choose here, too."
        )
        parts.append(caption(_explorer("reported"), reading))
        terms = [(metric.title, metric.meaning) for metric in metrics]
        parts.append(tables.glossary("What these mean", terms))
    return "\n".join(parts)


def _curves(results: Results) -> str:
    """The names of the training curves that there are."""
    names = [
        metric.title
        for metric in explorers.MAIN
        if any(np.isfinite(run.curves.get(metric.key, np.nan)).any() for run in results.runs)
    ]
    return "ELBO, rate and distortion" if len(names) != 1 else names[0]


def _explorer(name: str) -> str:
    """Where the page's script draws curves, and what stands there when there are none."""
    return (
        f'<div class="plot" id="{name}-plot"></div>'
        f'<p class="note" id="{name}-none" hidden>The groups chosen above have logged none.</p>'
    )


def _without_rate(results: Results, end: str) -> str:
    """A sentence on the finished runs that are autoencoders; "" where none is."""
    finished = [run for run in results.runs if run.status == "ok"]
    count = sum(not math.isfinite(run.number("test/rate")) for run in finished)
    if not count:
        return ""
    if count == len(finished):
        return " All runs are of autoencoders, which have neither rate nor ELBO."
    return f" {count} of the runs are of autoencoders: they have neither rate nor ELBO{end}"


def _contents(
    sections: Sequence[tuple[str, str, str]], subsections: dict[str, list[tuple[str, str]]]
) -> str:
    items = []
    for number, (anchor, title, _) in enumerate(sections, 1):
        inner = "".join(
            f'<li><a href="#{sub}">{escape(name)}</a></li>'
            for sub, name in subsections.get(anchor, ())
        )
        inner = f"<ol>{inner}</ol>" if inner else ""
        items.append(f'<li><a href="#{anchor}">{number}. {escape(title)}</a>{inner}</li>')
    return f"<ol>{''.join(items)}</ol>"


def _plain(value: Any) -> Any:
    """numpy and nan to what JSON knows."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _policy(scripts: Sequence[str]) -> str:
    """No network, no inline handlers: only these scripts, by hash. Plotly sets styles and exports
    images by blob.
    """
    digests = [hashlib.sha256(script.encode("utf-8")).digest() for script in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(d).decode()}'" for d in digests) or "'none'"
    return html.escape(
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'",
        quote=False,
    )


def _asset(name: str) -> str:
    return (
        importlib.resources.files("experiments.report").joinpath(name).read_text(encoding="utf-8")
    )


def _plotly_js() -> str:
    from plotly.offline import get_plotlyjs

    # HTML parsers normalise line ends before hashing; plotly ships LF, and this keeps the policy's
    # hash right if it ever does not.
    return get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")
