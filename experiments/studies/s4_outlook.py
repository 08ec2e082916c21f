"""Posterior collapse and blur in one VAE, and what five remedies do about each (seed S4).

Set-up: configs/seeds/s4_outlook.py: ½|x − x̂|² + KL on MNIST, and the same with one thing changed:
warm-up of the KL, free bits, the optimal σ², a posterior of full covariance, VAE-GAN.

Collapse is told by active units (Burda et al. 2016) and the rate; of a linear VAE no more latents
are active than the data have components of variance above βσ² = 1 (Lucas et al. 2019). Blur is told
by what reconstructions and samples have of the data's sharpness (`vae.sharpness`): the variance of
the Laplacian, and the share of power above half of Nyquist's frequency, as log10 of the ratio of
means: 0 is as sharp as the data. Reconstructions are of the mean of q(z|x); pictures are E[x|z].
Distortions under another likelihood do not compare: the squared error of reconstructions does.

What is asked of a remedy is what it is for: active units and rate of warm-up, free bits, the
likelihood and the posterior; sharpness of the likelihood and the adversary. Both of collapse,
because units of a correlated posterior can all be active at a small rate. Differences are of the
same seed.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments import load
from experiments.report import canvas, style
from experiments.report.results import Run
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.quantity import Quantity, difference, of_seeds
from vae import model, sharpness
from vae.data import prepare
from vae.likelihoods import LIKELIHOODS

ID = "S4"
CONFIGS = {"quick": "configs/seeds/s4_outlook_quick.py", "full": "configs/seeds/s4_outlook.py"}
IMAGES = 500
# Name: what is set, and what it is a remedy for.
ROWS = {
    "VAE": ({}, ""),
    "warm-up": ({"objective.beta_schedule": "linear"}, "collapse"),
    "free bits": ({"objective.free_bits": 0.5}, "collapse"),
    "better likelihood": ({"model.likelihood": "gaussian_optimal"}, "collapse blur"),
    "stronger posterior": ({"model.posterior": "full"}, "collapse"),
    "adversarial decoder": ({"objective.name": "vaegan"}, "blur"),
}
FIRST = {
    "objective.name": "elbo",
    "objective.beta_schedule": "constant",
    "objective.free_bits": 0.0,
    "model.likelihood": "gaussian",
    "model.posterior": "gaussian",
}
MEASURES = {
    "laplacian": sharpness.laplacian_variance,
    "high": sharpness.high_frequency_share,
    "spectrum": sharpness.radial_spectrum,
}
SOURCES = {
    "warm-up": "Sønderby et al. 2016",
    "free bits": "Kingma et al. 2016",
    "better likelihood": "Rybkin et al. 2021",
    "stronger posterior": "the write-up",
    "adversarial decoder": "Larsen et al. 2016",
}


def cases(budget: str) -> list[Arguments]:
    return [{"row": name} for name in ROWS]


def run(arguments: Arguments, context: Context) -> dict[str, np.ndarray]:
    """Means over images: each of `MEASURES` of `data`, `reconstructions`, `samples`; `error`."""
    found = [pictures_of(run.directory) for run in runs_of(context.results.runs, arguments["row"])]
    return {name: np.stack([of[name] for of in found]) for name in found[0]} if found else {}


def runs_of(runs: tuple[Run, ...], row: str) -> list[Run]:
    """The finished runs of a row, in the order of their seeds."""
    wanted = FIRST | ROWS[row][0]
    chosen = [r for r in runs if all(r.setting(n) == v for n, v in wanted.items())]
    return [run for run in chosen if run.status == "ok"]


def pictures_of(folder) -> dict[str, np.ndarray]:
    """The measures of one run."""
    run = load.load_run(folder)
    raw, transform = run.dataset.evaluation("test")
    spec = run.spec.model
    mean = LIKELIHOODS[spec.likelihood].mean

    @jax.jit
    def pictures(raw, rngs):
        def decode(z):
            decoded, _ = model.decode(
                spec, run.params, run.stats, run.hparams, z[None], train=False
            )
            return decoded.each(mean)[0]

        def one(raw, rng):
            x = prepare(transform, raw, None)
            posterior, _ = model.encode(spec, run.params, run.stats, run.hparams, x, train=False)
            seen = decode(model.location(spec, run.params, posterior))
            drawn = decode(model.sample_prior(spec, run.params, run.stats, run.hparams, rng))
            return {"data": x, "reconstructions": seen, "samples": drawn}

        images = jax.vmap(one)(raw, rngs)
        error = jnp.sum(jnp.square(images["data"] - images["reconstructions"]), (1, 2, 3))
        found = {
            f"{kind} {name}": jnp.mean(jax.vmap(measure)(of[..., 0]), axis=0)
            for kind, of in images.items()
            for name, measure in MEASURES.items()
        }
        return found | {"error": jnp.mean(error), "pictures": images["reconstructions"][:6, ..., 0]}

    rngs = jax.random.split(jax.random.key(0), IMAGES)
    return jax.tree.map(np.asarray, pictures(jnp.asarray(raw[:IMAGES]), rngs))


def sharp(found: Found, row: str, kind: str, measure: str) -> dict[int, float]:
    """log10 of the ratio of a measure to the data's, by seed."""
    [case] = found.of(row=row)
    seeds = [run.seed for run in runs_of(found.results.runs, row)]
    values = case.values.get(f"{kind} {measure}", np.zeros(0))
    data = case.values.get(f"data {measure}", np.zeros(0))
    ratios = np.log10(np.maximum(values, 1e-30) / np.maximum(data, 1e-30))
    return dict(zip(seeds, map(float, ratios), strict=True))


