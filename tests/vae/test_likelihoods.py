"""Each row of LIKELIHOODS as a distribution: normalised, its mean and samples, its tails."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae.likelihoods import LIKELIHOODS
from vae.nets import Decoder
from vae.spec import ModelSpec

NAMES = sorted(LIKELIHOODS)
REAL_LINE = [n for n in NAMES if n.startswith(("gaussian", "laplace", "student"))]
DISCRETE = [n for n in NAMES if LIKELIHOODS[n].levels]
LOGISTIC = ["logistic_pixel", "logistic_shared"]
# The others differ from these in nothing but where `logvar` comes from.
OWN = [n for n in NAMES if not n.endswith(("_shared", "_optimal"))]
LEVELS = np.arange(256) / 255
DF = 5.0


def test_the_names_are_those_of_the_config():
    assert NAMES == [
        "bernoulli",
        "categorical",
        "continuous_bernoulli",
        "gaussian",
        "gaussian_optimal",
        "gaussian_pixel",
        "gaussian_shared",
        "laplace",
        "laplace_pixel",
        "laplace_shared",
        "logistic_mixture",
        "logistic_pixel",
        "logistic_shared",
        "student",
        "student_pixel",
        "student_shared",
    ]


def outputs_of(name, shape, seed=0, spread=1.0, dtype=np.float64):
    """Random outputs in the shapes in which `vae.model.decode` gives them."""
    spec, likelihood = ModelSpec(shape), LIKELIHOODS[name]
    rng = np.random.default_rng(seed)
    outputs = {}
    for head, numbers in likelihood.heads(spec.channels).items():
        one = numbers == spec.channels
        size = shape if one else (*spec.pixels, numbers)
        outputs["logvar" if head == "variance" else head] = rng.normal(size=size) * spread
    if likelihood.scale and likelihood.scale != "pixel":
        outputs["logvar"] = np.asarray(-0.7)
    if name in LOGISTIC:  # a location within the data's range, a scale of some levels
        outputs["output"] = 0.5 + 0.3 * outputs["output"]
        outputs["logvar"] = outputs["logvar"] - 6
    outputs |= {field: np.asarray(DF) for field in likelihood.numbers}
    return {k: jnp.asarray(v, dtype) for k, v in outputs.items()}


def data_of(name, shape, seed=1):
    rng = np.random.default_rng(seed)
    if LIKELIHOODS[name].levels:
        return jnp.asarray(rng.integers(0, 256, shape) / 255)
    return jnp.asarray(rng.normal(size=shape) if name in REAL_LINE else rng.uniform(size=shape))


@functools.cache
def compiled(name, function):
    """A function of a row, in one program: op by op the tests would take several times as long."""
    return jax.jit(getattr(LIKELIHOODS[name], function))


@functools.cache
def log_probs(name):
    """log p of each of many x, [n, *x], under the same outputs."""
    return jax.jit(jax.vmap(LIKELIHOODS[name].log_prob, (0, None)))


# Shapes


@pytest.mark.sampled
@pytest.mark.parametrize("shape", [(7,), (4, 4, 1), (4, 4, 3)])
@pytest.mark.parametrize("name", OWN)
def test_heads_are_what_is_read(name, shape):
    likelihood, spec = LIKELIHOODS[name], ModelSpec(shape, 2, depth=0)
    sizes = tuple(likelihood.heads(spec.channels).items())
    heads, _ = jax.eval_shape(
        lambda z: Decoder(spec, sizes).init_with_output(jax.random.key(0), z, False),
        jnp.zeros(2),
    )
    outputs = outputs_of(name, shape, dtype=np.float32)
    x = data_of(name, shape).astype(np.float32)
    for head, value in heads.items():
        assert value.shape == outputs["logvar" if head == "variance" else head].shape
    log_prob, gradients = jax.jit(jax.value_and_grad(likelihood.log_prob, 1))(x, outputs)
    assert log_prob.shape == () and log_prob.dtype == jnp.float32
    # Every number of a head has a say.
    assert np.all(gradients["output"] != 0)
    assert likelihood.scale != "pixel" or np.all(gradients["logvar"] != 0)
    drawn = compiled(name, "sample")(jax.random.key(0), outputs)
    for value in (compiled(name, "mean")(outputs), drawn):
        assert value.shape == shape and value.dtype == jnp.float32


@pytest.mark.parametrize("name", NAMES)
def test_values_are_independent_given_the_outputs_of_their_pixel(name):
    # An example's log-probability is the sum of those of its pixels, in their places.
    likelihood, shape = LIKELIHOODS[name], (2, 3, 3)

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, 0, None))
    def parts(x, heads, scalars):
        outputs = heads | scalars
        return likelihood.log_prob(x, outputs), likelihood.mean(outputs)

    with jax.enable_x64(True):
        outputs, x = outputs_of(name, shape), data_of(name, shape)
        pixels = {k: v.reshape(6, 1, 1, -1) for k, v in outputs.items() if v.ndim}
        scalars = {k: v for k, v in outputs.items() if not v.ndim}
        log_prob, means = parts(x.reshape(6, 1, 1, 3), pixels, scalars)
        whole, mean = (compiled(name, "log_prob")(x, outputs), compiled(name, "mean")(outputs))
    assert float(whole) == pytest.approx(np.asarray(log_prob).sum(), rel=1e-12)
    np.testing.assert_allclose(mean, np.reshape(means, shape), rtol=1e-10)


# Normalisation and mean: sums over 256 levels or quadrature, in float64


@functools.cache
def gauss_legendre():
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(300)
    return (nodes + 1) / 2, weights / 2


def quadrature(name, outputs):
    """Points x [n] and weights [n] with which Σ w p(x) f(x) = E f(x), of one value."""
    nodes, weights = gauss_legendre()
    if LIKELIHOODS[name].levels:
        return LEVELS, np.ones(256)
    if name == "bernoulli":
        return np.array([0.0, 1.0]), np.ones(2)
    if name == "continuous_bernoulli":
        return nodes, weights
    # x = location ± s·sinh u: what falls as x^−6 (Student's t) falls as e^−5u, and the kink of
    # Laplace's is between two halves, in each of which Gauss-Legendre is exact to all digits.
    u, location = 12 * nodes, float(outputs["output"][0])
    scale = math.exp(0.5 * float(np.ravel(outputs["logvar"])[0]))
    away, weights = scale * np.sinh(u), 12 * weights * scale * np.cosh(u)
    return np.r_[location - away, location + away], np.r_[weights, weights]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_sums_to_one_with_its_mean(name, seed):
    with jax.enable_x64(True):
        outputs = outputs_of(name, (1,), seed, spread=2.0)
        x, weights = quadrature(name, outputs)
        log_prob = log_probs(name)(jnp.asarray(x)[:, None], outputs)
        mass, mean = weights * np.exp(log_prob), float(compiled(name, "mean")(outputs)[0])
    assert mass.sum() == pytest.approx(1, abs=1e-11)
    # The mean of a discretised logistic is computed to 1e-3 of a level.
    tolerance = 1e-3 / 255 if name.startswith("logistic") else 1e-10
    assert mean == pytest.approx(np.sum(mass * x), abs=tolerance)


def test_students_mean_is_its_location_where_it_has_none():
    outputs = {"output": jnp.float32([3.0]), "logvar": jnp.zeros(()), "student_df": jnp.float32(1)}
    assert LIKELIHOODS["student"].mean(outputs)[0] == 3


@pytest.mark.parametrize("name", [n for n in NAMES if LIKELIHOODS[n].bias])
def test_bias_gives_the_mean(name):
    likelihood = LIKELIHOODS[name]
    mean = np.float32([0.001, 0.2, 0.5, 0.5 + 1e-6, 0.9, 0.999])
    if name in LOGISTIC:  # of those which nothing is cut off
        mean = np.float32([0.1, 0.2, 0.5, 0.9])
    outputs = {"output": likelihood.bias(jnp.asarray(mean)), "logvar": jnp.float32(-11)}
    # Near ½ the continuous Bernoulli's logit is 12 times as far from 0 as the mean from ½, both
    # to float32's last digit.
    np.testing.assert_allclose(likelihood.mean(outputs), mean, rtol=1e-5)


@pytest.mark.parametrize("name", ["categorical", "logistic_mixture"])
def test_no_bias_where_a_mean_does_not_say_it(name):
    assert LIKELIHOODS[name].bias is None


@pytest.mark.parametrize(
    ("name", "least"), [("bernoulli", 5e-5), ("continuous_bernoulli", 0.1 / 255)]
)
def test_a_pixel_that_is_always_black_stays_possible(name, least):
    likelihood = LIKELIHOODS[name]
    ends = likelihood.mean({"output": likelihood.bias(jnp.float32([0, 1]))})
    np.testing.assert_allclose(ends, [least, 1 - least], rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_levels_are_those_of_the_sample_and_the_sum(name):
    likelihood = LIKELIHOODS[name]
    assert likelihood.levels == (256 if name.startswith(("logistic", "categorical")) else 0)
    x = compiled(name, "sample")(jax.random.key(3), outputs_of(name, (4, 4, 3), dtype=np.float32))
    low, high = likelihood.support
    assert np.all((low <= x) & (x <= high))
    if likelihood.levels:
        np.testing.assert_array_equal(x, np.round(x * 255) / np.float32(255))


# Against scipy; those of 256 levels in tests/vae/test_discretized.py


def scipy_of(name, outputs):
    """scipy's distribution of one value; of the two Bernoulli, where it has one."""
    output = float(outputs["output"][0])
    if name == "continuous_bernoulli":  # for a negative logit an exponential cut off at 1
        return scipy.stats.truncexpon(b=-output, scale=-1 / output)
    if name == "bernoulli":
        return scipy.stats.bernoulli(scipy.special.expit(output))
    scale = np.exp(0.5 * float(np.ravel(outputs["logvar"])[0]))
    if name.startswith("student"):
        return scipy.stats.t(float(outputs["student_df"]), output, scale)
    return getattr(scipy.stats, {"g": "norm", "l": "laplace"}[name[0]])(output, scale)


