"""The lagging encoder: densities and updates of the small model, and verdicts."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import lagging as study
from tests.experiments.studies import made


def parameters(scale=10.0):
    return jax.tree.map(lambda a: scale * a, study.init(jax.random.key(jnp.uint32(0))))


def test_the_decoder_is_a_density_of_sequences():
    # Over all sequences of two tokens it sums to one, to float32's digits.
    x = jnp.asarray(list(itertools.product(range(study.TOKENS), repeat=2)), jnp.int32)
    log_p = jax.jit(jax.vmap(lambda x, z: study.log_px(parameters(), x, z), (0, None)))
    for z in (-1.0, 2.0):
        np.testing.assert_allclose(np.exp(log_p(x, jnp.float32(z))).sum(), 1, rtol=1e-5)
    assert np.abs(log_p(x, jnp.float32(-1)) - log_p(x, jnp.float32(2))).max() > 0.1


def test_the_gru_is_the_formula():
    params = jax.tree.map(np.float64, parameters()["encoder"])
    x = np.array([3, 0, 7])
    h = np.zeros(study.HIDDEN)
    for token in x:
        of_input = np.split(params["embedding"][token] @ params["input"] + params["bias"], 3)
        of_state = np.split(h @ params["state"], 3)
        reset, update = (
            1 / (1 + np.exp(-a - b)) for a, b in zip(of_input[:2], of_state[:2], strict=True)
        )
        h = (1 - update) * np.tanh(of_input[2] + reset * of_state[2]) + update * h
    expected = h @ params["head"] + params["head_bias"]
    np.testing.assert_allclose(study.encode(parameters(), jnp.int32(x)), expected, rtol=1e-4)


def test_means_of_a_decoder_that_does_not_read_z_are_the_priors():
    params = parameters()
    weights = params["decoder"]["input"].at[study.EMBEDDING :].set(0)
    params["decoder"]["input"] = weights
    x = jax.random.randint(jax.random.key(jnp.uint32(1)), (64, study.LENGTH), 0, study.TOKENS)
    seen = study.look(jax.tree.map(lambda a: a[None], params), x[None])
    np.testing.assert_allclose(seen["model"], 0, atol=1e-5)
    log_p = jax.vmap(lambda x: study.log_px(params, x, jnp.zeros(())))(x)
    np.testing.assert_allclose(seen["nll"], -log_p.mean(), rtol=1e-5)


def test_only_the_encoder_catches_up_and_only_where_it_is_active():
    params, rng = parameters(1.0), jax.random.key(jnp.uint32(2))
    train = study.sequences(rng, 64)
    for active in (False, True):
        new = jax.jit(study._catch_up)(params, train, rng, jnp.asarray(active))
        moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), params, new)
        assert any(jax.tree.leaves(moved["encoder"])) == active
        assert not any(jax.tree.leaves(moved["decoder"]))


def test_slopes():
    x = np.array([[0.0, 1, 2], [3, 4, 8]])
    np.testing.assert_allclose(study.slopes(0.5 * x + 3, x), 0.5)


def found(basic, aggressive, spread=0.3):
    """The encoder's means are a multiple of the model's, which spread so far."""
    looks = study.LOOKS["quick"]
    model = spread * np.linspace(-1.7, 1.7, 50)[None, None] * np.ones((len(looks), 5, 1))
    cases = []
    for number, slope in enumerate((basic, aggressive)):
        values = {
            "encoder": slope * model,
            "model": model,
            "kl": np.full(model.shape, 0.5 * slope**2),
            "information": np.full(model.shape[:2], 0.4 * slope**2),
            "nll": np.full(model.shape[:2], 22.0),
            "active": np.full(model.shape[:2], number == 1),
        }
        cases.append(({"aggressive": number, "looks": list(looks)}, values))
    return made.found(cases)


def test_verdicts_of_a_lag_that_is_averted():
    of = found(0.01, 1.0)
    assert set(made.verdicts(study, of).values()) == {"reproduced"}
    assert study.figure(of)


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (found(1.0, 1.0), "slope of the encoder's means, basic, 1 epoch"),
        (found(1.0, 1.0), "collapsed at the end, basic"),
        (found(0.01, 0.01), "slope of the encoder's means, aggressive phase"),
        (found(0.01, 0.01), "rate, aggressive − basic, nats"),
        (found(0.01, 1.0, spread=0.01), "variance of the model's means, basic, 1 epoch"),
    ],
)
def test_verdicts_of_what_is_not_so(of, name):
    assert made.verdicts(study, of)[name] == "not reproduced"
