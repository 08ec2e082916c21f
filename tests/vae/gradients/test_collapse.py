import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae.building import examples, hand_made, parameters
from vae import elbo, model, objectives, penalties
from vae.data import Examples, Transform
from vae.errors import UserError
from vae.gradients import collapse
from vae.spec import ModelSpec, Spec

MLP = ModelSpec((4,), 3, depth=1, width=4, activation="tanh", likelihood="gaussian")
DATA = examples(7, 4)
KEY = jax.random.key(0)


def state_of(spec, params=None, stats=None, **hparams):
    made = parameters(spec)
    population = hand_made(Spec(spec), params or made[0], stats or made[1], **hparams)
    return jax.tree.map(lambda a: jnp.asarray(a[0]), population.states)


@functools.partial(jax.jit, static_argnames=("spec", "thresholds"))
def measured(spec, data, state, rng, thresholds=(0.01,)):
    return collapse.collapse(spec, data, state, rng, thresholds=thresholds, batch_size=100)


@functools.partial(jax.jit, static_argnames=("spec", "num_samples"))
def means_of(spec, data, state, rng, num_samples):
    return collapse.posterior_means(spec, data, state, rng, num_samples=num_samples, batch_size=50)


class TestInformation:
    @pytest.mark.usefixtures("x64")
    def test_of_a_gaussian_aggregate(self):
        # Oracle 18: means N(0, A), variances D, so q(z) = N(0, A + D).
        rng = np.random.default_rng(0)
        root, logvar = rng.normal(size=(3, 3)), np.log([0.5, 1.0, 2.0])
        total = root @ root.T + np.diag(np.exp(logvar))
        exact = 0.5 * (np.linalg.slogdet(total)[1] - logvar.sum())
        draws, n = 20, 400
        mean = rng.normal(size=(draws, n, 3)) @ root.T
        z = mean + np.exp(0.5 * logvar) * rng.normal(size=mean.shape)
        logvars = jnp.broadcast_to(jnp.asarray(logvar), (n, 3))
        gains = jax.jit(jax.vmap(lambda z, mean: penalties.information_gains(z, mean, logvars)))
        seen = np.mean(gains(jnp.asarray(z), jnp.asarray(mean)), axis=1)
        # E q(z|x)/q(z) = |A + D|/|D| = e^{2I}. In q(z_n) estimated, x_n itself adds e^{2I}/N to the
        # density on average, less the 1/N of its absence; its variance (e^{2I} − 1)/N lowers the
        # logarithm by half of that: the bias is −(e^{2I} − 1)/2N, and a tenth of it for the rest.
        bias = -(np.exp(2 * exact) - 1) / (2 * n)
        error = seen.std(ddof=1) / np.sqrt(draws)
        assert abs(seen.mean() - exact - bias) < 4 * error + 0.1 * abs(bias)
        assert error < 0.02 and exact > 0.5

    def test_the_ceiling(self):
        # Codes that do not overlap have ln N, however much they say; and no sample says more.
        mean = 100 * jnp.arange(50, dtype=jnp.float32)[:, None]
        gains = penalties.information_gains(mean + 0.3, mean, jnp.zeros((50, 1)))
        np.testing.assert_allclose(gains, np.log(50), rtol=1e-6)

    def test_no_information(self):
        z = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)), jnp.float32)
        gains = penalties.information_gains(z, jnp.ones((50, 2)), jnp.zeros((50, 2)))
        np.testing.assert_allclose(gains, 0, atol=1e-5)


def test_collapsed_dimensions_by_hand():
    kl = np.full((200, 6), 0.009)
    kl[:, 1] = 0.011  # above in every example
    kl[:2, 2] = 5.0  # in 1% of them, though that is most of its mean
    kl[:3, 3] = 5.0  # in more
    kl[:, 4] = np.nan
    kl[:, 5] = 0.01  # not below
    found = collapse.collapsed(jnp.float32(kl), epsilon=0.01, delta=0.01)
    np.testing.assert_array_equal(found, [True, False, True, False, False, False])
    everything = collapse.collapsed(jnp.float32(kl), epsilon=10.0, delta=0.0)
    np.testing.assert_array_equal(everything, [True, True, True, True, False, True])


