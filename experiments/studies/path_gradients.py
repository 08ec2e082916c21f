"""DReG is unbiased, its SNR ∝ √K; STL is biased for K > 1 (Roeder et al. 2017; Tucker et al. 2019).

Three estimators of the gradient of IWAE's bound in the encoder, with w̃ the normalised weights of K
samples, and path_k the gradient of ln w_k through z_k alone:

  reparameterization  Σ_k w̃_k (path_k − score_k)
  STL                 Σ_k w̃_k path_k (Roeder et al. 2017, which is of the ELBO, K = 1)
  DReG                Σ_k w̃_k² path_k (Tucker et al. 2019, eq. 7)

For K = 1 STL and DReG are the same for every sample, and unbiased. For K > 1 E Σ_k w̃_k score_k is
not 0: STL estimates what tends to E_p(z|x) path while the bound's gradient falls as 1/K, so that
its relative bias grows as K. DReG's noise falls as K^−3/2, faster than the signal, so that its SNR
grows as √K where that of reparameterisation falls.

All is measured on `gaussian_toy`, of the gradient in b of the mean over 1024 examples; each seed
has a toy of its own. The means of STL and of DReG are compared with closed forms, two orders in 1/K
of each: ± 0.05, by the next order at K = 100, about (10/K)², and 1% of sampling. The slope of the
SNR has ± 0.1, for what the next orders do at K = 10: an independent program measured 0.46. STL's
bias at K = 100 was about 60 there; ± 6, as other offsets of the parameters change ‖Δ‖² and with it
e^(−1.2‖Δ‖²), of which the bias is a multiple.

Tests of bias are Welch's, of projections (`vae.gradients.noise.bias_test`): without a bias p is
uniform, and the smallest of n, times n, is below 0.01 in 1% of all cases.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies import gaussian_toy
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.quantity import Quantity, exact, of_seeds
from vae.gradients import noise

ID = "A5"
SAMPLES = (10, 32, 100, 316, 1000)
ESTIMATORS = {"reparameterization": "reparameterisation", "stl": "STL", "dreg": "DReG"}
# Of which K the tests are, and against reparameterisation.
TESTED = 10
_TUCKER = "Tucker et al. 2019"


def cases(budget: str) -> list[Arguments]:
    """Moments over K; one draw of each example at K = 1; tests.

    `draws` of z for each example, shared out over gradients of K; in tests, of gradients.
    """
    seeds, draws, tested = {"quick": (5, 1000, 64), "full": (20, 4000, 128)}[budget]
    sizes = {"seeds": seeds, "points": 1024}
    moments = [{"what": "moments", "samples": k, "draws": draws} for k in SAMPLES]
    same = {"what": "same", "samples": 1, "draws": 1}
    test = {"what": "test", "samples": TESTED, "draws": tested}
    return [case | sizes for case in (*moments, same, test)]


def run(arguments: Arguments, context: Context) -> dict[str, np.ndarray]:
    """One of `_moments`, `_same` and `_test`, by the case's `what`."""
    del context
    measures = {"moments": _moments, "same": _same, "test": _test}
    return measures[arguments["what"]](arguments)


def _specs(samples: int) -> dict[str, gaussian_toy.Spec]:
    return {name: gaussian_toy.spec_of(name, samples) for name in ESTIMATORS}


