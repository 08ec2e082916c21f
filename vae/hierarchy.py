"""Several stochastic layers: z = (z_1, ..., z_L), of which the decoder reads z_1.

    p(x, z) = p(x|z_1) p(z_1|z_2) ... p(z_{L−1}|z_L) p(z_L),    p(z_L) = N(0, I),

each conditional a diagonal Gaussian, whose mean and variance a network of its own makes of the
layer above (`vae.nets.Conditional`): the prior `hierarchical`. Two ways to infer z go with it:

  hierarchical   q(z|x) = q(z_1|x) q(z_2|z_1) ... q(z_L|z_{L−1}): from the bottom up, each layer by
                 a network that reads a sample of the one below; Burda et al. 2016, eq. 1
  ladder         q(z|x) = q(z_L|x) q(z_{L−1}|z_L, x) ... q(z_1|z_2, x): the encoder reads something
                 of each layer off x, and on the way down that is combined with the layer's prior,
                 weighed by precision; Sønderby et al. 2016, eq. 11 to 18

In arrays the layers stand one after the other, from z_1 up. Log-densities are those of each
dimension given the layers that it hangs on, [latent_dim]: their sum is that of z. log q − log p has
E log q − log p as its mean over each layer's dimensions, the layer's part of the rate; the parts
add up to the rate, and by themselves can be negative where q goes from the bottom up.

The variance of every conditional is parametrised as that of the posterior, by `posterior_scale`.
With one layer both posteriors are the diagonal Gaussian, and the prior is N(0, I).

With `norm="batch"` the networks between the layers are coupled over the axes `batch` and `sample`,
so that the density of a given z is that of a batch: estimators other than `reparameterization`
need another norm, see `vae.validity`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from vae.distributions import LOG_2PI
from vae.family import Family, Posterior
from vae.gaussians import GAUSSIAN, diagonal_noise, log_variance
from vae.nets import Conditional
from vae.spec import ModelSpec


class Gaussian(NamedTuple):
    """A diagonal Gaussian: mean and log of the variances, [d]."""

    mean: jax.Array
    logvar: jax.Array


@struct.dataclass
class Nets:
    """The networks of one direction, by the layer whose distribution they make: z_1, z_2, ...

    Attributes:
      params: of each. stats: running statistics of each; empty without BatchNorm.
      train: whether BatchNorm takes the batch's statistics, over the axes `batch` and `sample`.
    """

    params: dict[str, Any]
    stats: dict[str, Any]
    train: bool = struct.field(pytree_node=False, default=False)


# (layer, z of the layer before it on the way, None at its start) -> the layer's distribution.
Layer = Callable[[int, jax.Array | None], Gaussian]


def upward(spec: ModelSpec) -> list[int]:
    """The layers in the order of the way up: 1 ... L."""
    return list(range(1, len(spec.latent_dims) + 1))


def downward(spec: ModelSpec) -> list[int]:
    """The layers in the order of the way down: L ... 1."""
    return upward(spec)[::-1]


def split(spec: ModelSpec, values: jax.Array) -> list[jax.Array]:
    """Values [latent_dim] of each layer, from z_1 up."""
    return jnp.split(values, np.cumsum(spec.latent_dims)[:-1].tolist())


def _joined(of: dict[int, Gaussian]) -> Gaussian:
    """The distributions of all layers as one, from z_1 up."""
    return Gaussian(*(jnp.concatenate(parts) for parts in zip(*_in_order(of), strict=True)))


def _in_order(of: dict[int, Any]) -> list[Any]:
    return [of[layer] for layer in sorted(of)]


def _draw(
    spec: ModelSpec, way: Sequence[int], of: Layer, noise: jax.Array
) -> tuple[jax.Array, Gaussian]:
    """z = mean + σ·noise, layer by layer along a way; and the distributions it is drawn from."""
    parts, drawn, z, last = split(spec, noise), {}, {}, None
    for layer in way:
        drawn[layer] = of(layer, last)
        last = drawn[layer].mean + jnp.exp(0.5 * drawn[layer].logvar) * parts[layer - 1]
        z[layer] = last
    return jnp.concatenate(_in_order(z)), _joined(drawn)


def _given(spec: ModelSpec, way: Sequence[int], of: Layer, z: jax.Array) -> Gaussian:
    """The distributions of all layers, each given the z of the one before it on the way."""
    parts = split(spec, z)
    before = [None, *(parts[layer - 1] for layer in way[:-1])]
    return _joined({layer: of(layer, last) for layer, last in zip(way, before, strict=True)})


def _net(spec: ModelSpec, layer: int, source: int) -> Conditional:
    """That of z_layer given z_source, its neighbour."""
    width = spec.stochastic_widths[min(layer, source) - 1]
    return Conditional(spec, spec.latent_dims[layer - 1], width)


def _conditional(
    spec: ModelSpec, nets: Nets, layer: int, source: int, z: jax.Array
) -> tuple[Gaussian, dict[str, Any]]:
    """(z_layer given z_source, the running statistics after it)."""
    name = f"z_{layer}"
    variables = {"params": nets.params[name], "batch_stats": nets.stats.get(name, {})}
    net = _net(spec, layer, source)
    heads, updated = net.apply(variables, z, nets.train, mutable=["batch_stats"])
    gaussian = Gaussian(heads["mean"], log_variance(spec, heads["scale"]))
    return gaussian, updated.get("batch_stats", {})


def _init(
    spec: ModelSpec, rng: jax.Array, pairs: Sequence[tuple[int, int]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and running statistics of the networks of (layer, source)."""
    rngs = jax.random.split(rng, max(1, len(pairs)))
    alike: dict[Any, list[int]] = {}
    for i, (layer, source) in enumerate(pairs):
        alike.setdefault((_net(spec, layer, source), spec.latent_dims[source - 1]), []).append(i)
    params, stats = {}, {}
    for (net, size), group in alike.items():
        # Networks of one shape in one draw: compiling the random numbers is most of what it costs.
        zero = jnp.zeros(size, jnp.float32)
        made = jax.vmap(lambda rng, net=net, zero=zero: net.init(rng, zero, False))(
            rngs[np.array(group)]
        )
        for place, i in enumerate(group):
            name = f"z_{pairs[i][0]}"
            own = jax.tree.map(lambda a, place=place: a[place], made)
            params[name] = own["params"]
            if "batch_stats" in own:
                stats[name] = own["batch_stats"]
    return params, stats


