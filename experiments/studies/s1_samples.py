"""Random samples, the latent dimension, and what drives a latent in one small VAE (seed S1).

Set-up: configs/seeds/s1_samples.py: 784-128-20 on MNIST, by the write-up's means over pixels and
over latents (β = 19.6 in units of σ² = 1), and corrected (σ² = ½, β = 1).

  faults       as printed, βσ² = 19.6 is above the largest variance of MNIST's components, 5.4 here:
               nothing is kept (Lucas et al. 2019). Generation by z + ε has twice the prior's
               variance.
  dimension    of z, for the corrected loss: by the ELBO of 2,000 held-out images, and by 4-fold
               cross-validation on the 8,000 that are trained on, 500 steps each. That the two
               choose alike is asked as a difference of what they choose, in held-out nats.
  noise        without it, an autoencoder of the same net is sampled from: the squared distance of a
               sample to the nearest of 2,000 test images, over that of the VAE's samples.
  attribution  integrated gradients (`vae.attribution`) of the latent of largest rate, and of the
               reconstruction's error, from the mean image: complete up to relu's kinks; and how
               they correlate with gradient × input.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from experiments import load
from experiments.report import canvas, style
from experiments.studies.cases import Arguments, Context, Found
from experiments.studies.quantity import Quantity, by_seed, exact, of_seeds
from vae import attribution, data, evaluate, model, random, train
from vae.hparams import HParams, stack
from vae.likelihoods import LIKELIHOODS
from vae.spec import ModelSpec, ObjectiveSpec, Spec

ID = "S1"
CONFIGS = {"quick": "configs/seeds/s1_samples_quick.py", "full": "configs/seeds/s1_samples.py"}
DIMENSIONS = (1, 2, 5, 10, 20, 40)
FOLDS, SEEDS, STEPS, SAMPLES = 4, 5, 500, 200
SIGMA = math.sqrt(0.5)


def cases(budget: str) -> list[Arguments]:
    dimension = [{"part": "dimension", "latent_dim": d} for d in DIMENSIONS]
    return [*dimension, {"part": "noise"}, {"part": "attribution"}]


def run(arguments: Arguments, context: Context) -> dict[str, np.ndarray]:
    """See each part's function."""
    if arguments["part"] == "attribution":
        return attributions(context)
    if arguments["part"] == "noise":
        return noise(images_of(context))
    return dimension(context, arguments["latent_dim"])


def images_of(context: Context, **folds: int) -> data.Dataset:
    """8,000 images to train on and 2,000 held out; or a fold of the 8,000."""
    return data.load(
        "tfds:mnist",
        dir=context.data_dir,
        train_split="test[:8000]",
        test_split="test[8000:]",
        **folds,
    )


def spec_of(images: data.Dataset, latent_dim: int, posterior: str = "gaussian") -> Spec:
    """The write-up's net."""
    net = ModelSpec(
        images.example_shape, latent_dim, depth=1, likelihood="gaussian", posterior=posterior
    )
    name = "autoencoder" if posterior == "point" else "elbo"
    return Spec(net, ObjectiveSpec(name), batch_size=256)


def trained(images: data.Dataset, spec: Spec, steps: int) -> train.Population:
    """A population of `SEEDS` runs."""
    runs = stack([HParams(sigma=SIGMA, seed=seed) for seed in range(SEEDS)])
    population = train.init(spec, runs, images.train_mean)
    examples = data.Examples(jnp.asarray(images.train), images.transform)
    return train.train_chunk(spec, "vmap", population, examples, jnp.int32(steps))


def dimension(context: Context, latent_dim: int) -> dict[str, np.ndarray]:
    """ELBO of held-out images, `held_out` [seeds]; of each fold, `folds` [folds, seeds]."""

    def elbo(**folds):
        images = images_of(context, **folds)
        spec = spec_of(images, latent_dim)
        test = data.Examples(jnp.asarray(images.test), images.transform)
        found = evaluate.evaluate(
            spec.model, "vmap", 1, 500, trained(images, spec, STEPS), test, evaluate.SPLITS["test"]
        )
        return np.asarray(found["elbo"])

    folds = [elbo(folds=FOLDS, fold=fold) for fold in range(FOLDS)]
    return {"held_out": elbo(), "folds": np.stack(folds)}


