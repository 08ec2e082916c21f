"""The numbers that may differ between the runs of one population."""

import dataclasses

import jax
import numpy as np
from flax import struct


@struct.dataclass
class HParams:
    """Numeric hyperparameters of one run: array leaves, so that a sweep over them is a vmap.

    In a population each leaf has a leading axis [runs]. Units: nats, steps, or none.
    """

    seed: jax.Array | int = 0
    # objective
    beta: jax.Array | float = 1.0
    beta_warmup_steps: jax.Array | float = 1000.0
    beta_cycles: jax.Array | float = 4.0
    beta_ramp: jax.Array | float = 0.5
    free_bits: jax.Array | float = 0.0
    total_steps: jax.Array | float = 1000.0
    ciwae_beta: jax.Array | float = 0.5
    renyi_alpha: jax.Array | float = 0.5
    dreg_alpha: jax.Array | float = 0.0
    capacity: jax.Array | float = 25.0
    capacity_steps: jax.Array | float = 1000.0
    penalty: jax.Array | float = 1.0
    penalty_diagonal: jax.Array | float = 1.0
    bandwidth: jax.Array | float = 1.0
    commitment: jax.Array | float = 0.25
    corruption_level: jax.Array | float = 0.0
    # model
    sigma: jax.Array | float = 1.0
    student_df: jax.Array | float = 5.0
    rate_floor: jax.Array | float = 0.1
    temperature: jax.Array | float = 1.0
    temperature_min: jax.Array | float = 0.5
    temperature_steps: jax.Array | float = 1000.0
    codebook_decay: jax.Array | float = 0.99
    init_gain: jax.Array | float = 1.0
    # what of a model with `packed` is this run's own, see vae.packed
    latents: jax.Array | float = 0.0
    layers: jax.Array | float = 0.0
    # optimiser
    learning_rate: jax.Array | float = 1e-3
    momentum: jax.Array | float = 0.9
    b1: jax.Array | float = 0.9
    b2: jax.Array | float = 0.999
    eps: jax.Array | float = 1e-8
    weight_decay: jax.Array | float = 0.0
    clip_norm: jax.Array | float = float("inf")
    skip_norm: jax.Array | float = float("inf")
    encoder_lr_factor: jax.Array | float = 1.0
    discriminator_lr_factor: jax.Array | float = 1.0
    discriminator_b1: jax.Array | float = 0.5
    lr_warmup_steps: jax.Array | float = 0.0
    lr_decay_steps: jax.Array | float = 1000.0
    lr_decay_rate: jax.Array | float = 0.1
    ema_decay: jax.Array | float = 0.0


def stack(runs: list[HParams]) -> HParams:
    """Stacks the hyperparameters of R runs: each leaf becomes an array [R], uint32 or float32.

    NumPy's arrays: on their way to the device they would wait for whatever it computes.
    """
    columns = {}
    for field in dataclasses.fields(HParams):
        dtype = np.uint32 if field.name == "seed" else np.float32
        columns[field.name] = np.array([getattr(h, field.name) for h in runs], dtype)
    return HParams(**columns)
