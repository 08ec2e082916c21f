"""Bounds on log p(x): against NumPy float64, their derivatives, their order and their limits."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special

from vae import bounds
from vae.bounds import BOUNDS, ESTIMATORS
from vae.hparams import HParams

pytestmark = pytest.mark.usefixtures("x64")

RNG = np.random.default_rng(0)
LOG_W = RNG.normal(size=(3, 4)) * 2 - 5  # M = 3 groups of K = 4


# The papers' formulas as they stand, of w itself: good for moderate log-weights in float64.
def elbo(log_w):
    return np.mean(log_w)


def iwae(log_w):
    return np.log(np.mean(np.exp(log_w)))


def miwae(log_w):
    return np.mean([iwae(group) for group in log_w])


def ciwae(beta):
    return lambda log_w: beta * elbo(log_w) + (1 - beta) * iwae(log_w)


def renyi(alpha):
    if alpha == 1:
        return elbo
    return lambda log_w: np.log(np.mean(np.exp(log_w) ** (1 - alpha))) / (1 - alpha)


# (bound, hyperparameters, formula, error of the formula): that of ᾱ = .9995 has 1e-16/5e-4 itself.
CASES = {
    "elbo": ("elbo", {}, elbo, 1e-14),
    "iwae": ("iwae", {}, iwae, 1e-14),
    "miwae": ("miwae", {}, miwae, 1e-14),
    "piwae": ("piwae", {}, iwae, 1e-14),
    **{f"ciwae {b}": ("ciwae", {"ciwae_beta": b}, ciwae(b), 1e-14) for b in (0.0, 0.5, 1.0)},
    **{
        f"renyi {a}": ("renyi", {"renyi_alpha": a}, renyi(a), 1e-11 if a == 0.9995 else 1e-14)
        for a in (0.0, 0.3, 0.5, 0.9995, 1.0, 2.0, -1.0)
    },
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def of(name, **hparams):
    """The library's bound as a function of the log-weights alone."""
    return lambda log_w: value_of(name)(log_w, HParams(**hparams))


@functools.cache
def value_of(name):
    return jax.jit(BOUNDS[name].value)


@functools.cache
def everything(name):
    """(numbers, log_w) -> value, ∂B/∂log w, share, path_share, learning_signal; all but one [M, K].

    One program for all hyperparameters: compiling is what costs.
    """
    bound = BOUNDS[name]

    @jax.jit
    def function(numbers, log_w):
        value, v = jax.value_and_grad(lambda w: bound.value(w, numbers))(log_w)
        share, path_share = bound.share(log_w, numbers), bounds.path_share(bound, log_w, numbers)
        return value, v, share, path_share, bounds.learning_signal(bound, log_w, numbers)

    return function


@functools.cache
def second_derivatives(name):
    """(numbers, log_w [n, M, K]) -> ∂²B/∂(log w)², [n, M, K]."""

    def function(numbers, log_w):
        hessian = jax.hessian(lambda w: BOUNDS[name].value(w.reshape(log_w.shape), numbers))
        return jnp.diagonal(hessian(log_w.reshape(-1))).reshape(log_w.shape)

    return jax.jit(jax.vmap(function, (None, 0)))


class TestValue:
    def test_it_is_the_formula(self, case):
        name, hparams, formula, error = case
        value = of(name, **hparams)(jnp.asarray(LOG_W))
        assert float(value) == pytest.approx(formula(LOG_W), rel=error, abs=10 * error)

    def test_one_sample_is_its_log_weight(self, case):
        name, hparams, *_ = case
        value, gradient, *_ = everything(name)(HParams(**hparams), jnp.full((1, 1), -123.456))
        assert float(value) == pytest.approx(-123.456, rel=1e-15)
        assert float(gradient[0, 0]) == pytest.approx(1, rel=1e-15)

    def test_groups_of_one_sample_are_the_elbo(self):
        log_w = jnp.asarray(LOG_W).reshape(-1, 1)
        assert float(of("miwae")(log_w)) == pytest.approx(elbo(LOG_W), rel=1e-14)

    def test_one_group_is_iwae(self):
        log_w = jnp.asarray(LOG_W).reshape(1, -1)
        assert float(of("miwae")(log_w)) == pytest.approx(iwae(LOG_W), rel=1e-14)

    def test_the_row_of_the_encoder(self):
        assert {name: row.encoder for name, row in BOUNDS.items() if row.encoder} == {
            "piwae": "miwae"
        }


