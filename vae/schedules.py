"""Schedules as functions of (step, hparams): traced numbers in, a traced number out."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae.hparams import HParams


def _fraction(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """min(1, numerator/denominator), and 1 where the denominator is 0."""
    safe = jnp.where(denominator > 0, denominator, 1)
    return jnp.where(denominator > 0, jnp.minimum(numerator / safe, 1), 1)


def constant_beta(step: jax.Array, hparams: HParams) -> jax.Array:
    """β(t) = β."""
    del step
    return jnp.asarray(hparams.beta, jnp.float32)


def linear_beta(step: jax.Array, hparams: HParams) -> jax.Array:
    """β(t) = β·min(1, t/warmup_steps); Bowman et al. 2016, Sønderby et al. 2016."""
    t = step.astype(jnp.float32)
    return hparams.beta * _fraction(t, jnp.asarray(hparams.beta_warmup_steps, jnp.float32))


def cyclical_beta(step: jax.Array, hparams: HParams) -> jax.Array:
    """β(t) = β·min(1, (t mod T/M)/(R·T/M)); Fu et al. 2019, T total steps, M cycles, R ramp."""
    # Multiplied by M: t·M mod T is exact where T/M is no integer and t is a whole number of cycles.
    total = jnp.asarray(hparams.total_steps, jnp.float32)
    phase = jnp.mod(step.astype(jnp.float32) * hparams.beta_cycles, total)
    return hparams.beta * _fraction(phase, hparams.beta_ramp * total)


def sigmoid_beta(step: jax.Array, hparams: HParams) -> jax.Array:
    """β(t) = β·σ(12·(t/warmup_steps − ½)); Bowman et al. 2016, section 3.1.

    Their figure 2 gives the shape and no number. The slope makes the curve go from .25% to 99.75%
    of β within the warm-up.
    """
    t = step.astype(jnp.float32)
    warmup = jnp.asarray(hparams.beta_warmup_steps, jnp.float32)
    safe = jnp.where(warmup > 0, warmup, 1)
    return hparams.beta * jnp.where(warmup > 0, jax.nn.sigmoid(12 * (t / safe - 0.5)), 1)


BETA_SCHEDULES: dict[str, Callable[[jax.Array, HParams], jax.Array]] = {
    "constant": constant_beta,
    "linear": linear_beta,
    "sigmoid": sigmoid_beta,
    "cyclical": cyclical_beta,
}


def capacity(step: jax.Array, hparams: HParams) -> jax.Array:
    """C(t) = C·min(1, t/capacity_steps), nats; Burgess et al. 2018, section 5.2."""
    t = step.astype(jnp.float32)
    return hparams.capacity * _fraction(t, jnp.asarray(hparams.capacity_steps, jnp.float32))


def temperature(step: jax.Array, hparams: HParams) -> jax.Array:
    """τ(t) = max(τ_min, τ·e^(−t/temperature_steps)); Jang et al. 2017, section 4.1."""
    t = step.astype(jnp.float32)
    decay = jnp.exp(-t / jnp.asarray(hparams.temperature_steps, jnp.float32))
    return jnp.maximum(hparams.temperature_min, hparams.temperature * decay)


def _cosine(t: jax.Array, hparams: HParams) -> jax.Array:
    """From 1 to `lr_decay_rate` over half a cosine; Loshchilov and Hutter 2017, eq. 5."""
    final = hparams.lr_decay_rate
    progress = jnp.minimum(t / hparams.lr_decay_steps, 1)
    return final + (1 - final) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


# Stages of Burda et al. 2016, and where they begin in units of the first: 0, 1, 4, 13, ..., 1093.
NUM_STAGES = 8
STAGES = tuple((3**i - 1) // 2 for i in range(NUM_STAGES))


def _stages(t: jax.Array, hparams: HParams) -> jax.Array:
    """`lr_decay_rate`^(i/7) in stage i = 0 ... 7, which is 3^i of 3280 parts of `lr_decay_steps`.

    Burda et al. 2016, section 5: with 3280 epochs and a rate of 1/10, 3^i epochs at 10^(−i/7).
    """
    first = jnp.asarray(hparams.lr_decay_steps, jnp.float32) / sum(3**i for i in range(NUM_STAGES))
    begun = t[None] >= first * jnp.asarray(STAGES[1:], jnp.float32)
    return hparams.lr_decay_rate ** (jnp.sum(begun).astype(jnp.float32) / (NUM_STAGES - 1))


LEARNING_RATE_SCHEDULES: dict[str, Callable[[jax.Array, HParams], jax.Array]] = {
    "constant": lambda t, hparams: jnp.ones_like(t),
    "cosine": _cosine,
    "step": lambda t, hparams: hparams.lr_decay_rate ** jnp.floor(t / hparams.lr_decay_steps),
    "stages": _stages,
    "exponential": lambda t, hparams: hparams.lr_decay_rate ** (t / hparams.lr_decay_steps),
    # The factor of reduce-on-plateau is in the optimiser's state: see vae.optimizers.
    "plateau": lambda t, hparams: jnp.ones_like(t),
}


def learning_rate(name: str, step: jax.Array, hparams: HParams) -> jax.Array:
    """Learning rate of update number `step` (from 0): schedule × linear warm-up.

    The warm-up is (t + 1)/warmup_steps up to 1, so that the first update is not a null one.
    """
    t = step.astype(jnp.float32)
    warmup = _fraction(t + 1, jnp.asarray(hparams.lr_warmup_steps, jnp.float32))
    return hparams.learning_rate * warmup * LEARNING_RATE_SCHEDULES[name](t, hparams)
