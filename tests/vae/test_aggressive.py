import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import examples, population
from vae import aggressive, train
from vae.hparams import HParams, stack
from vae.spec import ModelSpec, OptimizerSpec, Spec

DATA = examples(40, 6)
PLAIN = Spec(ModelSpec((6,), 2, depth=0, likelihood="gaussian"), batch_size=8)
EPOCH = 5
SPEC = dataclasses.replace(PLAIN, optimizer=OptimizerSpec(encoder_steps=40))
RUNS = [HParams(seed=s, learning_rate=lr) for s, lr in ((0, 0.01), (1, 0.01), (2, 0.05))]


def numbers(**values):
    return jax.tree.map(lambda a: jnp.asarray(a[0]), stack([HParams(**values)]))


def state_of(result, i=0):
    return jax.tree.map(lambda a: a[i], result.states)


@functools.cache
def trained(spec, runs, steps):
    return train.train_chunk(
        spec, "vmap", population(spec, list(map(RUNS.__getitem__, runs))), DATA, steps
    )


def linear_params(weight, logvar):
    """An encoder with mean Wx and one variance for all."""
    return {
        "encoder": {
            "mean": {"kernel": jnp.float32(weight), "bias": jnp.zeros(2)},
            "scale": {"kernel": jnp.zeros((6, 2)), "bias": jnp.full(2, jnp.float32(logvar))},
        }
    }


def information(weight, logvar, data=DATA):
    return float(
        aggressive.mutual_information(SPEC, data, numbers(), linear_params(weight, logvar), {})
    )


def test_no_information_where_the_posterior_does_not_depend_on_x():
    assert information(np.zeros((6, 2)), 0.0) == pytest.approx(0, abs=1e-6)


def test_at_most_the_log_of_the_number_of_examples():
    # Posteriors that do not overlap: each z tells its x.
    assert information(10 * np.eye(6, 2), -6.0) == pytest.approx(np.log(40), abs=1e-3)


def test_information_of_a_gaussian_channel():
    # x_j ~ N(0, 1), z_j = a x_j + N(0, s²): I = Σ_j ½ ln(1 + a²/s²), here 2 · ½ ln 2 = 0.69 nats.
    # 256 examples stand for the marginal. Over draws of the data the estimate has a standard
    # deviation of about √(d·ρ²)/√256 = 0.05 and a bias of order e^I/256 = 0.01; four seeds are
    # averaged: 3 standard errors are 0.08.
    data = [examples(256, 6, seed=seed) for seed in range(4)]
    seen = np.mean([information(np.eye(6, 2), 0.0, d) for d in data])
    assert seen == pytest.approx(np.log(2), abs=0.09)


def encoder_phase(state, active=True):
    return aggressive.train_encoder(
        SPEC,
        DATA,
        state.step,
        state.hparams,
        state.params,
        state.stats,
        state.opt_state,
        jnp.asarray(active),
    )


def test_only_the_encoder_moves_ahead():
    state = state_of(population(SPEC, RUNS[:1]))
    params, opt_state, count = jax.jit(encoder_phase)(state)
    assert 0 < count <= SPEC.optimizer.encoder_steps
    assert count % aggressive.WINDOW == 0 or count == SPEC.optimizer.encoder_steps
    jax.tree.map(np.testing.assert_array_equal, params["decoder"], state.params["decoder"])
    moved = jax.tree.map(lambda a, b: np.max(np.abs(a - b)), params, state.params)
    assert min(jax.tree.leaves(moved["encoder"])) > 1e-3
    jax.tree.map(
        np.testing.assert_array_equal,
        opt_state.inner_states["vae"],
        state.opt_state.inner_states["vae"],
    )
    # The encoder's optimiser has counted its updates.
    counts = [a for a in jax.tree.leaves(opt_state.inner_states["encoder"]) if a.dtype == jnp.int32]
    assert counts and all(c == count for c in counts)


def test_a_run_that_does_not_lead_stays():
    state = state_of(population(SPEC, RUNS[:1]))
    params, _, count = jax.jit(functools.partial(encoder_phase, active=False))(state)
    assert count == 0
    jax.tree.map(np.testing.assert_array_equal, params, state.params)


def test_the_loop_ends_where_the_loss_no_longer_falls():
    """With a learning rate of 1e-9 nothing falls but by chance: a few windows, not forty steps."""
    slow = [dataclasses.replace(RUNS[0], seed=seed, learning_rate=1e-9) for seed in range(8)]
    long = dataclasses.replace(SPEC, optimizer=OptimizerSpec(encoder_steps=600))
    result = train.train_chunk(long, "vmap", population(long, slow), DATA, 1)
    counts = np.asarray(result.interval.means["encoder_steps"])
    # The chance of a record low after another is a half at first, and less later: 8 runs of more
    # than 10 windows each would be one in 10!^8.
    assert np.all(counts % aggressive.WINDOW == 0)
    assert counts.mean() < 10 * aggressive.WINDOW


@pytest.mark.thorough
def test_a_run_in_a_population_is_the_run_alone():
    together = trained(SPEC, (0, 1, 2), 2 * EPOCH)
    for i in range(3):
        alone = trained(SPEC, (i,), 2 * EPOCH)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            state_of(together, i).params,
            state_of(alone).params,
        )
        np.testing.assert_array_equal(
            together.interval.means["encoder_steps"][i], alone.interval.means["encoder_steps"][0]
        )


@pytest.mark.thorough
def test_once_over_it_is_plain_training():
    start = population(SPEC, RUNS[:1])
    over = start.states.aggressive.replace(active=jnp.zeros(1, bool))
    start = start.replace(states=start.states.replace(aggressive=over))
    result = train.train_chunk(SPEC, "vmap", start, DATA, 2 * EPOCH)
    plain = trained(PLAIN, (0,), 2 * EPOCH)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        result.states.params,
        plain.states.params,
    )
    assert result.interval.means["encoder_steps"][0] == 0


def test_it_ends_at_the_end_of_an_epoch_whose_information_has_not_grown():
    def after(reading):
        state = aggressive.Aggressive(jnp.ones((), bool), jnp.float32(reading))
        params = linear_params(np.eye(6, 2), 0.0)
        step = jnp.int32(2 * EPOCH - 1)
        return aggressive.review(SPEC, DATA, step, numbers(), params, {}, state)

    now = information(np.eye(6, 2), 0.0)
    assert after(now - 0.01).active and not after(now + 0.01).active
    assert float(after(0).mutual_information) == pytest.approx(now, rel=1e-5)
    # Within an epoch nothing is asked.
    state = aggressive.Aggressive(jnp.ones((), bool), jnp.float32(100))
    params = linear_params(np.eye(6, 2), 0.0)
    within = aggressive.review(SPEC, DATA, jnp.int32(2), numbers(), params, {}, state)
    assert within.active and within.mutual_information == 100