def statistics(spec: ModelSpec, nets: Nets, z: jax.Array, upward: bool) -> dict[str, Any]:
    """The running statistics of one direction's networks after a training step with z [K, d].

    It runs them again on what they have read: the same operations on the same numbers, which XLA
    merges.
    """

    def one(z):
        parts = split(spec, z)
        return {
            f"z_{layer}": _conditional(spec, nets, layer, source, parts[source - 1])[1]
            for layer, source in _pairs(spec, upward)
        }

    return jax.vmap(one, axis_name="sample", out_axes=None)(z)


def _pairs(spec: ModelSpec, upward: bool) -> list[tuple[int, int]]:
    """(layer, source) of the networks of one direction, in the order of its way."""
    lower = range(1, len(spec.latent_dims))
    return [(i + 1, i) for i in lower] if upward else [(i, i + 1) for i in reversed(lower)]


def outputs(spec: ModelSpec, nets: Nets, z: jax.Array, upward: bool) -> dict[str, Gaussian]:
    """What each network of one direction makes of z [d], by its name: for whoever looks inside."""
    parts = split(spec, z)
    return {
        f"z_{layer}": _conditional(spec, nets, layer, source, parts[source - 1])[0]
        for layer, source in _pairs(spec, upward)
    }


# The prior, of which `vae.priors` makes a row.


def _prior_layer(spec: ModelSpec, nets: Nets, like: jax.Array) -> Layer:
    def of(layer, above):
        if above is None:
            zero = jnp.zeros_like(like, shape=spec.latent_dims[-1])
            return Gaussian(zero, zero)
        return _conditional(spec, nets, layer, layer + 1, above)[0]

    return of


