"""Tighter bounds give the encoder noisier gradients: SNR ∝ √(M/K) (Rainforth et al. 2018).

Of the gradient of 1/M Σ_m log 1/K Σ_k w_mk, reparameterised, the signal-to-noise ratio |E g|/σ[g]
is O(√(M/K)) for the encoder and O(√(MK)) for the model (theorem 1): more samples K in a bound drown
the encoder's gradient, while more bounds M of few samples help both. The encoder's signal is that
of the gap log p(x) − L_K, which falls as 1/K; its noise falls as 1/√K.

The set-up is that of section 4, `gaussian_toy`: 20 dimensions, parameters near their optimum, off
it by another draw in each seed; gradients of one example, of which the theorem is, and of the mean
of 1024, as in the paper's figure. The paper has SNRs of single parameters; here |E g| and σ are
norms over all of A, of b, or of μ, σ² = tr Cov g; of one example, root mean squares over examples.

A ratio |ĝ|/σ of n draws is not below about 1/√n, however weak the signal, and the encoder's falls
under that (read off the same draws: grey in the figure). So its signal is from DReG (Tucker et al.
2019), which has the same mean at a far higher SNR, less the square of DReG's own noise.

The slopes are asymptotic. Of K = 10 ... 1000 an independent program measured −0.499 for b and 0.497
for μ. The next order in 1/K is some ten percent at K = 10, over a factor of 100 in K 0.1/ln 100 =
0.02 of a slope; signals are known to about 5%, another 0.01: hence ± 0.07. But of the mean over the
examples ∇_μ log p(x), the model's signal, is next to nothing close to the best μ, beside which the
second term of theorem 1, −½ ∇_b L_K, is not small at K = 10: its slope is also compared with that
of both terms.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies import gaussian_toy
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.gaussian_toy import PARAMETERS
from experiments.studies.quantity import Quantity, of_seeds
from vae.gradients import noise

ID = "A4"
SAMPLES = (10, 32, 100, 316, 1000)
GROUPS = (1, 4, 16)
# Expected slopes of ln SNR in ln K. In ln M it is ½ of all.
IN_SAMPLES = {"A": -0.5, "b": -0.5, "μ": 0.5}
TOLERANCE = 0.07
_ROLES = {"A": "encoder's A", "b": "encoder's b", "μ": "model's μ"}
_THEOREM = "Rainforth et al. 2018, theorem 1"
_PROGRAM = {"b": "; an independent program: −0.499", "μ": "; an independent program: 0.497"}


def cases(budget: str) -> list[Arguments]:
    """SNRs over K at M = 1, and over M at K = 10.

    `draws` of z for each example; of gradients there are as many fewer as each has samples, but 2.
    """
    sizes = {"quick": {"seeds": 5, "draws": 500}, "full": {"seeds": 20, "draws": 4000}}[budget]
    over_k = [{"samples": k, "groups": 1} for k in SAMPLES]
    over_m = [{"samples": SAMPLES[0], "groups": m} for m in GROUPS[1:]]
    return [case | {"points": 1024} | sizes for case in over_k + over_m]


def run(arguments: Arguments, context: Context) -> dict[str, np.ndarray]:
    """SNRs of `PARAMETERS`, [seeds, 3]: `one` example; `mean` of all; `read`, that as read off.

    Also `floor` of what is read off [seeds], and of both terms of theorem 1 `model_signal` [seeds],
    |∇_μ L_K| of the mean, and `second_term` [seeds], its second term over its first.
    """
    del context
    samples, groups = arguments["samples"], arguments["groups"]
    seeds, points = arguments["seeds"], arguments["points"]
    draws = max(2, arguments["draws"] // (samples * groups))
    estimators = {"plain": "reparameterization", "dreg": "dreg"}
    specs = {n: gaussian_toy.spec_of(e, samples, groups) for n, e in estimators.items()}

    def of_toy(toy, rng):
        found = gaussian_toy.moments(specs, toy, rng, draws)
        plain, dreg = (gaussian_toy.only(name, found) for name in estimators)
        ones = jax.vmap(lambda one: noise.snr(one, gaussian_toy.parts))
        one, of_dreg = ones(plain), ones(dreg)
        # Not `corrected`: clipped at 0 for each example, its mean would be too large.
        squared = jnp.square(of_dreg.signal) - jnp.square(of_dreg.noise * of_dreg.floor)
        squared = jnp.maximum(jnp.mean(squared, axis=0), 0)
        noise_squared = jnp.mean(jnp.square(one.noise), axis=0)
        mean, of_dreg = (
            noise.snr(gaussian_toy.of_mean(each), gaussian_toy.parts) for each in (plain, dreg)
        )
        return {
            "one": jnp.sqrt(squared / noise_squared),
            "mean": of_dreg.corrected * of_dreg.noise / mean.noise,
            "read": mean.plain,
            "floor": mean.floor[0],
        }

    found = gaussian_toy.of_seeds(of_toy, seeds, points)
    toys = [gaussian_toy.draw(seed, points) for seed in range(seeds)]
    first = np.stack([gaussian_toy.evidence_gradient(toy) for toy in toys])
    second = np.stack(
        [-0.5 * gaussian_toy.bound_gradient(gaussian_toy.offsets(t), samples) for t in toys]
    )
    norm = np.linalg.norm
    return found | {
        "model_signal": norm(first + second, axis=1),
        "second_term": norm(second, axis=1) / norm(first, axis=1),
    }


def _over(found: Found, what: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Of the cases that differ in K (M): its values [n], and what is measured, [n, seeds, ...]."""
    other, value = {"samples": ("groups", 1), "groups": ("samples", SAMPLES[0])}[what]
    chosen = sorted(found.of(**{other: value}), key=lambda case: case.arguments[what])
    numbers = np.array([case.arguments[what] for case in chosen], np.float64)
    names = chosen[0].values if chosen else ()
    return numbers, {name: np.stack([case.values[name] for case in chosen]) for name in names}


