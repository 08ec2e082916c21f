"""On data of low rank the best decoder variance is 0, its gradient infinite (Dai et al. 2021).

The data lie in a subspace of r of d dimensions. With γ = η² < λ_r, and all else at its optimum,

  2·NLL(γ) = −2·ELBO = d ln 2π + Σ_{i≤r} (ln λ_i + 1) + (d − r) ln γ,

so d(2·NLL)/d ln γ = d − r at any γ: no γ > 0 is best, and |∂NLL/∂γ| = (d − r)/(2γ) has slope −1 in
log–log and no bound. It does not go away by a bound on the gradient: of the latents that are given,
exactly the r that the data need stay active at such an optimum (they prove it of a broad class of
autoencoders; a linear VAE has it in closed form).

Here d = 20, r = 5 with λ = (4, 3, 2, 1.5, 1), rotated at random; a linear VAE of 10 latents,
without sampling (`linear.py`), float64. First the networks are trained at γ = ¼, until the latents
that nothing needs are pruned; then γ too is trained, by gradient descent on ln γ. The rate of the
weights is .02·γ, because their curvature grows as 1/γ: at a fixed rate descent diverges, which is
what makes infinite gradients a problem. ln γ falls by (d − r)/2 a unit of time and never stops. All
is read along this way below γ = 1/100. The variances of q follow γ and lag: ln γ falls by .0019 a
step and they relax by 1/4 a step, so that they are .75% too large, which takes r · .0075 = .04, or
¼%, off the derivative. Tolerances: .05 on the slope, an independent program's; 1% of d − r.

Against it: the same with noise of variance .01 in all 20 dimensions, and 5 latents. Then γ stops
where probabilistic PCA has it, at .01. And, only reported: γ trained from the start at γ = 1. The
networks prune at a speed that goes with γ, so that more than r latents may be left behind.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies import linear
from experiments.studies.cases import Arguments, Case, Context, Found
from experiments.studies.quantity import Quantity, of_seeds

ID = "A3"
VALUES, RANK = 20, 5
VARIANCES = np.array([4, 3, 2, 1.5, 1])
START = 0.25
# Steps of gradient descent: of the weights in units of γ, of ln v and of ln γ.
WEIGHTS, LOG_VARIANCES, LOG_GAMMA = 0.02, 0.5, 0.00025
READINGS, EVERY = 200, 40
# The γ below which slopes are read.
SMALL = 1e-2


def cases(budget: str) -> list[Arguments]:
    """Data of rank 5; with noise; and γ trained without waiting for the networks."""
    del budget
    return [
        {"noise": 0.0, "latents": 10, "wait": 10_000, "seeds": 5},
        {"noise": 0.01, "latents": 5, "wait": 10_000, "seeds": 5},
        {"noise": 0.0, "latents": 10, "wait": 0, "seeds": 5},
    ]


def examples(seed: int, noise: float) -> np.ndarray:
    """Points [40, 20] with the variances λ + noise, and noise elsewhere, in random directions."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(VALUES, VALUES)))
    variances = np.concatenate([VARIANCES, np.zeros(VALUES - RANK)]) + noise
    return linear.points(variances) @ rotation.T


def run(arguments: Arguments, context: Context) -> dict[str, Any]:
    """ln γ, 2·NLL, its derivative in γ and the active units, [seeds, readings]."""
    del context
    with jax.enable_x64(True):
        return _trained(**arguments)


def _trained(noise: float, latents: int, wait: int, seeds: int) -> dict[str, jax.Array]:
    of = linear.spec((VALUES,), latents, "gaussian_shared")
    x = jnp.asarray(np.stack([examples(seed, noise) for seed in range(seeds)]))

    def twice_nll(params, x):
        return -2 * linear.means(of, params, x)["elbo"]

    def with_gamma(params, log_gamma):
        return params | {"likelihood": {"logvar": log_gamma}}

    def step(params, x):
        grads = jax.tree.map(lambda g: g / 2, jax.grad(twice_nll)(params, x))
        log_gamma = params["likelihood"]["logvar"]
        rates = jax.tree.map(lambda _: WEIGHTS * jnp.exp(log_gamma), params)
        rates["encoder"]["scale"]["bias"] = LOG_VARIANCES
        rates["likelihood"]["logvar"] = LOG_GAMMA
        return jax.tree.map(lambda p, rate, g: p - rate * g, params, rates, grads)

    def one(params, x):
        if wait:
            held = jnp.log(jnp.asarray(START, x.dtype))

            def loss(params):
                return twice_nll(with_gamma(params, held), x) / 2

            params = with_gamma(linear.descend(loss, params, WEIGHTS, wait), held)

        def reading(params, _):
            params = jax.lax.fori_loop(0, EVERY, lambda _, params: step(params, x), params)
            value, grads = jax.value_and_grad(twice_nll)(params, x)
            log_gamma = params["likelihood"]["logvar"]
            return params, {
                "log_gamma": log_gamma,
                "twice_nll": value,
                "gradient": grads["likelihood"]["logvar"] * jnp.exp(-log_gamma),
                "active_units": linear.active_units(of, params, x),
            }

        return jax.lax.scan(reading, params, length=READINGS)[1]

    return jax.jit(jax.vmap(one))(linear.start(of, range(seeds)), x)


