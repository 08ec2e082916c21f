import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from vae import distributions


def general_kl(mean_q, var_q, mean_p, var_p):
    """Oracle 1: ½ Σ [ln(σ_p²/σ_q²) + (σ_q² + Δμ²)/σ_p² − 1], each dimension, in float64."""
    return 0.5 * (np.log(var_p / var_q) + (var_q + (mean_q - mean_p) ** 2) / var_p - 1)


def test_kl_is_the_general_formula():
    rng = np.random.default_rng(0)
    mean, logvar = rng.normal(size=(2, 1000)) * 2
    expected = general_kl(mean, np.exp(logvar), 0.0, 1.0)
    # In float64 all but the last few digits; in float32, 1e-6 of the largest of the three terms
    # that are added.
    with jax.enable_x64(True):
        kl = distributions.kl_standard_normal(jnp.asarray(mean), jnp.asarray(logvar))
        assert kl.dtype == jnp.float64
        np.testing.assert_allclose(kl, expected, rtol=1e-10, atol=1e-15)
    single = distributions.kl_standard_normal(jnp.float32(mean), jnp.float32(logvar))
    largest = np.maximum(mean**2, np.maximum(np.abs(logvar), np.exp(logvar)))
    assert np.all(np.abs(single - expected) <= 1e-6 * largest)


def test_kl_is_what_monte_carlo_says():
    mean, logvar, n = np.array([0.7, -1.5, 0.0]), np.array([-1.0, 0.8, -3.0]), 200_000
    noise = np.random.default_rng(1).normal(size=(n, 3))
    z = mean + np.exp(0.5 * logvar) * noise
    draws = -0.5 * noise**2 - 0.5 * logvar + 0.5 * z**2  # log q(z) − log p(z)
    error = draws.mean(0) - distributions.kl_standard_normal(jnp.float32(mean), jnp.float32(logvar))
    assert np.all(np.abs(error) < 5 * draws.std(0) / np.sqrt(n))


@pytest.mark.parametrize("logvar", [0.1, -0.1, 1e-2, -1e-2, 1e-3, -1e-3, 1e-4])
def test_kl_keeps_its_digits_near_the_prior(logvar):
    value = np.float64(np.float32(logvar))
    exact = 0.5 * (np.expm1(value) - value)
    kl = distributions.kl_standard_normal(jnp.zeros(1), jnp.float32([logvar]))[0]
    # Two roundings of numbers of the size of logvar. exp(v) − 1 − v instead rounds at the size of
    # 1 and is off by up to 6e-8, more than this allows.
    assert abs(kl - exact) <= 2.0**-23 * abs(value)
    assert kl >= 0


def test_kl_of_the_prior_is_zero_with_zero_gradient():
    def kl(mean, logvar):
        return distributions.kl_standard_normal(mean, logvar).sum()

    value, gradients = jax.value_and_grad(kl, (0, 1))(jnp.zeros(3), jnp.zeros(3))
    assert value == 0 and not np.any(gradients)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 2)])
def test_normal_is_scipys(shape):
    x, mean, logvar = np.random.default_rng(2).normal(size=(3, *shape))
    with jax.enable_x64(True):
        for v in (logvar, logvar.flat[0]):  # per dimension, or one for all
            value = distributions.normal_log_prob(*map(jnp.asarray, (x, mean, v)))
            expected = scipy.stats.norm.logpdf(x, mean, np.exp(0.5 * v)).sum()
            assert value.dtype == jnp.float64 and value.shape == ()
            assert float(value) == pytest.approx(expected, rel=1e-13)


def test_bernoulli_is_scipys():
    rng = np.random.default_rng(3)
    logits, x = rng.normal(size=20) * 5, rng.integers(0, 2, 20)
    with jax.enable_x64(True):
        value = distributions.bernoulli_log_prob(jnp.asarray(x, float), jnp.asarray(logits))
    expected = scipy.stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits))).sum()
    assert float(value) == pytest.approx(expected, rel=1e-12)


def test_bernoulli_sums_to_one_over_all_images():
    n = 8
    images = jnp.asarray(list(itertools.product([0.0, 1.0], repeat=n)))
    logits = jnp.linspace(-6.0, 4.0, n)
    log_probs = jax.vmap(distributions.bernoulli_log_prob, (0, None))(images, logits)
    # Each log-probability has an error of some ulps of 20, which is its largest size.
    assert float(jax.nn.logsumexp(log_probs)) == pytest.approx(0, abs=1e-5)


