"""Ends of spectra from products alone: eigenvalues and singular values without the matrix.

Lanczos' recurrences with full reorthogonalisation are written out here. matfree 0.6 has them, but
divides by the length of what is left of each product, and nothing need be left: a collapsed
decoder's Jacobian is zero, its Hessian of low rank. There matfree gave NaN (of the zero matrix, and
singular values of a diagonal of rank 2), or, of the identity, eigenvalues from 0.54 to 1.46; and
its bidiagonalisation mixes dtypes when float64 is on. Where nothing is left, the recurrence goes on
here from a random direction orthogonal to all before, which also finds what has a multiplicity.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from vae import linalg

Operator = Callable[[Any], Any]

# Up to so many rows or columns a Jacobian is made explicit: 512 × 784 float32 numbers are 1.6 MB.
EXACT_SIZE = 512

# What is left of a vector after its part in a basis, below so many rounding errors of its length,
# is none of it. The second pass of `_orthogonal` makes all above orthogonal to the last digit.
_ROUNDING = 10

# Products made at once for an explicit Jacobian.
CHUNK = 64


class Ritz(NamedTuple):
    """Eigenvalues at the two ends of a spectrum, from a Krylov space.

    To rounding, the largest is never above the operator's largest eigenvalue, nor the smallest
    below the smallest one; more iterations close the gap. An eigenvalue lies within `..._error` of
    each.

    Attributes:
      largest: falling, [num]. smallest: rising, [num].
      largest_error, smallest_error: ‖Av − θv‖ of each, [num].
    """

    largest: jax.Array
    smallest: jax.Array
    largest_error: jax.Array
    smallest_error: jax.Array


def top_eigenvalues(
    matvec: Operator, like: Any, rng: jax.Array, *, num: int = 1, iterations: int = 30
) -> Ritz:
    """The `num` largest and smallest eigenvalues of a symmetric operator, with their signs.

    Lanczos 1950. Exact, to rounding, from as many iterations as dimensions on; with fewer, the
    extreme eigenvalues come first, the sooner the further they stand apart. Memory: `iterations`
    vectors.

    Args:
      matvec: v ↦ Av; A = Aᵀ is taken on trust.
      like: an array or a pytree of arrays of one dtype, of the shape of v; its values are not read.
      rng: key of the random start.
      num: at most the number of dimensions. iterations: products; no more than dimensions are made.

    Raises:
      ValueError: more eigenvalues than iterations or dimensions.
    """
    flat, unravel = ravel_pytree(like)
    steps = min(iterations, flat.size)
    _check(num, steps)

    def product(v):
        return ravel_pytree(matvec(unravel(v)))[0]

    # A random vector goes to 0 under the operator 0 alone, as of a term that a loss does not have:
    # one product for it in place of all. (A vmap over runs takes both branches.)
    start = _random(rng, flat.size, flat.dtype)
    zeros = jnp.zeros(steps, flat.dtype), jnp.zeros(steps, flat.dtype)
    diagonal, beside = jax.lax.cond(
        jnp.any(product(start) != 0),
        lambda: _tridiagonal(product, flat, rng, steps),
        lambda: zeros,
    )
    inner = beside[:-1]
    small = jnp.diag(diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1)
    values, vectors = linalg.eigh(small)
    errors = beside[-1] * jnp.abs(vectors[-1])
    return Ritz(values[::-1][:num], values[:num], errors[::-1][:num], errors[:num])


def singular_values(linear: Operator, x: jax.Array, rng: jax.Array, *, num: int = 8) -> jax.Array:
    """Singular values of a linear map, falling: all of them, or, of a large one, the `num` largest.

    All, where the smaller of the two dimensions is at most `EXACT_SIZE`, from the explicit matrix;
    else those of `top_singular_values`, which may be too small where they stand close.

    Args:
      linear: [*x] ↦ [*y], linear, as `jax.linearize` returns it.
      x: an array of the shape and dtype of the inputs; its values are not read.
      rng: key; read where not all are computed.

    Returns:
      [min(|x|, |y|)] or [num].
    """
    if min(x.size, _size(linear, x)) <= EXACT_SIZE:
        return linalg.singular_values(_triangle(explicit(linear, x)))
    return top_singular_values(linear, x, rng, num=num, iterations=2 * num + 20)


def explicit(linear: Operator, x: jax.Array) -> jax.Array:
    """The matrix of a linear map [*x] ↦ [*y], by products with the axes of the smaller side.

    `CHUNK` products at a time: memory is the matrix and what so many of them need.

    Returns:
      [|x|, |y|], the transposed Jacobian, where |x| ≤ |y|; else [|y|, |x|].
    """
    product, _, like, _ = _from_smaller(linear, x)

    def row(axis):
        return product(axis.reshape(like.shape)).reshape(-1)

    axes = jnp.eye(math.prod(like.shape), dtype=like.dtype)
    return jax.lax.map(row, axes, batch_size=CHUNK)


def top_singular_values(
    linear: Operator, x: jax.Array, rng: jax.Array, *, num: int, iterations: int
) -> jax.Array:
    """The `num` largest singular values by bidiagonalisation, falling; Golub and Kahan 1965.

    Never above the true ones; exact, to rounding, from min(|x|, |y|) iterations on. Memory:
    `iterations` vectors of each side.

    Args: as `singular_values`. iterations: products with the map and with its transpose.

    Raises:
      ValueError: more singular values than iterations or dimensions.
    """
    product, transposed, like, image = _from_smaller(linear, x)
    size, image_size = math.prod(like.shape), math.prod(image.shape)
    steps = min(iterations, size)
    _check(num, steps)
    start_rng, rng = jax.random.split(rng)

    def body(carry, i):
        right, left, v, scale = carry
        right = right.at[i].set(v)
        left_rng, right_rng = jax.random.split(jax.random.fold_in(rng, i))
        u = product(v.reshape(like.shape)).reshape(-1)
        scale = jnp.maximum(scale, _length(u))
        u, diagonal = _next(u, left, scale, left_rng)
        left = left.at[i].set(u)
        v = transposed(u.reshape(image.shape)).reshape(-1)
        scale = jnp.maximum(scale, _length(v))
        v, above = _next(v, right, scale, right_rng)
        return (right, left, v, scale), (diagonal, above)

    start = _random(start_rng, size, like.dtype)
    bases = jnp.zeros((steps, size), like.dtype), jnp.zeros((steps, image_size), like.dtype)
    carry = (*bases, start, jnp.zeros((), like.dtype))
    _, (diagonal, above) = jax.lax.scan(body, carry, jnp.arange(steps))
    small = jnp.diag(diagonal) + jnp.diag(above[:-1], 1)
    return linalg.singular_values(small)[:num]


def _tridiagonal(
    matvec: Operator, like: jax.Array, rng: jax.Array, steps: int
) -> tuple[jax.Array, jax.Array]:
    """QᵀAQ: its diagonal [k] and what is beside it [k]; the last of those leads out of Q."""
    start_rng, rng = jax.random.split(rng)

    def body(carry, i):
        basis, v, scale = carry
        basis = basis.at[i].set(v)
        product = matvec(v)
        scale = jnp.maximum(scale, _length(product))
        diagonal = jnp.sum(v * product)
        v, beside = _next(product, basis, scale, jax.random.fold_in(rng, i))
        return (basis, v, scale), (diagonal, beside)

    start = _random(start_rng, like.size, like.dtype)
    carry = jnp.zeros((steps, like.size), like.dtype), start, jnp.zeros((), like.dtype)
    return jax.lax.scan(body, carry, jnp.arange(steps))[1]


def _triangle(rows: jax.Array) -> jax.Array:
    """L [n, n], lower triangular, with rows [n, m] = LQ, QQᵀ = I: of the same singular values.

    By Gram and Schmidt and not by LAPACK, whose threads on a CPU wait for those of XLA: beside
    other work a QR or SVD of 20 × 784 numbers took up to a thousand times as long. Those of L are
    too small for threads.
    """

    def body(basis, numbered):
        i, row = numbered
        rest = _orthogonal(row, basis)
        length = _length(rest)
        lost = length <= _ROUNDING * jnp.finfo(row.dtype).eps * _length(row)
        factors = jnp.matmul(basis, row - rest, precision="highest")
        direction = jnp.where(lost, 0, rest / jnp.where(lost, 1, length))
        return basis.at[i].set(direction), factors.at[i].set(length)

    return jax.lax.scan(body, jnp.zeros_like(rows), (jnp.arange(len(rows)), rows))[1]


def _next(
    product: jax.Array, basis: jax.Array, scale: jax.Array, rng: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The direction of what of a product [n] is orthogonal to a basis [k, n], and its length.

    Where that is no more than rounding errors of `scale`, the norm of the operator: a random
    direction orthogonal to the basis, and 0.
    """
    rest = _orthogonal(product, basis)
    length = _length(rest)
    lost = length <= _ROUNDING * jnp.finfo(product.dtype).eps * scale
    # As a branch, for large vectors of a run alone; a vmap over runs takes both.
    rest = jax.lax.cond(
        lost,
        lambda: _orthogonal(_random(rng, product.size, product.dtype), basis),
        lambda: rest,
    )
    # Of a basis of the whole space nothing is left at all; it has no next vector.
    direction = rest / jnp.maximum(_length(rest), jnp.finfo(product.dtype).tiny)
    return direction, jnp.where(lost, 0, length)


