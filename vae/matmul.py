"""h @ W as a product of two matrices, however many axes `vmap` gives h.

A dense layer acts on one vector. Mapped over examples and over samples of z, JAX makes of it a
product with two axes of rows, and of its derivative in W a contraction over both, whose operands
XLA's CPU backend transposes first: a tenth of a step of IWAE with 50 samples. Here the rows are
one axis from the start.

In mixed precision the factors are rounded to a narrow type, and their products are summed in the
type of h and W: forward over the units, and in the derivative in W over the rows of the batch.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def dot_general(
    h: jax.Array,
    w: jax.Array,
    dimension_numbers: Any = None,
    precision: None = None,
    *,
    narrow: Any = None,
) -> jax.Array:
    """h [..., n] @ w [n, m], of one dtype, which the result has: [..., m].

    Args:
      narrow: the dtype that the factors are rounded to, here and in the derivatives; None: theirs.
      dimension_numbers, precision: what a dense layer of Linen passes to its `dot_general`: these
        very axes, and no precision of its own.
    """
    del dimension_numbers, precision
    return _matmul.bind(h, w, narrow=narrow)


def _product(a: jax.Array, b: jax.Array, narrow: Any) -> jax.Array:
    if narrow is None:
        return a @ b
    # The product of narrow numbers is what they are for: no precision that a user asks for of
    # products in float32 applies.
    return jnp.matmul(
        a.astype(narrow),
        b.astype(narrow),
        precision=jax.lax.Precision.DEFAULT,
        preferred_element_type=a.dtype,
    )


def _rows(h: jax.Array) -> jax.Array:
    return h.reshape(-1, h.shape[-1])


def _flat(h: jax.Array, w: jax.Array, *, narrow: Any) -> jax.Array:
    product = _product(h if h.ndim == 1 else _rows(h), w, narrow)
    return product.reshape(*h.shape[:-1], w.shape[-1])


def _batched(operands, axes, *, narrow):
    (h, w), (h_axis, w_axis) = operands, axes
    if w_axis is None:  # only more rows
        return _matmul.bind(jnp.moveaxis(h, h_axis, 0), w, narrow=narrow), 0
    flat = functools.partial(_flat, narrow=narrow)
    return jax.vmap(flat, (h_axis, w_axis))(h, w), 0


def _gradient_of_h(gradient, h, w, *, narrow):
    del h
    return _matmul.bind(gradient, w.T, narrow=narrow)


def _gradient_of_w(gradient, h, w, *, narrow):
    del w
    return _product(_rows(h).T, _rows(gradient), narrow)


_matmul = Primitive("vae_matmul")
_matmul.def_impl(jax.jit(_flat, static_argnames="narrow"))
_matmul.def_abstract_eval(lambda h, w, *, narrow: h.update(shape=(*h.shape[:-1], w.shape[-1])))
mlir.register_lowering(_matmul, mlir.lower_fun(_flat, multiple_results=False))
batching.primitive_batchers[_matmul] = _batched
ad.defbilinear(_matmul, _gradient_of_h, _gradient_of_w)
