"""Objectives: from the decomposed terms of one example to the loss that is minimised.

To add one: write a function (terms, context) -> (loss in nats, metrics), and give it a row in
`OBJECTIVES` and in the choices of `objective.name` in experiments/fields.py. What is *reported*
(rate, distortion, elbo) never depends on the objective: see `metrics`; and a bound that is
reported is the bound itself, whichever surrogate gives its gradient.

Batch-coupled objectives are collectives over the axis `batch`. For them (`tcvae`, `factor`, `mmd`,
`dip_i`, `dip_ii`, `capacity`, `tied`) the gradient of the batch is not a mean of gradients that the
examples would have on their own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae import adversaries, bounds, elbo, model, penalties, printed, schedules
from vae.elbo import Path, Terms
from vae.hparams import HParams
from vae.model import Params, Stats
from vae.posteriors import POINTS, POSTERIORS
from vae.spec import Spec

Metrics = dict[str, jax.Array]


class Context(NamedTuple):
    """What an objective may read beside the terms of its example.

    Attributes:
      spec: static. hparams, beta, step: of this run and step.
      x: the example, [*x].
      rng: a key of this example and step, for nothing but the objective.
      step_rng: a key of this step, the same for all examples.
      params, stats: of the run; params has `discriminator` where the objective has one.
      decode: latents [K, n] -> E[x|z] [K, *x], in training; an option holds the parameters.
    """

    spec: Spec
    hparams: HParams
    beta: jax.Array
    step: jax.Array
    x: jax.Array
    rng: jax.Array
    step_rng: jax.Array
    params: Params
    stats: Stats
    decode: Callable[..., jax.Array]


class Objective(NamedTuple):
    """One row of `OBJECTIVES`.

    Attributes:
      loss: (terms, context) -> (loss, metrics); None for the bounds of `vae.bounds`.
      metrics: what it reports beside what every objective reports.
      adversary: its discriminator, a row of `vae.adversaries`; or "".
      coupled: whether it needs a batch of two or more.
      posteriors: those it is for; empty: all but points and `vq`.
    """

    loss: Callable[[Terms, Context], tuple[jax.Array, Metrics]] | None
    metrics: tuple[str, ...] = ()
    adversary: str = ""
    coupled: bool = False
    posteriors: tuple[str, ...] = ()

    def admits(self, posterior: str) -> bool:
        """Whether it can be used with a posterior."""
        if self.posteriors:
            return posterior in self.posteriors
        return posterior not in (*POINTS, "vq")


def free_bits(kl: jax.Array, floor: jax.Array, groups: int = 0) -> jax.Array:
    """Σ_g max(λ, E_batch[KL_g]) as a per-example term; Kingma et al. 2016, eq. 15.

    A group of dimensions whose minibatch mean is under the floor contributes the constant λ and no
    gradient; the others contribute their own KL. Coupled over the axis `batch`, but only through
    the gate, which has no gradient: the mean of per-example gradients is the batch gradient.

    Args:
      kl: [d], of one example, in nats. floor: λ ≥ 0, nats per group; 0 is the plain sum.
      groups: groups of neighbouring dimensions, which divides d; 0: each dimension is one.
    """
    if groups and len(kl) > 1:
        kl = jnp.sum(kl.reshape(groups, -1), axis=1)
    # Without a floor nothing is held, not even a KL of 0, or a sampled one below.
    held = (floor > 0) & (jax.lax.pmean(kl, "batch") < floor)
    return jnp.sum(jnp.where(held, floor, kl))


def analytic(spec: Spec) -> bool:
    """Whether the loss has the KL in closed form; an estimator that is not plain has none."""
    return (
        spec.objective.kl != "sampled"
        and spec.objective.estimator == "reparameterization"
        and elbo.analytic_kl(spec.model)
    )


def splits(spec: Spec) -> bool:
    """Whether the KL in the loss is a number for each latent dimension, and not one in all."""
    return analytic(spec) or bool(POSTERIORS[spec.model.posterior].nets)


def rate_terms(terms: Terms, context: Context) -> jax.Array:
    """The KL as it stands in the loss: [d] in closed form, or [1] as a mean over the samples.

    Of stochastic layers it is a mean over the samples too, but for each dimension, [d].
    """
    if splits(context.spec):
        return terms.kl
    return jnp.mean(terms.log_qz - terms.log_pz)[None]


def distortion(terms: Terms) -> jax.Array:
    """D = −1/K Σ log p(x|z_k)."""
    return -jnp.mean(terms.log_px)


def rate_loss(terms: Terms, context: Context) -> jax.Array:
    """β·R with free bits."""
    kl, objective = rate_terms(terms, context), context.spec.objective
    return context.beta * free_bits(kl, context.hparams.free_bits, objective.free_bits_groups)


def elbo_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """D + β·R, the negative ELBO at β = 1; Kingma and Welling 2014; β: Higgins et al. 2017."""
    return distortion(terms) + rate_loss(terms, context), {}


def capacity_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """D + β·|R − C(t)|, R the batch's mean rate; Burgess et al. 2018, eq. 8 (β is their γ)."""
    target = schedules.capacity(context.step, context.hparams)
    rate = jnp.sum(rate_terms(terms, context))
    loss = distortion(terms) + context.beta * penalties.capacity(rate, target)
    return loss, {"capacity": target}