def _metric(found: Found, row: str, metric: str) -> dict[int, float]:
    wanted = FIRST | ROWS[row][0]
    return {
        run.seed: run.number(metric) if run.status == "ok" else math.nan
        for run in found.results.runs
        if all(run.setting(n) == v for n, v in wanted.items())
    }


def measure(found: Found) -> list[Quantity]:
    """Both of the VAE; then, of each remedy, what it changes."""
    rows = []
    base_units = _metric(found, "VAE", "test/active_units")
    base = {kind: sharp(found, "VAE", kind, "laplacian") for kind in ("reconstructions", "samples")}
    rows.append(
        of_seeds(
            "active units of the VAE, of 20",
            base_units.values(),
            12,
            relation="<=",
            source="Lucas et al. 2019: MNIST has 12 components of variance above βσ² = 1",
        )
    )
    for kind, values in base.items():
        rows.append(
            of_seeds(
                f"sharpness of the VAE's {kind}, log10",
                values.values(),
                0,
                relation="<=",
                source="the write-up: VAEs are blurred",
            )
        )
    for row, (_, remedy) in ROWS.items():
        rate, units = (_metric(found, row, f"test/{m}") for m in ("rate", "active_units"))
        [case] = found.of(row=row)
        rows.append(of_seeds(f"rate: {row}, nats", rate.values()))
        own = sharp(found, row, "reconstructions", "laplacian").values()
        noisy = any(value > 0 for value in own)
        note = "sharper than the data: noise is sharp too" if noisy else ""
        rows.append(of_seeds(f"sharpness of reconstructions: {row}, log10", own, note=note))
        rows.append(of_seeds(f"squared error: {row}", case.values.get("error", [])))
        if row == "VAE":
            continue
        name = f"active units, {row} − VAE"
        gain = difference(units, base_units)
        rows.append(_asked(name, gain, "collapse" in remedy, SOURCES[row]))
        gain = difference(rate, _metric(found, "VAE", "test/rate"))
        rows.append(_asked(f"rate, {row} − VAE, nats", gain, "collapse" in remedy, SOURCES[row]))
        for kind, values in base.items():
            gain = difference(sharp(found, row, kind, "laplacian"), values)
            name = f"sharpness of {kind}, {row} − VAE, log10"
            rows.append(_asked(name, gain, "blur" in remedy, SOURCES[row]))
        gain = difference(
            sharp(found, row, "reconstructions", "high"),
            sharp(found, "VAE", "reconstructions", "high"),
        )
        rows.append(of_seeds(f"share of high frequencies, {row} − VAE, log10", gain))
    return rows


def _asked(name: str, values: list[float], asked: bool, source: str) -> Quantity:
    if not asked:
        return of_seeds(name, values)
    return of_seeds(name, values, 0, relation=">=", source=source)


def figure(found: Found):
    """Spectra against the data's; collapse against blur; and reconstructions."""
    sheet, (spectra, plane, pictures) = canvas.new_figure(1, 3, 7.4, 2.9, [1, 1, 1.1])
    colors = style.category_colors(len(ROWS))
    for row, color in zip(ROWS, colors, strict=True):
        [case] = found.of(row=row)
        if "data spectrum" not in case.values:
            continue
        data = case.values["data spectrum"].mean(axis=0)
        if row == "VAE":
            spectra.plot(range(1, len(data)), np.log10(data[1:]), color=style.INK, label="data")
        own = case.values["reconstructions spectrum"].mean(axis=0)
        spectra.plot(range(1, len(own)), np.log10(own[1:]), color=color, label=row)
        units = _metric(found, row, "test/active_units")
        ratio = sharp(found, row, "reconstructions", "laplacian")
        plane.plot([units[s] for s in ratio], list(ratio.values()), "o", color=color, markersize=4)
    spectra.set_xlabel("cycles across the image")
    spectra.set_ylabel("log₁₀ power of reconstructions")
    spectra.legend(fontsize=5.5, loc="lower left")
    plane.axhline(0, color=style.RULE)
    plane.set_xlabel("active units, of 20")
    plane.set_ylabel("sharpness, log₁₀ of the ratio to the data")
    lines = [c.values["pictures"][0] for c in found.cases if "pictures" in c.values]
    if lines:
        picture = np.concatenate([np.concatenate(list(line), axis=1) for line in lines])
        pictures.imshow(picture, cmap="gray_r", vmin=0, vmax=1, aspect="auto")
        side = lines[0].shape[1]
        pictures.set_yticks([side * (i + 0.5) for i in range(len(lines))], list(ROWS), fontsize=6)
    pictures.set_xticks([])
    pictures.grid(visible=False)
    return sheet
