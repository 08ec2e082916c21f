"""From collapse a mode of the linear VAE escapes if and only if λ > βη² (Lucas et al. 2019).

At (U, W, Σ) = (0, 0, I), encoder, decoder and variances of q, the gradient of D + βR is zero: all
modes are collapsed. Gradient flow linearised there takes the mode of variance λ by

  d/dt (u, w) = [[−βλ, λ/η²], [λ/η², −1/η²]] (u, w),

whose greater eigenvalue, the growth rate, is

  s = [−(1 + βη²λ) + √((1 − βη²λ)² + 4λ²)]/(2η²),   sign s = sign(λ − βη²):

collapse is a saddle for the modes with λ > βη², which leave it one after the other, and a minimum
for the others (Wang and Ziyin 2022, theorem 2: those and no others are kept at the optimum). At
β = 1, η² = .3, λ = 4 an independent program simulated 9.6661 for 9.6708.

Each of eight modes λ = (4, 2, 1, .5, .25, .1, .05, .02) starts alone, with u and w of size 1e-12 in
random directions of 6 latents, and takes 500 steps of gradient descent on the exact loss
(`linear.py`), of .1 over the distance of its two eigenvalues: after the first half what shrinks has
shrunk by e^−25 against what grows. Over the second half descent multiplies it by 1 + s·step a step,
which gives s without the error of the step. Tolerance 1%, the oracle's; what is neglected is of the
order of 1e-8. Then all modes start together at 1e-6 and go their ways, disturbing each other as
they leave: a mode has left if its part of the posterior means' variance is above .01, the threshold
of active units.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies import linear
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.quantity import Quantity, of_seeds
from vae.evaluate import ACTIVE_UNIT_VARIANCE

ID = "A2"
SETTINGS = ((0.5, 0.3), (1.0, 0.3), (2.0, 0.3), (5.0, 1.0))
LATENTS, MODES = 6, len(linear.VARIANCES)
HALF = 250
# Readings of the way out: so many, each after so many steps of such a size.
READINGS, EVERY, STEP = 700, 20, 0.005
# Steps after them, of four times the size, until modes are where they stay.
FINAL = 30_000


def cases(budget: str) -> list[Arguments]:
    """Each (β, η²)."""
    del budget
    return [{"beta": beta, "eta2": eta2, "seeds": 5} for beta, eta2 in SETTINGS]


def eigenvalues(
    beta: float, eta2: float, variances: np.ndarray = linear.VARIANCES
) -> tuple[np.ndarray, np.ndarray]:
    """The growth rate s of each mode at collapse, and the other, which is below zero."""
    level = beta * eta2 * variances
    root = np.sqrt(np.square(1 - level) + 4 * np.square(variances))
    return (-(1 + level) + root) / (2 * eta2), (-(1 + level) - root) / (2 * eta2)


def run(arguments: Arguments, context: Context) -> dict[str, Any]:
    """Growth rates [seeds, modes]; the size of each mode over time, and its final variance."""
    del context
    with jax.enable_x64(True):
        return _measured(**arguments)


def _measured(beta: float, eta2: float, seeds: int) -> dict[str, Any]:
    of = linear.spec((MODES,), LATENTS)
    x = jnp.asarray(linear.points())
    collapsed = jax.tree.map(jnp.zeros_like, jax.tree.map(lambda a: a[0], linear.start(of, [0])))
    fast, slow = eigenvalues(beta, eta2)

    def loss(params):
        means = linear.means(of, params, x, eta2)
        return means["distortion"] + beta * means["rate"]

    def near(key, size, modes):
        """Collapse, and the rows of the encoder and the decoder that are asked for."""
        u, w = jax.random.normal(key, (2, MODES, LATENTS)) * (size * modes)[None, :, None]
        mean = collapsed["encoder"]["mean"] | {"kernel": u}
        output = collapsed["decoder"]["output"] | {"kernel": w.T}
        encoder = collapsed["encoder"] | {"mean": mean}
        return collapsed | {"encoder": encoder, "decoder": {"output": output}}

    def size(params):
        """‖w_i‖ of each mode."""
        return jnp.linalg.norm(params["decoder"]["output"]["kernel"], axis=0)

    def growth(key, mode, rate):
        params = near(key, 1e-12, jax.nn.one_hot(mode, MODES, dtype=x.dtype))
        halfway = linear.descend(loss, params, rate, HALF)
        ratio = size(linear.descend(loss, halfway, rate, HALF))[mode] / size(halfway)[mode]
        return (ratio ** (1 / HALF) - 1) / rate

    def path(key):
        def reading(params, _):
            return linear.descend(loss, params, STEP, EVERY), size(params)

        params, sizes = jax.lax.scan(
            reading, near(key, 1e-6, jnp.ones(MODES, x.dtype)), length=READINGS
        )
        params = linear.descend(loss, params, 4 * STEP, FINAL)
        rows = params["encoder"]["mean"]["kernel"]
        return sizes, linear.VARIANCES * jnp.sum(jnp.square(rows), axis=1)

    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    rates = jax.vmap(jax.vmap(growth, (None, 0, 0)), (0, None, None))
    modes, steps = jnp.arange(MODES), jnp.asarray(0.1 / (fast - slow))
    sizes, final = jax.jit(jax.vmap(path))(keys)
    return {
        "growth": jax.jit(rates)(keys, modes, steps),
        "time": STEP * EVERY * np.arange(READINGS),
        "sizes": sizes,
        "final": final,
    }


def measure(found: Found) -> list[Quantity]:
    """Rates against the formula, their signs against λ − βη², and who has left in the end."""
    rows = []
    for case in found.cases:
        beta, eta2 = case.arguments["beta"], case.arguments["eta2"]
        at, growth = f"at β = {beta:g}, η² = {eta2:g}", case.values["growth"]
        expected, _ = eigenvalues(beta, eta2)
        if (beta, eta2) == (1.0, 0.3):
            rows.append(
                of_seeds(
                    f"growth rate of λ = {linear.VARIANCES[0]:g} {at}",
                    growth[:, 0],
                    expected[0],
                    0.01 * expected[0],
                    source="in closed form; an independent program simulated 9.6661",
                )
            )
        leaves = linear.VARIANCES > beta * eta2
        rows += [
            of_seeds(
                f"largest relative error of the growth rates {at}",
                np.abs(growth / expected[None] - 1).max(1),
                0,
                0.01,
                source="in closed form",
            ),
            of_seeds(
                f"modes whose rate has another sign than λ − βη² {at}",
                np.sum((growth > 0) != leaves[None], axis=1),
                0,
                source="Wang and Ziyin 2022, theorem 2",
            ),
            of_seeds(
                f"modes that have left, or stayed, against λ > βη² {at}",
                np.sum((case.values["final"] > ACTIVE_UNIT_VARIANCE) != leaves[None], axis=1),
                0,
                source="Wang and Ziyin 2022, theorem 2",
            ),
        ]
    return rows


def figure(found: Found):
    """Rates over λ, with the formula; and the ways of the modes out of collapse, or into it."""
    sheet, (rates, ways) = canvas.new_figure(1, 2, 7.0, 3.0, ratios=[1.0, 1.15])
    dense = np.geomspace(0.015, 5, 300)
    colors = style.category_colors(len(found.cases))
    for case, color in zip(found.cases, colors, strict=True):
        beta, eta2 = case.arguments["beta"], case.arguments["eta2"]
        rates.plot(dense, eigenvalues(beta, eta2, dense)[0], "-", color=color, lw=1)
        rates.plot(
            linear.VARIANCES,
            case.values["growth"].mean(0),
            "o",
            ms=4,
            color=color,
            label=f"β = {beta:g}, η² = {eta2:g}",
        )
        rates.plot([beta * eta2], [0], "|", color=color, ms=12)
    rates.axhline(0, color=style.MUTED, lw=0.8)
    rates.set_xscale("log")
    rates.set_yscale("symlog", linthresh=0.1)
    rates.set_xlabel("variance λ of the mode; bars: βη²")
    rates.set_ylabel("growth rate at collapse, 1/time")
    rates.legend(loc="upper left", fontsize=6.5)
    for case in found.of(beta=1.0, eta2=0.3)[:1]:
        _ways(ways, case)
    for axis in (rates.xaxis, rates.yaxis, ways.yaxis):
        axis.set_major_formatter("{x:g}")
    return sheet


def _ways(panel, case) -> None:
    time, sizes = case.values["time"], case.values["sizes"][0]
    fast, slow = eigenvalues(case.arguments["beta"], case.arguments["eta2"])
    for i, color in enumerate(style.viridis(MODES)):
        panel.plot(
            time, sizes[:, i], "-", color=color, lw=1.2, label=f"λ = {linear.VARIANCES[i]:g}"
        )
        # From where the other eigenvalue's part is gone.
        first = int(np.argmax(time >= 4 / (fast[i] - slow[i])))
        line = sizes[first, i] * np.exp(fast[i] * (time - time[first]))
        panel.plot(time, line, ":", color=color, lw=1)
    panel.set_yscale("log")
    panel.set_ylim(1e-8, 8)
    panel.set_xlim(0, 1.4 * time[-1])
    panel.set_xlabel("time; β = 1, η² = 0.3; dotted: growth by s")
    panel.set_ylabel("size of the mode in the decoder")
    panel.legend(loc="center right", fontsize=6)