def tcvae_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """D + β·R + (λ − 1)·TC, λ = `penalty`; Chen et al. 2018, eq. 4 with α = γ = 1.

    R = MI + TC + Σ_j KL(q(z_j)||p(z_j)), so that TC is weighed by λ in all.
    """
    objective = context.spec.objective

    def densities(z):
        return penalties.aggregate_log_densities(
            z,
            terms.posterior.mean,
            terms.posterior.logvar,
            objective.num_examples,
            objective.tc_estimator,
        )

    # One sample after the other: all pairs of a batch at once are memory enough.
    aggregate = (
        densities(terms.z[0])
        if len(terms.z) == 1
        else jax.tree.map(jnp.mean, jax.lax.map(densities, terms.z))
    )
    parts = penalties.decompose_rate(jnp.mean(terms.log_qz), aggregate, jnp.mean(terms.log_pz))
    penalty = (context.hparams.penalty - 1) * parts.total_correlation
    loss = distortion(terms) + rate_loss(terms, context) + penalty
    return loss, parts._asdict()


def dip_loss(kind: str) -> Callable[[Terms, Context], tuple[jax.Array, Metrics]]:
    """D + β·R + λ_od Σ_{i≠j} C_ij² + λ_d Σ_i (C_ii − 1)²; Kumar et al. 2018, eq. 6 and 7."""

    def loss(terms, context):
        posterior, hparams = terms.posterior, context.hparams
        variance = jnp.exp(posterior.logvar)
        penalty = penalties.dip(
            posterior.mean, variance, hparams.penalty, hparams.penalty_diagonal, kind
        )
        return distortion(terms) + rate_loss(terms, context) + penalty, {"penalty": penalty}

    return loss


def mmd_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """D + β·R + λ·MMD²(q(z), p(z)); Zhao et al. 2019, eq. 6 (β = 1 − α, λ = α + λ' − 1).

    β = 0, or the posterior `point`, which has no rate, is the WAE of Tolstikhin et al. 2018.
    """
    hparams, spec = context.hparams, context.spec
    prior_z = model.sample_prior(spec.model, context.params, context.stats, hparams, context.rng)
    penalty = penalties.mmd(terms.z[0], prior_z, spec.objective.kernel, hparams.bandwidth)
    loss = distortion(terms) + hparams.penalty * penalty
    if spec.model.posterior != "point":
        loss = loss + rate_loss(terms, context)
    return loss, {"mmd": penalty}


def autoencoder_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """D alone, of z = mean: the autoencoder, and with `corruption` the denoising one.

    Vincent et al. 2008.
    """
    del context
    return distortion(terms), {}


def log_softmax_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """D + β·Σ_j [log softmax(z)_j − log softmax(m)_j] of z = sigmoid(m); see `vae.printed`."""
    penalty = printed.log_softmax_difference(terms.posterior.mean, terms.z[0])
    return distortion(terms) + context.beta * penalty, {"penalty": penalty}


def tied_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """D + (D + β·½Σ_j (h_j² + e^{h_j} − 1 − h_j)) of z = BatchNorm(h); see `vae.printed`."""
    penalty = printed.tied_kl(terms.posterior.mean)
    return 2 * distortion(terms) + context.beta * penalty, {"penalty": penalty}


