"""Priors p(z): what log p(z) is, how z is drawn, and what is learned of it.

A prior is one row of `PRIORS`. `standard` is N(0, I), or, of discrete latents, uniform: the
posterior's row in `vae.posteriors` knows it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae import distributions, flows, hierarchy
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec


class Components(NamedTuple):
    """A mixture of C diagonal Gaussians: means, logvars [C, d], log_weights [C]."""

    means: jax.Array
    logvars: jax.Array
    log_weights: jax.Array


class Prior(NamedTuple):
    """A row of `PRIORS`.

    Attributes:
      init: (spec, rng, pseudo_inputs) -> (parameters, running statistics), {} where there are none.
      log_prob: (spec, state, z) -> log p(z), nats; where it is `layered`, that of each dimension
        given the layer above, [d].
      sample: (spec, state, rng) -> z.
      moved: (spec, state, z) -> z itself, as what the prior makes of held noise: its gradient in
        the parameters is that of a draw; None where a draw is no smooth function of them.
      pseudo_inputs: whether it is a mixture of posteriors at learned inputs, so that its state is
        made by the encoder; otherwise its state is its parameters (`standard`: the statistics of
        the posterior's family).
      layered: whether it is of several stochastic layers, and its state a `vae.hierarchy.Nets`.
    """

    init: Callable[..., tuple[dict[str, Any], dict[str, Any]]]
    log_prob: Callable[[ModelSpec, Any, jax.Array], jax.Array]
    sample: Callable[[ModelSpec, Any, jax.Array], jax.Array]
    moved: Callable[[ModelSpec, Any, jax.Array], jax.Array] | None = None
    pseudo_inputs: bool = False
    layered: bool = False


STANDARD = Prior(
    init=lambda spec, rng, pseudo_inputs: ({}, {}),
    log_prob=lambda spec, state, z: POSTERIORS[spec.posterior].log_standard(spec, z),
    sample=lambda spec, state, rng: POSTERIORS[spec.posterior].draw_standard(spec, rng, state),
)


def mixture_log_prob(components: Components, z: jax.Array) -> jax.Array:
    """log Σ_c π_c N(z | m_c, diag s_c²) of one z [d]."""
    log_probs = jax.vmap(distributions.normal_log_prob, (None, 0, 0))(
        z, components.means, components.logvars
    )
    return jax.nn.logsumexp(components.log_weights + log_probs)


def _sample_mixture(components: Components, rng: jax.Array) -> jax.Array:
    which_rng, noise_rng = jax.random.split(rng)
    which = jax.random.categorical(which_rng, components.log_weights)
    noise = jax.random.normal(noise_rng, components.means.shape[1:])
    return components.means[which] + jnp.exp(0.5 * components.logvars[which]) * noise


def _init_mixture(
    spec: ModelSpec, rng: jax.Array, pseudo_inputs: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """C standard Gaussians, their means drawn from N(0, I), of equal weight."""
    shape = (spec.prior_components, spec.latent_dim)
    means, logvars = jax.random.normal(rng, shape), jnp.zeros(shape)
    weights = jnp.zeros(spec.prior_components)
    return {"mixture": {"means": means, "logvars": logvars, "weights": weights}}, {}


def _components(params: dict[str, Any]) -> Components:
    mixture = params["mixture"]
    return Components(mixture["means"], mixture["logvars"], jax.nn.log_softmax(mixture["weights"]))


MIXTURE = Prior(
    init=_init_mixture,
    log_prob=lambda spec, params, z: mixture_log_prob(_components(params), z),
    sample=lambda spec, params, rng: _sample_mixture(_components(params), rng),
)


# Tomczak and Welling 2018, eq. 9: p(z) = 1/C Σ_c q(z|u_c), the pseudo-inputs u_c learned. They
# start as training examples.
VAMP = Prior(
    init=lambda spec, rng, pseudo_inputs: ({"pseudo_inputs": {"inputs": pseudo_inputs}}, {}),
    log_prob=lambda spec, components, z: mixture_log_prob(components, z),
    sample=lambda spec, components, rng: _sample_mixture(components, rng),
    pseudo_inputs=True,
)


def _flow_spec(spec: ModelSpec) -> flows.FlowSpec:
    return flows.FlowSpec(
        kind="coupling", dim=spec.latent_dim, layers=spec.flow_layers, width=spec.flow_width
    )


def _flow_log_prob(spec: ModelSpec, params: dict[str, Any], z: jax.Array) -> jax.Array:
    base, log_det = flows.inverse(_flow_spec(spec), params, z, None)
    zero = jnp.zeros_like(base)
    return distributions.normal_log_prob(base, zero, zero) + log_det


def _sample_flow(spec: ModelSpec, params: dict[str, Any], rng: jax.Array) -> jax.Array:
    base = jax.random.normal(rng, (spec.latent_dim,))
    return flows.forward(_flow_spec(spec), params, base, None)[0]


def _moved_by_flow(spec: ModelSpec, params: dict[str, Any], z: jax.Array) -> jax.Array:
    held = jax.lax.stop_gradient
    base, _ = flows.inverse(_flow_spec(spec), held(params), held(z), None)
    return flows.forward(_flow_spec(spec), params, base, None)[0]


FLOW = Prior(
    init=lambda spec, rng, pseudo_inputs: (flows.init(_flow_spec(spec), rng), {}),
    log_prob=_flow_log_prob,
    sample=_sample_flow,
    moved=_moved_by_flow,
)

HIERARCHICAL = Prior(
    init=hierarchy.init_prior,
    log_prob=hierarchy.log_prior,
    sample=hierarchy.sample_prior,
    moved=hierarchy.moved_prior,
    layered=True,
)

PRIORS: dict[str, Prior] = {
    "standard": STANDARD,
    "mixture": MIXTURE,
    "vamp": VAMP,
    "flow": FLOW,
    "hierarchical": HIERARCHICAL,
}