class TestDerivatives:
    # In nats, with weights that are much the same, and with some that are 1e-17 of others.
    SPREADS = np.array([0.1, 2.0, 20.0])

    def test_share_is_one_minus_the_quotient(self, case):
        # v and h have errors of 1e-16 each, and so no quotient where a weight is nothing: v times
        # the share is what is compared for all, and what the estimator uses.
        name, hparams, *_ = case
        numbers = HParams(**hparams)
        log_w = np.random.default_rng(1).normal(size=(3, 3, 4)) * self.SPREADS[:, None, None] - 300
        log_w = jnp.asarray(log_w)
        all_h = second_derivatives(name)(numbers, log_w)
        for h, each in zip(all_h, log_w, strict=True):
            _, v, share, *_ = everything(name)(numbers, each)
            # A log-weight of 300 is rounded by 3e-14.
            np.testing.assert_allclose(v * share, v - h, atol=1e-12)
            usable = np.asarray(v) > 1e-3 * np.max(v)
            assert usable.any()
            np.testing.assert_allclose(share[usable], (1 - h / v)[usable], atol=1e-9)

    def test_the_first_derivatives_sum_to_one(self, case):
        # A constant added to every log-weight is added to the bound.
        name, hparams, *_ = case
        v = everything(name)(HParams(**hparams), jnp.asarray(LOG_W))[1]
        assert float(jnp.sum(v)) == pytest.approx(1, rel=1e-12)

    def test_path_share(self, case):
        name, hparams, *_ = case
        log_w = jnp.asarray(LOG_W)
        h = second_derivatives(name)(HParams(**hparams), jnp.stack([log_w] * 3))[0]
        for a, beta in itertools.product((0.0, 0.25, 0.5, 1.0), (1.0, 0.7)):
            numbers = HParams(dreg_alpha=a, **hparams)
            share = bounds.path_share(BOUNDS[name], log_w, numbers, beta)
            _, v, *_ = everything(name)(numbers, log_w)
            np.testing.assert_allclose(
                v * share, (1 - a) * (v - beta * h) + a * beta * h, atol=1e-12
            )
            if beta == 1:
                np.testing.assert_allclose(share, everything(name)(numbers, log_w)[3], rtol=1e-12)

    def test_dreg_alpha_of_iwae(self):
        # Tucker et al. 2019: α w̃ + (1 − 2α) w̃² on the paths.
        weight = scipy.special.softmax(LOG_W)
        for a in (0.0, 0.5, 1.0):
            share = everything("iwae")(HParams(dreg_alpha=a), jnp.asarray(LOG_W))[3]
            expected = a * weight + (1 - 2 * a) * weight**2
            np.testing.assert_allclose(weight * share, expected, atol=1e-15)


