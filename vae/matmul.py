"""h @ W as a product of two matrices, however many axes `vmap` gives h.

A dense layer acts on one vector. Mapped over examples and over samples of z, JAX makes of it a
product with two axes of rows, and of its derivative in W a contraction over both, whose operands
XLA's CPU backend transposes first: a tenth of a step of IWAE with 50 samples. Here the rows are
one axis from the start.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def dot_general(
    h: jax.Array, w: jax.Array, dimension_numbers: Any = None, precision: None = None
) -> jax.Array:
    """h [..., n] @ w [n, m], of one dtype: [..., m].

    Args:
      dimension_numbers, precision: what a dense layer of Linen passes to its `dot_general`: these
        very axes, and no precision of its own.
    """
    del dimension_numbers, precision
    return _matmul.bind(h, w)


def _rows(h: jax.Array) -> jax.Array:
    return h.reshape(-1, h.shape[-1])


def _flat(h: jax.Array, w: jax.Array) -> jax.Array:
    product = h @ w if h.ndim == 1 else _rows(h) @ w
    return product.reshape(*h.shape[:-1], w.shape[-1])


def _batched(operands, axes):
    (h, w), (h_axis, w_axis) = operands, axes
    if w_axis is None:  # only more rows
        return _matmul.bind(jnp.moveaxis(h, h_axis, 0), w), 0
    return jax.vmap(_flat, (h_axis, w_axis))(h, w), 0


def _gradient_of_h(gradient, h, w):
    del h
    return _matmul.bind(gradient, w.T)


def _gradient_of_w(gradient, h, w):
    del w
    return _rows(h).T @ _rows(gradient)


_matmul = Primitive("vae_matmul")
_matmul.def_impl(jax.jit(_flat))
_matmul.def_abstract_eval(lambda h, w: h.update(shape=(*h.shape[:-1], w.shape[-1])))
mlir.register_lowering(_matmul, mlir.lower_fun(_flat, multiple_results=False))
batching.primitive_batchers[_matmul] = _batched
ad.defbilinear(_matmul, _gradient_of_h, _gradient_of_w)