def _orthogonal(v: jax.Array, basis: jax.Array) -> jax.Array:
    """v [n] less its part in the span of orthonormal rows [k, n]; rows of zeros are no part.

    Twice is enough (Giraud et al. 2005). Products in full float32: a GPU would round their factors
    to TF32, and the rows would be orthogonal to three digits.
    """
    for _ in range(2):
        part = jnp.matmul(basis, v, precision="highest")
        v = v - jnp.matmul(part, basis, precision="highest")
    return v


def _random(rng: jax.Array, size: int, dtype: Any) -> jax.Array:
    v = jax.random.normal(rng, (size,), dtype)
    return v / _length(v)


def _length(v: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(v)))


def _size(linear: Operator, x: jax.Array) -> int:
    return math.prod(jax.eval_shape(linear, x).shape)


def _from_smaller(linear: Operator, x: jax.Array) -> tuple[Operator, Operator, Any, Any]:
    """The map or, where x is its larger side, its transpose, with the transpose of that; and the
    shapes of what it takes and gives. Only from the smaller side does the recurrence see all.
    """
    y = jax.eval_shape(linear, x)
    transpose = jax.linear_transpose(linear, x)

    def back(y):
        return transpose(y)[0]

    shapes = jax.ShapeDtypeStruct(x.shape, x.dtype), y
    if x.size <= math.prod(y.shape):
        return linear, back, *shapes
    return back, linear, *shapes[::-1]


def _check(num: int, steps: int) -> None:
    if not 0 < num <= steps:
        raise ValueError(f"num: {num}, but there are {steps} to be had: iterations or dimensions.")