def test_bernoulli_of_a_grey_value_is_the_cross_entropy():
    x, logits = jnp.float32([0.25, 0.9]), jnp.float32([1.5, -0.5])
    p = 1 / (1 + np.exp(-np.float64(logits)))
    expected = np.sum(np.float64(x) * np.log(p) + (1 - np.float64(x)) * np.log(1 - p))
    assert float(distributions.bernoulli_log_prob(x, logits)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("logit", [-1e4, -100.0, 100.0, 1e4])
@pytest.mark.parametrize("x", [0.0, 1.0])
def test_bernoulli_is_finite_at_extreme_logits(x, logit):
    value, slope = jax.value_and_grad(distributions.bernoulli_log_prob, 1)(
        jnp.float32([x]), jnp.float32([logit])
    )
    right = (x == 1) == (logit > 0)
    assert value == (0 if right else -abs(logit))
    assert slope[0] == (0 if right else -np.sign(logit))


def test_bernoulli_has_its_textbook_derivatives():
    # Against the derivatives on paper, twice over, and at 0, where |l| has none.
    x, logits = jnp.array([0.0, 1.0, 0.3, 1.0]), jnp.array([0.0, 2.0, -1.5, -30.0])
    with jax.enable_x64(True):
        x, logits = x.astype(float), logits.astype(float)
        first = jax.grad(distributions.bernoulli_log_prob, 1)(x, logits)
        by_x = jax.grad(distributions.bernoulli_log_prob, 0)(x, logits)
        second = jax.hessian(distributions.bernoulli_log_prob, 1)(x, logits)
        p = scipy.special.expit(np.asarray(logits))
        np.testing.assert_allclose(first, x - p, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(by_x, logits, rtol=0)
        np.testing.assert_allclose(second, np.diag(-p * (1 - p)), rtol=1e-12)


def test_bernoulli_in_float32_is_that_of_float64():
    # log(1 + e) in place of log1p(e): 6e-8 nats a pixel, and the sum's own rounding.
    rng = np.random.default_rng(5)
    logits, x = np.float32(rng.normal(size=784) * 8), np.float32(rng.integers(0, 2, 784))
    exact = scipy.stats.bernoulli.logpmf(x, scipy.special.expit(np.float64(logits))).sum()
    value = float(distributions.bernoulli_log_prob(jnp.asarray(x), jnp.asarray(logits)))
    # The sum: at most log2(784) roundings of each partial sum where it is pairwise.
    rounding = 10 * float(np.spacing(np.float32(-exact)))
    assert value == pytest.approx(exact, abs=784 * 6e-8 + rounding)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 2)])
def test_laplace_and_student_are_scipys(shape):
    x, location, logvar = np.random.default_rng(6).normal(size=(3, *shape)) * 2
    with jax.enable_x64(True):
        for v in (logvar, logvar.flat[0]):  # per dimension, or one for all
            scale, arrays = np.exp(0.5 * v), tuple(map(jnp.asarray, (x, location, v)))
            value = distributions.laplace_log_prob(*arrays)
            expected = scipy.stats.laplace.logpdf(x, location, scale).sum()
            assert value.dtype == jnp.float64 and value.shape == ()
            assert float(value) == pytest.approx(expected, rel=1e-12)
            for df in (0.3, 1.0, 2.5, 40.0, 1e4):
                value = distributions.student_log_prob(*arrays, jnp.asarray(df))
                expected = scipy.stats.t.logpdf(x, df, location, scale).sum()
                # scipy's own constant is a difference of gammas: 1e-16 of 4e4 at the last df.
                assert float(value) == pytest.approx(expected, rel=1e-9)


def test_student_in_float32_keeps_its_constant_at_many_degrees_of_freedom():
    # It is then the Gaussian, up to a term of size 1/df. Some ulps of 1 a value.
    x = jnp.linspace(-2.0, 2.0, 784)
    zero = jnp.zeros(())
    gaussian = distributions.normal_log_prob(x, jnp.zeros(784), zero)
    for df in (1e5, 1e7):
        value = distributions.student_log_prob(x, jnp.zeros(784), zero, jnp.float32(df))
        assert float(value) == pytest.approx(float(gaussian), abs=784 * (4e-7 + 2 / df))


def test_student_far_out_falls_as_a_power():
    # log p → −(ν + 1) log|x|, where the square of x is beyond float32.
    def log_prob(x):
        df = jnp.float32(3)
        return distributions.student_log_prob(x[None], jnp.zeros(1), jnp.zeros(()), df)

    near, far = log_prob(jnp.float32(1e6)), log_prob(jnp.float32(1e30))
    assert float(far - near) == pytest.approx(-4 * 24 * np.log(10), rel=1e-6)
    assert float(jax.grad(log_prob)(jnp.float32(1e20))) == pytest.approx(-4e-20, rel=1e-5)


