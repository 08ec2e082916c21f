"""Normalising flows: invertible maps z ↦ z' of one example, with their log-determinants, in nats.

Two kinds, made of the layers of flowjax. Layers 1, 3, ... see the dimensions in reverse order,
which they undo: no dimension is always the last, and the order depends on no seed. Each layer
starts close to the identity.

`iaf`, the inverse autoregressive flow of Kingma et al. 2016, eq. 13 to 15: with (m, s) from a
masked network (MADE, Germain et al. 2015) of z and the context,

    σ = sigmoid(s + 1),   z'_j = (σ_j z_j + (1 − σ_j) m_j) / sigmoid(1).

It is the published gate, with s + 1 for an s that starts "close to +1 or +2", but for the
division: with it a layer starts as the identity and not as a contraction, which the mean and the
variance of the first sample would have to undo. A layer stretches by at most 1/sigmoid(1) = 1.37,
and the log of its scale falls no faster than s. z ↦ z' is one pass, z' ↦ z is `dim` in sequence.

`coupling` (Dinh et al. 2017, eq. 7 and 8): a network of the first ⌊dim/2⌋ dimensions and the
context moves and scales the others,

    z'_j = exp(2 tanh(s_j / 2)) z_j + m_j,

where each log scale is between ±2. One pass in each direction, so it serves as a prior too.

Parameters are a plain dict of arrays. `init` takes them out of flowjax's modules, which are
equinox pytrees; `forward` and `inverse` put them back, while they are traced, into a module made
anew for its masks and functions (20 ms). Its own weights are unused, so that nothing of them, not
even a random number, is left in the traced program, and nothing is kept from trace to trace.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

KINDS = ("iaf", "coupling")
GATE_BIAS = 1.0
LOG_SCALE_BOUND = 2.0
# Of each network's last layer. Were it 0, the first gradient of the other layers would be too.
LAST_LAYER_SCALE = 0.01


@dataclasses.dataclass(frozen=True)
class FlowSpec:
    """What is static about a flow.

    Attributes:
      kind: `iaf` or `coupling`.
      dim: dimensions of z, at least 2; `iaf` with a context also takes 1, where it is affine.
      context_dim: dimensions of what the flow is conditioned on; 0 for none, as in a prior.
      layers: transformations in a chain, each with its own network.
      width: units of a network's one hidden layer, ELU. `iaf` needs at least `dim`: with fewer,
        some dimensions would move no other.

    Raises:
      ValueError: if there is no such flow.
    """

    kind: str
    dim: int
    context_dim: int = 0
    layers: int = 4
    width: int = 64

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind: {self.kind!r} is not one of {', '.join(KINDS)}.")
        if self.context_dim < 0 or self.layers < 1 or self.width < 1:
            raise ValueError("context_dim must be at least 0, layers and width at least 1.")
        least = 1 if self.kind == "iaf" and self.context_dim else 2
        if self.dim < least:
            raise ValueError(
                f"dim: {self.kind!r} transforms dimensions by one another and needs {least} or "
                f"more, not {self.dim}."
            )
        if self.kind == "iaf" and self.width < self.dim:
            raise ValueError(
                f"width: {self.width} hidden units cannot connect {self.dim} dimensions in order; "
                f"set {self.dim} or more."
            )


def init(spec: FlowSpec, rng: jax.Array) -> dict[str, Any]:
    """{"layer_0": {"dense_0": {"weight" [out, in], "bias" [out]}, "dense_1": ...}, ...}, float32.

    The weights that a mask of `iaf` cuts are 0. Their gradient is 0 too, so they stay 0.
    """
    import paramax

    def draw(rng):
        with _promotion_as_in_numpy():
            module = paramax.unwrap(_module(spec, rng, jnp.float32))
        network = module.masked_autoregressive_mlp if spec.kind == "iaf" else module.conditioner
        params = {
            f"dense_{i}": {"weight": dense.weight, "bias": dense.bias}
            for i, dense in enumerate(network.layers)
        }
        last = f"dense_{len(params) - 1}"
        params[last] = jax.tree.map(lambda a: LAST_LAYER_SCALE * a, params[last])
        return jax.tree.map(lambda a: a.astype(jnp.float32), params)

    # All layers in one draw: compiling the random numbers is most of what init costs.
    params = jax.vmap(draw)(jax.random.split(rng, spec.layers))
    return {f"layer_{i}": jax.tree.map(lambda a, i=i: a[i], params) for i in range(spec.layers)}


def forward(
    spec: FlowSpec, params: dict[str, Any], z: jax.Array, context: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(z', log|det ∂z'/∂z|): the direction of sampling, one pass through each layer.

    log q(z') = log q(z) − log|det ∂z'/∂z|, in nats.

    Args:
      params: of `init`. z: [dim], of the dtype of `params`. context: [context_dim]; None where
        that is 0.

    Returns:
      z' [dim], and a scalar.
    """
    log_det = jnp.zeros_like(z, shape=())
    for i, layer in enumerate(_layers(spec, params, z.dtype)):
        z, change = _apply(layer.transform_and_log_det, i, z, context)
        log_det = log_det + change
    return z, log_det


