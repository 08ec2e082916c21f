"""Penalties of a batch: against NumPy float64, closed forms of Gaussians, finite differences."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from vae import penalties

LOG_2PI = np.log(2 * np.pi)
EXAMPLES = 2000  # of the data set


@pytest.fixture(params=penalties.ESTIMATORS)
def estimator(request):
    return request.param


def batched(function):
    """Of each example, from arrays with a leading axis of the batch."""
    return jax.jit(jax.vmap(function, axis_name="batch"))


def posteriors(batch, dim, seed=0):
    """z, mean, logvar, each [batch, dim], float64."""
    rng = np.random.default_rng(seed)
    mean, logvar = rng.normal(size=(batch, dim)), rng.normal(size=(batch, dim)) - 1
    return mean + np.exp(0.5 * logvar) * rng.normal(size=mean.shape), mean, logvar


def pairwise_log_densities(z, mean, logvar):
    """log q(z_ik|x_jk), [i, j, k], with all pairs and dimensions at once."""
    z, mean, logvar = z[:, None], mean[None], logvar[None]
    return -0.5 * ((z - mean) ** 2 / np.exp(logvar) + logvar + LOG_2PI)


def numpy_densities(z, mean, logvar, num_examples, estimator):
    """log q(z) and Σ_j log q(z_j) of each example, [B] each."""
    batch = len(z)
    weights = np.full((batch, batch), 1 / (num_examples * batch))
    if estimator == "stratified":
        others = batch - 1
        weights[:] = 1 / others
        for i in range(batch):
            weights[i, i] = 1 / num_examples
            weights[i, (i + 1) % batch] = (num_examples - others) / (num_examples * others)
    log_q = pairwise_log_densities(z, mean, logvar)
    joint = logsumexp(np.log(weights) + log_q.sum(2), axis=1)
    return joint, logsumexp(np.log(weights)[:, :, None] + log_q, axis=1).sum(1)


def densities(num_examples, estimator):
    """The library's, of a batch."""
    return batched(
        lambda z, mean, logvar: penalties.aggregate_log_densities(
            z, mean, logvar, num_examples, estimator
        )
    )


NUMPY_KERNELS = {
    "rbf": lambda u: np.exp(-u),
    "laplace": lambda u: np.exp(-np.sqrt(u)),
    "imq": lambda u: sum(s / (s + u) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10)),
    "rational_quadratic": lambda u: sum((1 + u / a) ** -a for a in (0.2, 0.5, 1, 2, 5)),
}


def numpy_mmd(z, y, kernel, bandwidth):
    """Gretton et al. 2012, eq. 3, pair by pair."""
    n, d = z.shape

    def k(a, b):
        return NUMPY_KERNELS[kernel](np.sum((a - b) ** 2) / (2 * d * bandwidth**2))

    pairs = list(itertools.permutations(range(n), 2))
    within = sum(k(z[i], z[j]) + k(y[i], y[j]) for i, j in pairs) / (n * (n - 1))
    return within - 2 * sum(k(a, b) for a in z for b in y) / n**2


def numpy_dip(mean, variance, offdiagonal, diagonal, kind):
    covariance = np.cov(mean.T, ddof=0)
    if kind == "ii":
        covariance = covariance + np.diag(variance.mean(0))
    return sum(
        (diagonal * (c - 1) ** 2 if i == j else offdiagonal * c**2)
        for (i, j), c in np.ndenumerate(covariance)
    )


