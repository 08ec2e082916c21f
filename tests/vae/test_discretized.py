"""Likelihoods of 256 levels against NumPy's formulas, and in their tails."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae import discretized

LEVELS = np.arange(256) / 255

# In one program each: op by op the tests would take several times as long.
mixture_log_prob = jax.jit(discretized.mixture_log_prob)
mixture_mean = jax.jit(discretized.mixture_mean)


def head(shape, numbers, seed, spread=1.0):
    """A decoder's head for x of a shape [*pixels, channels] or [D], in float64."""
    pixels = shape[:-1] if len(shape) > 1 else shape
    return np.random.default_rng(seed).normal(size=(*pixels, numbers)) * spread


def data(shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape) / 255


def test_every_level_is_found_however_it_was_divided():
    k = np.arange(256, dtype=np.float32)
    for x in (k / np.float32(255), k * np.float32(1 / 255), np.float32(k / 255.0)):
        np.testing.assert_array_equal(discretized.level_of(jnp.asarray(x)), k)


def test_categorical_is_numpys():
    # The layout: 256 logits of the first channel, then of the next.
    logits, x = head((2, 2, 3), 3 * 256, 0), data((2, 2, 3))
    with jax.enable_x64(True):
        value = discretized.categorical_log_prob(jnp.asarray(x), jnp.asarray(logits))
    levels, logits = np.rint(x * 255).astype(int), logits.reshape(2, 2, 3, 256)
    expected = sum(
        scipy.special.log_softmax(logits[i])[levels[i]] for i in np.ndindex(levels.shape)
    )
    assert float(value) == pytest.approx(expected, rel=1e-12)


# The discretised logistic


def masses(location, scale):
    """P(k) [..., 256] of discretised logistics; location, scale [...] in units of x."""
    edges = np.r_[-np.inf, (np.arange(255) + 0.5) / 255, np.inf]
    location, scale = np.asarray(location)[..., None], np.asarray(scale)[..., None]
    return np.diff(scipy.special.expit((edges - location) / scale), axis=-1)


@pytest.mark.parametrize(("location", "scale"), [(0.4, 0.03), (-0.1, 0.2), (0.99, 0.002), (5, 2)])
def test_logistic_is_a_difference_of_sigmoids(location, scale):
    logvar = np.full(256, 2 * np.log(scale))
    with jax.enable_x64(True):
        value = discretized.logistic_log_mass(
            jnp.arange(256.0),
            jnp.full(256, 255.0 * location),
            jnp.asarray(logvar / 2 + np.log(255)),
        )
        # The same, of x.
        total = discretized.logistic_log_prob(
            jnp.asarray(LEVELS), jnp.full(256, float(location)), jnp.asarray(logvar)
        )
    # The oracle's differences are good to 1e-16 absolute.
    np.testing.assert_allclose(np.exp(value), masses(location, scale), rtol=1e-11, atol=1e-15)
    assert float(total) == pytest.approx(np.asarray(value).sum(), rel=1e-12)