def slopes(x: np.ndarray, y: np.ndarray) -> list[float]:
    """The slope of y over x for each seed, [seeds, readings], where x is below ln `SMALL`."""
    chosen = x < np.log(SMALL)
    return [
        float(np.polyfit(a[take], b[take], 1)[0]) if np.sum(take) > 1 else np.nan
        for a, b, take in zip(x, y, chosen, strict=True)
    ]


def _fall(case: Case) -> np.ndarray:
    """By how much ln γ fell in a unit of time, over the last tenth of the readings, [seeds]."""
    log_gamma, last = case.values["log_gamma"], READINGS // 10
    return (log_gamma[:, -1 - last] - log_gamma[:, -1]) / (last * EVERY * LOG_GAMMA)


def measure(found: Found) -> list[Quantity]:
    """The slopes of the gradient and of the loss, what is active, and where γ goes."""
    source, rows = "Dai et al. 2021; in closed form for a linear VAE", []
    for case in found.cases:
        noise, wait, values = case.arguments["noise"], case.arguments["wait"], case.values
        units, last = values["active_units"][:, -1], values["log_gamma"][:, -1]
        if not wait:
            kept = f"active units of {case.arguments['latents']}, γ trained from the start"
            rows.append(of_seeds(kept, units))
        elif noise:
            rows.append(
                of_seeds(
                    f"γ at the end, noise of variance {noise:g}",
                    np.exp(last),
                    noise,
                    0.01 * noise,
                    source="Tipping and Bishop 1999: the mean of the variances left out",
                )
            )
        else:
            rank, left = f"data of rank {RANK}", VALUES - RANK
            log_slope = np.log(np.abs(values["gradient"]))
            rows += [
                of_seeds(
                    f"slope of log |∂L/∂γ| over log γ, {rank}",
                    slopes(values["log_gamma"], log_slope),
                    -1,
                    0.05,
                    source="an independent program",
                ),
                of_seeds(
                    f"d(2·NLL)/d ln γ, {rank}",
                    slopes(values["log_gamma"], values["twice_nll"]),
                    left,
                    0.01 * left,
                    source=source,
                ),
                of_seeds(
                    f"fall of ln γ in a unit of time at the end, {rank}",
                    _fall(case),
                    left / 2,
                    0.01 * left / 2,
                    source=source,
                ),
                of_seeds(
                    f"active units of {case.arguments['latents']}, {rank}",
                    units,
                    RANK,
                    source=source,
                ),
                of_seeds(f"log10 of γ at the end, {rank}", last / np.log(10)),
            ]
    return rows


def figure(found: Found):
    """The gradient in γ and twice the nll, over γ; and γ as it is trained, in both data."""
    sheet, (gradient, nll, gamma) = canvas.new_figure(1, 3, 7.4, 2.6)
    left, ink = VALUES - RANK, style.INK
    for case in found.of(noise=0.0)[:1]:
        values = {name: value.mean(0) for name, value in case.values.items()}
        g, shown = np.exp(values["log_gamma"]), slice(None, None, 10)
        gradient.loglog(g, left / g, "-", color=ink, lw=1, label="(d − r)/γ")
        gradient.loglog(
            g[shown],
            np.abs(values["gradient"])[shown],
            "o",
            ms=4,
            color=style.ACCENT,
            label="measured",
        )
        constant = VALUES * np.log(2 * np.pi) + np.sum(np.log(VARIANCES) + 1)
        nll.plot(g, constant + left * np.log(g), "-", color=ink, lw=1, label="least, slope d − r")
        nll.plot(
            g[shown], values["twice_nll"][shown], "o", ms=4, color=style.ACCENT, label="measured"
        )
    for panel, title in ((gradient, "|∂(2·NLL)/∂γ|"), (nll, "2·NLL, nats")):
        panel.set_xscale("log")
        panel.set_xlabel("decoder variance γ")
        panel.set_ylabel(title)
        panel.legend()
    time = EVERY * LOG_GAMMA * np.arange(1, READINGS + 1)
    for case, color in zip(found.cases, style.PETROFF, strict=False):
        noise, wait = case.arguments["noise"], case.arguments["wait"]
        label = f"noise {noise:g}" if noise else f"rank {RANK}"
        label += "" if wait else ", γ from the start"
        gamma.plot(time, np.exp(case.values["log_gamma"]).mean(0), color=color, lw=1.2, label=label)
        if noise:
            gamma.axhline(noise, color=style.MUTED, lw=0.8, ls="--")
    gamma.set_yscale("log")
    gamma.set_xlabel("time of descent on ln γ")
    gamma.set_ylabel("γ")
    gamma.legend(fontsize=6.5)
    for axis in (gradient.xaxis, gradient.yaxis, nll.xaxis, gamma.yaxis):
        axis.set_major_formatter("{x:g}")
    return sheet
