import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.vae.building import COMPILE_FAST
from vae import optimizers
from vae.hparams import HParams, stack
from vae.spec import OptimizerSpec

HPARAMS = HParams(learning_rate=0.05, momentum=0.8, b1=0.85, b2=0.95, eps=1e-4, weight_decay=0.02)
DECAY = optax.add_decayed_weights(0.02)
# optax's own, with constants. All but adamw have the weight decay in the gradient.
REFERENCES = {
    "adam": optax.chain(DECAY, optax.adam(0.05, b1=0.85, b2=0.95, eps=1e-4)),
    "adamw": optax.adamw(0.05, b1=0.85, b2=0.95, eps=1e-4, weight_decay=0.02),
    "sgd": optax.chain(DECAY, optax.sgd(0.05, momentum=0.8)),
    "rmsprop": optax.chain(DECAY, optax.rmsprop(0.05, decay=0.95, eps=1e-4, momentum=0.8)),
    "adagrad": optax.chain(DECAY, optax.adagrad(0.05, eps=1e-4)),
    "adamax": optax.chain(DECAY, optax.adamax(0.05, b1=0.85, b2=0.95, eps=1e-4)),
}
START = {"w": jnp.float32([[1.0, -2.0], [0.5, 3.0]]), "b": jnp.float32([0.1, -0.2])}


def loss(params, t):
    """A quadratic whose minimum moves with the step."""
    target = jnp.sin(t.astype(jnp.float32))
    return sum(jnp.sum(jnp.square(p - target)) for p in jax.tree.leaves(params))


def traced_run(spec, hparams, num_steps):
    """Parameters after steps whose optimiser is built from traced numbers."""

    def body(carry, t):
        params, state = carry
        value, grads = jax.value_and_grad(loss)(params, t)
        directions, state = optimizers.update(spec, hparams, grads, state, params, value)
        lr = hparams.learning_rate
        return (jax.tree.map(lambda p, d: p - lr * d, params, directions), state), None

    carry = START, optimizers.make(spec, hparams).init(START)
    (params, state), _ = jax.lax.scan(body, carry, jnp.arange(num_steps, dtype=jnp.int32))
    return params, optimizers.plateau_scale(spec, state)


def test_every_optimizer_is_tested():
    assert set(optimizers.OPTIMIZERS) == set(REFERENCES)


@pytest.mark.parametrize("name", REFERENCES)
def test_a_decay_of_zero_that_is_not_read_gives_the_same_bits_and_state(name):
    read, unread = (OptimizerSpec(name, decays=decays) for decays in (True, False))
    hparams = HPARAMS.replace(weight_decay=0.0)
    found = [jax.jit(traced_run, static_argnums=(0, 2))(s, hparams, 20) for s in (read, unread)]
    jax.tree.map(np.testing.assert_array_equal, *found)
    # So that a checkpoint of the one is one of the other.
    states = [optimizers.init(s, hparams, START) for s in (read, unread)]
    assert jax.tree.structure(states[0]) == jax.tree.structure(states[1])