def noise(images: data.Dataset) -> dict[str, np.ndarray]:
    """Squared distance of samples to the nearest test image, [seeds], by how they are made."""
    flat = images.test.reshape(len(images.test), -1) / 255.0
    found = {}
    for name, posterior, scale in (
        ("VAE", "gaussian", 1.0),
        ("VAE, z + ε", "gaussian", math.sqrt(2)),
        ("without noise", "point", 1.0),
    ):
        spec = spec_of(images, 20, posterior)
        states = trained(images, spec, STEPS).states

        def one(state, spec=spec, scale=scale):
            rngs = jax.random.split(random.stream(state.hparams.seed, random.GALLERY), SAMPLES)
            z = scale * jax.vmap(lambda rng: jax.random.normal(rng, (20,)))(rngs)
            of = spec.model, state.params, state.stats, state.hparams
            decoded, _ = model.decode(*of, z, train=False)
            return decoded.each(LIKELIHOODS["gaussian"].mean)

        pictures = np.asarray(jax.jit(jax.vmap(one))(states)).reshape(SEEDS, SAMPLES, -1)
        found[name] = np.array([nearest(own, flat) for own in pictures])
        found[f"{name} pictures"] = pictures[0, :12].reshape(12, *images.example_shape[:2])
    return found


def nearest(pictures: np.ndarray, images: np.ndarray) -> float:
    """Mean over pictures [n, D] of min over images [N, D] of |picture − image|²."""
    squares = np.sum(pictures**2, 1)[:, None] + np.sum(images**2, 1)[None]
    return float((squares - 2 * pictures @ images.T).min(axis=1).mean())


def attributions(context: Context) -> dict[str, np.ndarray]:
    """Of the corrected runs: `missing`, `agreement` of each score [runs]; maps of the first."""
    runs = [r for r in context.results.runs if r.status == "ok" and r.setting("model.sigma") < 1]
    found = [attributions_of(run.directory, run.gallery["kl_per_dim"]) for run in runs]
    return {name: np.stack([of[name] for of in found]) for name in found[0]}


def attributions_of(folder, kl_per_dim: np.ndarray) -> dict[str, np.ndarray]:
    """Of one run, over 32 test images."""
    run = load.load_run(folder)
    spec, latent = run.spec.model, int(np.argmax(kl_per_dim))
    raw, transform = run.dataset.evaluation("test")
    baseline = jnp.asarray(run.dataset.train_mean, jnp.float32)

    def code(x):
        return model.encode(spec, run.params, run.stats, run.hparams, x, train=False)[0].mean

    def error(x):
        decoded, _ = model.decode(
            spec, run.params, run.stats, run.hparams, code(x)[None], train=False
        )
        return jnp.sum(jnp.square(x - decoded.heads["output"][0]))

    @jax.jit
    @jax.vmap
    def each(raw):
        x = data.prepare(transform, raw, None)
        found = {"x": x}
        for name, score in (("latent", lambda x: code(x)[latent]), ("error", error)):
            whole = attribution.integrated_gradients(score, x, baseline)
            plain = attribution.gradient_times_input(score, x)
            missing = attribution.incompleteness(score, x, baseline, whole)
            found |= {f"{name} map": whole, f"{name} plain": plain, f"{name} missing": missing}
            found[f"{name} change"] = score(x) - score(baseline)
        return found

    of = jax.tree.map(np.asarray, each(jnp.asarray(raw[:32])))
    result = {"pictures": of["x"][:4, ..., 0]}
    for name in ("latent", "error"):
        pairs = zip(of[f"{name} map"], of[f"{name} plain"], strict=True)
        agreement = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs])
        missing = np.sqrt(np.mean(of[f"{name} missing"] ** 2) / np.mean(of[f"{name} change"] ** 2))
        result |= {f"{name} agreement": agreement, f"{name} missing": missing}
        result[f"{name} map"] = of[f"{name} map"][:4, ..., 0]
    return result