def measure(found: Found) -> list[Quantity]:
    """The slopes over K and over M, one for each seed."""
    k, over_k = _over(found, "samples")
    m, over_m = _over(found, "groups")
    # Of noise that falls as 1/√K.
    theory = gaussian_toy.slope(k, over_k["model_signal"]) + 0.5
    note = (
        f"so near to the best μ the second term of theorem 1 is "
        f"{over_k['second_term'][0].mean():.2g} of the first at K = {k[0]:g}; the slope of both is "
        f"{theory.mean():.2f}"
    )
    rows = []
    for what, label in (("one", "one example"), ("mean", "mean of all")):
        slopes = gaussian_toy.slope(k, over_k[what])
        for place, name in enumerate(PARAMETERS):
            rows.append(
                of_seeds(
                    f"slope of ln SNR in ln K, {_ROLES[name]}, {label}",
                    slopes[:, place],
                    IN_SAMPLES[name],
                    TOLERANCE,
                    source=_THEOREM + _PROGRAM.get(name, ""),
                    note=note if (what, name) == ("mean", "μ") else "",
                )
            )
    mu, b = PARAMETERS.index("μ"), PARAMETERS.index("b")
    rows.append(
        of_seeds(
            f"{rows[-1].name}, less that of both terms",
            gaussian_toy.slope(k, over_k["mean"])[:, mu] - theory,
            0,
            TOLERANCE,
            source=f"{_THEOREM}, both terms in closed form",
        )
    )
    slopes = gaussian_toy.slope(m, over_m["mean"])
    for place, name in enumerate(PARAMETERS):
        label = f"slope of ln SNR in ln M, {_ROLES[name]}, mean of all"
        rows.append(of_seeds(label, slopes[:, place], 0.5, TOLERANCE, source=_THEOREM))
    rows.append(
        of_seeds(
            f"SNR of b at K = {k[-1]:g}, as read off its own draws, over SNR",
            over_k["read"][-1, :, b] / over_k["mean"][-1, :, b],
            note=f"no SNR of these draws is read below about {over_k['floor'][-1].mean():.2g}",
        )
    )
    return rows


def figure(found: Found):
    """SNR over K and over M, as in figure 2 of the paper: points of seeds, lines of theory."""
    sheet, panels = canvas.new_figure(1, 3, 7.4, 3.1)
    shown = (
        ("one", "samples", "K, samples in a bound", "one example"),
        ("mean", "samples", "K, samples in a bound", "mean of all examples"),
        ("mean", "groups", f"M, bounds of {SAMPLES[0]} samples", "mean of all examples"),
    )
    for panel, (which, what, label, title) in zip(panels, shown, strict=True):
        numbers, values = _over(found, what)
        if (which, what) == ("mean", "samples"):
            read, floor = values["read"][:, :, PARAMETERS.index("b")], values["floor"]
            panel.plot(numbers, floor.mean(axis=1), ":", color=style.MUTED, label="floor, 1/√draws")
            panel.plot(numbers, read[:, 0], "x", color=style.MUTED, ms=3, label="b, as read off")
            panel.plot(numbers, read[:, 1:], "x", color=style.MUTED, ms=3)
        for place, name in enumerate(PARAMETERS):
            color, snr = style.PETROFF[place], values[which][:, :, place]
            expected = IN_SAMPLES[name] if what == "samples" else 0.5
            # Of the theory's slope, through the last points: it is asymptotic.
            level = np.exp(np.mean(np.log(snr[-1])))
            panel.plot(numbers, level * (numbers / numbers[-1]) ** expected, color=color, lw=1)
            panel.plot(numbers, snr, "o", color=color, ms=3, alpha=0.6)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xticks(numbers)
        panel.set_xlabel(label)
        panel.set_title(title)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter("")
    panels[2].set_yticks((0.5, 1, 2, 4))
    for place, name in enumerate(PARAMETERS):
        slopes = f"slopes {'−½' if IN_SAMPLES[name] < 0 else '½'} in ln K, ½ in ln M"
        panels[0].plot(
            [], [], "o-", color=style.PETROFF[place], ms=3, lw=1, label=f"{_ROLES[name]}: {slopes}"
        )
    panels[0].set_ylabel("signal-to-noise ratio")
    sheet.legend(loc="outside lower center", ncols=2)
    return sheet
