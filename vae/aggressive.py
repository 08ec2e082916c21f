"""Aggressive encoder training: the inference network catches up before the decoder moves on.

He et al. 2019, algorithm 1. Before each update of the decoder the encoder makes up to
`encoder_steps` updates on batches of its own, until its loss no longer falls: the means of two
windows of `WINDOW` losses are compared. Once an epoch the mutual information of x and z is
estimated; when it no longer grows, training goes on as usual, for good.

Under a vmap over runs the loop lasts as long as that of the slowest run; the others wait.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from vae import mesh, model, optimizers, penalties, random, schedules
from vae.data import Examples, prepare
from vae.hparams import HParams
from vae.loss import Batch, batch_gradient, rows
from vae.spec import Spec

# Losses in a window, as in the authors' code.
WINDOW = 15

# Training examples of which the mutual information is estimated: it cannot exceed the log of their
# number, 5.5 nats.
NUM_EXAMPLES = 256


@struct.dataclass
class Aggressive:
    """Where a run stands.

    Attributes:
      active: whether the encoder is still trained aggressively.
      mutual_information: the last estimate, nats; 0 before the first.
    """

    active: jax.Array
    mutual_information: jax.Array


def start() -> Aggressive:
    """Before the first step."""
    return Aggressive(active=jnp.ones((), bool), mutual_information=jnp.zeros((), jnp.float32))


def train_encoder(
    spec: Spec,
    data: Examples,
    step: jax.Array,
    hparams: HParams,
    params: model.Params,
    stats: model.Stats,
    opt_state: Any,
    active: jax.Array,
) -> tuple[model.Params, Any, jax.Array]:
    """The encoder's own updates before training step `step`: (params, opt_state, their number).

    Its batches are random ones, apart from the order of the epoch.
    """
    parts = [name for name in optimizers.ENCODER_PARTS if name in params]
    stream = jax.random.fold_in(random.stream(hparams.seed, random.ENCODER), step)
    lr = schedules.learning_rate(spec.optimizer.schedule, step, hparams)

    def update(params, opt_state, number):
        order_rng, rng = jax.random.split(jax.random.fold_in(stream, number))
        position = jnp.arange(spec.batch_size, dtype=jnp.int32)
        index = random.shuffled(order_rng, position, data.raw.shape[0])
        batch = Batch(mesh.spread(rows(data, index)), index)
        own = {name: params[name] for name in parts}
        grads, (metrics, _) = batch_gradient(
            spec, data.transform, own, stats, hparams, step, batch, rng=rng, held=params
        )
        loss = metrics["loss"]
        norm = jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(grads)))
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        factor = jnp.where(good, optimizers.clip_factor(norm, hparams.clip_norm), 0)
        grads = jax.tree.map(lambda g: jnp.where(good, g, 0) * factor, grads)
        zeros = {n: jax.tree.map(jnp.zeros_like, params[n]) for n in params if n not in parts}
        directions, new = optimizers.update(
            spec.optimizer, hparams, {**grads, **zeros}, opt_state, params, jnp.where(good, loss, 0)
        )
        # Of the optimiser, too, the encoder's part alone.
        opt_state = optimizers.with_part(opt_state, new, "encoder")
        rate = -lr * hparams.encoder_lr_factor
        moved = {
            name: jax.tree.map(
                lambda p, d: p + jnp.where(good, rate * d, 0), params[name], directions[name]
            )
            for name in parts
        }
        return {**params, **moved}, opt_state, jnp.where(good, loss, jnp.inf)

    def body(carry):
        params, opt_state, number, total, previous, _ = carry
        params, opt_state, loss = update(params, opt_state, number)
        number, total = number + 1, total + loss
        full = number % WINDOW == 0
        falls = total / WINDOW < previous
        go = jnp.isfinite(loss) & (~full | falls)
        previous = jnp.where(full, total / WINDOW, previous)
        return params, opt_state, number, jnp.where(full, 0, total), previous, go

    zero, infinity = jnp.zeros((), jnp.float32), jnp.asarray(jnp.inf, jnp.float32)
    params, opt_state, number, *_ = jax.lax.while_loop(
        lambda carry: carry[-1] & (carry[2] < spec.optimizer.encoder_steps),
        body,
        (params, opt_state, jnp.zeros((), jnp.int32), zero, infinity, active),
    )
    return params, opt_state, number


def review(
    spec: Spec,
    data: Examples,
    step: jax.Array,
    hparams: HParams,
    params: model.Params,
    stats: model.Stats,
    state: Aggressive,
) -> Aggressive:
    """After training step `step`: at the end of an epoch, whether to go on.

    `step` is the same for all runs, so that steps within an epoch cost nothing.
    """

    def measure(state):
        new = mutual_information(spec, data, hparams, params, stats)
        grows = new > state.mutual_information
        return Aggressive(active=state.active & grows, mutual_information=new)

    at_end = (step + 1) % (data.raw.shape[0] // spec.batch_size) == 0
    return jax.lax.cond(at_end, measure, lambda state: state, state)


def mutual_information(
    spec: Spec, data: Examples, hparams: HParams, params: model.Params, stats: model.Stats
) -> jax.Array:
    """I(x; z), in nats, of at most `NUM_EXAMPLES` examples; see `penalties.information_gains`.

    The examples and the noise are the same at each call: changes show the model and not the draw.
    """
    count = min(NUM_EXAMPLES, data.raw.shape[0])
    order_rng, rng = jax.random.split(random.stream(hparams.seed, random.ENCODER))
    index = random.shuffled(order_rng, jnp.arange(count, dtype=jnp.int32), data.raw.shape[0])

    def one(raw, rng):
        data_rng, noise_rng = jax.random.split(rng)
        x = prepare(data.transform, raw, data_rng)
        posterior, _ = model.encode(spec.model, params, stats, hparams, x, train=False)
        noise = jax.random.normal(noise_rng, posterior.mean.shape)
        z = posterior.mean + jnp.exp(0.5 * posterior.logvar) * noise
        return z, posterior.mean, posterior.logvar

    z, mean, logvar = jax.vmap(one)(rows(data, index), random.example_rngs(rng, index))
    return jnp.mean(penalties.information_gains(z, mean, logvar))
