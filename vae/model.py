"""The VAE: encoder, prior, decoder and likelihood; the only owner of parameters.

Everything here acts on ONE example x [*x]. The caller vmaps over examples with the axis name
`batch`; K samples of z are a vmap inside, with the axis name `sample`.
"""

import functools
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


class Terms(NamedTuple):
    """The pieces of any bound on log p(x) for one example, in nats, before anyone sums them.

    Attributes:
      log_px: log p(x|z_k), [K].
      log_pz: log p(z_k), [K].
      log_qz: log q(z_k|x), [K].
      kl: KL(q(z|x) || p(z)), split as far as it goes: of each latent dimension, analytic, [d];
        where it has no closed form, mean_k log q(z_k|x) − log p(z_k), [1], or, of stochastic
        layers, that of each dimension given the layers that it hangs on, [d].
      posterior: q(z|x).
      z: the samples, [K, latent_size].
    """

    log_px: jax.Array
    log_pz: jax.Array
    log_qz: jax.Array
    kl: jax.Array
    posterior: Posterior
    z: jax.Array


class Path(NamedTuple):
    """How gradients flow through the samples of z; the values are the same whatever it says.

    Attributes:
      mode: one of `vae.family.MODES`: what the gradient of log q(z|x) is taken through.
      scale: [K] or None: factors on the gradient that arrives at the posterior through z_k.
      prior_scale: [K] or None: the parameters of the prior get their gradient as if z_k had been
        drawn from it (`gdreg`, see `vae.bounds`), with these factors on what arrives at z_k.
    """

    mode: str = "total"
    scale: jax.Array | None = None
    prior_scale: jax.Array | None = None


PLAIN = Path()


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
    `terms`.
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


def terms(
    spec: ModelSpec,
    params: Params,
    stats: Stats,
    hparams: HParams,
    x: jax.Array,
    noise: jax.Array,
    train: bool,
    *,
    path: Path = PLAIN,
    encoded: jax.Array | None = None,
    taps: Taps | None = None,
) -> tuple[Terms, Stats]:
    """The decomposed terms of one example: encode x, then `terms_given` the posterior.

    Args:
      x: [*x]. noise: standard noise of the posterior, [K, noise_size], see `noise`.
      train: whether batch statistics are used and updated; needs the axis name `batch`.
      path: what gradients flow through.
      encoded: what the encoder sees in place of x, [*x]: a corrupted x.
      taps: of `encoder` and `decoder`.

    Returns:
      Terms, and the updated running statistics.
    """
    seen = x if encoded is None else encoded
    taps = taps or {}
    posterior, encoder_stats = encode(
        spec, params, stats, hparams, seen, train, taps=taps.get("encoder")
    )
    result, new_stats = terms_given(
        spec,
        params,
        stats,
        hparams,
        x,
        posterior,
        noise,
        train,
        path=path,
        taps=taps.get("decoder"),
    )
    return result, new_stats | {"encoder": encoder_stats}