class TestRenyi:
    @staticmethod
    def exact(log_w, alpha):
        """In extended precision, with errors of 1e-19/|1 − α|."""
        log_w, a = np.longdouble(log_w).reshape(-1), 1 - np.longdouble(alpha)
        if a == 0:
            return float(np.mean(log_w))
        top = np.max(a * log_w)
        return float((top + np.log(np.mean(np.exp(a * log_w - top)))) / a)

    @staticmethod
    @functools.cache
    def of_each_alpha():
        axes = HParams(**{f.name: None for f in dataclasses.fields(HParams)} | {"renyi_alpha": 0})
        return jax.jit(jax.vmap(BOUNDS["renyi"].value, (None, axes)))

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("spread", [1.0, 30.0, 300.0, 1e4])
    def test_it_is_exact_on_both_sides_of_one(self, dtype, spread):
        # Two formulas, for small and for large (1 − α)·deviation; neither may lose digits where it
        # is used, nor be an approximation: at a spread of 300 nats and 1 − α = 5e-4 the expansion
        # to second order would be off by half a nat. Rounding: a few ε of the largest log-weight,
        # for the sum of 50 deviations or the largest exponent, and of 1 nat over 1 − α where that
        # is no smaller than 1/deviation; and what is expected is itself off by 5e-12 at 1e-7.5.
        log_w = dtype(np.random.default_rng(2).normal(size=(1, 50)) * spread - 300)
        error = 20 * float(np.finfo(dtype).eps) * float(np.abs(log_w).max()) + 5e-12
        steps = [0.0, *(10.0 ** -np.arange(0, 8, 0.5))]
        alphas = dtype([1 + sign * step for step in steps for sign in (-1, 1)])  # as rounded
        numbers = HParams(renyi_alpha=jnp.asarray(alphas))
        found = self.of_each_alpha()(jnp.asarray(log_w), numbers)
        expected = [self.exact(log_w, alpha) for alpha in alphas]
        np.testing.assert_allclose(found, expected, rtol=0, atol=error)

    def test_derivatives_pass_smoothly_through_one(self):
        # dB/dα = −½ Var[log w] at α = 1, and v there is 1/K + (1 − α)(log w − mean)/K.
        log_w = jnp.asarray(LOG_W)
        for step in (1e-3, 1e-6, 0.0, -1e-6, -1e-3):
            value, v, *_ = everything("renyi")(HParams(renyi_alpha=1 - step), log_w)
            expected = np.mean(LOG_W) + 0.5 * step * np.var(LOG_W)
            # The next orders: a²/6 E[d³] and a²/2 d², with |d| below 5.
            assert float(value) == pytest.approx(expected, abs=step**2 * 5**3 / 6 + 1e-13)
            first_order = (1 + step * (LOG_W - np.mean(LOG_W))) / LOG_W.size
            np.testing.assert_allclose(v, first_order, atol=step**2 * 5**2 / LOG_W.size + 1e-13)

    def test_the_ends_are_the_elbo_and_iwae(self):
        log_w = jnp.asarray(LOG_W)
        for alpha, name in ((1.0, "elbo"), (0.0, "iwae")):
            found = everything("renyi")(HParams(renyi_alpha=alpha), log_w)
            expected = everything(name)(HParams(), log_w)
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), found, expected)

    def test_it_falls_with_alpha(self):
        # A power mean of the weights with exponent 1 − α.
        values = [
            float(of("renyi", renyi_alpha=a)(jnp.asarray(LOG_W))) for a in np.linspace(-2, 3, 11)
        ]
        assert np.all(np.diff(values) < -0.01)
        assert np.min(LOG_W) < values[-1] and values[0] < np.max(LOG_W)


class TestOrder:
    def test_of_the_bounds(self):
        # Power means and Jensen, for every set of weights, not only on average.
        for seed in range(20):
            log_w = jnp.asarray(np.random.default_rng(seed).normal(size=(3, 4)) * 2)
            low, high = of("elbo")(log_w), of("iwae")(log_w)
            for name in ("renyi", "miwae", "ciwae"):  # α = β = ½
                assert low + 1e-3 < of(name)(log_w) < high - 1e-3
            assert of("renyi", renyi_alpha=2.0)(log_w) < low - 1e-3

    @pytest.mark.parametrize(
        ("name", "hparams", "sign"),
        [
            ("elbo", {}, 0),
            ("iwae", {}, 1),
            ("miwae", {}, 1),
            ("ciwae", {"ciwae_beta": 0.5}, 1),
            ("renyi", {"renyi_alpha": 0.5}, 1),
            # 1/(1 − α) < 0 makes the logarithm convex: Li and Turner 2016, theorem 2.
            ("renyi", {"renyi_alpha": 2.0}, -1),
        ],
    )
    def test_the_expectation_in_k(self, name, hparams, sign):
        # Exactly, by all samples of K from six log-weights without replacement: a sample of K is a
        # sample of its subsets of K − 1, so that Burda et al. 2016, theorem 1, holds for these too.
        log_w = np.random.default_rng(3).normal(size=6) * 2
        subsets = [
            jnp.asarray(list(itertools.combinations(log_w, k)))[:, None] for k in range(1, 7)
        ]
        bound = jax.vmap(of(name, **hparams))
        expected = [float(m) for m in jax.jit(lambda s: [jnp.mean(bound(a)) for a in s])(subsets)]
        assert expected[0] == pytest.approx(np.mean(log_w), rel=1e-12)
        steps = np.diff(expected)
        assert np.all(np.abs(steps) < 1e-12) if sign == 0 else np.all(sign * steps > 1e-3)