def vq_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """D + β_c Σ |z_e − sg(e)|²; van den Oord et al. 2017, eq. 3, the codebook by averages.

    Reported: `perplexity`, exp of the entropy of how often the batch uses each code, from 1 to
    the size of the codebook, and `code_usage`, the share of codes that it uses at all.
    """
    rest = terms.posterior.rest
    commitment = jnp.sum(jnp.square(rest["encoded"] - jax.lax.stop_gradient(rest["quantized"])))
    used = jax.nn.one_hot(rest["codes"], context.spec.model.codes).mean(axis=0)
    used = jax.lax.pmean(used, "batch")
    perplexity = jnp.exp(-jnp.sum(jax.scipy.special.xlogy(used, used)))
    return distortion(terms) + context.hparams.commitment * commitment, {
        "commitment": commitment,
        "perplexity": perplexity,
        "code_usage": jnp.mean(used > 0),
    }


def factor_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """D + β·R + λ·E[log q(z)/Π q(z_j)], the ratio by a discriminator; Kim and Mnih 2018, eq. 2."""
    ratio, adversarial, metrics = adversaries.factor(
        context.spec, context.params["discriminator"], terms.z[0], context.step_rng
    )
    loss = distortion(terms) + rate_loss(terms, context) + context.hparams.penalty * ratio
    return loss, {"total_correlation": ratio, "discriminator_loss": adversarial, **metrics}


def vaegan_loss(terms: Terms, context: Context) -> tuple[jax.Array, Metrics]:
    """β·R + γ·½|f(x) − f(x̃)|² + what fools the discriminator, γ = `penalty`; Larsen et al. 2016.

    f are the discriminator's features. The encoder sees the features' error with weight 1 and
    nothing of the game, the decoder with weight γ and the game (their algorithm 1).
    """
    weight = context.hparams.penalty
    prior_z = model.sample_prior(
        context.spec.model, context.params, context.stats, context.hparams, context.rng
    )
    z = terms.z[:1]
    generated = context.decode(jnp.stack([jax.lax.stop_gradient(z[0]), prior_z]))
    scale = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 1)
    reconstruction = context.decode(elbo.scale_gradient(z, scale[None]))[0]
    error, game, adversarial, metrics = adversaries.vaegan(
        context.spec, context.params["discriminator"], context.x, reconstruction, generated
    )
    loss = rate_loss(terms, context) + weight * error + game
    return loss, {"feature_error": error, "discriminator_loss": adversarial, **metrics}


_DISCRIMINATED = ("discriminator_loss", "discriminator_accuracy")

OBJECTIVES: dict[str, Objective] = {
    "elbo": Objective(elbo_loss),
    **{name: Objective(None, ("bound",)) for name in bounds.BOUNDS if name != "elbo"},
    "capacity": Objective(capacity_loss, ("capacity",)),
    "tcvae": Objective(
        tcvae_loss,
        penalties.RateTerms._fields,
        coupled=True,
        posteriors=("gaussian",),
    ),
    "factor": Objective(
        factor_loss, ("total_correlation", *_DISCRIMINATED), adversary="latent", coupled=True
    ),
    "dip_i": Objective(dip_loss("i"), ("penalty",), coupled=True, posteriors=("gaussian",)),
    "dip_ii": Objective(dip_loss("ii"), ("penalty",), coupled=True, posteriors=("gaussian",)),
    "mmd": Objective(
        mmd_loss,
        ("mmd",),
        coupled=True,
        posteriors=("gaussian", "full", "low_rank", "iaf", "coupling", "point"),
    ),
    "autoencoder": Objective(autoencoder_loss, posteriors=("point",)),
    "log_softmax": Objective(log_softmax_loss, ("penalty",), posteriors=("squashed",)),
    "tied": Objective(tied_loss, ("penalty",), coupled=True, posteriors=("tied",)),
    "vaegan": Objective(vaegan_loss, ("feature_error", *_DISCRIMINATED), adversary="data"),
    "vq": Objective(vq_loss, ("commitment", "perplexity", "code_usage"), posteriors=("vq",)),
}


