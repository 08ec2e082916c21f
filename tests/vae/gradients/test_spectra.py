import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae.gradients import spectra

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
KEY = 0

# Where the recurrence breaks down: nothing is left of a product after a few steps.
SYMMETRIC = {
    "zero": np.zeros((6, 6)),
    "identity": np.eye(7),
    "rank 2, diagonal": np.diag([3.0, -2, 0, 0, 0, 0]),
    "rank 3": (lambda b: b @ b.T)(RNG.normal(size=(9, 3))),
    "a projection": (lambda q: q @ q.T)(np.linalg.qr(RNG.normal(size=(9, 4)))[0]),
    "one number": np.array([[-2.0]]),
    "indefinite": (lambda b: b + b.T)(RNG.normal(size=(12, 12))),
}
RECTANGULAR = {
    "zero": np.zeros((4, 6)),
    "orthogonal": np.linalg.qr(RNG.normal(size=(9, 5)))[0],
    "rank 2, diagonal": np.diag([3.0, 2, 0, 0, 0])[:, :4],
    "rank 3": RNG.normal(size=(8, 3)) @ RNG.normal(size=(3, 10)),
    "tall": RNG.normal(size=(12, 5)),
    "wide": RNG.normal(size=(5, 12)),
    "one row": RNG.normal(size=(1, 4)),
}


def ritz(matrix, dtype=jnp.float64, **options):
    matrix = jnp.asarray(matrix, dtype)
    return jax.jit(
        lambda a: spectra.top_eigenvalues(
            lambda v: a @ v, jnp.zeros(len(a), dtype), jax.random.key(KEY), **options
        )
    )(matrix)


def lanczos_values(matrix, num, iterations, dtype=jnp.float64):
    matrix = jnp.asarray(matrix, dtype)
    return jax.jit(
        lambda a: spectra.top_singular_values(
            lambda v: a @ v,
            jnp.zeros(a.shape[1], dtype),
            jax.random.key(KEY),
            num=num,
            iterations=iterations,
        )
    )(matrix)


# Errors of eigenvalues are rounding errors of the norm, times a small power of the size: 1e3 eps.
@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", SYMMETRIC)
def test_as_many_iterations_as_dimensions_find_every_eigenvalue(name, dtype):
    matrix = SYMMETRIC[name]
    n, exact = len(matrix), np.linalg.eigvalsh(matrix)
    found = ritz(matrix, dtype, num=n, iterations=n + 5)
    tolerance = 1e3 * np.finfo(dtype).eps * max(1, np.abs(exact).max())
    np.testing.assert_allclose(found.smallest, exact, rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.largest, exact[::-1], rtol=0, atol=tolerance)
    # Nothing leads out of the whole space.
    np.testing.assert_allclose(found.largest_error, 0, atol=tolerance)
    assert found.largest.dtype == dtype


@pytest.mark.sampled
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", RECTANGULAR)
def test_as_many_iterations_as_dimensions_find_every_singular_value(name, dtype):
    matrix = RECTANGULAR[name]
    exact = np.linalg.svd(matrix, compute_uv=False)
    found = lanczos_values(matrix, len(exact), 50, dtype)
    tolerance = 1e3 * np.finfo(dtype).eps * max(1, exact.max())
    np.testing.assert_allclose(found, exact, rtol=0, atol=tolerance)
    assert found.dtype == dtype


def test_a_few_iterations_find_the_ends_of_a_large_spectrum():
    # Three eigenvalues stand out at either end of a bulk in [−1, 1]. The third one's relative error
    # after k products is at most [tan φ κ/T_(k−3)(1 + 2γ)]² (Kaniel 1966, Saad 1980): here γ =
    # (3 − 1)/(1 + 9), κ = 18/6 · 15/3, tan² φ about 400, and T_37(1.4) = e^(37·0.867)/2, so 1e-22.
    exact = np.concatenate([[-9.0, -6, -3], np.linspace(-1, 1, 394), [3.0, 6, 9]])
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(400, 400)))[0]
    found = ritz(basis * exact @ basis.T, num=3, iterations=40)
    np.testing.assert_allclose(found.largest, [9, 6, 3], rtol=1e-10)
    np.testing.assert_allclose(found.smallest, [-9, -6, -3], rtol=1e-10)
    assert found.largest_error.max() < 1e-8