class TestExtremes:
    SPREADS = {
        "one far above": [-1e4, -1e4, 1e4, -1e4],
        "one far below": [1e4, 1e4, -1e4, 1e4],
        "all far below": [-1e4, -1e4 - 3, -1e4 - 5, -1e4],
        "all far above": [1e4, 1e4 - 3, 1e4 - 5, 1e4],
        "as good as −∞": [-1e30, -7.0, -1e30, -9.0],
        "equal": [-300.0] * 4,
    }

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    @pytest.mark.parametrize("spread", SPREADS)
    def test_all_is_finite(self, case, spread, dtype):
        name, hparams, *_ = case
        log_w = jnp.asarray([self.SPREADS[spread]] * 2, dtype)
        numbers = jax.tree.map(lambda a: jnp.asarray(a, dtype), HParams(**hparams))
        value, v, share, _, signal = everything(name)(numbers, log_w)
        assert value.dtype == v.dtype == share.dtype == signal.dtype == dtype
        assert all(np.all(np.isfinite(a)) for a in (value, v, share, signal))
        # Means of the log-weights of one kind or another, the derivatives their weights.
        rounding = 8 * float(np.finfo(dtype).eps)
        slack = rounding * np.abs(log_w).max()
        assert np.min(log_w) - slack <= float(value) <= np.max(log_w) + slack
        assert np.all(np.asarray(v) >= -rounding)
        # An error of ε in the largest exponent (1 − α)·log w is one of that many ε in the weights.
        np.testing.assert_allclose(np.sum(v), 1, atol=rounding + min(4 * slack, 0.01))

    @pytest.mark.parametrize("spread", SPREADS)
    def test_iwae_is_log_sum_exp(self, spread):
        log_w = np.float32([self.SPREADS[spread]])
        expected = scipy.special.logsumexp(np.float64(log_w)) - np.log(4)
        for name in ("iwae", "renyi"):
            numbers = HParams(renyi_alpha=np.float32(0))
            found = float(everything(name)(numbers, jnp.asarray(log_w))[0])
            assert found == pytest.approx(expected, rel=1e-6)

    def test_a_weight_that_is_nothing_leaves_the_path_of_the_others(self):
        log_w = jnp.asarray([[0.0, -1e4]], jnp.float32)
        for name in ("iwae", "ciwae"):
            share = everything(name)(HParams(ciwae_beta=np.float32(0)), log_w)[2]
            np.testing.assert_array_equal(share, [[1, 0]])


