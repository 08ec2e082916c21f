import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae import schedules
from vae.hparams import HParams, stack

STEPS = np.arange(240)


def beta(name, **hparams):
    """β at each of `STEPS`, as training computes it: traced int32 steps, float32 numbers."""
    traced = jax.tree.map(lambda a: a[0], stack([HParams(**hparams)]))
    schedule = schedules.BETA_SCHEDULES[name]
    return np.asarray(jax.vmap(schedule, (0, None))(jnp.int32(STEPS), traced))


def rate(name, **hparams):
    traced = jax.tree.map(lambda a: a[0], stack([HParams(**hparams)]))
    return np.asarray(
        jax.vmap(lambda t: schedules.learning_rate(name, t, traced))(jnp.int32(STEPS))
    )


def test_constant_beta():
    assert np.all(beta("constant", beta=0.3) == np.float32(0.3))


@pytest.mark.parametrize("warmup", [1.0, 50.0, 1e6])
def test_linear_beta(warmup):
    expected = 2 * np.minimum(1, STEPS / warmup)
    np.testing.assert_allclose(
        beta("linear", beta=2.0, beta_warmup_steps=warmup), expected, rtol=1e-6
    )


def test_no_warmup_is_the_constant():
    assert np.all(beta("linear", beta=2.0, beta_warmup_steps=0.0) == 2)


def test_sigmoid_beta():
    value = beta("sigmoid", beta=2.0, beta_warmup_steps=80.0)
    np.testing.assert_allclose(value, 2 / (1 + np.exp(-12 * (STEPS / 80 - 0.5))), rtol=1e-5)
    # From 0.25% over one half in the middle to 99.75% at the end of the warm-up.
    np.testing.assert_allclose(value[[0, 40, 80]] / 2, [0.0025, 0.5, 0.9975], atol=3e-5)
    assert np.all(beta("sigmoid", beta=2.0, beta_warmup_steps=0.0) == 2)


@pytest.mark.parametrize("steps", [0.0, 1.0, 60.0])
def test_capacity(steps):
    run = jax.tree.map(lambda a: a[0], stack([HParams(capacity=25.0, capacity_steps=steps)]))
    value = jax.vmap(schedules.capacity, (0, None))(jnp.int32(STEPS), run)
    expected = 25 * np.minimum(1, STEPS / steps) if steps else np.full(len(STEPS), 25.0)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_temperature_falls_to_its_floor():
    numbers = HParams(temperature=2.0, temperature_min=0.5, temperature_steps=100.0)
    run = jax.tree.map(lambda a: a[0], stack([numbers]))
    value = np.asarray(jax.vmap(schedules.temperature, (0, None))(jnp.int32(STEPS), run))
    np.testing.assert_allclose(value, np.maximum(0.5, 2 * np.exp(-STEPS / 100)), rtol=1e-6)
    assert value[0] == 2 and value[-1] == 0.5 and value[137] > 0.5


@pytest.mark.parametrize(
    ("total", "cycles"), [(240.0, 4.0), (240.0, 1.0), (100.0, 6.0), (240.0, 7.0)]
)
@pytest.mark.parametrize("ramp", [0.5, 0.25, 1.0])
def test_cyclical_beta(total, cycles, ramp):
    # Oracle 21, with t mod T/M from integers: a step that starts a cycle has β = 0 exactly.
    phase = (STEPS * int(cycles) % int(total)) / total
    expected = 3 * np.minimum(1, phase / ramp)
    value = beta("cyclical", beta=3.0, total_steps=total, beta_cycles=cycles, beta_ramp=ramp)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


def test_cyclical_beta_far_into_a_long_training():
    traced = jax.tree.map(lambda a: a[0], stack([HParams(total_steps=4e6, beta_cycles=4.0)]))
    steps = np.array([999_999, 1_000_000, 1_250_000, 3_499_999])
    value = jax.vmap(schedules.cyclical_beta, (0, None))(jnp.int32(steps), traced)
    np.testing.assert_allclose(value, [1, 0, 0.5, 0.999998], rtol=1e-6)


def stage_of(fraction):
    """Which of eight stages, each three times as long as the one before, of 1 + 3 + ... + 3^7."""
    ends = np.cumsum(3.0 ** np.arange(8)) / 3280
    return np.minimum((np.asarray(fraction)[:, None] >= ends[None]).sum(1), 7)


@pytest.mark.parametrize("steps_per_epoch", [3000, 2980])
def test_the_stages_are_those_of_burda(steps_per_epoch):
    # Oracle 21: 3^i epochs at 10^(−i/7) of the first rate; their code has 10, 7.2, ... ×1e-4.
    assert sum(3**i for i in range(8)) == 3280
    starts = np.cumsum([0, *(3**i for i in range(7))]) * steps_per_epoch
    ends = np.append(starts[1:], 3280 * steps_per_epoch) - 1
    hparams = HParams(learning_rate=1e-3, lr_decay_rate=0.1, lr_decay_steps=ends[-1] + 1.0)
    run = jax.tree.map(lambda a: a[0], stack([hparams]))
    for steps in (starts, ends):
        value = [float(schedules.learning_rate("stages", jnp.int32(t), run)) for t in steps]
        np.testing.assert_allclose(value, 1e-3 * 10 ** (-np.arange(8) / 7), rtol=1e-5)
        np.testing.assert_allclose(
            np.array(value) * 1e4, [10, 7.2, 5.2, 3.7, 2.7, 1.9, 1.4, 1.0], atol=0.05
        )


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("constant", lambda t: np.ones_like(t)),
        ("plateau", lambda t: np.ones_like(t)),
        ("cosine", lambda t: 0.2 + 0.8 * (1 + np.cos(math.pi * np.minimum(t / 90, 1))) / 2),
        ("step", lambda t: 0.2 ** (t // 90)),
        ("stages", lambda t: 0.2 ** (stage_of(t / 90) / 7)),
        ("exponential", lambda t: 0.2 ** (t / 90)),
    ],
)
@pytest.mark.parametrize("warmup", [0.0, 30.0])
def test_learning_rate(name, formula, warmup):
    value = rate(
        name, learning_rate=0.01, lr_decay_steps=90.0, lr_decay_rate=0.2, lr_warmup_steps=warmup
    )
    ramp = np.minimum(1, (STEPS + 1) / warmup) if warmup else 1
    np.testing.assert_allclose(value, 0.01 * ramp * formula(STEPS.astype(float)), rtol=1e-5)


def test_every_schedule_of_the_config_is_tested():
    assert set(schedules.BETA_SCHEDULES) == {"constant", "linear", "sigmoid", "cyclical"}
    assert set(schedules.LEARNING_RATE_SCHEDULES) == {
        "constant",
        "plateau",
        "cosine",
        "step",
        "stages",
        "exponential",
    }


def test_the_runs_of_a_population_have_their_own_schedules():
    runs = stack(
        [HParams(beta=b, beta_warmup_steps=w) for b, w in ((1.0, 10.0), (2.0, 10.0), (1.0, 20.0))]
    )
    value = jax.vmap(schedules.linear_beta, (None, 0))(jnp.int32(5), runs)
    np.testing.assert_allclose(value, [0.5, 1.0, 0.25], rtol=1e-6)