@pytest.mark.parametrize("name", ["bernoulli", "continuous_bernoulli", *REAL_LINE])
def test_is_scipys(name):
    with jax.enable_x64(True):
        outputs = outputs_of(name, (1,), seed=2)
        if name == "continuous_bernoulli":
            outputs["output"] = -jnp.abs(outputs["output"])
        own = scipy_of(name, outputs)
        if name == "bernoulli":
            x = np.array([0.0, 1.0])
            expected = own.logpmf(x)
        else:
            x = own.ppf(np.linspace(0.001, 0.999, 50))
            expected = own.logpdf(x)
        value = log_probs(name)(jnp.asarray(x)[:, None], outputs)
        assert value.dtype == jnp.float64
    np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-12)


# Samples


def draws(name, outputs, n):
    keys = jax.random.split(jax.random.key(0), n)
    sample = jax.jit(jax.vmap(lambda key: LIKELIHOODS[name].sample(key, outputs)))
    return np.float64(sample(keys))


@pytest.mark.parametrize("name", [n for n in OWN if n in REAL_LINE])
def test_samples_have_the_distribution(name):
    # Kolmogorov and Smirnov: √n·D passes 2.3 once in 20,000 times.
    outputs, n = outputs_of(name, (3,), dtype=np.float32), 20_000
    x = draws(name, outputs, n)
    for i in range(3):
        one = outputs | {"output": outputs["output"][i : i + 1]}
        one["logvar"] = jnp.broadcast_to(outputs["logvar"], (3,))[i : i + 1]
        distance = scipy.stats.kstest(x[:, i], scipy_of(name, one).cdf).statistic
        assert np.sqrt(n) * distance < 2.3