def _table():
    """name -> (per-example function of arrays [d], the same in NumPy of a whole batch [B, d])."""
    table = {}
    for estimator in penalties.ESTIMATORS:
        table[f"tc-{estimator}"] = (
            lambda z, m, v, e=estimator: penalties.total_correlation(
                penalties.aggregate_log_densities(z, m, v, EXAMPLES, e)
            ),
            lambda z, m, v, e=estimator: np.mean(
                np.subtract(*numpy_densities(z, m, v, EXAMPLES, e))
            ),
        )
    for kernel in penalties.KERNELS:
        table[f"mmd-{kernel}"] = (
            lambda z, y, _, k=kernel: penalties.mmd(z, y, k, jnp.asarray(0.7, z.dtype)),
            lambda z, y, _, k=kernel: numpy_mmd(z, y, k, 0.7),
        )
    for kind in ("i", "ii"):
        table[f"dip-{kind}"] = (
            lambda z, m, v, k=kind: penalties.dip(
                m, jnp.exp(v), jnp.asarray(2.0, m.dtype), jnp.asarray(5.0, m.dtype), k
            ),
            lambda z, m, v, k=kind: numpy_dip(m, np.exp(v), 2.0, 5.0, k),
        )
    for target in (0.5, 5.0):  # under and over the mean, which is about 1.6
        table[f"capacity-{target}"] = (
            lambda z, m, v, c=target: penalties.capacity(
                jnp.sum(jnp.square(m)), jnp.asarray(c, m.dtype)
            ),
            lambda z, m, v, c=target: abs(np.mean(np.sum(m**2, axis=1)) - c),
        )
    return table


TABLE = _table()
each_penalty = pytest.mark.parametrize("name", TABLE)


def whole(name):
    """The penalty of a batch as JAX computes it."""
    return lambda *arrays: jnp.mean(batched(TABLE[name][0])(*arrays))


@functools.cache
def derivatives(name):
    """Its value and its gradients in all arrays."""
    return jax.jit(jax.value_and_grad(whole(name), argnums=(0, 1, 2)))


class TestEveryPenalty:
    @each_penalty
    def test_value_and_gradient_are_those_of_the_batch(self, name, x64):
        arrays = posteriors(5, 3)
        value, grads = derivatives(name)(*arrays)
        numpy = TABLE[name][1]
        # Float64: rounding of a hundred terms.
        assert float(value) == pytest.approx(numpy(*arrays), rel=1e-12, abs=1e-13)
        # Central differences err by h²f‴/6 ~ 1e-10 and by rounding 1e-16·|f|/h ~ 1e-11.
        step = 1e-5
        for number, grad in enumerate(grads):
            expected = np.zeros_like(grad)
            for at in np.ndindex(*grad.shape):
                up, down = [a.copy() for a in arrays], [a.copy() for a in arrays]
                up[number][at] += step
                down[number][at] -= step
                expected[at] = (numpy(*up) - numpy(*down)) / (2 * step)
            np.testing.assert_allclose(grad, expected, rtol=1e-7, atol=1e-8)

    @each_penalty
    def test_mean_of_per_example_gradients_is_the_gradient(self, name, x64):
        # Shared parameters, as in training: the encoder's outputs are functions of them.
        z, mean, logvar = posteriors(6, 3)
        noise = (z - mean) / np.exp(0.5 * logvar)
        weight = np.random.default_rng(1).normal(size=(3, 3))

        def one(weight, noise, x):
            mean, logvar = weight @ x, jnp.tanh(x @ weight)
            z = mean + jnp.exp(0.5 * logvar) * noise
            second = x if name.startswith("mmd") else mean
            return TABLE[name][0](z, second, logvar)

        @jax.jit
        def gradients(weight, noise, x):
            def of_batch(function):
                return jax.vmap(function, (None, 0, 0), axis_name="batch")

            outside = jax.grad(lambda w: jnp.mean(of_batch(one)(w, noise, x)))(weight)
            return jnp.mean(of_batch(jax.grad(one))(weight, noise, x), axis=0), outside

        inside, outside = gradients(weight, noise, mean)
        np.testing.assert_allclose(inside, outside, rtol=1e-11, atol=1e-12)
        assert np.abs(outside).max() > 1e-3

    @each_penalty
    def test_runs_of_a_population_do_not_meet(self, name):
        runs = [posteriors(6, 3, seed) for seed in range(3)]
        stacked = [jnp.float32(np.stack(arrays)) for arrays in zip(*runs, strict=True)]
        function = derivatives(name)
        together = jax.jit(jax.vmap(function))(*stacked)
        for i in range(len(runs)):
            alone = function(*[a[i] for a in stacked])
            # Sums of at most 36 terms of order 1, perhaps in another order.
            jax.tree.map(
                lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-5, atol=2e-6),
                together,
                alone,
            )

    @pytest.mark.parametrize(
        "change",
        [
            lambda z, m, v: (z, m, np.full_like(v, -60)),  # σ = 1e-13: far in σ from all
            lambda z, m, v: (m, m, np.full_like(v, -150)),  # z at its own mean, 1/σ = 4e32
            lambda z, m, v: (m * 1e8, m * 1e8, np.full_like(v, -150)),  # 4e40 σ from the others
            lambda z, m, v: (z + 1e9, m, np.full_like(v, -100)),  # 5e30 σ from all, its own too
            lambda z, m, v: (z, m, np.full_like(v, 30)),
            lambda z, m, v: (m * 0, m * 0, v * 0),  # all points coincide
            lambda z, m, v: (z + 1e4, m, v),
            lambda z, m, v: (z * 1e4, m * 1e4, v),
            lambda z, m, v: (z * 1e4, m * 1e4, np.full_like(v, -60)),
        ],
        ids=[
            "narrow",
            "narrowest",
            "distance-overflows",
            "square-overflows",
            "wide",
            "coincident",
            "shifted",
            "spread",
            "spread-narrow",
        ],
    )
    @each_penalty
    def test_extremes_are_finite(self, name, change):
        arrays = [jnp.float32(a) for a in change(*posteriors(6, 3))]
        value, grads = derivatives(name)(*arrays)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in grads)

    @pytest.mark.parametrize("name", [n for n in TABLE if n.startswith(("tc", "mmd"))])
    def test_memory_does_not_grow_with_the_latent_dimension(self, name):
        # The target: batch² × d floats for values and gradients together, all buffers counted.
        # All dimensions at once would take two to five times as much, the scan takes .6.
        batch, dim = 1024, 10
        shape = jax.ShapeDtypeStruct((batch, dim), jnp.float32)
        memory = derivatives(name).lower(shape, shape, shape).compile().memory_analysis()
        assert memory.temp_size_in_bytes <= 4 * batch**2 * dim
        # And no array is larger than one number for each pair.
        jaxpr = jax.make_jaxpr(jax.grad(whole(name), argnums=(0, 1, 2)))(shape, shape, shape)
        shapes = re.findall(r"\w\[([\d,]+)\]", str(jaxpr))
        sizes = [math.prod(int(n) for n in dims.split(",")) for dims in shapes]
        assert max(sizes) == batch**2


