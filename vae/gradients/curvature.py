"""Curvature of a batch's loss at frozen noise: the ends of its Hessian's spectrum.

Gradient descent with learning rate η on a quadratic diverges along an eigenvalue above 2/η, and
full-batch training hovers there: the edge of stability (Cohen et al. 2021). That is for plain
gradient descent; what momentum, Adam or the noise of small batches make of it is the caller's to
say. The loss is in nats per example, and so is the Hessian per square unit of the parameters.

The Hessian is that of the loss itself, whichever estimator trains it: an estimator such as STL or
DReG is a field of gradients with the right mean, but at frozen noise it is the gradient of nothing.
What a loss holds constant by `stop_gradient` (σ² of `_optimal` likelihoods, the straight-through
path of `vq`) is constant here too.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vae import model, objectives, optimizers
from vae.data import Transform
from vae.errors import UserError
from vae.gradients import spectra
from vae.gradients.spectra import Operator, Ritz
from vae.loss import TERMS, Batch, Lens, batch_loss
from vae.spec import Spec
from vae.train import TrainState


def hessian(
    spec: Spec,
    transform: Transform,
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    *,
    gates: dict[str, jax.Array] | None = None,
    part: str = "",
) -> tuple[Operator, model.Params]:
    """(v ↦ Hv, the parameters that it is about) of a batch's loss.

    Of a term, by `gates`, H is the derivative of the gradient that arrives through that term. The
    derivatives of all terms add up to the Hessian. Where the loss is a sum of its terms, each is
    the Hessian of its term; a bound of several samples is none (log Σ w couples distortion and
    rate), and there each is replaced by its symmetric part, which still adds up.

    Args:
      rng: key of all noise, as `batch_loss` takes it: one key, one function of the parameters.
      gates: factor of each of `TERMS`, scalars; None: the loss as it is.
      part: `encoder` or `decoder`: the block of these parameters alone, the others held (flows go
        with the encoder, the prior and σ with the decoder); "": all.

    Raises:
      UserError: an objective with a discriminator.
      ValueError: another part.
    """
    name = spec.objective.name
    if objectives.OBJECTIVES[name].adversary:
        raise UserError(
            f"objective.name: {name} is a game against a discriminator, not one loss with a "
            "curvature. Leave the curvature out, or set another objective.name."
        )
    spec = _itself(spec)
    params = _block(state.params, part)

    def gradient(block):
        return jax.grad(
            lambda block: batch_loss(
                spec,
                transform,
                {**state.params, **block},
                state.stats,
                state.hparams,
                state.step,
                batch,
                rng=rng,
                lens=Lens(gates=gates),
            )[0]
        )(block)

    # Forward over reverse, with what does not depend on the direction done once.
    _, product = jax.linearize(gradient, params)
    if gates is None or _additive(spec):
        return product, params
    transposed = jax.linear_transpose(product, params)

    def symmetric(v):
        return jax.tree.map(lambda a, b: (a + b) / 2, product(v), transposed(v)[0])

    return symmetric, params


def sharpness(
    spec: Spec,
    transform: Transform,
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    *,
    gates: dict[str, jax.Array] | None = None,
    part: str = "",
    num: int = 1,
    iterations: int = 30,
) -> Ritz:
    """The `num` largest and most negative eigenvalues of `hessian`, by Lanczos.

    Args:
      iterations: Hessian-vector products, of each of which one vector of the parameters' size is
        kept: that is the memory. The rest: as `hessian`.
    """
    matvec, params = hessian(spec, transform, state, batch, rng, gates=gates, part=part)
    # The start of the recurrence is none of the loss's draws.
    start = jax.random.fold_in(rng, 2**32 - 2)
    return spectra.top_eigenvalues(matvec, params, start, num=num, iterations=iterations)


def sharpness_by_term(
    spec: Spec,
    transform: Transform,
    state: TrainState,
    batch: Batch,
    rng: jax.Array,
    *,
    part: str = "",
    num: int = 1,
    iterations: int = 30,
) -> dict[str, Ritz]:
    """`sharpness` of each of `TERMS`, one after the other in one program."""

    def of(gates):
        return sharpness(
            spec,
            transform,
            state,
            batch,
            rng,
            gates=dict(zip(TERMS, gates, strict=True)),
            part=part,
            num=num,
            iterations=iterations,
        )

    found = jax.lax.map(of, jnp.eye(len(TERMS)))
    return {term: jax.tree.map(lambda a, i=i: a[i], found) for i, term in enumerate(TERMS)}


def _itself(spec: Spec) -> Spec:
    """The same loss with its own derivatives: another estimator's is a sampled bound."""
    if spec.objective.estimator == "reparameterization":
        return spec
    plain = dataclasses.replace(spec.objective, estimator="reparameterization", kl="sampled")
    return dataclasses.replace(spec, objective=plain)


def _additive(spec: Spec) -> bool:
    """Whether the loss is a sum of its terms: not if it takes the log of a mean of weights."""
    of_terms = objectives.OBJECTIVES[spec.objective.name].loss is not None
    return of_terms or objectives.num_samples(spec) == 1


def _block(params: model.Params, part: str) -> model.Params:
    if part not in ("", "encoder", "decoder"):
        raise ValueError(f"part: {part!r} is neither encoder nor decoder, nor empty for both.")
    if not part:
        return params
    of_encoder = part == "encoder"
    names = optimizers.ENCODER_PARTS
    return {name: tree for name, tree in params.items() if (name in names) == of_encoder}
