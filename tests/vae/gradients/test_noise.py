"""Noise of gradients: known means and variances, closed forms, ANOVA and t-tests in NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae.errors import UserError
from vae.gradients import noise
from vae.layers import layer_names

pytestmark = pytest.mark.usefixtures("x64")

RNG = jax.random.key(3)
MEANS = {"a": np.linspace(-1, 2, 6).reshape(3, 2), "b": np.array([0.5, -0.2, 0.0, 3.0])}


def keys(n, seed=0):
    return jax.random.split(jax.random.fold_in(RNG, seed), n)


def normal(rng, like, scale=1.0):
    """N(0, scale²) in the shape of each leaf."""
    leaves, structure = jax.tree.flatten(like)
    rngs = jax.random.split(rng, len(leaves))
    return structure.unflatten(
        [scale * jax.random.normal(r, np.shape(a)) for r, a in zip(rngs, leaves, strict=True)]
    )


def gaussian(means, scale=1.0):
    """The gradient N(mean, scale²)."""
    return lambda rng: jax.tree.map(
        lambda m, e: jnp.asarray(m) + e, means, normal(rng, means, scale)
    )


def stacked(gradient, rngs):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(gradient))(rngs))


def within(values, expected, axis=0):
    """Whether the mean over independent values is the expected, to 4 of its standard errors."""
    error = np.std(values, axis=axis, ddof=1) / math.sqrt(np.shape(values)[axis])
    return np.all(np.abs(np.mean(values, axis=axis) - expected) < 4 * error)


class TestMoments:
    @pytest.mark.parametrize("bare", [True, False])
    def test_are_those_of_the_draws(self, bare):
        gradient = gaussian(MEANS["b"] if bare else MEANS, 0.7)
        found, draws = noise.moments(gradient, keys(50)), stacked(gradient, keys(50))
        assert found.count == 50
        checked = functools.partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-14)
        variances = jax.tree.map(lambda a: a.var(0, ddof=1), draws)
        jax.tree.map(checked, found.mean, jax.tree.map(lambda a: a.mean(0), draws))
        jax.tree.map(checked, noise.variance(found), variances)
        errors = jax.tree.map(lambda v: np.sqrt(v / 50), variances)
        jax.tree.map(checked, noise.standard_error(found), errors)

    def test_keep_the_digits_of_small_deviations(self):
        # In float32, where E g² − (E g)² would have none left: 1e3² has a spacing of 0.06. The mean
        # has one of 6e-5, by which the deviations, of 0.01, may be wrong.
        def gradient(rng):
            return 1000 + 0.01 * jax.random.normal(rng, (8,), jnp.float32)

        found = np.asarray(noise.variance(noise.moments(gradient, keys(400))))
        draws = np.float64(stacked(gradient, keys(400)))
        np.testing.assert_allclose(found, draws.var(0, ddof=1), rtol=1e-2)

    @pytest.mark.parametrize("n", [0, 1])
    def test_of_fewer_than_two_draws(self, n):
        with pytest.raises(UserError, match="SNR from fewer than 2 draws"):
            noise.moments(gaussian(MEANS), keys(n))

    def test_memory_does_not_grow_with_the_draws(self):
        size = 100_000

        def program(n):
            gradient = gaussian(np.zeros(size))
            found = jax.jit(lambda rngs: noise.moments(gradient, rngs)).lower(keys(n)).compile()
            return found.memory_analysis().temp_size_in_bytes

        few, many = program(4), program(400)
        # Beside the keys, 16 bytes a draw, nothing; and a few copies of 8 bytes a parameter.
        assert many - few < 100 * 400 and many < 10 * 8 * size


class TestSnr:
    N, DIM = 100, 30

    @classmethod
    @functools.cache
    def replicates(cls, signal):
        """The SNR of 300 sets of N draws of N(mean, 4 I), ‖mean‖ = `signal`·√tr Cov."""
        means = np.full(cls.DIM, 2 * signal)
        one = functools.partial(noise.moments, gaussian(means, 2.0))
        found = jax.jit(jax.vmap(lambda rngs: noise.snr(one(rngs))))
        rngs = keys(300 * cls.N).reshape(300, cls.N)
        return jax.tree.map(lambda a: np.asarray(a)[:, 0], found(rngs))

    @pytest.mark.parametrize("signal", [0.0, 0.05, 0.5, 3.0])
    def test_of_a_known_mean_and_variance(self, signal):
        found, trace = self.replicates(signal), 4 * self.DIM
        assert within(found.noise**2, trace)
        assert within(found.signal**2, trace * (signal**2 + 1 / self.N))
        # Corrected before it is clipped, it is unbiased.
        assert within(found.signal**2 - found.noise**2 / self.N, trace * signal**2)
        np.testing.assert_allclose(found.floor, 1 / math.sqrt(self.N))

    def test_what_is_below_the_floor_cannot_be_read(self):
        # Without a signal n·‖ĝ‖²·d/tr V is F(d, d(n − 1)), close to χ²_d/d: 1 ± √(2/30), so that
        # the plain ratio is 0.1, 0.074 to 0.13 at four standard deviations of its logarithm.
        none, weak, strong = (self.replicates(s) for s in (0.0, 0.05, 3.0))
        assert np.all((none.plain > 0.06) & (none.plain < 0.15))
        # Half as large as the floor: read as √(0.1² + 0.05²), but for the correction.
        assert within(weak.plain**2 * weak.noise**2 / (4 * self.DIM), 0.1**2 + 0.05**2)
        # Where there is nothing to read, about half of the corrected ratios are 0; √(½·½/300) = 3%,
        # and χ²_30 is below its mean in 53%.
        assert 0.4 < np.mean(none.corrected == 0) < 0.66
        # Above it, both read it: to 2% in noise and 2% in signal of each, 0.2% of the mean.
        assert np.mean(strong.corrected) == pytest.approx(3, rel=0.01)

    def test_of_parameters(self):
        # √n ĝ/s is Student's t: for a large signal E|ĝ|/s ≈ (|μ|/σ)·(1 + 3/(4(n − 1))).
        found = self.replicates(3.0).parameters
        assert within(found, 3 * (1 + 3 / (4 * (self.N - 1))))
        # Without one, the mean of |N(0, 1)|/√n, and as much larger.
        expected = math.sqrt(2 / math.pi / self.N) * (1 + 3 / (4 * (self.N - 1)))
        assert within(self.replicates(0.0).parameters, expected)

    def test_of_what_is_silent_or_certain(self):
        def of(mean, m2):
            found = noise.Moments(jnp.int32(5), jnp.array(mean), jnp.array(m2))
            return jax.tree.map(lambda a: float(a[0]), noise.snr(found))

        # A dead unit is no parameter, for the mean over parameters.
        assert of([1.0, 0.0], [4.0, 0.0]).parameters == of([1.0], [4.0]).parameters == 1
        assert of([1.0, 1.0], [4.0, 0.0]).parameters == math.inf
        assert of([2.0], [0.0]).corrected == math.inf
        silent = of([0.0], [0.0])
        assert math.isnan(silent.plain) and math.isnan(silent.corrected)
        assert math.isnan(silent.parameters) and silent.signal == silent.noise == 0

    def test_by_layer(self):
        shapes = {
            "decoder": {"output": (2, 3), "layer_0": (4,)},
            "encoder": {"layer_1": (5,), "layer_0": (3, 3), "mean": (2,)},
        }
        means = jax.tree.map(
            lambda s: 0.3 * np.arange(1.0, 1 + math.prod(s)).reshape(s),
            shapes,
            is_leaf=lambda s: isinstance(s, tuple),
        )
        gradient, n = gaussian(means), 20
        found = jax.jit(lambda rngs: noise.snr(noise.moments(gradient, rngs), noise.layers))(
            keys(n)
        )
        draws = stacked(gradient, keys(n))
        names = layer_names(means)
        assert names[0] == "encoder/layer_0" and names[-1] == "decoder/output"
        for i, name in enumerate(names):
            part, layer = name.split("/")
            each = draws[part][layer].reshape(n, -1)
            mean, trace = each.mean(0), each.var(0, ddof=1).sum()
            squared = np.sum(mean**2)
            expected = (
                math.sqrt(squared),
                math.sqrt(trace),
                math.sqrt(squared / trace),
                math.sqrt(max(squared - trace / n, 0) / trace),
                np.mean(np.abs(mean) / each.std(0, ddof=1)),
                1 / math.sqrt(n),
            )
            np.testing.assert_allclose([values[i] for values in found], expected, rtol=1e-12)


class TestKnownVariances:
    """Oracles 11 and 13: gradients whose means and variances are known."""

    @staticmethod
    def replicates(gradient, n=2000):
        """The variances of 100 sets of n draws, and the means."""
        found = jax.jit(jax.vmap(functools.partial(noise.moments, gradient)))(
            keys(100 * n).reshape(100, n)
        )
        each = jax.vmap(lambda f: (noise.variance(f), f.mean))(found)
        return jax.tree.map(np.asarray, each)

    @pytest.mark.parametrize("score", [False, True])
    def test_of_a_square(self, score):
        # f = (z − c)², z ~ N(μ, σ²), m = μ − c: 4σ², and by scores m⁴/σ² + 14m² + 15σ².
        mu, sigma, c = 0.7, 0.8, -0.4

        def gradient(rng):
            e = jax.random.normal(rng)
            z = mu + sigma * e
            return jnp.square(z - c) * e / sigma if score else 2 * (z - c)

        variances, means = self.replicates(gradient)
        m = mu - c
        expected = m**4 / sigma**2 + 14 * m**2 + 15 * sigma**2 if score else 4 * sigma**2
        assert within(variances, expected) and within(means, 2 * m)

    def test_at_the_posterior(self):
        # log p − log q of q = p = N(μ, σ²): the path has no gradient, and the scores have the
        # variances 1/σ² in μ and 2 in log σ.
        def log_density(z, p):
            return -jnp.square((z - p[0]) * jnp.exp(-p[1])) / 2 - p[1]

        sigma = 0.6
        p = jnp.array([0.3, math.log(sigma)])

        def gradient(rng, held=False):
            def elbo(q):
                z = q[0] + jnp.exp(q[1]) * jax.random.normal(rng)
                return log_density(z, p) - log_density(z, jax.lax.stop_gradient(q) if held else q)

            return jax.grad(elbo)(p)

        variances, means = self.replicates(gradient)
        assert within(variances, np.array([1 / sigma**2, 2])) and within(means, 0)
        found = noise.moments(functools.partial(gradient, held=True), keys(20))
        assert np.max(np.abs([found.mean, found.m2])) < 1e-12


@pytest.mark.parametrize("signal", [0.0, 1.5])
def test_directional_snr_of_a_normal(signal):
    # N(signal·u, I) in each layer: a folded normal over χ_{d−1}, independent of each other.
    direction = {"encoder": {"layer_0": jnp.linspace(-2, 1, 6), "mean": jnp.ones((8, 5))}}
    means = jax.tree.map(lambda u: signal * np.asarray(u) / np.linalg.norm(u), direction)
    found = noise.directional_snr(gaussian(means), keys(4000), direction, noise.layers)
    dims, folded = np.array([6, 40]), scipy.stats.foldnorm.mean(signal)
    inverse = np.exp(scipy.special.gammaln(dims / 2 - 1) - scipy.special.gammaln((dims - 1) / 2))
    expected = folded * inverse / math.sqrt(2)
    # E[ratio²] = (1 + signal²)/(d − 3), which gives the standard error.
    error = np.sqrt(((1 + signal**2) / (dims - 3) - expected**2) / 4000)
    assert np.all(np.abs(found.mean - expected) < 4 * error)
    # Of a skew ratio (d = 6 has no fourth moment) known from 4000 draws to some percent.
    np.testing.assert_allclose(noise.standard_error(found), error, rtol=0.25)


class TestVarianceComponents:
    """g = μ + a_b + d_bj + e_bjk, of known variances in each layer."""

    STD = {"batch": (0.5, 0.1), "data": (0.7, 0.0), "noise": (2.0, 0.3)}
    COUNTS = {"batches": 4, "binarisations": 3, "noises": 2}
    SIZES = (5, 3)

    @classmethod
    def gradient(cls, batch_rng, data_rng, noise_rng):
        rngs = {"batch": batch_rng, "data": data_rng, "noise": noise_rng}

        def layer(i):
            like = jnp.zeros(cls.SIZES[i])
            drawn = [
                normal(jax.random.fold_in(rng, i), like, cls.STD[name][i])
                for name, rng in rngs.items()
            ]
            return 7.0 + sum(drawn)

        return {"encoder": {"layer_0": layer(0), "mean": layer(1)}}

    @classmethod
    @functools.cache
    def replicates(cls):
        one = functools.partial(
            noise.variance_components, cls.gradient, **cls.COUNTS, groups=noise.layers
        )
        return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(keys(2000)))

    def test_are_unbiased(self):
        found, total = self.replicates(), 0
        for name, std in self.STD.items():
            expected = np.array(self.SIZES) * np.square(std)
            assert within(getattr(found, name), expected), name
            total = total + expected
        assert within(found.total, total)

    def test_are_not_clipped(self):
        # The second layer has no variance from its data: its estimates are on both sides of 0.
        share = np.mean(self.replicates().data[:, 1] < 0)
        assert 0.3 < share < 0.8

    @pytest.mark.parametrize("name", COUNTS)
    def test_of_fewer_than_two(self, name):
        with pytest.raises(UserError, match=f"^{name}: .*fewer than 2 {name}, got 1"):
            noise.variance_components(self.gradient, RNG, **{**self.COUNTS, name: 1})


class TestBias:
    N, M, DIM = 40, 160, 25

    @classmethod
    @functools.cache
    def replicates(cls, bias):
        """(biases, tests) of 400 pairs of samples, the reference N(1, 3² I), the other N(·, I)."""
        reference = gaussian(np.ones(cls.DIM), 3.0)
        gradient = gaussian(1 + bias * np.ones(cls.DIM))

        def one(rngs, reference_rngs):
            found = noise.moments(gradient, rngs), noise.moments(reference, reference_rngs)
            return noise.bias(*found), noise.bias_test(gradient, reference, rngs, reference_rngs)

        rngs = keys(400 * cls.N).reshape(400, -1), keys(400 * cls.M, 1).reshape(400, -1)
        found = jax.jit(jax.vmap(one))(*rngs)
        return jax.tree.map(lambda a: np.asarray(a)[:, 0], found)

    def test_of_a_known_one(self):
        biases, _ = self.replicates(2.0)
        # The reference is (1, ..., 1), of length 5. An error e along it, of standard deviation
        # 3/√160 = 0.24, makes the ratio (10 − e)/(5 + e): 2(1 + 0.06 e²) = 2.007 on average, with a
        # standard error of 2·0.3·0.24/√400 = 0.007. What is across it is taken off.
        assert biases.mean() == pytest.approx(2.007, abs=4 * 0.007)

    def test_is_the_formula(self):
        def of(count, mean, variance):
            m2 = (count - 1) * np.array(variance)
            return noise.Moments(jnp.int32(count), jnp.array(mean), jnp.asarray(m2))

        # √((3² + 4² − 3/3 − 8/4)/(1² + 5² − 8/4)): the variances are 3 and 8 in all.
        found = noise.bias(of(3, [4.0, 9.0], [1.0, 2.0]), of(4, [1.0, 5.0], [4.0, 4.0]))
        np.testing.assert_allclose(found, [math.sqrt(22 / 24)], rtol=1e-12)
        # Nothing that shows; and a reference that does not.
        found = noise.bias(of(4, [1.5, 5.0], [1.0, 2.0]), of(4, [1.0, 5.0], [4.0, 4.0]))
        assert found[0] == 0
        found = noise.bias(of(4, [5.0, 5.0], [1.0, 2.0]), of(4, [1.0, 0.5], [4.0, 4.0]))
        assert found[0] == math.inf

    def test_of_none_is_next_to_none(self):
        biases, _ = self.replicates(0.0)
        # ‖ĝ − r̂‖² has the mean d(1/40 + 9/160) of a χ²_25, half of which is below: what is left of
        # it is less than five of its standard deviations, 28%: √(0.081·5·0.28) = 0.34, but for the
        # error of 5% of the denominator.
        assert 0.4 < np.mean(biases == 0) < 0.66 and biases.max() < 0.4

    def test_p_is_uniform_without_a_bias(self):
        # Not with the direction from the draws that are tested: they would differ by about √25
        # standard errors.
        _, found = self.replicates(0.0)
        assert scipy.stats.kstest(found.p, "uniform").pvalue > 1e-3
        # Rejections at the level 5%: of 400, 20 ± 4.4.
        assert abs(np.sum(found.p < 0.05) - 20) < 4 * 4.4

    def test_rejects_a_bias(self):
        # ‖bias‖ = 0.3·√25 = 1.5, and √(1/20 + 9/80) = 0.4 is the error of each number of a half's
        # difference. The cosine of the first half's to the bias is about 1.5/√(1.5² + 24·0.4²) =
        # 0.6, so that the second's projection is 0.9 ± 0.4: significant in about 6 of 10.
        _, found = self.replicates(0.3)
        assert np.mean(found.p < 0.05) == pytest.approx(0.6, abs=0.15)
        _, found = self.replicates(2.0)
        assert found.p.max() < 1e-6 and np.all(found.t > 0)

    def test_is_welchs_test(self):
        # In one dimension the direction is a sign.
        gradient, reference = gaussian(np.zeros(1)), gaussian(np.full(1, 0.1), 2.0)
        rngs, others = keys(21), keys(36, 1)
        found = noise.bias_test(gradient, reference, rngs, others)
        one, two = stacked(gradient, rngs)[10:, 0], stacked(reference, others)[18:, 0]
        expected = scipy.stats.ttest_ind(one, two, equal_var=False)
        assert abs(found.t[0]) == pytest.approx(abs(expected.statistic), rel=1e-10)
        assert found.df[0] == pytest.approx(expected.df, rel=1e-10)
        assert found.p[0] == pytest.approx(expected.pvalue, rel=1e-8)

    @pytest.mark.parametrize("sizes", [(3, 8), (8, 3)])
    def test_of_too_few_draws(self, sizes):
        with pytest.raises(UserError, match="draws: no test from fewer than 4 draws, got 3"):
            noise.bias_test(gaussian(MEANS), gaussian(MEANS), *(keys(n) for n in sizes))


@pytest.mark.thorough
def test_in_a_population_as_alone():
    def run(means, scale):
        gradient, other = gaussian(means, scale), gaussian(means, 2 * scale)
        found, reference = noise.moments(gradient, keys(6)), noise.moments(other, keys(8, 1))

        def nested(batch_rng, data_rng, noise_rng):
            return gradient(batch_rng) + gradient(data_rng) + other(noise_rng)

        return (
            noise.snr(found),
            noise.directional_snr(gradient, keys(5), means),
            noise.variance_components(nested, RNG, batches=2, binarisations=2, noises=3),
            noise.bias(found, reference),
            noise.bias_test(gradient, other, keys(6), keys(8, 1)),
        )

    means, scales = jnp.arange(12.0).reshape(3, 4), jnp.array([0.5, 1.0, 3.0])
    together, alone = jax.jit(jax.vmap(run))(means, scales), jax.jit(run)
    for i in range(3):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-12),
            together,
            alone(means[i], scales[i]),
        )