class TestAggregate:
    def test_estimates_are_those_of_numpy(self, estimator, x64):
        arrays = posteriors(7, 3)
        found = densities(40, estimator)(*arrays)
        for ours, expected in zip(found, numpy_densities(*arrays, 40, estimator), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-12)

    def test_stratified_density_is_unbiased(self, x64):
        # Every ordered batch of 4 out of 6 examples, so that the expectation is exact.
        _, mean, logvar = posteriors(6, 2)
        own, z = 2, np.array([0.3, -0.2])
        log_q = pairwise_log_densities(z[None], mean, logvar)[0]
        batches = [b for b in itertools.permutations(range(6), 4) if own in b]
        index = np.array(batches)
        # z stands beside each example of a batch; only what its own makes of it is read.
        points = np.broadcast_to(z, (*index.shape, 2))
        found = jax.jit(jax.vmap(densities(6, "stratified")))(points, mean[index], logvar[index])
        mine = index == own
        assert mine.sum() == len(batches) == 240
        density = np.exp(found.log_qz)[mine]
        assert density.std() > 0.1 * density.mean()  # each batch alone is off
        assert density.mean() == pytest.approx(np.exp(log_q.sum(1)).mean(), rel=1e-12)
        # So is that of a marginal.
        found = jax.jit(jax.vmap(densities(6, "stratified")))(
            points[..., :1], mean[index][..., :1], logvar[index][..., :1]
        )
        marginal = np.exp(found.log_qz_product)[mine].mean()
        assert marginal == pytest.approx(np.exp(log_q[:, 0]).mean(), rel=1e-12)

    def test_weighted_density_of_the_whole_data_set_is_short_by_its_size(self, x64):
        z, mean, logvar = posteriors(20, 3)
        log_q = pairwise_log_densities(z, mean, logvar)
        found = densities(20, "weighted")(z, mean, logvar)
        mixture = logsumexp(log_q.sum(2), axis=1) - np.log(20)
        marginals = (logsumexp(log_q, axis=1) - np.log(20)).sum(1)
        np.testing.assert_allclose(found.log_qz, mixture - np.log(20), rtol=1e-12)
        np.testing.assert_allclose(found.log_qz_product, marginals - 3 * np.log(20), rtol=1e-12)

    def test_distant_posteriors_leave_the_own_one(self):
        # σ = 1e-10 around means that are 1 apart: log q(z) is that of the own posterior, weighed.
        mean = jnp.float32(np.arange(4.0)[:, None] * np.ones(2))
        logvar = jnp.full((4, 2), 2 * np.log(np.float32(1e-10)))
        found = densities(10, "stratified")(mean, mean, logvar)
        own = 2 * (-0.5 * LOG_2PI - np.log(1e-10))
        np.testing.assert_allclose(found.log_qz, own - np.log(10), rtol=1e-6)

    def test_the_terms_of_the_rate_add_up(self):
        z, mean, logvar = (jnp.float32(a) for a in posteriors(8, 4))
        found = densities(100, "stratified")(z, mean, logvar)
        log_q, log_p = jnp.float32(np.random.default_rng(3).normal(size=(2, 8)))
        terms = batched(penalties.decompose_rate)(log_q, found, log_p)
        # Rounding of terms of up to about 10 nats.
        np.testing.assert_allclose(sum(terms), log_q - log_p, atol=5e-6)
        np.testing.assert_array_equal(
            terms.total_correlation, batched(penalties.total_correlation)(found)
        )

    @pytest.mark.parametrize("mixing", [0.0, 0.6], ids=["independent", "dependent"])
    def test_gaussian_aggregate(self, mixing):
        # Oracle 18. Means ~ N(0, A), shared variances D: q(z) = N(0, S), S = A + D.
        dim, batch, repeats = 3, 512, 16
        rng = np.random.default_rng(0)
        factor = np.eye(dim) + mixing * np.tri(dim, k=-1)
        a = 0.5 * factor @ factor.T
        d = np.array([1.0, 0.8, 1.2])
        s = a + np.diag(d)
        mean = rng.multivariate_normal(np.zeros(dim), a, size=(repeats, batch))
        noise = rng.normal(size=mean.shape)
        logvar = np.broadcast_to(np.log(d), mean.shape)
        z = mean + np.sqrt(d) * noise
        log_q = -0.5 * np.sum(noise**2 + logvar + LOG_2PI, axis=-1)
        log_p = -0.5 * np.sum(z**2 + LOG_2PI, axis=-1)
        arrays = [jnp.float32(v) for v in (z, mean, logvar)]
        # A data set far larger than the batch: the aggregate is the Gaussian itself.
        found = jax.jit(jax.vmap(densities(10**9, "stratified")))(*arrays)
        terms = penalties.decompose_rate(jnp.float32(log_q), found, jnp.float32(log_p))

        log_det, log_diagonal = np.linalg.slogdet(s)[1], np.log(np.diag(s)).sum()
        expected = penalties.RateTerms(
            0.5 * (log_det - np.log(d).sum()),
            0.5 * (log_diagonal - log_det),
            0.5 * np.sum(np.diag(s) - 1 - np.log(np.diag(s))),
        )
        mean_kl = 0.5 * np.sum(np.diag(s) - 1 - np.log(d))
        assert sum(expected) == pytest.approx(mean_kl, rel=1e-12)
        # Jensen: E log q̂ is low by Var(q̂)/(2q²) = (E[q(z|x)²/q(z)²] − 1)/(2M), to first order in
        # 1/M. By Gaussian integrals that E is 3.5 and 4.2 jointly and 1.4 to 1.9 for a marginal:
        # the biases are at most .0031 in log q(z) and .0021 in the sum of the marginals.
        bias = 0.005
        for name, value, exact in zip(terms._fields, terms, expected, strict=True):
            means = np.mean(np.float64(value), axis=1)
            error = means.std(ddof=1) / np.sqrt(repeats)
            assert abs(means.mean() - exact) < 5 * error + bias, name
            assert error < 0.025, name
        assert (expected.total_correlation > 0.05) == (mixing > 0)
        # Example by example, so that only the minibatch's own noise is left: √((E − 1)/M) ≤ .08.
        inverse = np.linalg.inv(s)
        exact = -0.5 * (np.einsum("rbi,ij,rbj->rb", z, inverse, z) + log_det + dim * LOG_2PI)
        assert np.sqrt(np.mean((found.log_qz - exact) ** 2)) < 0.15

    def test_a_batch_larger_than_the_data_set_is_refused(self, estimator):
        with pytest.raises(ValueError, match="cannot be part of 4 examples"):
            densities(4, estimator)(*posteriors(5, 2))

    def test_stratified_needs_two_examples(self):
        with pytest.raises(ValueError, match="at least 2"):
            densities(4, "stratified")(*posteriors(1, 2))