@pytest.mark.parametrize("n", [100, 700])
def test_exactly_the_share_that_is_allowed(n):
    # .01·n is not a float's whole number, but n/100 examples are allowed.
    for extra, expected in ((0, True), (1, False)):
        kl = jnp.zeros((n, 1)).at[: n // 100 + extra].set(1.0)
        assert bool(collapse.collapsed(kl, epsilon=0.01, delta=0.01)[0]) == expected


def test_active_units_over_thresholds():
    x = np.random.default_rng(0).normal(size=(80, 1))
    x = (x - x.mean()) / x.std()
    location = jnp.float32(x * np.sqrt([0.009, 0.011, 0.5, 0.0]) + np.array([0, 50, 0, 7]))
    found = collapse.active_units(location, (1e-4, 0.01, 0.1, 1.0))
    np.testing.assert_array_equal(found, [3, 2, 1, 0])
    assert found.dtype == jnp.int32


def linear_state():
    """q(z|x): z_0 ~ N(2x_0, ½²); z_1 ~ N(0, 1), the prior; z_2 ~ N(3, 1), off it, the same for all.

    z_3 ~ N(0, ½²).
    """
    spec = ModelSpec((4,), 4, depth=0, likelihood="gaussian")
    params = jax.tree.map(jnp.zeros_like, parameters(spec)[0])
    params["encoder"]["mean"] = {
        "kernel": jnp.diag(jnp.float32([2, 0, 0, 0])),
        "bias": jnp.float32([0, 0, 3, 0]),
    }
    params["encoder"]["scale"]["bias"] = jnp.float32([-2 * np.log(2), 0, 0, -2 * np.log(2)])
    return spec, state_of(spec, params)


def test_a_hand_made_posterior():
    spec, state = linear_state()
    # Quantiles of N(0, 1) for x_0: q(z_0) is N(0, 4 + ¼) to the grid's error, the tails beyond it.
    n = 300
    grid = scipy.stats.norm.ppf((np.arange(n) + 0.5) / n)
    raw = np.random.default_rng(0).normal(size=(n, 4))
    raw[:, 0] = grid
    data = Examples(jnp.float32(raw), Transform())
    program = jax.vmap(functools.partial(measured, spec, data, state, thresholds=(0.01, 5.0)))
    found = jax.tree.map(np.float64, program(jax.random.split(KEY, 50)))

    rest = [0, 4.5, 0.5 * (0.25 - 1) + np.log(2)]
    kl = 0.5 * (4 * grid**2 + 0.25 - 1) + np.log(2)
    np.testing.assert_allclose(found["kl_per_dim"][0], [kl.mean(), *rest], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["rate"], kl.mean() + sum(rest), rtol=1e-5)
    np.testing.assert_array_equal(found["active_units"], np.tile([1, 0], (50, 1)))
    np.testing.assert_array_equal(found["collapsed"][0], [0, 1, 0, 0])
    np.testing.assert_allclose(found["fraction_collapsed"], 0.25)
    np.testing.assert_allclose(found["information_ceiling"], np.log(n), rtol=1e-6)
    # The information is the channel's, ½ ln(1 + 4/¼). The grid misses x beyond ±2.9: variance .99.
    error = found["mutual_information"].std(ddof=1) / np.sqrt(50)
    exact = 0.5 * np.log(1 + 16 * np.mean(grid**2))
    assert abs(found["mutual_information"].mean() - exact) < 4 * error + 0.005
    assert error < 0.01
    np.testing.assert_allclose(
        found["marginal_kl"], found["rate"] - found["mutual_information"], rtol=1e-5
    )
    # KL(q(z) || p(z)) of Gaussians, but for dimension 0's grid.
    variance = 4 * np.mean(grid**2) + 0.25
    marginal = 0.5 * (variance - 1 - np.log(variance)) + sum(rest)
    assert abs(found["marginal_kl"].mean() - marginal) < 4 * error + 0.005


def test_what_has_no_closed_form_is_left_out():
    plain = {"rate", "active_units"}
    by_dimension = {"kl_per_dim", "collapsed", "fraction_collapsed"}
    information = {"mutual_information", "information_ceiling", "marginal_kl"}
    for changed, keys in (
        ({}, plain | by_dimension | information),
        ({"posterior": "full"}, plain | by_dimension),
        ({"prior": "mixture", "prior_components": 2}, plain | information),
        ({"posterior": "coupling", "flow_layers": 1, "flow_width": 4}, plain),
    ):
        spec = dataclasses.replace(MLP, **changed)
        found = jax.eval_shape(functools.partial(measured, spec, DATA), state_of(spec), KEY)
        assert set(found) == keys, changed


@pytest.mark.parametrize("posterior", ["point", "vq", "categorical"])
def test_a_posterior_without_a_density_is_refused(posterior):
    spec = dataclasses.replace(MLP, posterior=posterior)
    for measure in (
        collapse.collapse,
        functools.partial(collapse.posterior_means, num_samples=10),
    ):
        with pytest.raises(UserError, match=f"model.posterior: {posterior}"):
            measure(spec, DATA, state_of(MLP), KEY)


FLOW = dataclasses.replace(MLP, posterior="coupling", flow_layers=1, flow_width=4)


@pytest.mark.parametrize("spec", [MLP, FLOW])
def test_posterior_means_are_the_definition(spec):
    """Weights of all samples at once, in NumPy; 70 samples are more than one chunk."""
    num_samples, state = 70, state_of(spec)

    @jax.jit
    def of_samples(i, x):
        rng = jax.random.fold_in(KEY, i)
        noise = [model.noise(spec, jax.random.fold_in(rng, c), 64) for c in range(2)]
        terms, _ = elbo.terms(
            spec,
            state.params,
            state.stats,
            state.hparams,
            x,
            jnp.concatenate(noise)[:num_samples],
            train=False,
        )
        return objectives.iw_log_weights(terms), terms.z, terms.posterior.mean

    found = means_of(spec, DATA, state, KEY, num_samples)
    for i, x in enumerate(DATA.raw):
        log_w, z, mean = jax.tree.map(np.float64, of_samples(i, x))
        weights = scipy.special.softmax(log_w)
        encoder = mean if spec is MLP else z.mean(0)
        np.testing.assert_allclose(found.encoder[i], encoder, rtol=1e-4, atol=1e-5)
        expected = encoder + weights @ z - z.mean(0)
        np.testing.assert_allclose(found.model[i], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.effective_samples[i], 1 / np.sum(weights**2), rtol=1e-4)


# x = zW + σ·noise with orthogonal rows: posterior N(x·Wᵀ v/σ², v), v_j = 1/(1 + |w_j|²/σ²), which
# a diagonal q can be.
SIGMA = 1.0
W = np.array([[0.8, 0.6, 0.0, 0.0], [0.0, 0.0, -0.9, 1.2]])
VARIANCE = 1 / (1 + np.square(W).sum(1) / SIGMA**2)
LINEAR = ModelSpec((4,), 2, depth=0, likelihood="gaussian")


def linear_gaussian(share):
    """(state, data, posterior means) where the encoder's mean is so much of the posterior's."""
    params = {
        "encoder": {
            "mean": {"kernel": share * W.T * VARIANCE / SIGMA**2, "bias": np.zeros(2)},
            "scale": {"kernel": np.zeros((4, 2)), "bias": np.log(VARIANCE)},
        },
        "decoder": {"output": {"kernel": W, "bias": np.zeros(4)}},
    }
    state = state_of(LINEAR, jax.tree.map(jnp.float32, params), sigma=SIGMA)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2)) @ W + SIGMA * rng.normal(size=(200, 4))
    return state, Examples(jnp.float32(x), Transform()), x @ W.T * VARIANCE / SIGMA**2