class TestLearningSignal:
    def test_it_is_vimco(self, case):
        # Mnih and Rezende 2016, eq. 8: the geometric mean of the group's other weights instead.
        name, hparams, formula, error = case
        found = everything(name)(HParams(**hparams), jnp.asarray(LOG_W))[4]
        expected = np.zeros_like(LOG_W)
        for m, k in np.ndindex(LOG_W.shape):
            weights = np.exp(LOG_W)
            weights[m, k] = np.prod(np.delete(weights[m], k)) ** (1 / (LOG_W.shape[1] - 1))
            expected[m, k] = formula(LOG_W) - formula(np.log(weights))
        np.testing.assert_allclose(found, expected, atol=100 * error)

    def test_of_the_elbo_it_is_the_leave_one_out_mean(self):
        # Kool et al. 2019: (log w_k − mean of the others)/K, here with K samples in each of M.
        groups, samples = LOG_W.shape
        others = (LOG_W.sum(1, keepdims=True) - LOG_W) / (samples - 1)
        found = everything("elbo")(HParams(), jnp.asarray(LOG_W))[4]
        np.testing.assert_allclose(found, (LOG_W - others) / (groups * samples), atol=1e-14)

    def test_a_baseline_does_not_see_its_own_sample(self, case):
        name, hparams, *_ = case
        moved = LOG_W.copy()
        moved[1, 2] += 3

        def bound_and_baseline(log_w):
            value, _, _, _, signal = everything(name)(HParams(**hparams), jnp.asarray(log_w))
            return float(value), float(value - signal[1, 2])

        (before, baseline), (after, same) = bound_and_baseline(LOG_W), bound_and_baseline(moved)
        assert same == pytest.approx(baseline, abs=1e-11)
        assert abs(after - before) > 1e-3

    def test_of_one_sample_it_is_the_bound(self, case):
        name, hparams, *_ = case
        log_w = jnp.asarray(LOG_W).reshape(-1, 1)
        value, _, _, _, signal = everything(name)(HParams(**hparams), log_w)
        np.testing.assert_array_equal(signal, jnp.full((12, 1), value))


def test_the_modes_of_the_estimators():
    assert {name: tuple(estimator) for name, estimator in ESTIMATORS.items()} == {
        "reparameterization": ("total", False, False, False),
        "stl": ("path", False, False, False),
        "dreg": ("path", True, False, False),
        "gdreg": ("path", True, True, False),
        "score": ("score", False, False, True),
    }


