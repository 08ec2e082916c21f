"""What one looks at: reconstructions, samples, traversals and the latent plane of a run."""

import jax
import jax.numpy as jnp

from vae import hierarchy, model, packing, random
from vae.data import Examples, prepare
from vae.likelihoods import LIKELIHOODS
from vae.packing import Packing
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec
from vae.train import Population, TrainState

NUM_IMAGES = 8
NUM_SAMPLES = 32
NUM_TRAVERSED = 8
NUM_LATENTS = 1000
TRAVERSAL = tuple(float(v) for v in range(-3, 4))


def gallery_run(
    spec: ModelSpec, examples: Examples, kl_per_dim: jax.Array, state: TrainState
) -> dict[str, jax.Array]:
    """Pictures of one run, as means E[x|z] in the model's units.

    Args:
      examples: of the test split; the first `NUM_IMAGES` are reconstructed from the z that stands
        for their posterior. kl_per_dim: [d], nats: the dimensions of largest rate are traversed;
        where the rate is one number, or none, those whose z varies most.

    Returns:
      originals, reconstructions [n, *x]; samples [m, *x] from z ~ p(z); traversals [d', T, *x],
      traversal_dims [d'].
      Of a continuous z, traversals have z = 0 but for one dimension at `TRAVERSAL` (of stochastic
      layers, that is the noise from which the prior makes z, from the top down); and latents
      [N, 2], the z of the examples in the two dimensions of largest rate (in one, twice, where
      there is just one), latent_dims [2].
      Of a discrete z, they have the first example's z but for one variable at `traversal_codes`
      [T], spread over all codes; and code_counts [d, codes], how many examples have each code, or
      have it as the most probable one.
    """
    params, stats, hparams = state.eval_params, state.stats, state.hparams
    likelihood, family = LIKELIHOODS[spec.likelihood], POSTERIORS[spec.posterior]

    def decode(z):
        decoded, _ = model.decode(spec, params, stats, hparams, z, train=False)
        return decoded.each(likelihood.mean)

    def mean_of(raw):
        x = prepare(examples.transform, raw, None)
        posterior, _ = model.encode(spec, params, stats, hparams, x, train=False)
        codes = posterior.rest.get("codes")
        if codes is None and not family.continuous:
            codes = jnp.argmax(posterior.rest["logits"], axis=-1)
        return x, model.location(spec, params, posterior, stats), codes

    x, means, codes = jax.vmap(mean_of)(examples.raw)
    order = kl_per_dim
    if family.continuous:
        varies = jnp.var(means, axis=0)
        one_number = len(kl_per_dim) != spec.latent_dim
        order = varies if one_number else jnp.where(jnp.isfinite(kl_per_dim), kl_per_dim, varies)
    order = jnp.where(model.own_latents(spec, hparams), order, -jnp.inf)
    by_rate = jnp.argsort(-order)
    traversed = by_rate[:NUM_TRAVERSED]
    rngs = jax.random.split(random.stream(hparams.seed, random.GALLERY), NUM_SAMPLES)
    prior = jax.vmap(lambda rng: model.sample_prior(spec, params, stats, hparams, rng))(rngs)
    if family.continuous:
        z = jnp.array(TRAVERSAL)[None, :, None] * jnp.eye(spec.latent_dim)[traversed][:, None, :]
        if family.nets:
            nets = model.prior_state(spec, params, stats, hparams)
            z = jax.vmap(jax.vmap(lambda noise: hierarchy.descend(spec, nets, noise)))(z)
        last = (hparams.latents if spec.packed else spec.latent_dim) - 1
        plane = by_rate[jnp.array([0, jnp.minimum(1, last).astype(jnp.int32)])]
        own = {"latents": means[:, plane], "latent_dims": plane}
    else:
        # No code twice, however few there are.
        steps = min(len(TRAVERSAL), spec.codes)
        moved = jnp.linspace(0, spec.codes - 1, steps).round().astype(jnp.int32)
        book = stats["posterior"]["codebook"] if spec.posterior == "vq" else jnp.eye(spec.codes)
        start = means[0].reshape(spec.latent_dim, -1)
        z = jax.vmap(lambda j: jax.vmap(lambda c: start.at[j].set(book[c]))(moved))(traversed)
        counts = jnp.zeros((spec.latent_dim, spec.codes), jnp.int32)
        counts = counts.at[jnp.arange(spec.latent_dim)[None, :], codes].add(1)
        own = {"traversal_codes": moved, "code_counts": counts}
    steps = z.shape[1]
    pictures = decode(z.reshape(len(traversed) * steps, -1))
    return {
        "originals": x[:NUM_IMAGES],
        "reconstructions": decode(means[:NUM_IMAGES]),
        "samples": decode(prior),
        "traversals": pictures.reshape(len(traversed), steps, *spec.example_shape),
        "traversal_dims": traversed,
        **own,
    }


def _gallery(
    spec: ModelSpec,
    pack: str | Packing,
    population: Population,
    examples: Examples,
    kl_per_dim: jax.Array,
) -> dict[str, jax.Array]:
    return packing.over_runs(
        lambda examples, state, kl: gallery_run(spec, examples, kl, state),
        pack,
        examples,
        population.states,
        kl_per_dim,
    )


gallery = jax.jit(_gallery, static_argnames=("spec", "pack"))
gallery.__doc__ = "`gallery_run` of each run: arrays with a leading axis [R]; kl_per_dim is [R, d]."
