"""The networks and densities of a VAE: encoder, prior, decoder; the only owner of parameters.

Everything here acts on ONE example x [*x]. The caller vmaps over examples with the axis name
`batch`; K samples of z are a vmap inside, with the axis name `sample`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae import hierarchy, prng
from vae.family import Posterior
from vae.hparams import HParams
from vae.likelihoods import LIKELIHOODS, MIN_PIXEL_LOGVAR, OUTPUTS
from vae.nets import Decoder, Encoder
from vae.posteriors import POSTERIORS
from vae.priors import PRIORS, Components
from vae.spec import ModelSpec


class Decoded(NamedTuple):
    """What the likelihood reads of K samples: `heads` [K, ...], and scalars shared by all."""

    heads: dict[str, jax.Array]
    shared: dict[str, jax.Array]

    def each(self, function: Callable[[dict[str, jax.Array]], Any]) -> Any:
        """`function` of the outputs of each sample."""
        return jax.vmap(lambda heads: function({**heads, **self.shared}))(self.heads)


Params = dict[str, Any]
Stats = dict[str, Any]
# What is added to the layers of a network, see `vae.nets.Tap`; of the decoder with an axis [K].
Taps = dict[str, Any]


def _encoder(spec: ModelSpec) -> Encoder:
    return Encoder(spec, tuple(POSTERIORS[spec.posterior].heads(spec).items()))


def _decoder(spec: ModelSpec) -> Decoder:
    return Decoder(spec, tuple(LIKELIHOODS[spec.likelihood].heads(spec.channels).items()))


def encoder(
    spec: ModelSpec, params: Params, stats: Stats, x: jax.Array, train: bool, **options: Any
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """x [*x] ↦ (the posterior's heads, the collections that changed); options of Linen's apply.

    Of a packed model with the option `layers`, see `vae.packed`; so `decoder`.
    """
    return _apply(_encoder(spec), params["encoder"], stats.get("encoder", {}), x, train, **options)


def decoder(
    spec: ModelSpec, params: Params, stats: Stats, z: jax.Array, train: bool, **options: Any
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """z [n] ↦ (the likelihood's heads, the collections that changed); options of Linen's apply."""
    z = POSTERIORS[spec.posterior].read(spec, z)
    return _apply(_decoder(spec), params["decoder"], stats.get("decoder", {}), z, train, **options)


def _apply(
    net,
    params,
    batch_stats,
    value,
    train,
    *,
    layers=None,
    taps=None,
    mutable=("batch_stats",),
    **options,
):
    variables = {"params": params, "batch_stats": batch_stats}
    if taps is not None:
        variables["taps"] = taps
    return net.apply(variables, value, train, layers, mutable=list(mutable), **options)


def encode(
    spec: ModelSpec,
    params: Params,
    stats: Stats,
    hparams: HParams,
    x: jax.Array,
    train: bool,
    *,
    taps: Taps | None = None,
) -> tuple[Posterior, Stats]:
    """x [*x] ↦ q(z|x), and the encoder's running statistics (unchanged unless `train`)."""
    layers = hparams.layers if spec.packed else None
    heads, updated = encoder(spec, params, stats, x, train, taps=taps, layers=layers)
    family = POSTERIORS[spec.posterior]
    posterior = family.posterior(spec, heads, stats.get("posterior", {}), hparams)
    if spec.packed:  # N(0, 1) beyond the run's own, which is the prior: no rate
        mine = own_latents(spec, hparams)
        mean, logvar = (jnp.where(mine, a, 0) for a in (posterior.mean, posterior.logvar))
        posterior = posterior._replace(mean=mean, logvar=logvar)
    return posterior, updated.get("batch_stats", {})


def location(
    spec: ModelSpec, params: Params, posterior: Posterior, stats: Stats | None = None
) -> jax.Array:
    """The z that stands for q(z|x): its mean, or where the mean leads to through flow or layers.

    stats: read where BatchNorm is in the networks between stochastic layers.
    """
    own = posterior_params(spec, params, stats or {}, train=False)
    return POSTERIORS[spec.posterior].location(spec, own, posterior)


def posterior_params(spec: ModelSpec, params: Params, stats: Stats, train: bool) -> Any:
    """What the functions of the posterior's family take as `params`, see `vae.family.Family`."""
    if part := POSTERIORS[spec.posterior].nets:
        return hierarchy.Nets(params.get(part, {}), stats.get(part, {}), train)
    return params.get("posterior", {})


def own_latents(spec: ModelSpec, hparams: HParams) -> jax.Array:
    """Which of the latents are this run's, [latent_dim]: all, but in a packed model."""
    number = jnp.arange(spec.latent_dim, dtype=jnp.float32)
    return number < (hparams.latents if spec.packed else spec.latent_dim)


def noise(
    spec: ModelSpec, rng: jax.Array, num_samples: int, hparams: HParams | None = None
) -> jax.Array:
    """The standard noise of K samples of z for one example, [K, noise_size].

    hparams: read where the model is packed, and only there.
    """
    family = POSTERIORS[spec.posterior]
    shape = (num_samples, family.noise_size(spec))
    if not spec.packed:
        return family.noise(rng, shape)
    # Of 0 beyond the run's own latents, so that z is 0 there.
    drawn = family.noise(prng.columns(rng, hparams.latents), shape)
    return jnp.where(own_latents(spec, hparams)[None], drawn, 0)


def prior_state(
    spec: ModelSpec, params: Params, stats: Stats, hparams: HParams, train: bool = False
) -> Any:
    """What `PRIORS[spec.prior]` needs for densities and draws; the same for all examples.

    Pseudo-inputs are encoded with the running statistics, in training too: they are no examples.
    """
    if PRIORS[spec.prior].layered:
        return hierarchy.Nets(params.get("prior", {}), stats.get("prior", {}), train)
    if PRIORS[spec.prior].pseudo_inputs:
        inputs = params["prior"]["pseudo_inputs"]["inputs"]

        def component(u):
            posterior, _ = encode(spec, params, stats, hparams, u, train=False)
            return posterior.mean, posterior.logvar

        means, logvars = jax.vmap(component)(inputs)
        equal = jnp.full(len(inputs), -jnp.log(len(inputs)), means.dtype)
        return Components(means, logvars, equal)
    return params.get("prior", stats.get("posterior", {}))


def sample_prior(
    spec: ModelSpec, params: Params, stats: Stats, hparams: HParams, rng: jax.Array
) -> jax.Array:
    """z ~ p(z), [latent_size]."""
    if spec.packed:
        rng = prng.columns(rng, hparams.latents)
    z = PRIORS[spec.prior].sample(spec, prior_state(spec, params, stats, hparams), rng)
    return jnp.where(own_latents(spec, hparams), z, 0) if spec.packed else z


def decode(
    spec: ModelSpec,
    params: Params,
    stats: Stats,
    hparams: HParams,
    z: jax.Array,
    train: bool,
    *,
    taps: Taps | None = None,
) -> tuple[Decoded, Stats]:
    """K latents z [K, n] ↦ what the likelihood reads, and the decoder's running statistics.

    The log-variance of `_optimal` likelihoods is the running one: the batch's own needs x, see
    `vae.elbo`.
    """

    def one(z, taps):
        layers = hparams.layers if spec.packed else None
        heads, updated = decoder(spec, params, stats, z, train, taps=taps, layers=layers)
        heads["output"] = OUTPUTS[spec.output].value(heads["output"])
        return heads, updated.get("batch_stats", {})

    # A single sample is not mapped over: the axis is there by its name alone. With an axis of one,
    # XLA's CPU backend would transpose what the gradients are products of.
    mapped, in_axes = (z, taps), 0
    if len(z) == 1:
        mapped, in_axes = jax.tree.map(lambda a: a[0], mapped), None
    heads, updated = jax.vmap(
        one, in_axes, out_axes=(0, None), axis_name="sample", axis_size=len(z)
    )(*mapped)
    likelihood = LIKELIHOODS[spec.likelihood]
    shared = {name: jnp.asarray(getattr(hparams, name), z.dtype) for name in likelihood.numbers}
    if likelihood.scale == "fixed":
        shared["logvar"] = 2 * jnp.log(jnp.asarray(hparams.sigma, z.dtype))
    elif likelihood.scale == "shared":
        shared["logvar"] = params["likelihood"]["logvar"]
    elif likelihood.scale == "pixel":
        logvar = heads.pop("variance")
        heads["logvar"] = MIN_PIXEL_LOGVAR + jax.nn.softplus(logvar - MIN_PIXEL_LOGVAR)
    elif likelihood.scale == "optimal":
        shared["logvar"] = jnp.log(stats["likelihood"]["variance"])
    return Decoded(heads, shared), updated


def init(
    spec: ModelSpec,
    hparams: HParams,
    rng: jax.Array,
    data_mean: jax.Array,
    pseudo_inputs: jax.Array | None = None,
) -> tuple[Params, Stats]:
    """Parameters and running statistics of one run, from its key alone.

    Args:
      rng: key. data_mean: mean of the training examples [*x], read by `output_bias="data_mean"`.
      pseudo_inputs: [prior_components, *x], where the prior `vamp` starts.

    Returns:
      (params, stats): params has `encoder`, `decoder` and, where they have any, `likelihood`,
      `posterior` and `prior`.
    """
    encoder_rng, decoder_rng = jax.random.split(rng)
    family, likelihood = POSTERIORS[spec.posterior], LIKELIHOODS[spec.likelihood]

    def one(x, z):  # within the named axes, because BatchNorm asks for them even here
        encoder = _encoder(spec).init(encoder_rng, x, True)
        decoder = jax.vmap(lambda z: _decoder(spec).init(decoder_rng, z, True), axis_name="sample")
        return encoder, jax.tree.map(lambda a: a[0], decoder(z[None]))

    x = jnp.zeros((1, *spec.example_shape), jnp.float32)
    z = family.read(spec, jnp.zeros(family.latent_size(spec), jnp.float32))[None]
    encoder, decoder = jax.tree.map(lambda a: a[0], jax.vmap(one, axis_name="batch")(x, z))
    params = {"encoder": encoder["params"], "decoder": decoder["params"]}
    stats = {
        "encoder": encoder.get("batch_stats", {}),
        "decoder": decoder.get("batch_stats", {}),
    }

    def gained(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf * hparams.init_gain if path[-1].key == "kernel" else leaf,
            params,
        )

    params = gained(params)
    if spec.output_bias == "data_mean":
        output = params["decoder"]["output"]
        # One number a value, or, where the head is a convolution, one a channel.
        mean = data_mean.reshape(-1, output["bias"].shape[0]).mean(0)
        output["bias"] = OUTPUTS[spec.output].inverse(likelihood.bias(mean))
    if likelihood.scale == "shared":
        params["likelihood"] = {"logvar": 2 * jnp.log(jnp.asarray(hparams.sigma, jnp.float32))}
    if likelihood.scale == "optimal":
        stats["likelihood"] = {
            "variance": jnp.ones((), jnp.float32),
            "weight": jnp.zeros((), jnp.float32),
        }
    # Folded in, so that the encoder and the decoder start the same with any posterior and prior.
    posterior, posterior_stats = family.init(spec, jax.random.fold_in(rng, 0))
    prior, prior_stats = PRIORS[spec.prior].init(spec, jax.random.fold_in(rng, 1), pseudo_inputs)
    own = {"posterior": gained(posterior), "prior": gained(prior)}
    params |= {name: tree for name, tree in own.items() if tree}
    own_stats = {"posterior": posterior_stats, "prior": prior_stats}
    return params, stats | {name: tree for name, tree in own_stats.items() if tree}