def test_samples_of_the_continuous_bernoulli_have_the_distribution():
    logits, n = np.float32([-30.0, -1.0, 1e-4, 0.0, 2.0, 1e3]), 20_000
    x = draws("continuous_bernoulli", {"output": jnp.asarray(logits)}, n)
    assert x.min() >= 0 and x.max() <= 1
    for i, logit in enumerate(np.float64(logits)):
        t = -abs(logit) or -1e-9  # the same to nine digits
        y = 1 - x[:, i] if logit > 0 else x[:, i]
        # 1 − x has float32's grain of 6e-8 around 1, 6e-5 of the scale of the last.
        distance = scipy.stats.kstest(y, lambda y, t=t: np.expm1(t * y) / np.expm1(t)).statistic
        assert np.sqrt(n) * distance < 2.3


@pytest.mark.parametrize("name", ["bernoulli", *(n for n in OWN if n in DISCRETE)])
def test_samples_have_the_frequencies_of_log_prob(name):
    outputs, n = outputs_of(name, (1,), seed=7, dtype=np.float32), 50_000
    values = LEVELS if LIKELIHOODS[name].levels else np.array([0.0, 1.0])
    p = np.exp(np.float64(log_probs(name)(jnp.float32(values)[:, None], outputs)))
    counts = np.bincount(
        np.rint(draws(name, outputs, n)[:, 0] * (len(values) - 1)).astype(int),
        minlength=len(values),
    )
    # Levels expected less than 25 times are one together, so that counts are nearly normal; then
    # chi-square, which passes its mean by 5 of its standard deviations once in 1e5 times or so.
    rare = n * p < 25
    expected, seen = np.r_[n * p[~rare], n * p[rare].sum() + 1e-9], np.r_[counts[~rare], 0]
    seen[-1] = counts[rare].sum()
    if expected[-1] < 25:
        assert seen[-1] < 60
        expected, seen = expected[:-1], seen[:-1]
    statistic, df = np.sum((seen - expected) ** 2 / expected), max(len(seen) - 1, 1)
    assert statistic < df + 5 * np.sqrt(2 * df) + 15