def _moments(arguments: Arguments) -> dict[str, np.ndarray]:
    """Of the gradients in b, of each seed.

    `signal`, without the bias by the draws' noise, and `noise` [seeds, 3] of `ESTIMATORS`; `bias`,
    of STL against DReG, and `bias_expected`; `along` [seeds, 3], means projected on their closed
    forms, in units of those; `norms_expected` [seeds, 2], of STL's and of DReG's. The estimators
    share their draws, so that `noise.bias` takes a little too much off STL's, less than 1e-3 of it.
    """
    samples, seeds, points = (arguments[name] for name in ("samples", "seeds", "points"))
    draws = max(2, arguments["draws"] // samples)

    def of_toy(toy, rng):
        found = gaussian_toy.of_mean(gaussian_toy.moments(_specs(samples), toy, rng, draws))
        each = [gaussian_toy.only("b", gaussian_toy.only(name, found)) for name in ESTIMATORS]
        _, stl, dreg = each
        snrs = [noise.snr(of) for of in each]
        return {
            "signal": jnp.concatenate([snr.corrected * snr.noise for snr in snrs]),
            "noise": jnp.concatenate([snr.noise for snr in snrs]),
            "bias": noise.bias(stl, dreg)[0],
            "mean": jnp.stack([of.mean for of in each]),
        }

    found = jax.tree.map(np.asarray, gaussian_toy.of_seeds(of_toy, seeds, points))
    offsets = [gaussian_toy.offsets(gaussian_toy.draw(seed, points)) for seed in range(seeds)]
    stl, bound = (
        np.stack([function(offset, samples) for offset in offsets])
        for function in (gaussian_toy.stl_mean, gaussian_toy.bound_gradient)
    )
    expected = np.stack([bound, stl, bound], axis=1)
    norm = np.linalg.norm
    return {
        "signal": found["signal"],
        "noise": found["noise"],
        "bias": found["bias"],
        "bias_expected": norm(stl - bound, axis=1) / norm(bound, axis=1),
        "along": np.sum(found["mean"] * expected, axis=2) / np.sum(expected**2, axis=2),
        "norms_expected": np.stack([norm(stl, axis=1), norm(bound, axis=1)], axis=1),
    }


def _same(arguments: Arguments) -> dict[str, np.ndarray]:
    """`difference` [seeds]: the largest of a draw of all examples, |DReG − STL|/|STL|."""
    specs = _specs(arguments["samples"])

    def of_toy(toy, rng):
        def of_example(x, rng):
            stl, dreg = (gaussian_toy.gradient(specs[n], toy, x, rng)["b"] for n in ("stl", "dreg"))
            return jnp.linalg.norm(dreg - stl) / jnp.linalg.norm(stl)

        return {
            "difference": jnp.max(jax.vmap(of_example)(toy.x, jax.random.split(rng, len(toy.x))))
        }

    return gaussian_toy.of_seeds(of_toy, arguments["seeds"], arguments["points"])


def _test(arguments: Arguments) -> dict[str, np.ndarray]:
    """`p` [seeds, 2] of STL and of DReG against reparameterisation."""
    specs, draws = _specs(arguments["samples"]), arguments["draws"]

    def of_toy(toy, rng):
        def mean_gradient(name):
            def gradient(rng):
                rngs = jax.random.split(rng, len(toy.x))
                each = jax.vmap(lambda x, r: gaussian_toy.gradient(specs[name], toy, x, r)["b"])
                return jnp.mean(each(toy.x, rngs), axis=0)

            return gradient

        plain, *others = (mean_gradient(name) for name in ESTIMATORS)
        rngs = jax.random.split(rng, (len(others), 2, draws))
        tests = [noise.bias_test(o, plain, *r) for o, r in zip(others, rngs, strict=True)]
        return {"p": jnp.concatenate([test.p for test in tests])}

    return gaussian_toy.of_seeds(of_toy, arguments["seeds"], arguments["points"])


def _over_samples(found: Found) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """K [n], and what is measured at each, [n, seeds, ...]."""
    chosen = sorted(found.of(what="moments"), key=lambda case: case.arguments["samples"])
    values = {name: np.stack([case.values[name] for case in chosen]) for name in chosen[0].values}
    return np.array([case.arguments["samples"] for case in chosen], np.float64), values


def _snrs(values: dict[str, np.ndarray]) -> np.ndarray:
    """[n, seeds, 3]; reparameterisation's with DReG's signal: the same, but far better known."""
    signal = values["signal"].copy()
    signal[..., 0] = signal[..., 2]
    return signal / values["noise"]


def measure(found: Found) -> list[Quantity]:
    """Bias and SNR of each estimator."""
    k, values = _over_samples(found)
    slopes = gaussian_toy.slope(k, _snrs(values))
    (same,), (test,) = found.of(what="same"), found.of(what="test")
    p, hundred = test.values["p"], list(k).index(100)
    bias, along = values["bias"], values["along"]
    return [
        of_seeds(
            "slope of ln SNR in ln K, DReG",
            slopes[:, 2],
            0.5,
            0.1,
            source=f"{_TUCKER}; an independent program: 0.46",
        ),
        of_seeds("slope of ln SNR in ln K, STL", slopes[:, 1]),
        of_seeds(
            "slope of ln SNR in ln K, reparameterisation",
            slopes[:, 0],
            -0.5,
            0.07,
            source="Rainforth et al. 2018, theorem 1",
        ),
        *(
            of_seeds(
                f"mean of {label} over what it should be, K = 100",
                along[hundred, :, place],
                1,
                0.05,
                source="in closed form",
            )
            for place, label in ((2, "DReG"), (1, "STL"))
        ),
        of_seeds(
            "|E STL − E DReG|/|E DReG| at K = 100",
            bias[hundred],
            60,
            6,
            source="an independent program",
            note=(
                f"in closed form {values['bias_expected'][hundred].mean():.3g} for these toys and "
                f"{_without_offset(100):.3g} as ‖Δ‖ → 0: it hangs on how far off the parameters are"
            ),
        ),
        of_seeds(
            "the same over its closed form",
            bias[hundred] / values["bias_expected"][hundred],
            1,
            0.05,
            source="in closed form",
        ),
        of_seeds(
            "slope of ln |E STL − E DReG|/|E DReG| in ln K",
            gaussian_toy.slope(k, bias),
            1,
            0.1,
            source="the bound's gradient falls as 1/K, STL's mean does not",
        ),
        exact(
            "|DReG − STL|/|STL| of one sample, K = 1, the largest",
            same.values["difference"].max(),
            1e-6,
            relation="<=",
            source=f"{_TUCKER}, eq. 7 at K = 1; rounding",
        ),
        exact(
            f"test of bias at K = {TESTED}, DReG: smallest p times seeds",
            p[:, 1].min() * len(p),
            0.01,
            relation=">=",
            source=f"{_TUCKER}; 1% of such tests fail by chance",
        ),
        exact(
            f"test of bias at K = {TESTED}, STL: largest p",
            p[:, 0].max(),
            1e-3,
            relation="<=",
            source=_TUCKER,
        ),
    ]


def _without_offset(samples: int) -> float:
    """The relative bias of STL for ‖Δ‖ → 0, to which both means are proportional."""
    offset = np.full((1, gaussian_toy.DIM), 1e-6)
    stl, bound = (f(offset, samples) for f in (gaussian_toy.stl_mean, gaussian_toy.bound_gradient))
    return float(np.linalg.norm(stl - bound) / np.linalg.norm(bound))


def figure(found: Found):
    """SNR, mean and relative bias over K: points of seeds, lines of theory."""
    sheet, (ratios, means, biases) = canvas.new_figure(1, 3, 7.4, 3.0)
    k, values = _over_samples(found)
    snrs = _snrs(values)
    for place, (name, slope) in enumerate(zip(ESTIMATORS.values(), (-0.5, 0.5, 0.5), strict=True)):
        color = style.PETROFF[place]
        level = np.exp(np.mean(np.log(snrs[-1, :, place])))
        ratios.plot(k, level * (k / k[-1]) ** slope, color=color, lw=1)
        ratios.plot(k, snrs[:, :, place], "o", color=color, ms=3, alpha=0.6)
        ratios.plot([], [], "o-", color=color, ms=3, lw=1, label=name)
    for place, color in ((1, style.PETROFF[1]), (2, style.PETROFF[2])):
        means.plot(k, values["norms_expected"][:, :, place - 1], color=color, lw=0.6)
        means.plot(k, values["signal"][:, :, place], "o", color=color, ms=3, alpha=0.6)
    biases.plot(k, values["bias_expected"], color=style.PETROFF[1], lw=0.6)
    biases.plot(k, values["bias"], "o", color=style.PETROFF[1], ms=3, alpha=0.6)
    titles = ("signal-to-noise ratio", "norm of the mean", "STL's relative bias")
    for panel, title in zip((ratios, means, biases), titles, strict=True):
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(k)
        panel.set_xlabel("K, samples in the bound")
        panel.set_title(title)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    means.set_ylabel("nats per unit of b")
    sheet.legend(loc="outside lower center", ncols=3)
    return sheet