def inverse(
    spec: FlowSpec, params: dict[str, Any], z: jax.Array, context: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """(z, log|det ∂z/∂z'|) of a given z': the direction of densities.

    log q(z') = log q(z) + log|det ∂z/∂z'|, in nats. `coupling` takes one pass through each layer.
    `iaf` takes `dim` in sequence, and is finite only as long as no gate σ has closed to 0.

    Args:
      params: of `init`. z: z' [dim], of the dtype of `params`. context: [context_dim]; None where
        that is 0.

    Returns:
      z [dim], and a scalar.
    """
    log_det = jnp.zeros_like(z, shape=())
    for i, layer in reversed(list(enumerate(_layers(spec, params, z.dtype)))):
        z, change = _apply(layer.inverse_and_log_det, i, z, context)
        log_det = log_det + change
    return z, log_det


def _apply(transform, i, z, context):
    """One layer's transform, of the dimensions in the order of layer i."""
    order = slice(None, None, -1 if i % 2 else 1)
    with _promotion_as_in_numpy():
        z, log_det = transform(z[order], context)
    return z[order], log_det


@contextlib.contextmanager
def _promotion_as_in_numpy():
    """flowjax relies on it: its masks compare a column with a row."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _layers(spec, params, dtype):
    """flowjax's modules with these parameters."""
    import equinox as eqx

    with _promotion_as_in_numpy():
        unused, rest = eqx.partition(_module(spec, jax.random.key(0), dtype), eqx.is_inexact_array)
    structure = jax.tree.structure(unused)

    def layer(params):
        dense = [params[f"dense_{i}"] for i in range(len(params))]
        leaves = [leaf for d in dense for leaf in (d["weight"], d["bias"])]
        return eqx.combine(jax.tree.unflatten(structure, leaves), rest)

    return [layer(params[f"layer_{i}"]) for i in range(spec.layers)]


def _module(spec, rng, dtype):
    """One layer as flowjax draws it."""
    from flowjax.bijections import Coupling, MaskedAutoregressive

    options = {
        "key": rng,
        "dim": spec.dim,
        "cond_dim": spec.context_dim or None,
        "nn_width": spec.width,
        "nn_depth": 1,
        "nn_activation": jax.nn.elu,
    }
    # flowjax adds to the network's outputs what the transformer has here.
    m = s = jnp.zeros((), dtype)
    if spec.kind == "iaf":
        return MaskedAutoregressive(transformer=_affine()(m, s, _gated), **options)
    affine = _affine()(m, s, _bounded)
    return Coupling(transformer=affine, untransformed_dim=spec.dim // 2, **options)


def _gated(m, s):
    """(scale, shift, log scale) of one dimension in `iaf`."""
    start = 1 / (1 + math.exp(-GATE_BIAS))
    gate = s + GATE_BIAS
    # sigmoid(−gate) and not 1 − sigmoid(gate), which rounds to 0 long before.
    shift = jax.nn.sigmoid(-gate) * m / start
    return jax.nn.sigmoid(gate) / start, shift, jax.nn.log_sigmoid(gate) - math.log(start)


def _bounded(m, s):
    """(scale, shift, log scale) of one dimension in `coupling`."""
    log_scale = LOG_SCALE_BOUND * jnp.tanh(s / LOG_SCALE_BOUND)
    return jnp.exp(log_scale), m, log_scale


@functools.cache
def _affine():
    """The class of z ↦ scale·z + shift of one dimension; made late, as its base imports slowly."""
    from flowjax.bijections import AbstractBijection

    class Affine(AbstractBijection):
        shape: ClassVar[tuple[int, ...]] = ()
        cond_shape: ClassVar[None] = None
        m: jax.Array
        s: jax.Array
        terms: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]]

        def transform_and_log_det(self, x, condition=None):
            scale, shift, log_scale = self.terms(self.m, self.s)
            return scale * x + shift, log_scale

        def inverse_and_log_det(self, y, condition=None):
            scale, shift, log_scale = self.terms(self.m, self.s)
            return (y - shift) / scale, -log_scale

    return Affine
