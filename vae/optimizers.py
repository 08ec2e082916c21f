"""Any optax optimiser by name, its numbers traced, so that they vmap over runs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vae.hparams import HParams
from vae.spec import OptimizerSpec

# The parts of the parameters that infer z: the posterior's flow goes with the encoder.
ENCODER_PARTS = ("encoder", "posterior")


def _sgd(hparams: HParams) -> optax.GradientTransformation:
    return optax.trace(decay=hparams.momentum)


def _adam(hparams: HParams) -> optax.GradientTransformation:
    return optax.scale_by_adam(hparams.b1, hparams.b2, hparams.eps)


def _rmsprop(hparams: HParams) -> optax.GradientTransformation:
    return optax.chain(
        optax.scale_by_rms(decay=hparams.b2, eps=hparams.eps), optax.trace(decay=hparams.momentum)
    )


OPTIMIZERS: dict[str, Callable[[HParams], optax.GradientTransformation]] = {
    "adam": _adam,
    "adamw": _adam,
    "sgd": _sgd,
    "rmsprop": _rmsprop,
    "adagrad": lambda hparams: optax.scale_by_rss(eps=hparams.eps),
    "adamax": lambda hparams: optax.scale_by_adamax(hparams.b1, hparams.b2, hparams.eps),
}


def make(spec: OptimizerSpec, hparams: HParams) -> optax.GradientTransformationExtraArgs:
    """The direction of the update before the learning rate, for one run.

    Weight decay is decoupled for `adamw` (Loshchilov and Hutter 2019) and is added to the
    gradient (L2) for the others. With the schedule `plateau` the last stage scales by the factor
    of `optax.contrib.reduce_on_plateau`; `update` then needs `value`, the loss.

    Args:
      hparams: traced or plain scalars. The result closes over them: build it inside the step.
    """
    # Either has an empty state: a checkpoint of the one is one of the other.
    decay = optax.add_decayed_weights(hparams.weight_decay) if spec.decays else optax.identity()
    direction = OPTIMIZERS[spec.name](hparams)
    stages = [direction, decay] if spec.name == "adamw" else [decay, direction]
    if spec.schedule == "plateau":
        stages.append(
            optax.contrib.reduce_on_plateau(
                factor=spec.plateau_factor,
                patience=spec.plateau_patience,
                accumulation_size=spec.plateau_window,
            )
        )
    return optax.with_extra_args_support(optax.chain(*stages))


def _adversarial(spec: OptimizerSpec, hparams: HParams) -> optax.GradientTransformationExtraArgs:
    """The discriminator's: with its own decay of the gradient's average, and none of weights."""
    own = hparams.replace(b1=hparams.discriminator_b1)
    return make(dataclasses.replace(spec, decays=False), own)


def _transformation(
    spec: OptimizerSpec, hparams: HParams, params: dict[str, Any]
) -> optax.GradientTransformationExtraArgs:
    """`make`, or one for each of the VAE, its discriminator, and its encoder if it goes ahead."""
    parts = {}
    if spec.encoder_steps > 1:
        parts |= dict.fromkeys(ENCODER_PARTS, "encoder")
    if "discriminator" in params:
        parts["discriminator"] = "discriminator"
    if not parts:
        return make(spec, hparams)
    labels = {part: parts.get(part, "vae") for part in params}
    of = {label: make(spec, hparams) for label in dict.fromkeys(labels.values())}
    if "discriminator" in of:
        of["discriminator"] = _adversarial(spec, hparams)
    return optax.partition(of, labels)


def with_part(opt_state: Any, new: Any, part: str) -> Any:
    """A state of several optimisers in which one part is that of `new`."""
    inner = {**opt_state.inner_states, part: new.inner_states[part]}
    return opt_state._replace(inner_states=inner)


def init(spec: OptimizerSpec, hparams: HParams, params: dict[str, Any]) -> optax.OptState:
    """The optimiser's state before the first step."""
    return _transformation(spec, hparams, params).init(params)


def update(
    spec: OptimizerSpec,
    hparams: HParams,
    grads: dict[str, Any],
    opt_state: optax.OptState,
    params: dict[str, Any],
    loss: jax.Array,
) -> tuple[optax.Updates, optax.OptState]:
    """The update's direction before the learning rate, and the optimiser's new state."""
    # optax raises traced decay rates to integer step counts, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        transformation = _transformation(spec, hparams, params)
        return transformation.update(grads, opt_state, params, value=loss)


def lr_factors(hparams: HParams, params: dict[str, Any]) -> dict[str, Any]:
    """What the learning rate of each part of the parameters is multiplied by; None: by nothing."""
    factors = dict.fromkeys(ENCODER_PARTS, hparams.encoder_lr_factor)
    factors["discriminator"] = hparams.discriminator_lr_factor
    return {part: factors.get(part) for part in params}


def clip_factor(norm: jax.Array, max_norm: jax.Array) -> jax.Array:
    """min(1, max_norm/norm): by what the gradient is scaled so that its norm is ≤ `max_norm`."""
    return jnp.where(norm > max_norm, max_norm / norm, 1.0)


def plateau_scale(spec: OptimizerSpec, opt_state: optax.OptState) -> jax.Array:
    """The factor that reduce-on-plateau has come to; 1 with any other schedule."""
    if isinstance(opt_state, optax.transforms.PartitionState):
        opt_state = opt_state.inner_states["vae"].inner_state
    return opt_state[-1].scale if spec.schedule == "plateau" else jnp.ones((), jnp.float32)


def ema(average: jax.Array, new: jax.Array, decay: jax.Array, step: jax.Array) -> jax.Array:
    """d·average + (1 − d)·new with d = min(decay, (1 + t)/(10 + t)).

    The ramp lets the average leave its starting point within the first steps, however long its
    memory (as in TensorFlow's ExponentialMovingAverage with `num_updates`).
    """
    t = step.astype(jnp.float32)
    d = jnp.minimum(decay, (1 + t) / (10 + t))
    return d * average + (1 - d) * new
