"""β picks a point of the rate–distortion curve, where its slope is −β (Alemi et al. 2018).

For any encoder, decoder and prior, H − D ≤ I ≤ R (their eq. 4): H the data's entropy, D =
−E log p(x|z) the distortion, R = E KL(q(z|x) || p(z)) the rate, and I the mutual information of x
and z. What minimises D + β·R lies where the lower hull of the reachable (R, D) has slope
dD/dR = −β (their section 3).

A linear VAE on Gaussian data has it in closed form. With the components' variances λ_i and the
water level a = βη² it is Shannon's reverse water-filling, R = Σ_{λ_i > a} ½ ln(λ_i/a) and
E|x − x̂|² = Σ min(λ_i, a), with D = E|x − x̂|²/(2η²) + ½ d ln 2πη² in nats: dD/dR = −β. And
I = ½ ln |I + V⁻¹ UᵀΛU| is exact, for an encoder U and variances V of q.

λ = (4, 2, 1, .5, .25, .1, .05, .02), 8 latents, η² = .3, β from ½ to 8 between the λ/η²; the slope
is the secant between runs at β(1 ± .03), which is off by .03% of β. Gradient descent on the exact
loss (`linear.py`), rate .02, 60,000 steps, float64, from the library's initialisation. R, D and I
are read on the way too, on a geometric grid of steps from the first: the bounds hold for any
parameters, not the best alone. Tolerance of the slope 1%; of the curve 1e-6 of a nat, what the last
of training leaves; of the bounds 1e-9, rounding. With four modes, λ = (4, 2, 1, .5), η² = ¼ and
β = 1 the model can have the data's distribution: there H − D = I = R is reached.

The same for a nonlinear VAE, of which nothing is known in closed form, is the study `beta` (B2).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies import linear
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.quantity import Quantity, of_seeds
from vae.model import Params

ID = "A14"
_BOUNDS = "Alemi et al. 2018, eq. 4"
BETAS = (0.5, 0.7, 1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
ALL, ETA2 = len(linear.VARIANCES), 0.3
FEW, FEW_ETA2 = 4, 0.25  # the modes and η² for which the model can have the data's distribution
WIDTH, RATE, STEPS = 0.03, 0.02, 60_000
# Readings of the way: after so many steps.
READINGS = np.unique(np.geomspace(1, STEPS, 40).astype(int))


def cases(budget: str) -> list[Arguments]:
    """Each β of eight modes, and β = 1 of four; each with its two neighbours."""
    del budget
    eight = [{"modes": ALL, "eta2": ETA2, "beta": beta, "seeds": 5} for beta in BETAS]
    return [*eight, {"modes": FEW, "eta2": FEW_ETA2, "beta": 1.0, "seeds": 5}]


def entropy(modes: int) -> float:
    """H of the first modes, nats."""
    return 0.5 * float(np.log(2 * np.pi * np.e * linear.VARIANCES[:modes]).sum())


def distortion(error: float, modes: int, eta2: float) -> float:
    """D of E|x − x̂|², nats."""
    return error / (2 * eta2) + 0.5 * modes * float(np.log(2 * np.pi * eta2))


def information(params: Params, variances: np.ndarray) -> jax.Array:
    """I(x; z) of x ~ N(0, diag λ) and z ~ N(xU + c, diag v), nats: ½ ln |I + V^−½ UᵀΛU V^−½|."""
    u = params["encoder"]["mean"]["kernel"]
    scaled = u * jnp.exp(-0.5 * params["encoder"]["scale"]["bias"])[None]
    signal = scaled.T @ (jnp.asarray(variances, u.dtype)[:, None] * scaled)
    return 0.5 * jnp.linalg.slogdet(jnp.eye(len(signal), dtype=u.dtype) + signal)[1]


def run(arguments: Arguments, context: Context) -> dict[str, Any]:
    """`rate`, `distortion` and `information` at β(1 − h), β, β(1 + h): [3, seeds, readings]."""
    del context
    modes, eta2 = arguments["modes"], arguments["eta2"]
    variances = linear.VARIANCES[:modes]
    with jax.enable_x64(True):
        of = linear.spec((modes,), modes)
        x = jnp.asarray(linear.points(variances))
        steps = jnp.asarray(np.diff(READINGS, prepend=0))

        def one(beta, params):
            def loss(params):
                means = linear.means(of, params, x, eta2)
                return means["distortion"] + beta * means["rate"]

            def reading(params, steps):
                params = linear.descend(loss, params, RATE, steps)
                means = linear.means(of, params, x, eta2)
                read = {name: means[name] for name in ("rate", "distortion")}
                return params, read | {"information": information(params, variances)}

            return jax.lax.scan(reading, params, steps)[1]

        betas = arguments["beta"] * jnp.array([1 - WIDTH, 1, 1 + WIDTH])
        params = linear.start(of, range(arguments["seeds"]))
        each = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
        return jax.jit(each)(betas, params)


def measure(found: Found) -> list[Quantity]:
    """Slopes; distances to the curve; and the least room in the two bounds, over all readings."""
    slopes, away, room, tight = [], [], {"R − I": [], "I − (H − D)": []}, []
    for case in found.cases:
        beta, eta2, modes = (case.arguments[name] for name in ("beta", "eta2", "modes"))
        rate, distorted = case.values["rate"], case.values["distortion"]
        of = linear.optimum(beta, eta2, linear.VARIANCES[:modes])
        # 1. The curve: its point and its slope, at the end of training.
        r, d = rate[:, :, -1], distorted[:, :, -1]
        best = distortion(of.error, modes, eta2)
        away.append(np.maximum(np.abs(r[1] - of.rate), np.abs(d[1] - best)))
        if modes == ALL:
            name, source = f"dD/dR at β = {beta:g}", "Alemi et al. 2018, section 3"
            slope = (d[2] - d[0]) / (r[2] - r[0])
            slopes.append(of_seeds(name, slope, -beta, 0.01 * beta, source=source))
        else:
            name = f"R + D − H at β = {beta:g} of {modes} modes that the model can have, nats"
            tight.append(of_seeds(name, r[1] + d[1] - entropy(modes), 0, 1e-6, source=_BOUNDS))
        # 2. The bounds, always.
        information = case.values["information"]
        room["R − I"].append((rate - information).min((0, 2)))
        room["I − (H − D)"].append((information + distorted - entropy(modes)).min((0, 2)))
    curve = of_seeds(
        "largest distance of (R, D) to reverse water-filling, nats",
        np.max(away, axis=0),
        0,
        1e-6,
        source="Shannon's reverse water-filling, with the level βη²",
    )
    bounds = [
        of_seeds(
            f"{name}, least over β and all of training, nats",
            np.min(least, axis=0),
            -1e-9,
            relation=">=",
            source=_BOUNDS,
        )
        for name, least in room.items()
    ]
    return [*slopes, curve, *bounds, *tight]


def figure(found: Found):
    """The plane, as in figure 1 of Alemi et al. 2018, with the ways there; and the slopes."""
    sheet, (plane, slopes) = canvas.new_figure(1, 2, 7.0, 3.1, ratios=[1.3, 1])
    of = [linear.optimum(level / ETA2, ETA2) for level in np.geomspace(0.02, 4, 300)]
    rates = np.array([o.rate for o in of])
    best = [distortion(o.error, ALL, ETA2) for o in of]
    plane.plot(rates, best, "-", color=style.INK, lw=1.2, label="least D for R")
    plane.plot(rates, entropy(ALL) - rates, "--", color=style.MUTED, lw=1, label="D = H − R")
    shown = found.of(modes=ALL)
    for case, color in zip(shown, style.viridis(len(shown)), strict=True):
        rate, distorted = case.values["rate"][1], case.values["distortion"][1]
        plane.plot(rate[0], distorted[0], "-", color=color, lw=0.7)
        beta = case.arguments["beta"]
        plane.plot(rate[:, -1], distorted[:, -1], "o", ms=4, color=color, label=f"β = {beta:g}")
        slope = np.diff(case.values["distortion"][[0, 2], :, -1], axis=0)[0]
        slope /= np.diff(case.values["rate"][[0, 2], :, -1], axis=0)[0]
        slopes.plot([beta] * len(slope), -slope, "o", ms=4, color=color)
    plane.set_xlim(-0.3, rates.max() + 0.3)
    plane.set_xlabel("rate R, nats")
    plane.set_ylabel("distortion D, nats")
    plane.legend(fontsize=6.5, ncols=2)
    ends = [BETAS[0], BETAS[-1]]
    slopes.plot(ends, ends, "-", color=style.INK, lw=1)
    slopes.set_xscale("log", base=2)
    slopes.set_yscale("log", base=2)
    slopes.set_xlabel("β")
    slopes.set_ylabel("−dD/dR of the runs")
    for axis in (slopes.xaxis, slopes.yaxis):
        axis.set_major_formatter("{x:g}")
    return sheet
