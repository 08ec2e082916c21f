"""The sections on layers: norms as training logs them, and what instruments saw."""

from collections.abc import Sequence
from typing import Any

from experiments.report import aggregate, explorers, looks, tables
from experiments.report.aggregate import Group
from experiments.report.markup import caption, select
from experiments.report.results import Results, Run

# Each run in the layer explorer carries three norms per layer and step; past this many the page is
# too large to mail.
MAX_LAYER_RUNS = 60


def layers_section(results: Results, groups: Sequence[Group], figures: dict[str, Any]) -> str:
    """Gradient, parameter and update norms of every layer over training."""
    runs = [run for run in map(aggregate.first_shown, groups) if run is not None and run.layers]
    # A run that diverged is the one whose gradients one wants to see, whichever it is.
    runs += [
        run for run in results.runs if run.status == "diverged" and run.layers and run not in runs
    ]
    if not runs:
        return "<p>No gradient norms were logged.</p>"
    spread = aggregate.few(runs, MAX_LAYER_RUNS)
    diverged = [run for run in runs if run.status == "diverged"][:20]
    shown = [run for run in runs if run in spread or run in diverged]
    figures["layers-data"] = explorers.layers(shown)
    deepest = max(range(len(shown)), key=lambda i: len(shown[i].layers))
    options = [(str(i), _layer_option(results, run)) for i, run in enumerate(shown)]
    controls = select("layers-run", "Run", options, deepest) + select(
        "layers-scale", "Step axis", [("linear", "linear"), ("log", "logarithmic")], 0
    )
    left_out = f", {len(shown)} of them here, evenly spaced" if len(shown) < len(runs) else ""
    reading = (
        "<b>L2 norm of each layer's gradient, parameters and update.</b> In the heat map depth "
        f"runs from the input (top) to the reconstruction (bottom){_parts(shown)}: a layer that "
        "stays dark learns little, a bright one is driven hard; blank means zero or not finite. "
        "The colour scale (gradient norm, nats per unit of parameter) is the same for every run. "
        f"Lines: dark to light with depth, {_dashes(shown)}, logarithmic axis. "
        "Gradients are those before clipping. Update ÷ parameter is the relative "
        "change per step; 10<sup>−3</sup> is a common healthy size. Shown: the first run of each "
        f"group and the diverged runs{left_out}."
    )
    reading += thinned(shown, explorers.layer_points(shown))
    return f'<div class="controls" id="layers-controls">{controls}</div>' + caption(
        '<div class="plot" id="layers-plot"></div>', reading
    )


def _has_part(runs: Sequence[Run], part: str) -> bool:
    return any(layer.startswith(f"{part}/") for run in runs for layer in run.layers)


def _parts(runs: Sequence[Run]) -> str:
    """Where the parts stand that lie on no path from the input to the reconstruction."""
    places = {"prior": "the prior before the decoder", "discriminator": "the discriminator below"}
    parts = [place for part, place in places.items() if _has_part(runs, part)]
    return f", with {' and '.join(parts)}" if parts else ""


def _dashes(runs: Sequence[Run]) -> str:
    """Which lines are broken, and how."""
    words = {"dash": "dashed", "dashdot": "dash-dotted", "dot": "dotted"}
    kinds = {
        word: [part for part, dash in explorers.DASHES.items() if dash == name]
        for name, word in words.items()
    }
    said = [
        f"{' and '.join(part for part in parts if _has_part(runs, part))} {word}"
        for word, parts in kinds.items()
        if any(_has_part(runs, part) for part in parts)
    ]
    return ", ".join(said)


def looks_section(results: Results, groups: Sequence[Group], figures: dict[str, Any]) -> str:
    """What instruments saw of each layer, and of the whole; "" where none has looked."""
    runs = [run for run in map(aggregate.first_shown, groups) if run is not None]
    runs = [run for run in runs if run.looks.step.size]
    if not runs:
        return ""
    shown = aggregate.few(runs, MAX_LAYER_RUNS)
    data = looks.explorer(shown)
    figures["looks-data"] = data
    options = [(str(i), _layer_option(results, run)) for i, run in enumerate(shown)]
    controls = select("looks-run", "Run", options, 0)
    seen = []
    if data["layered"]:
        names = [(str(i), q["title"]) for i, q in enumerate(data["layered"])]
        controls += select("looks-quantity", "Quantity", names, 0)
        seen += data["layered"]
    if data["whole"]:
        names = [(str(i), q["title"]) for i, q in enumerate(data["whole"])]
        controls += select("looks-whole", "Of the whole model", names, 0)
        seen += data["whole"]
    reading = (
        "<b>What instruments saw of the run as it trained,</b> on the same examples and the same "
        "noise at each look. Left: by layer, from the input to the reconstruction, one line for "
        "each look, dark to light with the step: a line that falls towards one end vanishes on its "
        "way there, one that rises explodes. Right: over training, one line for each layer. Below: "
        "numbers of the whole model. Logarithmic axes but for what may be negative. Shown: the "
        "first run of each group."
    )
    parts = [f'<div class="controls" id="looks-controls">{controls}</div>']
    parts.append(caption('<div class="plot" id="looks-plot"></div>', reading))
    parts.append(tables.glossary("What these mean", [(q["title"], q["meaning"]) for q in seen]))
    return "\n".join(parts)


def _layer_option(results: Results, run: Run) -> str:
    label = aggregate.run_label(results, run)
    return f"{label} (diverged)" if run.status == "diverged" else label


def thinned(runs: Sequence[Run], points: int) -> str:
    """A sentence on how many points of a curve are drawn, where that is not all of them."""
    if max(run.step.size for run in runs) <= points:
        return ""
    return f" Of each curve {points} logged steps are drawn, evenly spaced."