def test_the_error_says_how_far_to_go():
    # Few iterations on a dense spectrum: not there yet, within the stated error, and from inside.
    exact = np.linspace(0, 1, 300)
    found = ritz(np.diag(exact), num=2, iterations=12)
    assert 1e-4 < 1 - found.largest[0] and found.largest[0] < 1
    for value, error in zip(found.largest, found.largest_error, strict=True):
        assert np.abs(exact - value).min() <= error


def test_an_operator_on_a_tree():
    like = {"a": jnp.zeros((2, 3)), "b": jnp.zeros(4)}

    def matvec(v):  # 5 on six numbers, −1 on four
        return {"a": 5 * v["a"], "b": -v["b"]}

    found = spectra.top_eigenvalues(matvec, like, jax.random.key(0), num=6, iterations=10)
    np.testing.assert_allclose(found.largest, np.full(6, 5.0), rtol=1e-12)
    np.testing.assert_allclose(found.smallest, [-1, -1, -1, -1, 5, 5], rtol=1e-12)


def test_more_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="num: 3"):
        ritz(np.eye(5), num=3, iterations=2)
    with pytest.raises(ValueError, match="num: 6"):
        lanczos_values(np.zeros((5, 9)), 6, 20)


def curve(x):
    """[2, 3] ↦ [5], neither wide nor linear."""
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(5, 6)), x.dtype)
    return jnp.tanh(weights @ x.reshape(-1))


@pytest.mark.parametrize("exact_size", [512, 0])
@pytest.mark.parametrize("wide", [True, False])
def test_singular_values_of_a_jacobian(monkeypatch, exact_size, wide):
    monkeypatch.setattr(spectra, "EXACT_SIZE", exact_size)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 3)))
    function = curve if wide else lambda x: jnp.concatenate([curve(x), x.reshape(-1)])
    jacobian = jax.jacrev(function)(x).reshape(-1, 6)
    _, linear = jax.linearize(function, x)
    found = spectra.singular_values(linear, x, jax.random.key(0), num=3)
    exact = np.linalg.svd(jacobian, compute_uv=False)
    assert len(found) == (3 if exact_size == 0 else len(exact))
    np.testing.assert_allclose(found, exact[: len(found)], rtol=1e-10)


def test_the_explicit_matrix_is_made_of_its_smaller_side(monkeypatch):
    monkeypatch.setattr(spectra, "CHUNK", 2)  # 5 in three chunks
    matrix = jnp.asarray(RNG.normal(size=(5, 8)))
    wide = spectra.explicit(lambda v: matrix @ v, jnp.zeros(8))
    np.testing.assert_allclose(wide, matrix, rtol=1e-12)
    tall = spectra.explicit(lambda v: matrix.T @ v, jnp.zeros(5))
    np.testing.assert_allclose(tall, matrix, rtol=1e-12)


@pytest.mark.thorough
def test_vmapped_is_alone():
    matrices = jnp.asarray([SYMMETRIC["rank 3"], np.eye(9), np.zeros((9, 9))])

    def both(a):
        v, rng = jnp.zeros(9), jax.random.key(5)
        values = spectra.top_singular_values(lambda v: a @ v, v, rng, num=2, iterations=4)
        return spectra.top_eigenvalues(lambda v: a @ v, v, rng, num=2, iterations=4), values

    together = jax.vmap(both)(matrices)
    for i, matrix in enumerate(matrices):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-10, atol=1e-10),
            together,
            both(matrix),
        )
