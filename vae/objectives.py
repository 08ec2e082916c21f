"""Objectives: from the decomposed terms of one example to the loss that is minimised.

To add one: write a function (terms, hparams, beta) -> loss in nats, and give it a row in
`OBJECTIVES` and in the choices of `objective.name` in experiments/fields.py. What is *reported*
(rate, distortion, elbo) never depends on the objective: see `metrics`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae.hparams import HParams
from vae.model import Terms


def free_bits(kl: jax.Array, floor: jax.Array) -> jax.Array:
    """Σ_j max(λ, E_batch[KL_j]) as a per-example term; Kingma et al. 2016, eq. 15.

    A dimension whose minibatch mean is under the floor contributes the constant λ and no
    gradient; the others contribute their own KL. Coupled over the axis `batch`, but only through
    the gate, which has no gradient: the mean of per-example gradients is the batch gradient.

    Args:
      kl: [d], of one example, in nats. floor: λ ≥ 0, nats per dimension; 0 is the plain sum.
    """
    active = jax.lax.pmean(kl, "batch") > floor
    return jnp.sum(jnp.where(active, kl, floor))


def elbo_loss(terms: Terms, hparams: HParams, beta: jax.Array) -> jax.Array:
    """D + β·R, the negative ELBO at β = 1; Kingma and Welling 2014; β: Higgins et al. 2017."""
    return -jnp.mean(terms.log_px) + beta * free_bits(terms.kl, hparams.free_bits)


OBJECTIVES: dict[str, Callable[[Terms, HParams, jax.Array], jax.Array]] = {"elbo": elbo_loss}


def metrics(terms: Terms) -> dict[str, jax.Array]:
    """What is reported of one example in training and in evaluation alike, in nats.

    rate R = KL(q(z|x)||p(z)), distortion D = −mean_k log p(x|z_k), elbo = −(D + R).
    """
    rate, distortion = jnp.sum(terms.kl), -jnp.mean(terms.log_px)
    return {"rate": rate, "distortion": distortion, "elbo": -(rate + distortion)}


def iw_log_weights(terms: Terms) -> jax.Array:
    """log w_k = log p(x|z_k) + log p(z_k) − log q(z_k|x), [K]; Burda et al. 2016, eq. 8."""
    return terms.log_px + terms.log_pz - terms.log_qz
