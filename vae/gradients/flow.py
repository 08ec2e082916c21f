"""Which term of the loss drives which layer: gradients by layer, split by term, and updates.

A gradient is split by the way in which it leaves the loss, see `vae.loss.TERMS`: through
log p(x|z), `distortion`; through the KL, or log p(z) and log q(z|x), `rate`, with its weight β;
through anything else that the objective makes of z, q(z|x) and parameters, `penalty`: total
correlation, moments, MMD, commitment, discriminators. A derivative is linear in what arrives from
behind, so that the three sum to the whole, for every bound and estimator but one.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae import bounds
from vae.data import Transform
from vae.errors import UserError
from vae.layers import layer_dots, layer_norms
from vae.loss import TERMS, Batch, Lens, batch_loss
from vae.spec import Spec
from vae.train import TrainState, train_step

PAIRS = (("distortion", "rate"), ("distortion", "penalty"), ("rate", "penalty"))


class Flow(NamedTuple):
    """Gradients of one run by layer, in the order of `vae.layers.layer_names`.

    Attributes:
      gradient: L2 norm of the gradient of the loss, [L].
      terms: the same of each of `TERMS`.
      cosines: of the angles between the gradients of two terms, by `FIRST_SECOND`, [L]: −1 where
        they fight; 0 where one of them is zero.
    """

    gradient: jax.Array
    terms: dict[str, jax.Array]
    cosines: dict[str, jax.Array]


class Change(NamedTuple):
    """Of one update by layer, [L]: norms of parameters and update, and update / parameters."""

    parameter: jax.Array
    update: jax.Array
    ratio: jax.Array


def undivided(spec: Spec) -> str:
    """Why gradients cannot be split by term; "" where they can.

    The score-function estimator multiplies ∇log q(z|x) by the whole bound: that product is of no
    one term.
    """
    if bounds.ESTIMATORS[spec.objective.estimator].score:
        return "objective.estimator: score weighs the gradient of log q(z|x) by the whole bound"
    return ""


def term_gradients(
    spec: Spec,
    transform: Transform,
    state: TrainState,
    batch: Batch,
    rng: jax.Array | None = None,
) -> dict[str, Any]:
    """The gradient of each of `TERMS`, trees like the parameters; their sum is the loss's own.

    One forward pass, and a backward pass for each term.

    Args:
      rng: what the step draws from; by default the key of (seed, step).

    Raises:
      UserError: the estimator has no such split.
    """
    if reason := undivided(spec):
        raise UserError(f"{reason}, so there are no gradients of terms.")

    def gradient(gates):
        def loss(params):
            value, _ = batch_loss(
                spec,
                transform,
                params,
                state.stats,
                state.hparams,
                state.step,
                batch,
                rng=rng,
                lens=Lens(gates=dict(zip(TERMS, gates, strict=True))),
            )
            return value

        return jax.grad(loss)(state.params)

    split = jax.vmap(gradient)(jnp.eye(len(TERMS)))
    parts = zip(*(list(leaf) for leaf in jax.tree.leaves(split)), strict=True)
    like = jax.tree.structure(split)
    return {term: jax.tree.unflatten(like, p) for term, p in zip(TERMS, parts, strict=True)}


def flow(
    spec: Spec,
    transform: Transform,
    state: TrainState,
    batch: Batch,
    rng: jax.Array | None = None,
) -> Flow:
    """Norms and angles of the gradients of a batch; arguments as of `term_gradients`."""
    gradients = term_gradients(spec, transform, state, batch, rng)
    total = jax.tree.map(lambda *g: sum(g), *gradients.values())
    norms = {term: layer_norms(g) for term, g in gradients.items()}

    def cosine(a, b):
        size = norms[a] * norms[b]
        return layer_dots(gradients[a], gradients[b]) / jnp.where(size > 0, size, 1)

    cosines = {f"{a}_{b}": cosine(a, b) for a, b in PAIRS}
    return Flow(layer_norms(total), norms, cosines)


def change(spec: Spec, transform: Transform, state: TrainState, batch: Batch) -> Change:
    """What the next step would change; the state stays."""
    new, _ = train_step(spec, transform, state, batch)
    update = layer_norms(jax.tree.map(jnp.subtract, new.params, state.params))
    parameter = layer_norms(state.params)
    return Change(parameter, update, update / jnp.where(parameter > 0, parameter, 1))