@pytest.mark.parametrize("name", REFERENCES)
def test_traced_numbers_give_what_optax_gives_with_constants(name):
    optimizer = REFERENCES[name]

    def reference():
        def body(carry, t):
            params, state = carry
            updates, state = optimizer.update(jax.grad(loss)(params, t), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = (START, optimizer.init(START))
        return jax.lax.scan(body, start, jnp.arange(20, dtype=jnp.int32))[0][0]

    # Two runs, so that the numbers are traced and vmapped; the second differs in all of them.
    other = HParams(learning_rate=0.01, momentum=0.5, b1=0.5, b2=0.9, eps=0.1, weight_decay=0.5)
    run = jax.jit(
        jax.vmap(lambda h: traced_run(OptimizerSpec(name=name), h, 20)[0]),
        compiler_options=COMPILE_FAST,
    )
    params = run(stack([HPARAMS, other]))
    with jax.numpy_dtype_promotion("standard"):
        expected = jax.jit(reference, compiler_options=COMPILE_FAST)()
    for key in START:
        # A power b^t is computed with a traced b, here; some ulps in twenty steps.
        np.testing.assert_allclose(params[key][0], expected[key], rtol=2e-5, atol=1e-6)
        assert np.all(np.abs(params[key][1] - expected[key]) > 1e-3)


def test_plateau_halves_after_patience_windows_without_progress():
    spec = OptimizerSpec(
        name="sgd", schedule="plateau", plateau_factor=0.5, plateau_patience=3, plateau_window=4
    )
    hparams = HParams(momentum=0.0)

    def body(state, value):
        _, state = optimizers.update(spec, hparams, START, state, START, value)
        return state, optimizers.plateau_scale(spec, state)

    # Readings are means of 4 losses. The first sets the mark; each of the next 20 falls; then
    # none does, and the scale halves with every third. The noise within a window does not count.
    falling = np.repeat(np.arange(20, 0, -1.0), 4)
    flat = np.ones(4 * 9) + np.tile([0.5, -0.5, 0.5, -0.5], 9)
    losses = np.float32(np.concatenate([falling, flat]))
    _, scales = jax.lax.scan(body, optimizers.make(spec, hparams).init(START), losses)
    assert np.all(scales[: len(falling)] == 1)
    after = np.asarray(scales[len(falling) :]).reshape(9, 4)[:, -1]
    np.testing.assert_allclose(after, [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125])


def test_plateau_scales_the_update():
    spec = OptimizerSpec(
        name="sgd", schedule="plateau", plateau_patience=1, plateau_window=1, plateau_factor=0.5
    )
    hparams = HParams(momentum=0.0)
    state = optimizers.make(spec, hparams).init(START)
    for expected in (1, 0.5, 0.25):
        direction, state = optimizers.update(spec, hparams, START, state, START, jnp.float32(1))
        np.testing.assert_allclose(direction["b"], expected * START["b"])
        assert float(optimizers.plateau_scale(spec, state)) == expected


@pytest.mark.parametrize("max_norm", [0.1, 3.9, 4.0, 100.0, float("inf")])
def test_clipping_is_optax_clip_by_global_norm(max_norm):
    norm = optax.tree.norm(START)
    expected, _ = optax.clip_by_global_norm(max_norm).update(START, optax.EmptyState())
    factor = optimizers.clip_factor(norm, jnp.float32(max_norm))
    for key in START:
        np.testing.assert_allclose(factor * START[key], expected[key], rtol=1e-6)
    assert (float(factor) < 1) == (float(norm) > max_norm)


def test_zero_gradient_is_not_scaled():
    assert float(optimizers.clip_factor(jnp.float32(0), jnp.float32(1))) == 1


def test_moving_average():
    decay, values = 0.9, np.random.default_rng(0).normal(size=200)
    average, expected, trace = jnp.float32(7.0), 7.0, []
    for t, value in enumerate(values):
        average = optimizers.ema(average, jnp.float32(value), jnp.float32(decay), jnp.int32(t))
        d = min(decay, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * value
        trace.append((float(average), expected))
    np.testing.assert_allclose(*zip(*trace, strict=True), rtol=1e-5, atol=1e-6)


PARTS = {"encoder": START, "decoder": START, "discriminator": START}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_discriminator_has_an_optimizer_of_its_own(name):
    # Its own decay of the gradient's average, and no weight decay; the VAE's is as without it.
    spec, numbers = OptimizerSpec(name=name), HPARAMS.replace(discriminator_b1=0.3)
    alone = HPARAMS.replace(b1=0.3, weight_decay=0.0)

    def directions(hparams, params):
        def body(state, t):
            grads = jax.tree.map(lambda p: jnp.sin(t.astype(jnp.float32) + p), params)
            updates, state = optimizers.update(spec, hparams, grads, state, params, jnp.float32(0))
            return state, updates

        start = optimizers.init(spec, hparams, params)
        return jax.lax.scan(body, start, jnp.arange(5, dtype=jnp.int32))[1]

    both = directions(numbers, PARTS)
    vae = directions(numbers, dict.fromkeys(("encoder", "decoder"), START))
    discriminator = directions(alone, {"encoder": START})
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)
    for part in ("encoder", "decoder"):
        jax.tree.map(close, both[part], vae[part])
    jax.tree.map(close, both["discriminator"], discriminator["encoder"])
    assert not np.allclose(both["encoder"]["w"], both["discriminator"]["w"], rtol=1e-3)


def test_plateau_is_seen_beside_a_discriminator():
    spec = OptimizerSpec(
        name="sgd", schedule="plateau", plateau_patience=1, plateau_window=1, plateau_factor=0.5
    )
    state = optimizers.init(spec, HPARAMS, PARTS)
    for expected in (1, 0.5, 0.25):
        _, state = optimizers.update(spec, HPARAMS, PARTS, state, PARTS, jnp.float32(1))
        assert float(optimizers.plateau_scale(spec, state)) == expected


def test_learning_rate_factors_of_the_parts():
    numbers = HParams(encoder_lr_factor=2.0, discriminator_lr_factor=3.0)
    parts = dict.fromkeys(("encoder", "posterior", "prior", "decoder", "discriminator"))
    assert optimizers.lr_factors(numbers, parts) == {
        "encoder": 2.0,
        "posterior": 2.0,
        "prior": None,
        "decoder": None,
        "discriminator": 3.0,
    }
