"""The product of the dense layers: that of NumPy and of JAX, under every transformation."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.matmul import dot_general

pytestmark = pytest.mark.usefixtures("x64")

# Leading axes of h, and whether W has one of its own: a population's.
CASES = {
    "one": ((), False),
    "examples": ((3,), False),
    "samples": ((3, 4), False),
    "runs": ((2, 3, 4), True),
    "runs of one": ((2,), True),
    "one h for all runs": ((2,), None),
}


def operands(leading, of_runs, n=5, m=6):
    rng = np.random.default_rng(len(leading))
    h = rng.normal(size=(*(() if of_runs is None else leading), n))
    w = rng.normal(size=(*(() if of_runs is False else leading[:1]), n, m))
    return jnp.asarray(h), jnp.asarray(w)


def mapped(product, leading, of_runs):
    """`product` of vectors, mapped over the leading axes one by one, the runs last."""
    function = product
    for i in reversed(range(len(leading))):
        w_axis = None if of_runs is False or i else 0
        function = jax.vmap(function, (None if of_runs is None else 0, w_axis))
    return function


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("compiled", [False, True])
def test_value_and_derivatives(case, compiled):
    h, w = operands(*CASES[case])

    def everything(product):
        def loss(h, w):
            return jnp.sum(jnp.sin(mapped(product, *CASES[case])(h, w)))

        value = mapped(product, *CASES[case])(h, w)
        gradients = jax.grad(loss, (0, 1))(h, w)
        tangent = jax.jvp(loss, (h, w), (jnp.cos(h), jnp.sin(w)))[1]
        second = jax.jvp(jax.grad(loss, (0, 1)), (h, w), (jnp.cos(h), jnp.sin(w)))[1]
        return value, gradients, tangent, second

    functions = [lambda p=p: everything(p) for p in (dot_general, jnp.dot)]
    found, expected = (jax.jit(f)() if compiled else f() for f in functions)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12),
        *map(jax.tree.leaves, (found, expected)),
    )
    assert jnp.abs(found[0]).max() > 0.1


def test_gradients_of_each_example():
    # The gradient inside the map, as for per-example gradients, is another order of the two.
    h, w = operands((7,), False)

    def each(product):
        return jax.vmap(jax.grad(lambda w, h: jnp.sum(jnp.sin(product(h, w)))), (None, 0))(w, h)

    np.testing.assert_allclose(each(dot_general), each(jnp.dot), rtol=1e-12)


def test_mapped_over_any_axis():
    h, w = operands((3,), True)
    found = jax.vmap(dot_general, (1, 2), 1)(h.T, jnp.moveaxis(w, 0, 2))
    np.testing.assert_allclose(found, jnp.einsum("rn,rnm->mr", h, w), rtol=1e-12)


def test_in_float32_it_is_one_product():
    with jax.enable_x64(False):
        h, w = jnp.ones((3, 4, 5), jnp.float32), jnp.ones((5, 6), jnp.float32)

        def loss(h, w):
            return jnp.sum(jnp.square(jax.vmap(jax.vmap(dot_general, (0, None)), (0, None))(h, w)))

        lowered = jax.jit(jax.grad(loss, 1)).lower(h, w).as_text()
    products = re.findall(r"dot_general .*contracting_dims = ([^ ]+) x ([^ ,]+)", lowered)
    # Forward over n; the derivative in W over the twelve rows, which are one axis.
    assert products == [("[1]", "[0]"), ("[1]", "[0]")] and "12x5" in lowered