def test_no_lag_where_q_is_the_posterior():
    state, data, exact = linear_gaussian(1.0)
    means = means_of(LINEAR, data, state, KEY, 100)
    # All weights are equal, to float32's rounding of log w of about 10: 1e-6.
    np.testing.assert_allclose(means.effective_samples, 100, rtol=1e-5)
    np.testing.assert_allclose(means.model, exact, atol=2e-5)
    found = collapse.lag(means)
    np.testing.assert_allclose(found.slopes, 1, atol=1e-5)
    assert float(found.slope) == pytest.approx(1, abs=1e-5)
    assert float(found.rms) < 1e-5


def test_half_of_the_way_is_half_the_slope():
    state, data, exact = linear_gaussian(0.5)
    num_samples = 2000
    means = means_of(LINEAR, data, state, KEY, num_samples)
    np.testing.assert_allclose(means.encoder, exact / 2, rtol=1e-4, atol=1e-6)

    # Oracle 8's offset Δ = ½m/√v at the same variance: E w²/(E w)² = exp |Δ|², of which the
    # estimate from K samples is off by √(exp(4|Δ|²) − 1)/√K: 6% where |Δ|² < ½.
    offset = np.square(exact / 2 / np.sqrt(VARIANCE)).sum(1)
    near = offset < 0.5
    ratio = np.asarray(means.effective_samples) / (num_samples * np.exp(-offset))
    assert near.sum() > 50
    np.testing.assert_allclose(ratio[near].mean(), 1, atol=0.03)

    # Each mean is off by √(v·exp|Δ|²/K)·(1 + |Δ|²) or less: some .05, most of it where |Δ|² > 2.
    # Over 400 of them, spread by .7: .05/(.7·√400) = .004 in the slope.
    error = np.asarray(means.model) - exact
    assert np.sqrt(np.mean(error**2)) < 0.05
    found = collapse.lag(means)
    assert float(found.slope) == pytest.approx(0.5, abs=0.015)
    np.testing.assert_allclose(found.slopes, 0.5, atol=0.02)
    np.testing.assert_allclose(found.squared, np.mean((exact / 2) ** 2, axis=0), rtol=0.05)
    assert float(found.rms) == pytest.approx(np.sqrt(np.mean((exact / 2) ** 2)), rel=0.03)


