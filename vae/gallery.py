"""What one looks at: reconstructions, samples, traversals and the latent plane of a run."""

import jax
import jax.numpy as jnp

from vae import model, packing, random
from vae.data import Examples, prepare
from vae.likelihoods import LIKELIHOODS
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
      examples: of the test split; the first `NUM_IMAGES` are reconstructed from their posterior
        mean. kl_per_dim: [d], nats: the dimensions of largest rate are traversed.

    Returns:
      originals, reconstructions [n, *x]; samples [m, *x] from z ~ N(0, I); traversals
      [d', T, *x]: z = 0 but for one dimension at `TRAVERSAL` prior standard deviations;
      traversal_dims [d']; latents [N, 2], posterior means of the two dimensions of largest rate
      (of one, twice, where there is just one), latent_dims [2].
    """
    params, stats = state.eval_params, state.stats

    def decode(z):
        output, _, _ = model.decode(spec, params, stats, z, state.hparams.sigma, train=False)
        return LIKELIHOODS[spec.likelihood].mean(output)

    def mean_of(raw):
        x = prepare(examples.transform, raw, None)
        return x, model.encode(spec, params, stats, x, train=False)[0].mean

    x, means = jax.vmap(mean_of)(examples.raw)
    by_rate = jnp.argsort(-kl_per_dim)
    traversed = by_rate[:NUM_TRAVERSED]
    plane = by_rate[jnp.array([0, min(1, spec.latent_dim - 1)])]
    z = jnp.array(TRAVERSAL)[None, :, None] * jnp.eye(spec.latent_dim)[traversed][:, None, :]
    rng = random.stream(state.hparams.seed, random.GALLERY)
    prior = jax.random.normal(rng, (NUM_SAMPLES, spec.latent_dim))
    return {
        "originals": x[:NUM_IMAGES],
        "reconstructions": decode(means[:NUM_IMAGES]),
        "samples": decode(prior),
        "traversals": decode(z.reshape(-1, spec.latent_dim)).reshape(
            *z.shape[:2], *spec.example_shape
        ),
        "traversal_dims": traversed,
        "latents": means[:, plane],
        "latent_dims": plane,
    }


def _gallery(
    spec: ModelSpec, pack: str, population: Population, examples: Examples, kl_per_dim: jax.Array
) -> dict[str, jax.Array]:
    return packing.over_runs(
        lambda state, kl: gallery_run(spec, examples, kl, state),
        pack,
        population.states,
        kl_per_dim,
    )


gallery = jax.jit(_gallery, static_argnames=("spec", "pack"))
gallery.__doc__ = "`gallery_run` of each run: arrays with a leading axis [R]; kl_per_dim is [R, d]."