def terms_given(
    spec: ModelSpec,
    params: Params,
    stats: Stats,
    hparams: HParams,
    x: jax.Array,
    posterior: Posterior,
    noise: jax.Array,
    train: bool,
    *,
    path: Path = PLAIN,
    taps: Taps | None = None,
) -> tuple[Terms, Stats]:
    """z_k from noise_k, p(x|z_k) = decode(z_k), and the log-densities of x and z.

    With `gaussian_optimal` and `train`, σ² is the squared error's mean over the axis `batch`,
    over samples and over dimensions: the maximum-likelihood σ² given the networks (Rybkin et al.
    2021). It is held constant in the gradient, which changes nothing, because ∂ELBO/∂σ² = 0
    there. Evaluation uses its running mean: p(x|z) must be one density, not one per batch. The
    mean is over the batches seen, with weights that fall by 1% a step; `weight` is their sum, by
    which it is normalised (as in Adam), so that the starting value has no share in it.

    Args and returns: as `terms`; the statistics are those of all but the encoder.
    """
    family, likelihood = POSTERIORS[spec.posterior], LIKELIHOODS[spec.likelihood]
    own = posterior_params(spec, params, stats, train)
    each = functools.partial(jax.vmap, axis_name="sample")

    # 1. Draw z.
    z, drawn = each(lambda e: family.draw(spec, own, posterior, e, hparams, train))(noise)
    if path.mode == "score":
        z = jax.lax.stop_gradient(z)
    drawn_z = jax.lax.stop_gradient(z)
    if path.scale is not None:
        z = scale_gradient(z, path.scale)
    prior = prior_state(spec, params, stats, hparams, train)
    if path.prior_scale is not None:
        moved = jax.vmap(lambda z: PRIORS[spec.prior].moved(spec, prior, z))(drawn_z)
        z = z + _only_gradient(scale_gradient(moved, path.prior_scale))

    # 2. Decode.
    decoded, decoder_stats = decode(spec, params, stats, hparams, z, train, taps=taps)
    new_stats = {"decoder": decoder_stats}
    if likelihood.scale == "optimal":
        variance, weight = stats["likelihood"]["variance"], stats["likelihood"]["weight"]
        if train:
            error = jnp.mean(jnp.square(decoded.heads["output"] - x[None]))
            # A decoder that is exact to the last bit would have σ² = 0 and an infinite density.
            batch_variance = jnp.maximum(
                jax.lax.pmean(jax.lax.stop_gradient(error), "batch"), 1e-12
            )
            decoded.shared["logvar"] = jnp.log(batch_variance)
            weight = 0.99 * weight + 0.01
            variance = variance + 0.01 / weight * (batch_variance - variance)
        new_stats["likelihood"] = {"variance": variance, "weight": weight}
    if family.update is not None:
        new_stats["posterior"] = (
            family.update(spec, posterior, stats["posterior"], hparams)
            if train
            else stats["posterior"]
        )
    for part in ("posterior", "prior") if family.nets else ():
        if part in stats:
            nets = hierarchy.Nets(params[part], stats[part], train)
            new_stats[part] = hierarchy.statistics(spec, nets, drawn_z, part == "posterior")

    # 3. Weigh.
    held, held_own = (
        jax.lax.stop_gradient((posterior, own)) if path.mode == "path" else (posterior, own)
    )
    held_prior = prior if path.prior_scale is None else jax.lax.stop_gradient(prior)

    def log_q(z, e, drawn):
        return family.log_q(spec, held_own, held, z, e, drawn, path.mode)

    def log_p(z):
        return PRIORS[spec.prior].log_prob(spec, held_prior, z)

    log_qz, log_pz = each(log_q)(z, noise, drawn), each(log_p)(z)
    if family.nets:  # of each dimension
        split = jnp.mean(log_qz - log_pz, axis=0)
        log_qz, log_pz = jnp.sum(log_qz, axis=1), jnp.sum(log_pz, axis=1)
    if path.prior_scale is not None:
        slope = jax.vmap(jax.grad(lambda z, *draw: jnp.sum(log_q(z, *draw) - log_p(z))))
        held_slope = jax.lax.stop_gradient(slope(drawn_z, noise, drawn))
        log_pz = log_pz + _only_gradient(jnp.sum(held_slope * moved, axis=1))
    if family.nets:
        kl = split
    else:
        kl = family.kl(spec, posterior) if analytic_kl(spec) else jnp.mean(log_qz - log_pz)[None]
    return Terms(
        log_px=decoded.each(lambda outputs: likelihood.log_prob(x, outputs)),
        log_pz=log_pz,
        log_qz=log_qz,
        kl=kl,
        posterior=posterior,
        z=z,
    ), new_stats


def analytic_kl(spec: ModelSpec) -> bool:
    """Whether KL(q(z|x) || p(z)) has a closed form."""
    return spec.prior == "standard" and POSTERIORS[spec.posterior].kl is not None


def num_kls(spec: ModelSpec) -> int:
    """Numbers that the KL is split into: one for each latent dimension, or one in all."""
    return spec.latent_dim if analytic_kl(spec) or POSTERIORS[spec.posterior].nets else 1


def _only_gradient(value: jax.Array) -> jax.Array:
    """Zero, with the gradient of `value`."""
    return value - jax.lax.stop_gradient(value)


@jax.custom_vjp
def scale_gradient(value: jax.Array, scale: jax.Array) -> jax.Array:
    """`value` [K, ...]; its gradient is multiplied by `scale`, [K] or [], on the way back."""
    del scale
    return value


scale_gradient.defvjp(
    lambda value, scale: (value, scale),
    lambda scale, gradient: (
        gradient * scale.reshape(scale.shape + (1,) * (gradient.ndim - scale.ndim)),
        jnp.zeros_like(scale),
    ),
)


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
