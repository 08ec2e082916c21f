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
OF_LAYERS |= {
    "signal/forward_rms_pre": Seen("Signal before activation", "√E h², h what a layer computes."),
    "signal/forward_rms_post": Seen(
        "Signal after activation", "√E h² of what the next layer reads."
    ),
    "signal/forward_std_pre": Seen("Spread before activation", "√Var h over units and examples."),
    "signal/forward_std_post": Seen("Spread after activation", "√Var h over units and examples."),
    "signal/backward_rms_pre": Seen(
        "Gradient before activation", "√E (∂ℓ/∂h)², ℓ the loss of one example."
    ),
    "signal/backward_rms_post": Seen(
        "Gradient after activation",
        "√E (∂ℓ/∂h)²; a factor a layer, the same at each, is vanishing.",
    ),
    "signal/dead": Seen(
        "Dead units", "share of units that pass no gradient for any example.", signed=True
    ),
    "signal/saturated": Seen(
        "Saturated units", "share with less than a tenth of their largest slope.", signed=True
    ),
    "signal/gradient_correlation": Seen(
        "Correlation of gradients between inputs",
        "mean cosine of ∂ℓ/∂h over pairs of examples: near 0 the gradient is shattered.",
        signed=True,
    ),
    "grad/example_median": Seen(
        "Median gradient of an example", "L2 norm of the gradients of single examples."
    ),
    "grad/example_largest": Seen("Largest gradient of an example", "over the examples looked at."),
    "grad/snr": Seen(
        "Signal-to-noise ratio",
        "‖E g‖/√tr Cov g of a batch's gradient g, without the bias of few draws; 0 where no signal "
        "can be told from none.",
        signed=True,
    ),
    "grad/snr_plain": Seen("Signal-to-noise ratio, plain", "‖ĝ‖/√tr V, never below its floor."),
    "grad/noise": Seen("Noise of the gradient", "√tr Cov g of a batch's gradient."),
    "grad/share_noise": Seen(
        "Share of the samples of z",
        "of the gradient's variance; an estimate, negative at times.",
        True,
    ),
    "grad/share_data": Seen("Share of the binarisation", "of the gradient's variance.", True),
    "grad/share_batch": Seen("Share of the minibatch", "of the gradient's variance.", True),
}
_PARTS = {"encoder": "the encoder", "decoder": "the decoder", "all": "all"}
# By name, of the whole model.
OF_MODEL: dict[str, Seen] = {
    **{
        f"signal/{part}_input_backward_rms": Seen(
            f"Gradient at the input of {name}", "√E (∂ℓ/∂ input)²."
        )
        for part, name in list(_PARTS.items())[:2]
    },
    **{
        f"signal/{part}_input_gradient_correlation": Seen(
            f"Correlation of gradients at the input of {name}",
            "mean cosine over pairs of examples.",
            True,
        )
        for part, name in list(_PARTS.items())[:2]
    },
    "grad/example_median": Seen("Median gradient of an example", "L2 norm, of the whole VAE."),
    "grad/example_largest": Seen("Largest gradient of an example", "L2 norm, of the whole VAE."),
    "grad/snr_floor": Seen("Floor of the plain signal-to-noise ratio", "1/√draws."),
    **{
        f"scale/{part}": Seen(
            f"Gradient noise scale of {name}",
            "B_simple = tr Σ/|G|², examples (McCandlish et al. 2018): batches much smaller are "
            "mostly noise.",
        )
        for part, name in _PARTS.items()
    },
    **{
        f"jacobian/{part}_{quantity}": Seen(f"Jacobian of {name}: {title}", meaning)
        for part, name in list(_PARTS.items())[:2]
        for quantity, title, meaning in (
            ("largest", "largest singular value", "mean over examples."),
            ("smallest", "smallest singular value", "mean over examples."),
            ("condition", "condition number", "largest over smallest that is not zero."),
            ("rank", "rank", "singular values that are not zero to rounding."),
            ("log_spread", "spread", "standard deviation of ln s: 0 under isometry."),
            ("mean_square", "mean of s²", "1 under isometry."),
            ("variance_square", "variance of s²", "0 under isometry."),
        )
    },
    "hessian/largest": Seen("Largest eigenvalue of the Hessian", "by Lanczos.", True),
    "hessian/smallest": Seen("Most negative eigenvalue of the Hessian", "by Lanczos.", True),
    "hessian/largest_times_half_rate": Seen(
        "Edge of stability",
        "largest eigenvalue × learning rate / 2: above 1 plain gradient descent diverges along it.",
        True,
    ),
    **{
        f"hessian/{term}": Seen(f"Largest eigenvalue, {term}", "of the Hessian of this term.", True)
        for term in ("distortion", "rate", "penalty")
    },
    "collapse/rate": Seen("Rate", "KL(q(z|x) ‖ p(z)), nats."),
    "collapse/active_units": Seen("Active units", "latents whose mean varies.", True),
    "collapse/fraction_collapsed": Seen(
        "Collapsed latents", "share with KL < 0.01 nats for 99% of the examples.", True
    ),
    "collapse/mutual_information": Seen("Mutual information of x and z", "nats; at most ln N."),
    "collapse/information_ceiling": Seen("Its ceiling", "ln N, which no estimate can pass."),
    "collapse/marginal_kl": Seen("Marginal KL", "KL(q(z) ‖ p(z)) = rate − information.", True),
    "collapse/lag": Seen("Lag of the encoder", "√E (E_q[z|x] − E_p[z|x])²; He et al. 2019."),
    "collapse/lag_slope": Seen("Slope of the lag", "of E_q[z|x] on E_p[z|x]: 1 without lag.", True),
    "collapse/effective_samples": Seen("Effective samples", "behind the lag: below tens, no lag."),
}


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