# Tails, in float32


@functools.cache
def values_and_slopes(name):
    return jax.jit(jax.vmap(jax.value_and_grad(LIKELIHOODS[name].log_prob, (0, 1))))


def finite(name, x, outputs):
    """Whether the value and all gradients are, over leading axes [n] of x and of the outputs."""
    leaves = jax.tree.leaves(values_and_slopes(name)(x, outputs))
    return all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "logistic_mixture"])
def test_tails_are_finite(name):
    extremes = (-1e4, -100.0, 0.0, 0.5, 1.0, 100.0, 1e4)
    logvars = 2 * np.array([-30.0, -10.0, 0.0, 10.0])  # of scales from e^−30 to e^10
    cases = itertools.product((0.0, 128 / 255, 1.0), extremes, logvars)
    x, output, logvar = (jnp.asarray(c, jnp.float32)[:, None] for c in np.transpose(list(cases)))
    outputs = {"output": output, "logvar": logvar}
    if name == "categorical":  # one logit so, all of the others 0 or the opposite
        chosen = jnp.arange(256)[None] == 128
        outputs["output"] = jnp.where(chosen, output, 0.0)[:, None]
        opposite = jnp.where(chosen, output, -output)[:, None]
        assert finite(name, x, outputs | {"output": opposite})
    for df in (0.01, 1.0, 1e8):
        numbers = {"student_df": jnp.full(len(x), df)} if name.startswith("student") else {}
        assert finite(name, x, outputs | numbers)
        if not numbers:
            break
    # The mean too, and a draw.
    if name not in REAL_LINE:
        rngs = jax.random.split(jax.random.key(0), len(x))
        mean = jax.jit(jax.vmap(LIKELIHOODS[name].mean))(outputs)
        sample = jax.jit(jax.vmap(LIKELIHOODS[name].sample))(rngs, outputs)
        for value in (mean, sample):
            assert np.all((value >= 0) & (value <= 1))
