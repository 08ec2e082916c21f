"""The gap of a VAE's inference is approximation plus amortisation (Cremer et al. 2018).

With q* the best member of the family for one x, and q what the encoder says,

  log p(x) − L[q] = (log p(x) − L[q*]) + (L[q*] − L[q]),

the gap of the approximation and that of the amortisation, both ≥ 0. q* is a diagonal Gaussian
fitted to each x by Adam at 1e-3 from the encoder's; log p(x) is the larger of two
bounds of importance sampling (Burda et al. 2016), from q and from q*, with thousands of samples.
Theirs is the largest of that and annealed importance sampling, and their q* is fitted until the
ELBO no longer grows; here for a fixed number of steps, half of which must be enough.

Model: configs/mnist_8k.py, 25 epochs; examples: the first of the test and the training split. L[q]
and L[q*] have the KL in closed form and the same noise.

Asked: both gaps ≥ −.05 nats, by far the standard error of the means of the ELBOs; of training
images, which the encoder was fitted to, amortisation is less than of test images. Examples, epochs
and seeds were settled after first looks.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.report import canvas, style
from experiments.studies import trained
from experiments.studies.cases import Context, Found
from experiments.studies.quantity import Quantity, of_seeds
from vae import elbo, model, objectives, optimizers, random
from vae.data import Examples, prepare
from vae.evaluate import IW_CHUNK
from vae.family import Posterior
from vae.hparams import HParams
from vae.spec import ModelSpec, OptimizerSpec
from vae.train import TrainState

ID = "B7"
CONFIGS = {
    "quick": "configs/studies/inference_gaps.py",
    "full": "configs/studies/inference_gaps_full.py",
}
# Seeds, examples, samples of an ELBO and of log p(x).
BUDGETS = {"quick": (5, 32, 1024, 4096), "full": (5, 100, 4096, 16384)}
SPLITS = ("test", "train")
LEARNING_RATE, STEPS, FIT_SAMPLES = 1e-3, 2000, 8
_PAPER = "Cremer et al. 2018"
_ADAM = OptimizerSpec("adam")


def cases(budget: str) -> list[dict[str, Any]]:
    seeds, examples, elbo_samples, iw_samples = BUDGETS[budget]
    sizes = {"examples": examples, "elbo_samples": elbo_samples, "iw_samples": iw_samples}
    return [{"split": split, "seed": seed, **sizes} for seed in range(seeds) for split in SPLITS]


def run(arguments: dict[str, Any], context: Context) -> dict[str, Any]:
    """Of each example, nats: `elbo` L[q]; `half`, `local` L[q*] by half and all steps; `log_p`."""
    found = trained.load(context, seed=arguments["seed"])
    if found is None:
        nothing = np.full(arguments["examples"], np.nan)
        return dict.fromkeys(("elbo", "half", "local", "log_p"), nothing)
    examples = found.examples(arguments["split"], arguments["examples"])
    sizes = arguments["elbo_samples"], arguments["iw_samples"]
    return gaps(found.spec.model, *sizes, examples, found.state)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def gaps(
    spec: ModelSpec, elbo_samples: int, iw_samples: int, examples: Examples, state: TrainState
) -> dict[str, jax.Array]:
    """`run` of a model: [N] each."""

    def one(raw, rng):
        x = prepare(examples.transform, raw, None)
        fit_rng, elbo_rng, iw_rng = jax.random.split(rng, 3)
        posterior, _ = model.encode(spec, state.params, state.stats, state.hparams, x, train=False)
        amortised = (posterior.mean, posterior.logvar)
        half, local = _fit(spec, state, x, amortised, fit_rng)
        # The same noise for all, so that differences have little of it.
        bound = functools.partial(_elbo, spec, state, x, rng=elbo_rng, num_samples=elbo_samples)
        log_p = [
            _log_p(spec, state, x, q, jax.random.fold_in(iw_rng, i), iw_samples)
            for i, q in enumerate((amortised, local))
        ]
        return {
            "elbo": bound(amortised),
            "half": bound(half),
            "local": bound(local),
            "log_p": jnp.maximum(*log_p),
        }

    rng = random.stream(state.hparams.seed, random.EVALUATE)
    rngs = random.example_rngs(rng, jnp.arange(examples.raw.shape[0]))
    return jax.vmap(one)(examples.raw, rngs)


def _terms(spec, state, x, q, rng, num_samples):
    noise = model.noise(spec, rng, num_samples)
    terms, _ = elbo.terms_given(
        spec, state.params, state.stats, state.hparams, x, Posterior(*q), noise, train=False
    )
    return terms


def _fit(spec, state, x, start, rng):
    """q by half of the steps of Adam on −ELBO, and by all."""
    hparams = HParams(learning_rate=LEARNING_RATE)

    def loss(q, rng):
        return -objectives.metrics(_terms(spec, state, x, q["q"], rng, FIT_SAMPLES))["elbo"]

    def step(carry, number):
        q, opt_state = carry
        value, grads = jax.value_and_grad(loss)(q, jax.random.fold_in(rng, number))
        direction, opt_state = optimizers.update(_ADAM, hparams, grads, opt_state, q, value)
        return (jax.tree.map(lambda p, d: p - LEARNING_RATE * d, q, direction), opt_state), None

    q = {"q": start}
    carry = q, optimizers.init(_ADAM, hparams, q)
    carry, _ = jax.lax.scan(step, carry, jnp.arange(STEPS // 2))
    half = carry[0]["q"]
    carry, _ = jax.lax.scan(step, carry, jnp.arange(STEPS // 2, STEPS))
    return half, carry[0]["q"]


def _chunks(num_samples: int) -> jax.Array:
    if num_samples % IW_CHUNK:
        raise ValueError(f"num_samples: {num_samples} is no multiple of {IW_CHUNK}.")
    return jnp.arange(num_samples // IW_CHUNK)


def _elbo(spec, state, x, q, *, rng, num_samples):
    def chunk(total, number):
        terms = _terms(spec, state, x, q, jax.random.fold_in(rng, number), IW_CHUNK)
        return total + objectives.metrics(terms)["elbo"], None

    numbers = _chunks(num_samples)
    total, _ = jax.lax.scan(chunk, jnp.zeros(()), numbers)
    return total / len(numbers)


def _log_p(spec, state, x, q, rng, num_samples):
    """log 1/K Σ_k w_k; Burda et al. 2016, eq. 8."""

    def chunk(log_sum, number):
        terms = _terms(spec, state, x, q, jax.random.fold_in(rng, number), IW_CHUNK)
        here = jax.nn.logsumexp(objectives.iw_log_weights(terms))
        return jnp.logaddexp(log_sum, here), None

    log_sum, _ = jax.lax.scan(chunk, -jnp.inf, _chunks(num_samples))
    return log_sum - jnp.log(num_samples)


def _of(found: Found, split: str) -> dict[str, np.ndarray]:
    """Means over examples of each seed, [seeds]."""
    of = found.of(split=split)
    mean = {
        n: np.array([c.values[n].mean() for c in of]) for n in ("elbo", "half", "local", "log_p")
    }
    return mean | {
        "approximation": mean["log_p"] - mean["local"],
        "amortisation": mean["local"] - mean["elbo"],
        "inference": mean["log_p"] - mean["elbo"],
        "late": mean["local"] - mean["half"],
    }


def measure(found: Found) -> list[Quantity]:
    """The gaps of test and training images, and whether q* is fitted."""
    of, rows = {split: _of(found, split) for split in SPLITS}, []
    for split, mean in of.items():
        rows += [
            of_seeds(f"log p(x) of {split} images, nats", mean["log_p"]),
            of_seeds(f"gap of inference, {split}, nats", mean["inference"]),
            *(
                of_seeds(
                    f"gap of {name}, {split}, nats", mean[name], -0.05, relation=">=", source=_PAPER
                )
                for name in ("approximation", "amortisation")
            ),
            of_seeds(f"share of amortisation, {split}", mean["amortisation"] / mean["inference"]),
        ]
    rows.append(
        of_seeds(
            f"what the second half of {STEPS} steps adds to L[q*], test, nats",
            of["test"]["late"],
            0,
            0.1,
            source="q* is fitted where the ELBO no longer grows",
        )
    )
    more = of["test"]["amortisation"] - of["train"]["amortisation"]
    rows.append(
        of_seeds(
            "gap of amortisation, test − train, nats",
            more,
            0,
            relation=">=",
            source="Cremer et al. 2018",
        )
    )
    return rows


def figure(found: Found):
    """The two gaps stacked, as in their figure 1, for each split; and of each test image."""
    sheet, (bars, points) = canvas.new_figure(1, 2, 6.6, 2.7)
    names = {"approximation": style.PETROFF[0], "amortisation": style.PETROFF[1]}
    for place, split in enumerate(SPLITS):
        mean, bottom = _of(found, split), 0.0
        for name, color in names.items():
            height = np.nanmean(mean[name])
            label = name if place == 0 else None
            bars.bar(place, height, 0.6, bottom=bottom, color=color, label=label)
            bottom += height
        bars.plot([place] * len(mean["inference"]), mean["inference"], "o", color=style.INK, ms=3)
    bars.set_xticks(range(len(SPLITS)), SPLITS)
    bars.set_ylabel("gap, nats (points: seeds)")
    bars.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=7.5)
    for case in found.of(split="test"):
        v = case.values
        points.plot(v["log_p"] - v["local"], v["local"] - v["elbo"], ".", color=style.ACCENT, ms=3)
    points.axhline(0, color=style.MUTED, lw=0.8)
    points.set_xlabel("gap of approximation, nats")
    points.set_ylabel("gap of amortisation, nats")
    points.set_title("each test image")
    return sheet