def test_lag_by_hand():
    model_means = np.random.default_rng(0).normal(size=(50, 3)) + np.array([10, 0, -5])
    model_means[:, 2] = -5.0  # a dimension that the model does not use
    slopes = np.array([0.3, -1.0, 0.0])
    encoder = 2 + slopes * model_means
    found = collapse.lag(
        collapse.Means(jnp.float32(encoder), jnp.float32(model_means), jnp.ones(50))
    )
    np.testing.assert_allclose(found.slopes[:2], slopes[:2], rtol=1e-5)
    assert np.isnan(found.slopes[2])
    spread = model_means.var(0)
    pooled = (slopes * spread)[:2].sum() / spread[:2].sum()
    assert float(found.slope) == pytest.approx(pooled, rel=1e-5)
    squared = np.mean((encoder - model_means) ** 2, axis=0)
    np.testing.assert_allclose(found.squared, squared, rtol=1e-5)
    assert float(found.rms) == pytest.approx(np.sqrt(squared.mean()), rel=1e-5)


def test_one_sample_tells_no_lag():
    with pytest.raises(UserError, match="num_samples: 1"):
        collapse.posterior_means(MLP, DATA, state_of(MLP), KEY, num_samples=1)


@pytest.mark.thorough
def test_a_run_in_a_population_is_the_run_alone():
    alone = [state_of(MLP, *parameters(MLP, seed)) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)

    def everything(state):
        return measured(MLP, DATA, state, KEY), means_of(MLP, DATA, state, KEY, 70)

    together = jax.vmap(everything)(stacked)
    for i, state in enumerate(alone):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5),
            together,
            everything(state),
        )
