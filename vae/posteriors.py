"""The posteriors q(z|x) to choose from, the flows and the point among them.

A posterior is one row of `POSTERIORS`: pure functions of one example. z has `latent_size` numbers:
`latent_dim`, or, where the latents are discrete, `latent_dim` variables of several numbers each.
"""

import jax.numpy as jnp

from vae import distributions, flows, printed
from vae.discrete import CATEGORICAL, VQ
from vae.family import MODES, Family, Posterior
from vae.gaussians import FULL, GAUSSIAN, LOW_RANK
from vae.hierarchy import HIERARCHICAL, LADDER
from vae.spec import ModelSpec

# Flows on a diagonal Gaussian, which read a context from the encoder.


def _flow_spec(spec: ModelSpec, kind: str) -> flows.FlowSpec:
    return flows.FlowSpec(
        kind=kind,
        dim=spec.latent_dim,
        context_dim=spec.flow_width,
        layers=spec.flow_layers,
        width=spec.flow_width,
    )


def _flow(kind: str) -> Family:
    """Inverse autoregressive (Kingma et al. 2016) or coupling (Dinh et al. 2017) flow."""

    def draw(spec, params, posterior, noise, hparams, train):
        base, _ = GAUSSIAN.draw(spec, params, posterior, noise, hparams, train)
        return flows.forward(_flow_spec(spec, kind), params, base, posterior.rest["context"])

    def log_q(spec, params, posterior, z, noise, drawn, mode):
        if mode == "total":
            return GAUSSIAN.log_q(spec, params, posterior, z, noise, None, mode) - drawn
        context = posterior.rest["context"]
        base, log_det = flows.inverse(_flow_spec(spec, kind), params, z, context)
        log_base = distributions.normal_log_prob(base, posterior.mean, posterior.logvar)
        return log_base + log_det

    return GAUSSIAN._replace(
        heads=lambda spec: GAUSSIAN.heads(spec) | {"context": spec.flow_width},
        draw=draw,
        log_q=log_q,
        kl=None,
        # The density of a given z takes an autoregressive flow as many passes as z has dimensions.
        modes=("total",) if kind == "iaf" else MODES,
        location=lambda spec, params, posterior: flows.forward(
            _flow_spec(spec, kind), params, posterior.mean, posterior.rest["context"]
        )[0],
        init=lambda spec, rng: (flows.init(_flow_spec(spec, kind), rng), {}),
    )


# A point: no distribution at all, for the autoencoders.

POINT = GAUSSIAN._replace(
    heads=lambda spec: {"mean": spec.latent_dim},
    posterior=lambda spec, heads, stats, hparams: Posterior(heads["mean"]),
    draw=lambda spec, params, posterior, noise, hparams, train: (posterior.mean, None),
    # Neither a density nor a rate: what is made of them is not a number, and reported as none.
    log_q=lambda spec, params, posterior, z, noise, drawn, mode: jnp.asarray(jnp.nan, z.dtype),
    kl=lambda spec, posterior: jnp.full(spec.latent_dim, jnp.nan, posterior.mean.dtype),
    noise_size=lambda spec: 0,
    modes=("total",),
)

# The codes of two write-ups that take them for draws of a posterior, see `vae.printed`.

SQUASHED = POINT._replace(
    draw=lambda spec, params, posterior, noise, hparams, train: (
        printed.squashed(posterior.mean),
        None,
    ),
    location=lambda spec, params, posterior: printed.squashed(posterior.mean),
)

TIED = POINT._replace(
    posterior=lambda spec, heads, stats, hparams: Posterior(heads["mean"], rest=stats["norm"]),
    draw=lambda spec, params, posterior, noise, hparams, train: (
        printed.normalized(params, posterior, train),
        None,
    ),
    location=lambda spec, params, posterior: printed.normalized(params, posterior, False),
    init=lambda spec, rng: printed.init_norm(spec.latent_dim),
    update=lambda spec, posterior, stats, hparams: printed.update_norm(posterior, stats),
)

# Without a density: rate, elbo and nll are not numbers.
POINTS = ("point", "squashed", "tied")


POSTERIORS: dict[str, Family] = {
    "gaussian": GAUSSIAN,
    "full": FULL,
    "low_rank": LOW_RANK,
    "iaf": _flow("iaf"),
    "coupling": _flow("coupling"),
    "point": POINT,
    "squashed": SQUASHED,
    "tied": TIED,
    "categorical": CATEGORICAL,
    "vq": VQ,
    "hierarchical": HIERARCHICAL,
    "ladder": LADDER,
}