def init_prior(
    spec: ModelSpec, rng: jax.Array, pseudo_inputs: Any = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters and running statistics of p(z_l|z_{l+1}): z_{L−1}, ..., z_1."""
    del pseudo_inputs
    return _init(spec, rng, _pairs(spec, False))


def log_prior(spec: ModelSpec, nets: Nets, z: jax.Array) -> jax.Array:
    """log p(z_l|z_{l+1}) of each dimension of z [d], nats, [d]."""
    p = _given(spec, downward(spec), _prior_layer(spec, nets, z), z)
    return -0.5 * (jnp.square(z - p.mean) * jnp.exp(-p.logvar) + p.logvar + LOG_2PI)


def descend(spec: ModelSpec, nets: Nets, noise: jax.Array) -> jax.Array:
    """What the prior makes of standard noise [d], from the top down: z [d]."""
    return _draw(spec, downward(spec), _prior_layer(spec, nets, noise), noise)[0]


def sample_prior(spec: ModelSpec, nets: Nets, rng: jax.Array) -> jax.Array:
    """z ~ p(z), [d]."""
    return descend(spec, nets, jax.random.normal(rng, (spec.latent_dim,)))


def moved_prior(spec: ModelSpec, nets: Nets, z: jax.Array) -> jax.Array:
    """z as the prior makes it of the noise that leads there, which is held; see `Prior.moved`."""
    held, z = jax.lax.stop_gradient((nets, z))
    p = _given(spec, downward(spec), _prior_layer(spec, held, z), z)
    return descend(spec, nets, (z - p.mean) * jnp.exp(-0.5 * p.logvar))


# The posteriors.


def _up(spec: ModelSpec, nets: Nets, posterior: Posterior) -> tuple[list[int], Layer]:
    def of(layer, below):
        if below is None:
            return Gaussian(posterior.mean, posterior.logvar)
        return _conditional(spec, nets, layer, layer - 1, below)[0]

    return upward(spec), of


def _down(spec: ModelSpec, nets: Nets, posterior: Posterior) -> tuple[list[int], Layer]:
    """q(z_l|z_{l+1}, x) ∝ p(z_l|z_{l+1}) N(z_l; what x says of it): the precisions add up."""
    seen = [Gaussian(*of) for of in zip(*(split(spec, a) for a in posterior[:2]), strict=True)]

    def of(layer, above):
        if above is None:
            return seen[layer - 1]
        return combined(seen[layer - 1], _conditional(spec, nets, layer, layer + 1, above)[0])

    return downward(spec), of


def combined(a: Gaussian, b: Gaussian) -> Gaussian:
    """The normalised product of two Gaussians; Sønderby et al. 2016, eq. 17 and 18."""
    logvar = -jnp.logaddexp(-a.logvar, -b.logvar)
    mean = a.mean * jnp.exp(logvar - a.logvar) + b.mean * jnp.exp(logvar - b.logvar)
    return Gaussian(mean, logvar)


def _family(way_of: Callable[..., tuple[list[int], Layer]], **own: Any) -> Family:
    """The posterior whose layers are drawn along `way_of` (spec, nets, posterior)."""

    def draw(spec, nets, posterior, noise, hparams, train):
        return _draw(spec, *way_of(spec, nets, posterior), noise)

    def log_q(spec, nets, posterior, z, noise, drawn, mode):
        if mode == "total":
            epsilon, logvar = noise, drawn.logvar
        else:
            q = _given(spec, *way_of(spec, nets, posterior), z)
            epsilon, logvar = diagonal_noise(Posterior(*q), z, noise), q.logvar
        return -0.5 * (jnp.square(epsilon) + logvar + LOG_2PI)

    def location(spec, nets, posterior):
        noise = jnp.zeros_like(posterior.mean, shape=spec.latent_dim)
        return _draw(spec, *way_of(spec, nets, posterior), noise)[0]

    return GAUSSIAN._replace(
        draw=draw,
        log_q=log_q,
        location=location,
        kl=None,
        read=lambda spec, z: z[: spec.latent_dims[0]],
        **own,
    )


def _rungs(spec: ModelSpec) -> dict[str, int]:
    """Heads `mean`, `scale` of z_1, `mean_2`, `scale_2` of z_2, ..."""
    endings = ["", *(f"_{layer}" for layer in upward(spec)[1:])]
    return {
        name + ending: size
        for ending, size in zip(endings, spec.latent_dims, strict=True)
        for name in ("mean", "scale")
    }


def _of_rungs(spec, heads, stats, hparams):
    """What x says of each layer, from z_1 up."""

    def all_of(name):
        # In the order of rungs: what has passed a transformation of JAX is in that of the alphabet.
        return jnp.concatenate([heads[key] for key in _rungs(spec) if key.startswith(name)])

    return Posterior(all_of("mean"), log_variance(spec, all_of("scale")))


HIERARCHICAL = _family(
    _up,
    heads=lambda spec: {"mean": spec.latent_dims[0], "scale": spec.latent_dims[0]},
    init=lambda spec, rng: _init(spec, rng, _pairs(spec, True)),
    nets="posterior",
)
LADDER = _family(_down, heads=_rungs, posterior=_of_rungs, nets="prior")
