"""The pieces of the bound, against densities written out, and their gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae.building import context, parameters
from vae import elbo, model, objectives
from vae.family import Posterior
from vae.hparams import HParams, stack
from vae.likelihoods import LIKELIHOODS
from vae.spec import ModelSpec, Spec

SPEC = ModelSpec((4,), 2, depth=1, width=3, activation="tanh")
BATCH, SAMPLES = 5, 3


def data(spec, dtype=np.float64, samples=SAMPLES, batch=BATCH):
    """x [B, *x] in [0, 1] and noise [B, K, d]."""
    rng = np.random.default_rng(1)
    x = rng.uniform(size=(batch, *spec.example_shape))
    noise = rng.normal(size=(batch, samples, spec.latent_dim))
    return jnp.asarray(x, dtype), jnp.asarray(noise, dtype)


def hparams(dtype=np.float64, **values):
    return jax.tree.map(lambda a: jnp.asarray(a[0], dtype), stack([HParams(**values)]))


@functools.partial(jax.jit, static_argnames=("spec", "train"))
def batch_terms(spec, params, stats, hparams, x, noise, train=True):
    """Terms of a batch, and the new statistics."""
    one = functools.partial(elbo.terms, spec, params, stats, hparams, train=train)
    return jax.vmap(one, axis_name="batch", out_axes=(0, None))(x, noise)


@functools.partial(jax.jit, static_argnames="spec")
def mean_loss(spec, params, stats, hparams, x, noise):
    """Mean loss of a batch at the β of `hparams`."""

    def one(x, noise):
        terms, _ = elbo.terms(spec, params, stats, hparams, x, noise, True)
        return objectives.elbo_loss(terms, context(Spec(spec), hparams))[0]

    return jnp.mean(jax.vmap(one, axis_name="batch")(x, noise))


def test_terms_are_the_densities(x64):
    params, stats = parameters(SPEC, dtype=np.float64)
    x, noise = data(SPEC)
    terms, _ = batch_terms(SPEC, params, stats, hparams(), x, noise)
    assert terms.log_px.shape == terms.log_pz.shape == terms.log_qz.shape == (BATCH, SAMPLES)
    assert all(a.dtype == jnp.float64 for a in jax.tree.leaves(terms))
    mean, std = np.asarray(terms.posterior.mean), np.exp(0.5 * np.asarray(terms.posterior.logvar))
    z = mean[:, None] + std[:, None] * np.asarray(noise)
    np.testing.assert_allclose(terms.log_pz, scipy.stats.norm.logpdf(z).sum(-1), rtol=1e-12)
    expected = scipy.stats.norm.logpdf(z, mean[:, None], std[:, None]).sum(-1)
    np.testing.assert_allclose(terms.log_qz, expected, rtol=1e-12)
    kl = -np.log(std) + 0.5 * (std**2 + mean**2 - 1)
    np.testing.assert_allclose(terms.kl, kl, rtol=1e-10)
    # The decoder, by hand: one tanh layer and the logits.
    decoder = jax.tree.map(np.asarray, params["decoder"])
    h = np.tanh(z @ decoder["layer_0"]["dense"]["kernel"] + decoder["layer_0"]["dense"]["bias"])
    p = scipy.special.expit(h @ decoder["output"]["kernel"] + decoder["output"]["bias"])
    grey = np.asarray(x)[:, None]
    cross_entropy = (grey * np.log(p) + (1 - grey) * np.log(1 - p)).sum(-1)
    np.testing.assert_allclose(terms.log_px, cross_entropy, rtol=1e-12)


def test_log_qz_survives_a_posterior_narrower_than_rounding():
    # σ = e^−50 beside a mean of 3: z is the mean to the last bit, ε is not 0.
    posterior = Posterior(jnp.float32([3.0, -3.0]), jnp.float32([-100.0, -2e4]))
    params, stats = parameters(SPEC)
    x, noise = data(SPEC, np.float32)
    terms, _ = elbo.terms_given(
        SPEC, params, stats, hparams(np.float32), x[0], posterior, noise[0], False
    )
    expected = scipy.stats.norm.logpdf(np.asarray(noise[0])).sum(-1) + 50 + 1e4
    np.testing.assert_allclose(terms.log_qz, expected, rtol=1e-6)


@pytest.mark.parametrize("likelihood", [n for n in LIKELIHOODS if n.startswith("gaussian")])
def test_gaussian_variances(likelihood, x64):
    spec = dataclasses.replace(SPEC, likelihood=likelihood)
    params, stats = parameters(spec, dtype=np.float64)
    if likelihood == "gaussian_optimal":
        stats["likelihood"]["variance"] = jnp.asarray(0.49)
    x, noise = data(spec)
    terms, _ = batch_terms(spec, params, stats, hparams(sigma=0.5), x, noise, train=False)
    mean, logvar = np.asarray(terms.posterior.mean), np.asarray(terms.posterior.logvar)
    z = mean[:, None] + np.exp(0.5 * logvar)[:, None] * np.asarray(noise)
    np.testing.assert_allclose(terms.z, z, rtol=1e-12)
    decoder = jax.tree.map(np.asarray, params["decoder"])

    def dense(layer, h):
        return h @ layer["kernel"] + layer["bias"]

    h = np.tanh(dense(decoder["layer_0"]["dense"], z))
    variance = {
        "gaussian": lambda: 0.25,
        "gaussian_shared": lambda: np.exp(params["likelihood"]["logvar"]),
        "gaussian_optimal": lambda: 0.49,
        "gaussian_pixel": lambda: np.exp(dense(decoder["variance"], h)),
    }[likelihood]()
    output = dense(decoder["output"], h)
    expected = scipy.stats.norm.logpdf(np.asarray(x)[:, None], output, np.sqrt(variance)).sum(-1)
    # The floor of the pixel's log σ² adds about e^−15.6 to one of the order of 1.
    rtol = 1e-6 if likelihood == "gaussian_pixel" else 1e-12
    np.testing.assert_allclose(terms.log_px, expected, rtol=rtol)


@pytest.mark.sampled
@pytest.mark.parametrize("posterior_scale", ["logvar", "softplus"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_gradients_of_the_loss(likelihood, posterior_scale, x64):
    # Against finite differences of the loss. With `gaussian_optimal` these include the way of the
    # parameters through σ², which the gradient leaves out: it is 0.
    spec = dataclasses.replace(SPEC, likelihood=likelihood, posterior_scale=posterior_scale)
    params, stats = parameters(spec, dtype=np.float64)
    numbers = hparams(beta=0.7, sigma=0.5, free_bits=0.01)
    x, noise = data(spec)
    loss = jax.jit(lambda params: mean_loss(spec, params, stats, numbers, x, noise))
    jax.test_util.check_grads(loss, (params,), order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


class TestOptimalVariance:
    """Oracle 6, for σ² the mean squared error of the batch, posterior noise included."""

    @pytest.fixture
    def setup(self, x64):
        spec = dataclasses.replace(SPEC, likelihood="gaussian_optimal")
        params, stats = parameters(spec, dtype=np.float64)
        x, noise = data(spec)

        def squared_error(x, noise):
            posterior, _ = model.encode(spec, params, stats, hparams(), x, True)
            z = posterior.mean[None] + jnp.exp(0.5 * posterior.logvar)[None] * noise
            decoded, _ = model.decode(spec, params, stats, hparams(), z, True)
            return jnp.square(decoded.heads["output"] - x[None])

        mse = float(jnp.mean(jax.vmap(squared_error, axis_name="batch")(x, noise)))
        return spec, params, stats, x, noise, mse

    def test_training_is_that_of_the_fixed_variance(self, setup):
        spec, params, stats, x, noise, mse = setup
        fixed = dataclasses.replace(spec, likelihood="gaussian")
        fixed_stats = {"encoder": {}, "decoder": {}}
        results = [
            jax.jit(jax.value_and_grad(functools.partial(mean_loss, s)))(
                params, t, dataclasses.replace(hparams(), sigma=jnp.sqrt(mse)), x, noise
            )
            for s, t in ((spec, stats), (fixed, fixed_stats))
        ]
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9), *results)

    def test_no_other_variance_is_better(self, setup):
        spec, params, _, x, noise, mse = setup
        shared = dataclasses.replace(spec, likelihood="gaussian_shared")

        def distortion(logvar):
            terms, _ = batch_terms(
                shared,
                params | {"likelihood": {"logvar": logvar}},
                {"encoder": {}, "decoder": {}},
                hparams(),
                x,
                noise,
            )
            return -jnp.mean(terms.log_px)

        best = jnp.log(jnp.asarray(mse))
        value, slope = jax.value_and_grad(distortion)(best)
        assert abs(slope) < 1e-12
        assert distortion(best + 0.01) > value < distortion(best - 0.01)
        # Its value is D/2·(ln 2πσ² + 1).
        assert float(value) == pytest.approx(2 * (np.log(2 * np.pi * mse) + 1), rel=1e-12)

    def test_it_includes_the_posterior_noise(self, x64):
        spec = ModelSpec((4,), 2, depth=0, likelihood="gaussian_optimal")
        params, stats = parameters(spec, dtype=np.float64)
        x, noise = data(spec, samples=20_000)
        terms, new = batch_terms(spec, params, stats, hparams(), x, noise)
        w, b = (np.asarray(params["decoder"]["output"][n]) for n in ("kernel", "bias"))
        mean, variance = (np.asarray(a) for a in terms.posterior[:2])
        variance = np.exp(variance)
        bias_part = np.mean((np.asarray(x) - mean @ w - b) ** 2)
        noise_part = np.mean(variance @ w**2)
        assert noise_part > 0.1 * bias_part
        # The first running value is that of the batch. Its error is that of 100,000 draws of a
        # squared error whose spread is about its size.
        estimate = float(new["likelihood"]["variance"])
        assert estimate == pytest.approx(bias_part + noise_part, rel=5 * 2 / np.sqrt(100_000))

    def test_its_running_mean_weighs_the_batches_alone(self, setup):
        spec, params, stats, x, noise, _ = setup
        errors, values = [], []
        start, rng = stats, np.random.default_rng(3)
        for _ in range(5):
            batch = x + rng.normal()
            errors.append(
                batch_terms(spec, params, start, hparams(), batch, noise)[1]["likelihood"][
                    "variance"
                ]
            )
            _, stats = batch_terms(spec, params, stats, hparams(), batch, noise)
            values.append(stats["likelihood"]["variance"])
        for n in range(1, 6):
            weights = 0.99 ** np.arange(n)[::-1]
            expected = np.average(np.asarray(errors[:n]), weights=weights)
            assert float(values[n - 1]) == pytest.approx(expected, rel=1e-12)

    def test_evaluation_has_one_density_for_all(self, setup):
        spec, params, stats, x, noise, mse = setup
        stats = {**stats, "likelihood": {"variance": jnp.asarray(0.3), "weight": jnp.asarray(1.0)}}
        together, same = batch_terms(spec, params, stats, hparams(), x, noise, train=False)
        alone, _ = batch_terms(spec, params, stats, hparams(), x[:1], noise[:1], train=False)
        np.testing.assert_allclose(together.log_px[:1], alone.log_px, rtol=1e-12)
        assert same["likelihood"] == stats["likelihood"]


@pytest.mark.parametrize("extreme", [-1e4, -50.0, 50.0, 1e4])
@pytest.mark.parametrize("layer", ["encoder/mean", "encoder/scale", "decoder/output"])
def test_extreme_inputs_have_finite_loss_and_gradient(layer, extreme):
    # Bernoulli logits, means and softplus scales of ±10⁴, in float32.
    spec = ModelSpec((4,), 2, depth=0, posterior_scale="softplus")
    params, stats = parameters(spec)
    part, name = layer.split("/")
    params[part][name]["bias"] = jnp.full_like(params[part][name]["bias"], extreme)
    x, noise = data(spec, np.float32)
    loss, grads = jax.value_and_grad(functools.partial(mean_loss, spec))(
        params, stats, hparams(np.float32), x, noise
    )
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(grads))
    terms, _ = batch_terms(spec, params, stats, hparams(np.float32), x, noise, train=False)
    assert np.all(np.isfinite(objectives.iw_log_weights(terms)))