class TestMMD:
    REPEATS, BATCH, DIM = 2000, 16, 2

    def estimates(self, kernel, shift=0.0, scale=1.0, bandwidth=1.0):
        """Of many batches of N(shift, scale² I) against N(0, I), [REPEATS]."""
        rng = np.random.default_rng(0)
        z, y = rng.normal(size=(2, self.REPEATS, self.BATCH, self.DIM))

        def one(z, y):
            return penalties.mmd(z, y, kernel, jnp.float32(bandwidth))

        found = jax.jit(jax.vmap(batched(one)))(jnp.float32(shift + scale * z), jnp.float32(y))
        return np.float64(found).mean(axis=1)

    @pytest.mark.parametrize("kernel", penalties.KERNELS)
    def test_equal_distributions_give_zero_on_average(self, kernel):
        found = self.estimates(kernel)
        error = found.std() / np.sqrt(self.REPEATS)
        assert abs(found.mean()) < 4 * error
        # The pairs (i, i), which a biased estimate counts, would add (k(0) − E k)/B for z and as
        # much for y; with E k ≤ .7 k(0), more than this.
        assert 4 * error < 2 * 0.3 * NUMPY_KERNELS[kernel](0.0) / self.BATCH / 4

    @pytest.mark.parametrize("shift, scale, bandwidth", [(0.5, 1, 1), (0, 2, 0.5), (0.3, 0.1, 2)])
    def test_gaussians_under_the_rbf_kernel(self, shift, scale, bandwidth):
        # E k(X, Y) for X − Y ~ N(δ, vI) is (ℓ²/(ℓ² + v))^{d/2} exp(−|δ|²/(2(ℓ² + v))).
        def similarity(offset, variance):
            total = length + variance
            return (length / total) ** (self.DIM / 2) * np.exp(-self.DIM * offset**2 / 2 / total)

        length = bandwidth**2 * self.DIM
        expected = (
            similarity(0, 2 * scale**2) + similarity(0, 2) - 2 * similarity(shift, 1 + scale**2)
        )
        found = self.estimates("rbf", shift, scale, bandwidth)
        error = found.std() / np.sqrt(self.REPEATS)
        assert abs(found.mean() - expected) < 4 * error
        assert expected > 10 * error  # there is something to see

    def test_the_default_scale_is_the_mean_squared_distance_under_the_prior(self):
        # u = 1 at |x − y|² = 2d; two points and two coincident ones: MMD² = 1 + k − (1 + k).
        z = jnp.array([[0.0, 0.0], [2.0, 0.0]])
        y = jnp.array([[0.0, 0.0], [0.0, 0.0]])
        found = batched(lambda z, y: penalties.mmd(z, y, "rbf", jnp.float32(1)))(z, y)
        k = np.exp(-1)
        assert float(jnp.mean(found)) == pytest.approx(k + 1 - 2 * (1 + k) / 2, abs=1e-6)

    def test_precision_far_from_the_origin(self):
        # Multiples of 1/8 near 1e4 are numbers of float32, and so are their differences.
        rng = np.random.default_rng(0)
        z, y = rng.integers(-16, 16, size=(2, 12, 3)) / 8

        def value(z, y):
            return batched(lambda z, y: penalties.mmd(z, y, "laplace", jnp.float32(1)))(z, y)

        near, far = (value(jnp.float32(z + c), jnp.float32(y + c)) for c in (0, 10_000))
        np.testing.assert_array_equal(near, far)

    @pytest.mark.parametrize("kernel", penalties.KERNELS)
    def test_bandwidth_is_traced(self, kernel):
        z, y, _ = (jnp.float32(a) for a in posteriors(6, 2))
        bandwidths = jnp.array([0.3, 3.0])
        found = jax.vmap(
            lambda b: jnp.mean(batched(lambda z, y: penalties.mmd(z, y, kernel, b))(z, y))
        )(bandwidths)
        for value, bandwidth in zip(found, (0.3, 3.0), strict=True):
            expected = numpy_mmd(np.float64(z), np.float64(y), kernel, bandwidth)
            assert float(value) == pytest.approx(expected, abs=2e-5)

    def test_a_batch_of_one_is_refused(self):
        z = jnp.zeros((1, 2))
        with pytest.raises(ValueError, match="at least 2"):
            batched(lambda z, y: penalties.mmd(z, y, "rbf", jnp.float32(1)))(z, z)


