"""Residual layers grow the signal by 2^L, or (1 + 1/L)^L when scaled, or not at all (De 2020).

De and Smith 2020 (SkipInit) and Zhang et al. 2019 (Fixup): with branches f that keep the variance
and are uncorrelated with their input, E‖h + f(h)‖² = 2‖h‖². Branches divided by √L leave
(1 + 1/L)^L → e, and branches that start at 0, as in SkipInit, ReZero (Bachlechner et al. 2021) and
Fixup, leave it as it is. In an independent program L = 20 had 1.12e6 for 2^20 = 1.05e6, and 2.76
for 2.65.

A layer of the library is h + φ(Wh + b). Without φ (`identity`, W of variance 1/n) the claim holds
of it exactly, for any width. With relu (W of variance 2/n) the branch keeps the second moment too,
but it is positive, and so correlated with the h that is a sum of such branches. In a wide net, with
q the second moment and m the mean of h over units,

  q ← 2q + 2m√(q/π),  m ← m + √(q/π),

so that h grows by 2.90 a layer in the end. Gradients grow by 2^L, or (1 + 1/L)^L, without φ. With
relu they do in the limit of wide nets alone, which is far away: relu nets have f(x) = x·∂f/∂x, so
that ‖∂f/∂x‖² is at least f²/‖x‖², whose growth is that of ‖h‖² over n. What comes of it is reported
beside the limit, and nothing is asked of it.

Twenty layers of 256 units, 16 orthonormal inputs, and growth as a ratio of means over 40 nets for
each seed. ln‖h_L‖² of one input in one net varies by about 2L/n = 0.16 without φ; the inputs are
nearly independent, so a seed's growth is off by 2%. With relu they share a direction: one net's
growth is off by up to √(5L/n) = 60%, a seed's by 10%, the mean by 5%. The tolerances are 5% and,
with relu, 15%; zeros are exact.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies.cases import Context, Found
from experiments.studies.quantity import Quantity, of_seeds
from vae.gradients import signal
from vae.spec import ModelSpec

ID = "A10"
DEPTH, INPUTS, NETS = 20, 16, 40
SIZES = {"quick": (256, 5), "full": (512, 20)}
BRANCHES = {"identity": "lecun", "relu": "he"}  # the weights with which a branch keeps E h²
SCALINGS = {"plain": "unscaled", "scaled": "scaled by 1/√L", "zero_init": "zero at the start"}
TOLERANCE = {"identity": 0.05, "relu": 0.15}
ELSEWHERE = {"plain": 1.12e6, "scaled": 2.76}


def cases(budget: str) -> list[dict]:
    width, seeds = SIZES[budget]
    return [
        {"residual": residual, "activation": activation, "width": width, "seeds": seeds}
        for activation in BRANCHES
        for residual in SCALINGS
    ]


def run(arguments: dict, context: Context) -> dict:
    del context
    activation, seeds = arguments["activation"], arguments["seeds"]
    spec = ModelSpec(
        (arguments["width"],),
        depth=DEPTH,
        width=arguments["width"],
        activation=activation,
        init=BRANCHES[activation],
        residual=arguments["residual"],
    )
    forward, backward = _moments(spec, jax.random.split(jax.random.key(0), seeds * NETS))
    return {
        name: np.asarray(values, np.float64).reshape(seeds, NETS, -1).mean(axis=1)
        for name, values in (("forward", forward), ("backward", backward))
    }


@functools.partial(jax.jit, static_argnums=0)
def _moments(spec: ModelSpec, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
    """‖h_l‖²/‖h_0‖² and ‖∂ℓ/∂h_l‖²/‖∂ℓ/∂h_L‖² at l = 0 ... L, means over inputs: [keys, L + 1].

    ∂ℓ/∂h_L is a random vector for each input.
    """

    def one(rng):
        rngs = jax.random.split(rng, 3)
        params, stats = signal.random_net(spec, rngs[0], spec.widths[-1])
        x = jnp.linalg.qr(jax.random.normal(rngs[1], (spec.widths[0], INPUTS)))[0].T
        cotangent = jax.random.normal(rngs[2], (INPUTS, spec.widths[-1]))
        seen = signal.propagate(spec, params, stats, x, cotangent)
        layers = [f"encoder/layer_{i}" for i in range(spec.depth)]

        def squares(values):
            return jnp.mean(jnp.sum(jnp.square(values), axis=1))

        forward = [x, *(seen.forward[name]["post"] for name in layers)]
        backward = [seen.inputs["encoder"], *(seen.backward[name]["post"] for name in layers)]
        forward, backward = (jnp.stack([squares(v) for v in of]) for of in (forward, backward))
        return forward / forward[0], backward / backward[-1]

    return jax.lax.map(one, keys)


def growth(residual: str, depth: int = DEPTH) -> float:
    """2^L, (1 + 1/L)^L or 1."""
    return {"plain": 2.0**depth, "scaled": (1 + 1 / depth) ** depth, "zero_init": 1.0}[residual]


def relu_growth(residual: str, depth: int = DEPTH) -> np.ndarray:
    """E h_l²/E h_0² of relu branches at l = 0 ... L, from inputs whose units average to 0."""
    share = {"plain": 1.0, "scaled": 1 / math.sqrt(depth), "zero_init": 0.0}[residual]
    q, m, found = 1.0, 0.0, [1.0]
    for _ in range(depth):
        branch = share * math.sqrt(q / math.pi)
        q, m = (1 + share**2) * q + 2 * m * branch, m + branch
        found.append(q)
    return np.array(found)


def measure(found: Found) -> list[Quantity]:
    """Growth of the activations, then of the gradients."""
    rows = []
    for direction in ("forward", "backward"):
        for case in found.cases:
            residual, activation = case.arguments["residual"], case.arguments["activation"]
            expected, source = growth(residual), "De and Smith 2020; Zhang et al. 2019"
            if direction == "forward" and residual in ELSEWHERE and activation == "identity":
                source += f"; an independent program: {ELSEWHERE[residual]:g}"
            if direction == "forward" and activation == "relu":
                expected, source = relu_growth(residual)[-1], "the recursion for wide nets"
            expected = float(f"{expected:.4g}")
            still = residual == "zero_init"
            tolerance = 1e-5 if still else float(f"{TOLERANCE[activation] * expected:.2g}")
            what = f"E‖h_{DEPTH}‖²" if direction == "forward" else "E‖∂ℓ/∂h_0‖²"
            name = f"{what}, {activation}, {SCALINGS[residual]}"
            values = case.values[direction][:, -1 if direction == "forward" else 0]
            if direction == "backward" and activation == "relu" and not still:
                width = case.arguments["width"]
                least = case.values["forward"][:, -1].mean() / width
                note = (
                    f"{values.mean() / expected:.3g} times what wide nets have, {expected:g}; at "
                    f"width {width} it cannot be below {least:.3g}"
                )
                rows.append(of_seeds(name, values, note=note))
            else:
                rows.append(of_seeds(name, values, expected, tolerance, source=source))
    return rows


def figure(found: Found):
    """Second moments over layers: activations on the way up, gradients on the way down."""
    sheet, panels = canvas.new_figure(1, 2, 7.4, 3.0)
    colors = dict(zip(SCALINGS, style.PETROFF, strict=False))
    layers = np.arange(DEPTH + 1)
    titles = {"forward": "Activations", "backward": "Gradients"}
    for panel, direction in zip(panels, ("forward", "backward"), strict=True):
        for case in found.cases:
            residual, activation = case.arguments["residual"], case.arguments["activation"]
            values = case.values[direction].mean(axis=0)
            identity = activation == "identity"
            by_layer = growth(residual) ** (layers / DEPTH)
            if direction == "backward":
                theory = by_layer[::-1]
            else:
                theory = by_layer if identity else relu_growth(residual)
            panel.plot(
                layers,
                values,
                "o" if identity else "s",
                color=colors[residual],
                markersize=3.5,
                fillstyle="full" if identity else "none",
                label=f"{SCALINGS[residual]}, {activation}",
            )
            panel.plot(layers, theory, "-" if identity else "--", color=colors[residual], lw=0.8)
        panel.set(yscale="log", xlabel="layer", title=titles[direction])
        panel.set_xticks(range(0, DEPTH + 1, 5))
        panel.yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("E‖h_l‖², relative to l = 0")
    panels[1].set_ylabel(f"E‖∂ℓ/∂h_l‖², relative to l = {DEPTH}")
    panels[0].legend(fontsize=6.5)
    return sheet
