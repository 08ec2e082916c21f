import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import examples, hand_made, parameters
from vae import model, train
from vae.errors import UserError
from vae.gradients import jacobians, spectra
from vae.spec import ModelSpec, Spec

LINEAR = ModelSpec((5,), 3, depth=0, likelihood="gaussian")
MLP = ModelSpec((5,), 3, depth=2, width=6, activation="tanh", likelihood="bernoulli")
DATA = examples(4, 5)
KEY = jax.random.key(0)

# Of float32, both of the Jacobian and of its SVD: some rounding errors of 6e-8 in sums of ten.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def state_of(spec, params=None, stats=None):
    made = parameters(spec)
    population = hand_made(Spec(spec), params or made[0], stats or made[1])
    return jax.tree.map(lambda a: a[0], population.states)


def linear_state(decoder_kernel, encoder_kernel=None):
    params, stats = parameters(LINEAR)
    params["decoder"]["output"]["kernel"] = jnp.float32(decoder_kernel)
    if encoder_kernel is not None:
        params["encoder"]["mean"]["kernel"] = jnp.float32(encoder_kernel)
    return state_of(LINEAR, params, stats)


@functools.partial(jax.jit, static_argnames="spec")
def both(spec, state, data=DATA):
    return (
        jacobians.decoder_values(spec, data, state, KEY),
        jacobians.encoder_values(spec, data, state, KEY),
    )


def test_of_a_linear_model_they_are_those_of_its_matrices():
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(3, 5)), rng.normal(size=(5, 3))
    decoder, encoder = both(LINEAR, linear_state(w, v))
    assert decoder.shape == encoder.shape == (4, 3)
    for found, matrix in ((decoder, w), (encoder, v)):
        exact = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(found, np.tile(exact, (4, 1)), **CLOSE)


def numpy_jacobians(params, x):
    """∂σ(logits)/∂z at z = μ(x), and ∂μ/∂x, of `MLP` for one x; float64, by the chain rule."""

    def layer(h, jacobian, tree):
        out = np.tanh(h @ tree["kernel"] + tree["bias"])
        return out, (1 - out**2)[:, None] * (tree["kernel"].T @ jacobian)

    def linear(h, jacobian, tree):
        return h @ tree["kernel"] + tree["bias"], tree["kernel"].T @ jacobian

    params = jax.tree.map(np.float64, params)
    encoder, decoder = params["encoder"], params["decoder"]
    h, of_mean = np.float64(x), np.eye(5)
    for i in range(2):
        h, of_mean = layer(h, of_mean, encoder[f"layer_{i}"]["dense"])
    z, of_mean = linear(h, of_mean, encoder["mean"])
    h, of_output = z, np.eye(3)
    for i in range(2):
        h, of_output = layer(h, of_output, decoder[f"layer_{i}"]["dense"])
    logits, of_output = linear(h, of_output, decoder["output"])
    p = 1 / (1 + np.exp(-logits))
    return (p * (1 - p))[:, None] * of_output, of_mean


def test_of_a_network_they_are_those_of_the_chain_rule_at_each_example():
    decoder, encoder = both(MLP, state_of(MLP))
    params = parameters(MLP)[0]
    for i, x in enumerate(DATA.raw):
        of_decoder, of_encoder = numpy_jacobians(params, x)
        exact = np.linalg.svd(of_decoder, compute_uv=False)
        np.testing.assert_allclose(decoder[i], exact, **CLOSE)
        exact = np.linalg.svd(of_encoder, compute_uv=False)
        np.testing.assert_allclose(encoder[i], exact, **CLOSE)
    assert np.ptp(decoder[:, 0]) > 1e-3  # another Jacobian at each example


def test_normalisation_uses_its_running_statistics():
    # Of a linear layer under BatchNorm, γ(Wx + b − m)/√(v + 1e-5) + β: a diagonal times W.
    spec = dataclasses.replace(MLP, depth=1, norm="batch", activation="identity")
    params, stats = parameters(spec)
    batch = stats["encoder"]["layer_0"]["norm"]["batch"]
    batch["var"] = jnp.arange(1, 7, dtype=jnp.float32)
    _, encoder = both(spec, state_of(spec, params, stats))
    layer = jax.tree.map(np.float64, params["encoder"]["layer_0"])
    scale = layer["norm"]["batch"]["scale"] / np.sqrt(np.arange(1, 7) + 1e-5)
    matrix = layer["dense"]["kernel"] * scale @ np.float64(params["encoder"]["mean"]["kernel"])
    exact = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(encoder, np.tile(exact, (4, 1)), **CLOSE)


