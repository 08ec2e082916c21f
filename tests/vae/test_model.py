"""What the networks give the densities, and where their parameters start."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import COMPILE_FAST, parameters
from vae import model
from vae.hparams import HParams, stack
from vae.likelihoods import LIKELIHOODS
from vae.spec import ModelSpec

SPEC = ModelSpec((4,), 2, depth=1, width=3, activation="tanh")


def hparams(**values):
    return jax.tree.map(lambda a: jnp.float32(a[0]), stack([HParams(**values)]))


def test_pixel_variance_has_a_floor_of_a_tenth_of_a_grey_level():
    spec = dataclasses.replace(SPEC, likelihood="gaussian_pixel")
    params, stats = parameters(spec)
    params["decoder"]["variance"] = {"kernel": jnp.zeros((3, 4)), "bias": jnp.full(4, -1e4)}
    decoded, _ = model.decode(spec, params, stats, hparams(), jnp.zeros((1, 2)), False)
    assert decoded.heads["logvar"].shape == (1, 4)
    np.testing.assert_allclose(np.exp(0.5 * decoded.heads["logvar"]), 0.1 / 255, rtol=0.05)


def test_softplus_scale_is_the_formula():
    spec = ModelSpec((1,), 1, depth=0, posterior_scale="softplus")
    params, stats = parameters(spec)
    params["encoder"]["scale"] = {"kernel": jnp.ones((1, 1)), "bias": jnp.zeros(1)}
    s = np.concatenate([np.linspace(-80, 80, 401), [-10.001, -10, -9.999, 0.0]])
    numbers = hparams()
    logvar = jax.vmap(
        lambda x: model.encode(spec, params, stats, numbers, x[None], False)[0].logvar[0]
    )(jnp.float32(s))
    expected = 2 * np.log(np.log1p(np.exp(-np.abs(s))) + np.maximum(s, 0))
    # Below −10 it is 2s: off by up to e^−10.
    np.testing.assert_allclose(logvar, expected, rtol=1e-6, atol=5e-5)
    # Oracle 23: softplus(0) = ln 2.
    assert float(logvar[-1]) == pytest.approx(2 * np.log(np.log(2)), rel=1e-6)


def start(spec, data_mean, **values):
    return jax.jit(functools.partial(model.init, spec), compiler_options=COMPILE_FAST)(
        hparams(**values), jax.random.key(0), data_mean
    )


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_output_bias_of_the_data_mean(likelihood):
    data_mean = jnp.linspace(0.1, 0.9, 4)
    spec = dataclasses.replace(SPEC, likelihood=likelihood, output_bias="data_mean")
    params, stats = start(spec, data_mean, init_gain=0.0)
    decoded, _ = model.decode(spec, params, stats, hparams(), jnp.ones((1, 2)), False)
    mean = decoded.each(LIKELIHOODS[likelihood].mean)
    np.testing.assert_allclose(mean[0], data_mean, rtol=1e-5)


def test_output_bias_of_images_is_one_number_a_channel():
    spec = ModelSpec((4, 4, 2), 2, "conv", 1, 3, output_bias="data_mean")
    data_mean = jax.random.uniform(jax.random.key(0), (4, 4, 2))
    params, _ = start(spec, data_mean)
    mean = jax.nn.sigmoid(params["decoder"]["output"]["bias"])
    np.testing.assert_allclose(mean, data_mean.mean((0, 1)), rtol=1e-5)


def test_start_of_the_shared_variance():
    spec = ModelSpec((4,), 2, depth=0, likelihood="gaussian_shared")
    params, _ = start(spec, jnp.zeros(4), sigma=0.3)
    assert float(params["likelihood"]["logvar"]) == pytest.approx(2 * np.log(0.3), rel=1e-6)