class TestDIP:
    def penalty(self, mean, variance, kind, offdiagonal=3.0, diagonal=5.0):
        weights = jnp.float32(offdiagonal), jnp.float32(diagonal)
        each = batched(lambda m, v: penalties.dip(m, v, *weights, kind))(
            jnp.float32(mean), jnp.float32(variance)
        )
        assert np.all(each == each[0])
        return float(each[0])

    # The four corners of a square have covariance I with ddof = 0.
    CORNERS = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])

    def test_whitened_means_are_the_optimum_of_the_first_kind(self):
        variance = np.full((4, 2), 0.7)
        assert self.penalty(self.CORNERS + 3, variance, "i") == 0
        # With the variance, C = 1.7·I.
        assert self.penalty(self.CORNERS, variance, "ii") == pytest.approx(5 * 2 * 0.49, rel=1e-5)

    def test_the_variances_make_up_for_the_means_in_the_second_kind(self):
        variance = np.array([[0.5, 1.0], [1.0, 0.5], [0.75, 0.75], [0.75, 0.75]])
        assert self.penalty(0.5 * self.CORNERS - 1, variance, "ii") == 0

    def test_the_two_weights(self):
        # Both dimensions equal: C is all ones.
        mean = np.array([[1.0, 1.0], [-1.0, -1.0]])
        assert self.penalty(mean, np.ones((2, 2)), "i") == pytest.approx(3 * 2)
        assert self.penalty(mean, np.ones((2, 2)), "ii") == pytest.approx(3 * 2 + 5 * 2)

    def test_a_common_offset_costs_no_digits(self):
        # E[mm'] − E[m]E[m]' at 1e4 would be off by 1e8 · 6e-8 = 6.
        assert self.penalty(self.CORNERS + 1e4, np.ones((4, 2)), "i") == 0

    def test_another_kind_is_refused(self):
        with pytest.raises(ValueError, match="'i' or 'ii'"):
            self.penalty(self.CORNERS, self.CORNERS, "iii")


@pytest.mark.parametrize("target, sign", [(1.0, 1), (2.0, 0), (5.0, -1)])
def test_capacity_pulls_towards_the_target(target, sign):
    kl = jnp.array([0.0, 1.5, 4.5, 2.0])  # mean 2, exactly

    def penalty(kl):
        return jnp.mean(batched(lambda kl: penalties.capacity(kl, jnp.float32(target)))(kl))

    value, grad = jax.value_and_grad(penalty)(kl)
    assert float(value) == pytest.approx(abs(2 - target), abs=1e-6)
    np.testing.assert_allclose(grad, np.full(4, sign / 4), rtol=1e-6)
