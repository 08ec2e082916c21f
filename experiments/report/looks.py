"""What instruments saw, of `probe.jsonl`: names, meanings, and the data of their explorer."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.report import interactive, style
from experiments.report.explorers import DASHES
from experiments.report.results import Run


class Seen(NamedTuple):
    """A quantity: how it is called, what it means, and whether it may be negative."""

    title: str
    meaning: str
    signed: bool = False


# By KIND/QUANTITY of a layer.
OF_LAYERS: dict[str, Seen] = {
    "grad/whole": Seen("Gradient", "L2 norm of the gradient of the loss, nats per unit."),
    "grad/distortion": Seen(
        "Gradient of the distortion", "the part that leaves the loss through log p(x|z)."
    ),
    "grad/rate": Seen(
        "Gradient of the rate",
        "the part that leaves it through the KL, or log p(z) and log q(z|x), with its weight.",
    ),
    "grad/penalty": Seen(
        "Gradient of the penalty", "what else the objective adds: total correlation, MMD, ..."
    ),
    "grad/cosine_distortion_rate": Seen(
        "Angle of distortion and rate",
        "cosine between the two gradients: −1 where they fight.",
        signed=True,
    ),
    "grad/cosine_distortion_penalty": Seen(
        "Angle of distortion and penalty", "cosine between the two gradients.", signed=True
    ),
    "grad/cosine_rate_penalty": Seen(
        "Angle of rate and penalty", "cosine between the two gradients.", signed=True
    ),
}
# By name, of the whole model.
OF_MODEL: dict[str, Seen] = {}


def explorer(runs: Sequence[Run]) -> dict[str, Any]:
    """The data behind the explorer: of each run, values [layers, looks] and [looks]."""
    layered = [key for key in OF_LAYERS if any(_layered(run, key) for run in runs)]
    whole = [key for key in OF_MODEL if any(_finite(run, key) for run in runs)]
    return {
        "layered": [_said(OF_LAYERS[key]) for key in layered],
        "whole": [_said(OF_MODEL[key]) for key in whole],
        "runs": [
            {
                "layers": [interactive.text(layer) for layer in run.layers],
                "colors": style.viridis(len(run.layers)),
                "dashes": [DASHES.get(layer.split("/")[0], "solid") for layer in run.layers],
                "step": run.looks.step,
                "looks": style.viridis(run.looks.step.size),
                "layered": [
                    [_values(run, _name(key, layer)) for layer in run.layers] for key in layered
                ],
                "whole": [_values(run, key) for key in whole],
            }
            for run in runs
        ],
    }


def _said(seen: Seen) -> dict[str, Any]:
    return {"title": seen.title, "meaning": seen.meaning, "signed": seen.signed}


def _name(key: str, layer: str) -> str:
    kind, quantity = key.split("/")
    return f"{kind}/{layer}/{quantity}"


def _layered(run: Run, key: str) -> bool:
    return any(_finite(run, _name(key, layer)) for layer in run.layers)


def _finite(run: Run, name: str) -> bool:
    return bool(np.isfinite(run.looks.curves.get(name, np.nan)).any())


def _values(run: Run, name: str) -> list[float | None]:
    blank = np.full(run.looks.step.size, np.nan)
    return interactive.rounded(run.looks.curves.get(name, blank))