def test_log_gamma_half_step_is_scipys():
    with jax.enable_x64(True):
        for a in (1e-3, 0.15, 0.5, 1.0, 3.7, 20.0, 100.0):
            value = float(distributions.log_gamma_half_step(jnp.asarray(a)))
            expected = scipy.special.gammaln(a + 0.5) - scipy.special.gammaln(a)
            # gammaln(100) = 359, of which its difference has lost some ulps.
            assert value == pytest.approx(expected, abs=4e-13)
    # Γ(1)/Γ(½) = 1/√π and, far out, the asymptote √a.
    assert float(distributions.log_gamma_half_step(jnp.float32(0.5))) == pytest.approx(
        -0.5 * np.log(np.pi), rel=1e-6
    )
    assert float(distributions.log_gamma_half_step(jnp.float32(1e8))) == pytest.approx(
        4 * np.log(10), rel=1e-6
    )


T = [0.0, 1e-20, 1e-8, 1e-4, 0.01, 0.3, 0.4999, 0.5, 0.5001, 1.0, 5.0, 50.0, 1e4]


def exact_mean_decay(t):
    """log ∫₀¹ e^{−tu} du and its derivative: Gauss-Legendre, which for t < 5 has all digits."""
    if t >= 5:
        return np.log(-np.expm1(-t) / t), 1 / np.expm1(np.minimum(t, 700)) - 1 / t
    u, w = np.polynomial.legendre.leggauss(20)
    u, w = (u + 1) / 2, w / 2 * np.exp(-t * (u + 1) / 2)
    return np.log(w.sum()), -(w @ u) / w.sum()


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 2e-14), (np.float32, 5e-7)])
def test_log_mean_decay_keeps_its_digits(dtype, tolerance):
    # The series is off by 2e-14 at most; of the closed form at ½ some ulps of 1/t = 2 are lost.
    with jax.enable_x64(dtype is np.float64):
        t = jnp.asarray(T, dtype)
        function = jax.vmap(jax.value_and_grad(distributions.log_mean_decay))
        value, slope = function(t)
        assert value.dtype == dtype
    expected = np.transpose([exact_mean_decay(float(t)) for t in np.asarray(t)])
    np.testing.assert_allclose(value, expected[0], atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(slope, expected[1], atol=tolerance)


LOGITS = [-1e4, -40.0, -1.0, -0.51, -0.49, -1e-3, -1e-9, 0.0, 1e-9, 0.02, 0.49, 0.51, 3.0, 1e4]


def test_continuous_bernoulli_is_scipys_on_both_sides():
    x = np.array([0.0, 0.1, 0.5, 1.0])
    with jax.enable_x64(True):
        for logit in (-40.0, -1.0, 0.3, 5.0):
            value = jax.vmap(
                lambda x, logit=logit: distributions.continuous_bernoulli_log_prob(
                    x[None], jnp.asarray([logit])
                )
            )(jnp.asarray(x))
            # An exponential cut off at 1; a positive logit's runs from the other end.
            own = scipy.stats.truncexpon(b=abs(logit), scale=1 / abs(logit))
            expected = own.logpdf(x if logit < 0 else 1 - x)
            np.testing.assert_allclose(value, expected, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_continuous_bernoullis_gradient_is_x_less_its_mean(dtype):
    # As of any exponential family; on both sides of the series' end, at 0 and in the tails.
    epsilon = float(np.finfo(dtype).eps)
    with jax.enable_x64(dtype is np.float64):
        logits, x = jnp.asarray(LOGITS, dtype), jnp.full(len(LOGITS), 0.25, dtype)
        slope = jax.grad(distributions.continuous_bernoulli_log_prob, 1)(x, logits)
        mean = distributions.continuous_bernoulli_mean(logits)
        by_x = jax.grad(distributions.continuous_bernoulli_log_prob)(x, logits)
    np.testing.assert_array_equal(by_x, np.asarray(LOGITS, dtype))
    exact = np.array([-exact_mean_decay(abs(t))[1] for t in np.float64(np.asarray(logits))])
    exact = np.where(np.asarray(LOGITS) > 0, 1 - exact, exact)
    # Differences of numbers up to 2; the series leaves 2e-14.
    np.testing.assert_allclose(mean, exact, atol=8 * epsilon + 2e-14)
    np.testing.assert_allclose(slope, 0.25 - exact, atol=8 * epsilon + 2e-14)
    # Near 0 to relative precision.
    assert float(mean[0]) == pytest.approx(1e-4, rel=8 * epsilon)


def test_continuous_bernoullis_quantile_inverts_its_distribution():
    u = np.float32(np.linspace(0, 1, 64, endpoint=False))
    for logit in LOGITS:
        x = distributions.continuous_bernoulli_quantile(
            jnp.asarray(u), jnp.full(64, logit, jnp.float32)
        )
        x = np.float64(1 - x) if logit > 0 else np.float64(x)
        t = max(abs(np.float64(np.float32(logit))), 1e-12)
        # An error of an ulp of 1 in x (of 1 − x) is t ulps in u.
        np.testing.assert_allclose(np.expm1(-t * x) / np.expm1(-t), u, atol=3e-7 * max(1, t))
        assert np.all((x >= 0) & (x <= 1))