class TestGaussian:
    """q = N(m, s²) for a posterior N(0, 1): the limits of many samples, and the gaps of few.

    Samples are q's quantiles at (k + ½)/K: a midpoint rule for E_q of a function of log w, so that
    a bound over all of them is its limit of infinitely many samples.
    """

    LOG_P, COUNT = -42.0, 200_000

    @classmethod
    def log_weights(cls, m, variance):
        """log w = log p(x) + log p(z|x) − log q(z|x) of the quantiles, [COUNT]."""
        epsilon = scipy.special.ndtri((np.arange(cls.COUNT) + 0.5) / cls.COUNT)
        z = m + np.sqrt(variance) * epsilon
        return cls.LOG_P + 0.5 * (epsilon**2 + np.log(variance) - z**2)

    @staticmethod
    def divergence(alpha, m, variance):
        """D_α(q||p) = 1/(α − 1) ln ∫ q^α p^(1−α), nats.

        The exponent is −½[α(z − m)²/s² + (1 − α)z²]. With its precision τ = α/s² + 1 − α the
        integral is τ^(−1/2) s^(−α) exp(−½ α(1 − α)m²/(s²τ)), for τ > 0. α = 1: the KL.
        """
        if alpha == 1:
            return 0.5 * (variance + m**2 - 1 - np.log(variance))
        precision = alpha / variance + 1 - alpha
        log_integral = -0.5 * (
            np.log(precision)
            + alpha * np.log(variance)
            + alpha * (1 - alpha) * m**2 / (variance * precision)
        )
        return log_integral / (alpha - 1)

    # What the midpoint rule loses is in the last quantiles: of log w itself, ε²/2 of mass 1/COUNT,
    # below 1e-4; of w^(1−α) for the α and s² here, which grow more slowly than e^{ε²/3}, 1e-3.
    @pytest.mark.parametrize(("m", "variance"), [(0.5, 1.0), (0.7, 1.3), (-0.4, 0.8)])
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0, 1.5])
    def test_renyi(self, m, variance, alpha):
        log_w = jnp.asarray(self.log_weights(m, variance))[None]
        found = float(of("renyi", renyi_alpha=alpha)(log_w))
        expected = self.LOG_P - self.divergence(alpha, m, variance)
        assert found == pytest.approx(expected, abs=1e-4 if alpha <= 1 else 1e-3)
        if alpha:
            assert self.LOG_P - expected > 0.01  # there is something to see

    @pytest.mark.parametrize(("m", "variance"), [(0.5, 1.0), (0.7, 1.3), (0.3, 0.8)])
    def test_chi_square(self, m, variance):
        # Oracle 9: VR(−1) = ½ log E w² = log p + ½ log(1 + χ²), with s_p = 1.
        log_w = jnp.asarray(self.log_weights(m, variance))[None]
        found = float(of("renyi", renyi_alpha=-1.0)(log_w))
        squares = variance * np.exp(m**2 / (2 * variance - 1)) / np.sqrt(2 * variance - 1)
        assert found == pytest.approx(self.LOG_P + 0.5 * np.log(squares), abs=1e-3)
        assert squares > 1.05

    @pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
    def test_ciwae_stays_the_share_of_the_divergence_below(self, beta):
        log_w = jnp.asarray(self.log_weights(0.7, 1.3))[None]
        gap = self.LOG_P - float(of("ciwae", ciwae_beta=beta)(log_w))
        assert gap == pytest.approx(beta * self.divergence(1, 0.7, 1.3), abs=1e-4)

    def test_elbo_of_an_offset(self):
        # Oracle 8: ½Δ².
        log_w = jnp.asarray(self.log_weights(0.5, 1.0))[None]
        assert self.LOG_P - float(of("elbo")(log_w)) == pytest.approx(0.125, abs=1e-6)

    @staticmethod
    def gap(samples, m):
        """log p − L_K of an offset m, without any sampling.

        E log S = ∫ (e^{−t} − E e^{−tS})/t dt (Frullani), and E e^{−tS} = φ(t/K)^K of a mean S of K
        independent weights w = exp(−mε − m²/2), whose φ(t) = E e^{−tw} is a Gauss-Hermite sum.
        """
        nodes, mass = np.polynomial.hermite_e.hermegauss(80)
        w, mass = np.exp(-m * nodes - m**2 / 2), mass / mass.sum()

        def integrand(log_t):  # dt/t = d log t
            t = np.exp(log_t)
            return np.exp(-t) - np.sum(mass * np.exp(-t / samples * w)) ** samples

        return -scipy.integrate.quad(integrand, -40, 8, epsabs=1e-11, limit=500)[0]

    @pytest.mark.parametrize("samples", [1, 10, 100])
    def test_iwae_and_miwae_of_an_offset(self, samples):
        # Oracle 8, |Δ|² = .25. MIWAE of any number of groups is on average IWAE of one. w − 1 has
        # mean 0 and takes out the first order of the noise.
        offset, groups = 0.5, 2
        measured = {1: 0.1251, 10: 0.0138, 100: 0.0013}  # studies.md
        expected = self.gap(samples, offset)
        assert expected == pytest.approx(measured[samples], abs=2e-4)
        noise = np.random.default_rng(4).normal(size=(400_000 // samples, groups, samples))
        log_ratio = -offset * noise - offset**2 / 2
        log_w = jnp.asarray(self.LOG_P + log_ratio)
        for name, kept in (("miwae", log_w), ("iwae", log_w[:, :1])):
            values = np.asarray(jax.vmap(of(name))(kept))
            control = np.exp(log_ratio[:, : kept.shape[1]]).mean(axis=(1, 2)) - 1
            gaps = self.LOG_P - values + control
            error = gaps.std() / np.sqrt(len(gaps))
            assert abs(gaps.mean() - expected) < 4 * error, name
            assert 4 * error < 0.1 * expected

    def test_gap_times_k_tends_to_half_the_chi_square(self):
        # Oracle 8: K(log p − L_K) → (e^{Δ²} − 1)/2, the next order falling as 1/K.
        limit = (np.exp(0.25) - 1) / 2
        errors = [abs(k * self.gap(k, 0.5) / limit - 1) for k in (10, 100, 1000)]
        assert errors[0] > 5 * errors[1] > 25 * errors[2]
        assert errors[2] < 1e-3