def test_of_a_flow_it_is_where_the_mean_flows_to():
    spec = dataclasses.replace(MLP, posterior="coupling", flow_layers=2, flow_width=4)
    state = state_of(spec)
    _, encoder = both(spec, state)

    def location(x):
        posterior, _ = model.encode(spec, state.params, state.stats, state.hparams, x, False)
        return model.location(spec, state.params, posterior)

    exact = np.linalg.svd(jax.vmap(jax.jacrev(location))(DATA.raw), compute_uv=False)
    np.testing.assert_allclose(encoder, exact, **CLOSE)


def test_above_the_size_for_explicit_ones_there_are_the_largest(monkeypatch):
    state = state_of(MLP)
    everything = both(MLP, state)
    monkeypatch.setattr(spectra, "EXACT_SIZE", 2)
    few = (
        jacobians.decoder_values(MLP, DATA, state, KEY, num=2),
        jacobians.encoder_values(MLP, DATA, state, KEY, num=2),
    )
    for some, exact in zip(few, everything, strict=True):
        np.testing.assert_allclose(some, exact[:, :2], **CLOSE)
    # Where they are not all, only the largest is spoken of.
    assert set(jacobians.conditioning(MLP, few[0])) == {"largest"}


def test_isometry():
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=(5, 3)))[0]
    decoder, _ = both(LINEAR, linear_state(basis.T))
    summary = jacobians.conditioning(LINEAR, decoder)
    expected = dict.fromkeys(("largest", "smallest", "condition", "mean_square"), 1.0)
    expected |= {"rank": 3.0, "log_spread": 0.0, "variance_square": 0.0}
    assert set(summary) == set(expected)
    for name, value in expected.items():
        assert float(summary[name]) == pytest.approx(value, abs=2e-6), name


def test_conditioning_by_hand():
    # 2 and ½; then 3 and an exact zero; then a decoder that ignores z.
    spec = dataclasses.replace(LINEAR, latent_dim=2)
    values = jnp.float32([[2, 0.5], [3, 0], [0, 0]])
    summary = jax.jit(jacobians.conditioning, static_argnums=0)(spec, values)
    expected = {
        "largest": 5 / 3,
        "smallest": 0.5 / 3,
        "rank": 1.0,
        "condition": (4 + 1) / 2,  # of those that are not zero
        "log_spread": np.log(2) / 2,  # ln 2 and −ln 2; one number alone has no spread
        "mean_square": (4.25 + 9) / 6,
        "variance_square": ((3.75 / 2) ** 2 + 4.5**2) / 3,
    }
    for name, value in expected.items():
        assert float(summary[name]) == pytest.approx(value, rel=1e-6), name


def test_a_rank_lost_to_rounding_is_lost():
    w = np.outer([1.0, 2, 3], [1.0, 0, 2, 0, 1]) + np.outer([0.0, 1, 1], [0, 1.0, 1, 0, 0])
    decoder, _ = both(LINEAR, linear_state(w))
    summary = jacobians.conditioning(LINEAR, decoder)
    exact = np.linalg.svd(w, compute_uv=False)
    assert float(summary["rank"]) == 2
    assert float(summary["condition"]) == pytest.approx(exact[0] / exact[1], rel=1e-5)
    dead = jacobians.conditioning(LINEAR, both(LINEAR, linear_state(np.zeros((3, 5))))[0])
    assert float(dead["rank"]) == 0 and np.isnan(dead["condition"]) and float(dead["largest"]) == 0


def test_a_run_in_a_population_is_the_run_alone():
    runs = [parameters(MLP, seed) for seed in range(3)]
    alone = [state_of(MLP, *run) for run in runs]
    together = jax.jit(jax.vmap(functools.partial(both, MLP)))(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone)
    )
    for i, state in enumerate(alone):
        assert isinstance(state, train.TrainState)
        for some, exact in zip(together, both(MLP, state), strict=True):
            np.testing.assert_allclose(some[i], exact, **CLOSE)


@pytest.mark.parametrize("posterior", ["categorical", "vq"])
def test_a_discrete_z_has_no_derivative(posterior):
    spec = dataclasses.replace(MLP, posterior=posterior)
    with pytest.raises(UserError, match=f"model.posterior: {posterior}"):
        jacobians.decoder_values(spec, DATA, state_of(MLP), KEY)