def scores(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """ELBO by dimension: held out [dimensions, seeds]; cross-validated, means over folds."""
    of = [found.of(part="dimension", latent_dim=d)[0].values for d in DIMENSIONS]
    return np.stack([v["held_out"] for v in of]), np.stack([v["folds"].mean(axis=0) for v in of])


def measure(found: Found) -> list[Quantity]:
    rows = []
    for name, sigma in (("as printed", (784 / 2) ** 0.5), ("corrected", SIGMA)):
        rate, units = (
            by_seed(found.results, f"test/{metric}", model__sigma=sigma)
            for metric in ("rate", "active_units")
        )
        theory = "Lucas et al. 2019: components of variance above βσ²"
        printed = name == "as printed"
        asked = (0, 0.01) if printed else ()
        rows.append(of_seeds(f"rate {name}, nats", rate.values(), *asked, source=theory))
        asked = (0, 0) if printed else (20, 0)
        rows.append(of_seeds(f"active units {name}, of 20", units.values(), *asked, source=theory))
    held, crossed = scores(found)
    for values, how in ((held, "held-out score"), (crossed, "cross-validation")):
        chosen = DIMENSIONS[int(values.mean(axis=1).argmax())]
        rows.append(exact(f"latent dimension by {how}", chosen))
    by_cross = crossed.mean(axis=1).argmax()
    lost = held.max(axis=0) - held[by_cross]
    rows.append(
        of_seeds(
            "held-out nats lost by what cross-validation chooses",
            lost,
            0.5,
            relation="<=",
            source="the write-up: either way; half a nat is what seeds differ by",
        )
    )
    more = held[DIMENSIONS.index(40)] - held[DIMENSIONS.index(20)]
    rows.append(
        of_seeds(
            "held-out ELBO, 40 − 20 latents, nats",
            more,
            -1,
            relation=">=",
            source="Kingma and Welling 2014, section 5: superfluous latents do not overfit",
        )
    )
    [case] = found.of(part="noise")
    for name in ("VAE, z + ε", "without noise"):
        rows.append(
            of_seeds(
                f"distance of samples to the nearest image, {name} / VAE",
                case.values[name] / case.values["VAE"],
                1,
                relation=">=",
                source="the write-up: noise is what makes the prior a place to draw from",
            )
        )
    [case] = found.of(part="attribution")
    for name in ("latent", "error"):
        rows.append(
            of_seeds(
                f"incompleteness of integrated gradients, {name}, of the score's change",
                case.values[f"{name} missing"],
                0.02,
                relation="<=",
                source="Sundararajan et al. 2017, proposition 1; 64 steps, π/128 a kink at most",
            )
        )
        agreement = case.values[f"{name} agreement"]
        rows.append(of_seeds(f"correlation with gradient × input, {name}", agreement))
    return rows


def figure(found: Found):
    """Scores over dimensions; samples with and without noise; what drives a latent."""
    sheet, panels = canvas.new_figure(2, 3, 7.4, 4.6)
    held, crossed = scores(found)
    for values, name, color in zip(
        (held, crossed),
        ("held out", f"{FOLDS}-fold"),
        style.category_colors(2),
        strict=True,
    ):
        spread = values.std(axis=1, ddof=1) / math.sqrt(SEEDS)
        panels[0].errorbar(
            DIMENSIONS, values.mean(axis=1), spread, fmt="o-", color=color, label=name
        )
    panels[0].set_xscale("log")
    panels[0].set_xticks(DIMENSIONS, [str(d) for d in DIMENSIONS])
    panels[0].set_xlabel("latent dimensions")
    panels[0].set_ylabel("ELBO, nats")
    panels[0].legend()
    [case] = found.of(part="noise")
    for panel, name in zip(panels[1:4], ("VAE", "VAE, z + ε", "without noise"), strict=True):
        own = case.values[f"{name} pictures"]
        lines = [np.concatenate(list(own[i : i + 4]), axis=1) for i in range(0, 12, 4)]
        panel.imshow(np.concatenate(lines), cmap="gray_r", vmin=0, vmax=1)
        panel.set_title(f"samples: {name}")
    [case] = found.of(part="attribution")
    for panel, name in zip(panels[4:], ("latent", "error"), strict=True):
        maps = case.values[f"{name} map"][0]
        most = np.abs(maps).max()
        top = np.concatenate(list(case.values["pictures"][0]), axis=1) * most
        both = np.concatenate([top, np.concatenate(list(maps), axis=1)])
        panel.imshow(both, cmap="RdBu_r", vmin=-most, vmax=most)
        panel.set_title(f"what drives: {name}")
    for panel in panels[1:]:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.grid(visible=False)
    return sheet