def test_logistics_far_tails_are_right():
    # Of a location beyond 255 by many scales log P(k) = −(m − k)/a + log 2 sinh(1/2a), and its
    # slope by the location is −1/s: the difference of sigmoids is long 0.

    @jax.jit
    @jax.value_and_grad
    def of_location(m, logvar):
        return discretized.logistic_log_prob(jnp.float32([100 / 255]), m[None], logvar)

    for logvar in (-60.0, -14.0, -6.0):
        a = np.exp(0.5 * np.float64(np.float32(logvar))) * 255
        half = 0.5 / a
        bulk = half + np.log(-np.expm1(-2 * half))
        for m in np.float32([1.5, 100.0, 1e4]):
            value, slope = of_location(jnp.float32(m), jnp.float32(logvar))
            # Rounding of the exponent and of e^{−logvar/2}, whose argument is up to 30: 1e-5.
            expected = -(255 * np.float64(m) - 100) / a + bulk
            assert float(value) == pytest.approx(expected, rel=1e-5)
            assert float(slope) == pytest.approx(-255 / a, rel=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logistics_mean_is_the_sum_over_its_edges(dtype):
    rng = np.random.default_rng(10)
    location, log_scale = rng.uniform(-300, 600, 500), rng.uniform(-8, 10, 500)
    log_scale[:4] = [-1e-6, 0.0, 1e-6, 0.7]  # about where the forms meet
    location[:4] = 0.0
    with jax.enable_x64(dtype is np.float64):
        location, log_scale = jnp.asarray(location, dtype), jnp.asarray(log_scale, dtype)
        mean = np.float64(discretized.logistic_mean_level(location, log_scale))
    location, log_scale = np.float64(location)[:, None], np.float64(log_scale)[:, None]
    edges = np.arange(255)[None] + 0.5
    expected = scipy.special.expit((location - edges) / np.exp(log_scale)).sum(1)
    np.testing.assert_allclose(mean, expected, atol=1e-3)


# Mixtures


class Components:
    """One pixel's mixture, written again in NumPy from the formulas of PixelCNN++."""

    def __init__(self, numbers, channels):
        rows = numbers.reshape(-1, 10)
        c = channels
        self.weights = scipy.special.softmax(rows[0])
        self.locations = rows[1 : 1 + c]
        self.scales = np.exp(-7 + np.logaddexp(0, rows[1 + c : 1 + 2 * c] + 7))
        pairs = [(i, j) for i in range(c) for j in range(i)]
        self.coefficients = dict(zip(pairs, np.tanh(rows[1 + 2 * c :]), strict=True))

    def conditional(self, m, channel, before):
        """P(k) [..., 256] of a channel in component m, given the values before it in [−1, 1]."""
        location = self.locations[channel][m] + sum(
            self.coefficients[channel, j][m] * value for j, value in enumerate(before)
        )
        return masses((location + 1) / 2, self.scales[channel][m] / 2)

    def log_prob(self, levels):
        total = 0.0
        for m, weight in enumerate(self.weights):
            values = 2 * np.asarray(levels) / 255 - 1
            parts = [self.conditional(m, c, values[:c])[level] for c, level in enumerate(levels)]
            total += weight * np.prod(parts)
        return np.log(total)


@pytest.mark.parametrize("shape", [(7,), (2, 3, 1), (2, 3, 2), (2, 3, 3), (1, 2, 4)])
def test_mixture_is_numpys(shape):
    channels = shape[-1] if len(shape) > 1 else 1
    numbers = 10 * (1 + 2 * channels + channels * (channels - 1) // 2)
    assert discretized.mixture_numbers(channels) == numbers
    output, x = head(shape, numbers, 0, spread=0.7), data(shape)
    x.flat[0], x.flat[-1] = 0, 1  # the ends too
    with jax.enable_x64(True):
        value = mixture_log_prob(jnp.asarray(x), jnp.asarray(output))
    levels = np.rint(x * 255).astype(int).reshape(-1, channels)
    heads = output.reshape(len(levels), numbers)
    expected = sum(
        Components(numbers, channels).log_prob(level)
        for numbers, level in zip(heads, levels, strict=True)
    )
    assert float(value) == pytest.approx(expected, rel=1e-9)


def joint(output):
    """P of all pairs of levels of one pixel of two channels, [256, 256], by `log_prob`."""
    first, second = np.meshgrid(LEVELS, LEVELS, indexing="ij")
    pairs = np.stack([first, second], -1).reshape(-1, 1, 1, 2)
    with jax.enable_x64(True):
        log_probs = jax.jit(jax.vmap(discretized.mixture_log_prob, (0, None)))
        return np.exp(log_probs(jnp.asarray(pairs), jnp.asarray(output))).reshape(256, 256)


def test_mixture_of_two_channels_sums_to_one_with_its_mean():
    output = head((1, 1, 2), 60, 5)
    table = joint(output)
    with jax.enable_x64(True):
        mean = mixture_mean(jnp.asarray(output))
    assert table.sum() == pytest.approx(1, abs=1e-11)
    expected = [table.sum(1) @ LEVELS, table.sum(0) @ LEVELS]
    assert float(mean[0, 0, 0]) == pytest.approx(expected[0], abs=4e-6)
    assert float(mean[0, 0, 1]) == pytest.approx(expected[1], abs=1e-3)  # by a lattice of 255


@pytest.mark.parametrize(("spread", "tolerance"), [(0.1, 1e-4), (1.0, 2e-3), (4.0, 2e-3)])
def test_mixtures_mean_of_three_channels(spread, tolerance):
    # Two components of narrow scales and steep coefficients, the other eight impossible; locations
    # spread so that nothing is cut off, or much. The sum over all 256² values before the last.
    rng = np.random.default_rng(6)
    rows = np.zeros((10, 10))
    rows[0, 2:] = -1e3
    rows[1:4] = rng.normal(size=(3, 10)) * spread
    rows[4:7] = -4 + spread
    rows[7:] = rng.normal(size=(3, 10))
    with jax.enable_x64(True):
        mean = np.ravel(mixture_mean(jnp.asarray(rows.reshape(1, 1, 100))))
    own, values, expected = Components(rows, 3), 2 * LEVELS - 1, np.zeros(3)
    for m in range(2):
        first = own.conditional(m, 0, [])
        second = own.conditional(m, 1, [values])
        third = own.conditional(m, 2, [values[:, None], values[None]])
        pairs = first[:, None] * second
        parts = [first @ LEVELS, pairs.sum(0) @ LEVELS, np.sum(pairs * (third @ LEVELS))]
        expected += own.weights[m] * np.array(parts)
    np.testing.assert_allclose(mean[0], expected[0], atol=4e-6)
    np.testing.assert_allclose(mean, expected, atol=tolerance)


def draws(output, n):
    """Levels of n draws of one pixel, [n, C]."""
    keys = jax.random.split(jax.random.key(0), n)
    sample = jax.jit(jax.vmap(discretized.mixture_sample, (0, None)))
    return np.rint(np.float64(sample(keys, jnp.float32(output))) * 255).astype(int).reshape(n, -1)


def test_samples_of_two_channels_have_their_joint_frequencies():
    output, n = head((1, 1, 2), 60, 8), 50_000
    blocks = draws(output, n) // 32
    seen = np.bincount(blocks[:, 0] * 8 + blocks[:, 1], minlength=64)
    p = joint(output).reshape(8, 32, 8, 32).sum((1, 3)).reshape(-1)
    assert np.all(np.abs(seen - n * p) < 5 * np.sqrt(n * p * (1 - p)) + 5)


def test_samples_of_three_channels_have_their_conditional_distributions():
    # Of one component (the others impossible): P(< k | before) + u·P(k | before), u uniform, is
    # uniform and independent of the values before it (Rosenblatt 1952).
    output, n, rng = head((1, 1, 3), 100, 9, spread=0.5), 10_000, np.random.default_rng(10)
    output[..., 1:10] = -1e3
    levels, own = draws(output, n), Components(output, 3)
    values = 2 * levels.T / 255 - 1
    uniform = []
    for c in range(3):
        p = own.conditional(0, c, values[:c])
        p = np.broadcast_to(p, (n, 256))
        k = levels[:, c : c + 1]
        below = np.take_along_axis(np.cumsum(p, 1) - p, k, 1) + rng.random((n, 1)) * (
            np.take_along_axis(p, k, 1)
        )
        uniform.append(below[:, 0])
        # √n·D passes 2.3 once in 20,000 times.
        assert np.sqrt(n) * scipy.stats.kstest(uniform[-1], "uniform").statistic < 2.3
    assert np.all(np.abs(np.corrcoef(uniform) - np.eye(3)) < 5 / np.sqrt(n))


@pytest.mark.parametrize("channels", [1, 3])
def test_mixtures_tails_are_finite(channels):
    # Logits, locations, log-scales and coefficients, each all at −1e4, 0 or 1e4, or at random.
    rng = np.random.default_rng(9)
    numbers = (channels + 1) * (channels + 2) // 2
    sections = np.repeat(range(4), [1, channels, channels, numbers - 1 - 2 * channels])
    cases = np.array(list(itertools.product((-1e4, 0.0, 1e4), repeat=4)))[:, sections]
    cases = np.repeat(cases[:, :, None], 10, axis=2)
    cases = np.r_[cases, rng.choice([-1e4, 0, 1e4], size=(100, numbers, 10))]
    output = jnp.asarray(cases.reshape(len(cases), 1, 1, -1), jnp.float32)
    value_and_slope = jax.jit(jax.vmap(jax.value_and_grad(discretized.mixture_log_prob, 1)))
    for level in (0.0, 128 / 255, 1.0):
        value, slope = value_and_slope(jnp.full((len(cases), 1, 1, channels), level), output)
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(slope))

    @jax.jit
    @jax.vmap
    @jax.value_and_grad
    def mean_and_slope(output):
        return jnp.sum(discretized.mixture_mean(output))

    mean, slope = mean_and_slope(output[::3])
    assert np.all(np.isfinite(mean)) and np.all(np.isfinite(slope))
