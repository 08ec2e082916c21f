"""Gradients of single examples: their norms, layer by layer, and the norm of their mean.

For most losses the gradient of a batch is the mean of the gradients of its examples, each computed
as that of a batch of one. `uncoupled` says for which it is not.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae.data import Transform
from vae.errors import UserError
from vae.layers import layer_norms, of_vae
from vae.likelihoods import LIKELIHOODS
from vae.loss import Batch, batch_loss
from vae.objectives import OBJECTIVES
from vae.spec import Spec
from vae.train import TrainState


class PerExample(NamedTuple):
    """L2 norms of the gradients of B examples.

    Attributes:
      norms: of each layer, [B, L], in the order of `layer_names`; of a discriminator too, by the
        loss that is its own.
      whole: of all layers but a discriminator's together, [B].
      mean_norms: of the mean of the gradients, [L]: those of the batch gradient.
    """

    norms: jax.Array
    whole: jax.Array
    mean_norms: jax.Array


def uncoupled(spec: Spec, free_bits: float = 0.0) -> str:
    """Why an example has no gradient of its own, or "" where it has one.

    Args:
      free_bits: `hparams.free_bits`, the largest where there are several runs.
    """
    name, likelihood = spec.objective.name, spec.model.likelihood
    # The statistics of the batch are in the path of every gradient.
    if spec.model.norm == "batch":
        return (
            "model.norm: batch normalises each example by the others of its batch, so that none "
            "has a gradient of its own. Set model.norm to layer or none."
        )
    # The same of what the decoder reads.
    if spec.model.posterior == "tied":
        return (
            "model.posterior: tied normalises each code by the others of its batch, so that no "
            "example has a gradient of its own. Set model.posterior to gaussian."
        )
    # Draws from Π_j q(z_j) are the batch's own, permuted. The game's share of the VAE's loss is the
    # logit of one z, so that its gradients alone would be the examples' own.
    if name == "factor":
        return (
            "objective.name: factor trains its discriminator on latents permuted over the batch, "
            "so that no example has a gradient of its own there. Set objective.name to elbo."
        )
    # Penalties on how examples lie to each other; `mmd` of one has no pairs at all.
    if OBJECTIVES[name].coupled:
        return (
            f"objective.name: {name} compares the examples of a batch with each other, so that "
            "none has a gradient of its own. Set objective.name to elbo."
        )
    # |R − C| of the batch's mean rate R: each example is pushed to where the mean lacks, and on
    # its own to where it lacks itself. Only the sign is shared, but a batch of one has another.
    if name == "capacity":
        return (
            "objective.name: capacity pushes the rate of an example up or down by whether the "
            "mean of the batch is under the capacity, and on its own by its own rate. Set "
            "objective.name to elbo."
        )
    # An example's error is weighed by 1/σ² with σ² the batch's mean error, held constant; on its
    # own by its own error. The loss of `vaegan` has no log p(x|z) in it, of which σ² is part.
    if LIKELIHOODS[likelihood].scale == "optimal" and name != "vaegan":
        return (
            f"model.likelihood: {likelihood} takes σ² from the error of the batch, and of an "
            "example on its own from its own error. Set model.likelihood to gaussian or "
            "gaussian_shared."
        )
    # max(λ, KL) of the batch's mean KL is another gate than that of the example's own. (Where a
    # loss has no free bits, the launcher admits no λ.)
    if free_bits > 0:
        return (
            f"objective.free_bits: {free_bits} nats are free by the mean KL of a batch, and of an "
            "example on its own by its own KL. Set objective.free_bits to 0."
        )
    # What is left is the example's own. Bounds and estimators weigh samples of one example, and
    # baselines come from its other samples. The discriminator of `vaegan` sees one image at a
    # time, and its draws from p(z) have the keys of the examples. `vq` moves its codebook by sums
    # over the batch, but after the step: in the loss the codebook is held. Pseudo-inputs of `vamp`
    # are encoded by themselves.
    return ""


def per_example(
    spec: Spec,
    transform: Transform,
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    *,
    data_rng: jax.Array | None = None,
    chunk: int | None = None,
) -> PerExample:
    """Norms of the gradient of each example's loss at the parameters of a run.

    The loss of one example is that of a batch of one, with the keys that it has in any batch, so
    that gradients are those whose mean is the batch's. Chunks of examples come one after the
    other: `chunk` gradients are in memory at a time.

    Args:
      batch: B examples. rng, data_rng: as in `batch_loss`.
      chunk: None: 16, and on a CPU 1. There a gradient that stays in its cache pays more than
        doing several at once: a tenth of the time at 784-500-20.

    Returns:
      Norms in nats per unit of parameter. Not numbers where the run's `free_bits` is above 0,
      which is a traced number and makes none of the examples' gradients its own: see `uncoupled`.

    Raises:
      UserError: the examples are coupled.
    """
    if reason := uncoupled(spec):
        raise UserError(reason)
    chunk = chunk or (1 if jax.default_backend() == "cpu" else 16)
    size = len(batch.index)
    num_chunks = -(-size // chunk)
    # The last chunk repeats the last example up to its size; that is not counted.
    position = jnp.arange(num_chunks * chunk, dtype=jnp.int32).reshape(num_chunks, chunk)

    def gradient(batch):
        def loss(params):
            return batch_loss(
                spec,
                transform,
                params,
                state.stats,
                state.hparams,
                state.step,
                jax.tree.map(lambda a: a[None], batch),
                rng=rng,
                data_rng=data_rng,
            )[0]

        return jax.grad(loss)(state.params)

    def body(total, position):
        index = jnp.minimum(position, size - 1)
        gradients = jax.vmap(gradient)(jax.tree.map(lambda a: a[index], batch))

        def counted(g):
            kept = (position < size).reshape(-1, *(1,) * (g.ndim - 1))
            return jnp.sum(jnp.where(kept, g, 0), axis=0)

        total = jax.tree.map(lambda t, g: t + counted(g), total, gradients)
        return total, jax.vmap(layer_norms)(gradients)

    zero = jax.tree.map(jnp.zeros_like, state.params)
    total, found = jax.lax.scan(body, zero, position)
    norms = found.reshape(-1, found.shape[-1])[:size]
    whole = jnp.linalg.norm(norms[:, of_vae(state.params)], axis=1)
    result = PerExample(norms, whole, layer_norms(total) / size)
    gated = state.hparams.free_bits > 0
    return jax.tree.map(lambda a: jnp.where(gated, jnp.nan, a), result)