def example_loss(
    context: Context, terms_of: Callable[[Path, str], tuple[Terms, Stats]]
) -> tuple[jax.Array, Metrics, Terms, Stats]:
    """(loss, the objective's metrics, terms, new running statistics) of one example.

    Args:
      terms_of: (path, held) -> the terms of the example, with gradients along `path` and none to
        the part `held`: `encoder`, `decoder` or "".
    """
    objective = context.spec.objective
    row, estimator = OBJECTIVES[objective.name], bounds.ESTIMATORS[objective.estimator]
    plain = not (estimator.doubly or estimator.score)
    if row.loss is not None and (plain or objective.name != "elbo"):
        terms, stats = terms_of(Path(estimator.mode), "")
        loss, extra = row.loss(terms, context)
        return loss, extra, terms, stats
    bound = bounds.BOUNDS[objective.name]
    terms, stats = terms_of(Path(estimator.mode), "")
    value = bound.value(log_weights(context, terms, context.beta), context.hparams)
    # The value is the bound's, the gradient the surrogate's.
    if bound.encoder:
        surrogate = _surrogate(context, bounds.BOUNDS[bound.encoder], terms_of, "decoder")
        surrogate += _surrogate(context, bound, terms_of, "encoder")
    else:
        surrogate = _surrogate(context, bound, terms_of, "")
    held = jax.lax.stop_gradient
    loss = -(held(value) + (surrogate - held(surrogate)))
    reported = bound.value(log_weights(context, terms), context.hparams)
    return loss, {"bound": reported} if "bound" in row.metrics else {}, terms, stats


def log_weights(context: Context, terms: Terms, beta: jax.Array | float = 1.0) -> jax.Array:
    """log w_mk, [M, K], with the KL's part weighed by β."""
    log_w = terms.log_px + beta * (terms.log_pz - terms.log_qz)
    return log_w.reshape(context.spec.objective.groups, -1)


def _surrogate(
    context: Context,
    bound: bounds.Bound,
    terms_of: Callable[[Path, str], tuple[Terms, Stats]],
    held: str,
) -> jax.Array:
    """A number whose gradient is the estimator's, to the parts that are not held.

    Terms that are asked for again cost no forward pass: they are the same operations on the same
    numbers, which XLA merges.
    """
    estimator = bounds.ESTIMATORS[context.spec.objective.estimator]
    terms, _ = terms_of(Path(estimator.mode), held)
    log_w = log_weights(context, terms, context.beta)
    if estimator.doubly:

        def share(function):
            found = function(bound, log_w, context.hparams, context.beta)
            return jax.lax.stop_gradient(found).reshape(-1)

        of_prior = share(bounds.prior_share) if estimator.prior else None
        terms, _ = terms_of(Path(estimator.mode, share(bounds.path_share), of_prior), held)
        log_w = log_weights(context, terms, context.beta)
    surrogate = bound.value(log_w, context.hparams)
    if estimator.score:
        signal = bounds.learning_signal(bound, log_w, context.hparams)
        surrogate += jnp.sum(jax.lax.stop_gradient(signal).reshape(-1) * terms.log_qz)
    return surrogate


def metrics(terms: Terms) -> Metrics:
    """What is reported of one example in training and in evaluation alike, in nats.

    rate R = KL(q(z|x)||p(z)), distortion D = −mean_k log p(x|z_k), elbo = −(D + R). A point
    (`vae.posteriors.POINTS`) has neither a rate nor an elbo: they are not numbers.
    """
    rate, distorted = jnp.sum(terms.kl), distortion(terms)
    return {"rate": rate, "distortion": distorted, "elbo": -(rate + distorted)}


def iw_log_weights(terms: Terms) -> jax.Array:
    """log w_k = log p(x|z_k) + log p(z_k) − log q(z_k|x), [K]; Burda et al. 2016, eq. 8."""
    return terms.log_px + terms.log_pz - terms.log_qz


def num_samples(spec: Spec) -> int:
    """Samples of z per example and step: K, or M·K."""
    return spec.objective.samples * spec.objective.groups


def init_adversary(spec: Spec, rng: jax.Array) -> dict[str, Any]:
    """The discriminator's parameters, {} where the objective has none."""
    name = OBJECTIVES[spec.objective.name].adversary
    if not name:
        return {}
    size = POSTERIORS[spec.model.posterior].latent_size(spec.model)
    return adversaries.init(spec, name, size, rng)
