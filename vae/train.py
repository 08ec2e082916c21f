"""Training: one pure step, scanned over steps, vmapped over the runs of a population.

    train_step   one run, one batch       (state, batch) -> (state, metrics)
    train_run    one run, n steps         a loop whose length is a run-time value
    train_chunk  R runs, n steps          one dispatch, state donated

A solo run is a population of one. `Population.step` is shared by its runs; everything else has a
leading axis [R].
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vae import model, objectives, optimizers, packing, random, schedules
from vae.data import Examples, Transform, prepare
from vae.hparams import HParams
from vae.layers import layer_names, layer_norms
from vae.spec import Spec

METRICS = ("loss", "elbo", "rate", "distortion", "beta", "learning_rate", "grad_norm")


@struct.dataclass
class TrainState:
    """One run.

    Attributes:
      step: updates made or, once `diverged`, passed over; int32.
      params, stats: parameters and running statistics of the model.
      opt_state: of the optimiser; nothing reads that of a diverged run.
      ema: moving average of params, or None.
      hparams: this run's numbers.
      diverged: whether the run is frozen at its last good state.
      diverged_step: the step whose loss or gradient was not finite; −1 before.
    """

    step: jax.Array
    params: model.Params
    stats: model.Stats
    opt_state: optax.OptState
    ema: model.Params | None
    hparams: HParams
    diverged: jax.Array
    diverged_step: jax.Array

    @property
    def eval_params(self) -> model.Params:
        """The parameters to evaluate: the moving average where one is kept."""
        return self.params if self.ema is None else self.ema


@struct.dataclass
class Interval:
    """Means of the training metrics since the last reading, and the last gradient norms.

    Attributes:
      count: finite steps in the means, int32.
      means: one scalar for each of `METRICS`.
      grad_norms: L2 norm of each layer's gradient at the last finite step, before clipping; [L].
    """

    count: jax.Array
    means: dict[str, jax.Array]
    grad_norms: jax.Array


@struct.dataclass
class Population:
    """R runs of one spec: `step` is a scalar, leaves of `states` and `interval` are [R, ...]."""

    step: jax.Array
    states: TrainState
    interval: Interval

    @property
    def num_runs(self) -> int:
        return self.states.step.shape[0]


class Batch(NamedTuple):
    """B raw examples [B, *x] and their indices in the training set, int32 [B]."""

    raw: jax.Array
    index: jax.Array


def init_run(spec: Spec, hparams: HParams, data_mean: jax.Array) -> TrainState:
    """The state of one run before its first step, from its hyperparameters alone."""
    params, stats = model.init(
        spec.model, hparams, random.stream(hparams.seed, random.INIT), data_mean
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=optimizers.make(spec.optimizer, hparams).init(params),
        ema=params if spec.optimizer.ema else None,
        hparams=hparams,
        diverged=jnp.zeros((), bool),
        diverged_step=-jnp.ones((), jnp.int32),
    )


def _empty_interval(params: model.Params) -> Interval:
    zero = jnp.zeros((), jnp.float32)
    return Interval(
        count=jnp.zeros((), jnp.int32),
        means=dict.fromkeys(METRICS, zero),
        grad_norms=jnp.zeros(len(layer_names(params)), jnp.float32),
    )


def _init(spec: Spec, hparams: HParams, data_mean: jax.Array) -> Population:
    states = jax.vmap(lambda h: init_run(spec, h, data_mean))(hparams)
    interval = jax.vmap(lambda s: _empty_interval(s.params))(states)
    return Population(step=jnp.zeros((), jnp.int32), states=states, interval=interval)


init = jax.jit(_init, static_argnames="spec")
init.__doc__ = """A population before its first step.

Args:
  spec: static. hparams: leaves [R], see `vae.hparams.stack`. data_mean: [*x].
"""


def batch_loss(
    spec: Spec,
    transform: Transform,
    params: model.Params,
    stats: model.Stats,
    hparams: HParams,
    step: jax.Array,
    batch: Batch,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], model.Stats]]:
    """Mean loss of a batch, with its decomposition and the new running statistics.

    Examples are vmapped with the axis name `batch`, over which batch-coupled terms are
    collectives. Returns (loss, (metrics, stats)), nats per example.
    """
    beta = schedules.BETA_SCHEDULES[spec.objective.beta_schedule](step, hparams)
    rngs = random.example_rngs(random.stream(hparams.seed, step), batch.index)

    def one(raw, rng):
        data_rng, noise_rng = jax.random.split(rng)
        x = prepare(transform, raw, data_rng)
        noise = jax.random.normal(noise_rng, (spec.objective.samples, spec.model.latent_dim))
        terms, new_stats = model.terms(spec.model, params, stats, hparams, x, noise, train=True)
        loss = objectives.OBJECTIVES[spec.objective.name](terms, hparams, beta)
        return (loss, objectives.metrics(terms)), new_stats

    (losses, metrics), new_stats = jax.vmap(one, axis_name="batch", out_axes=(0, None))(
        batch.raw, rngs
    )
    metrics = {name: jnp.mean(values) for name, values in metrics.items()}
    return jnp.mean(losses), ({**metrics, "beta": beta}, new_stats)


def train_step(
    spec: Spec, transform: Transform, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update of one run; pure.

    A step whose loss or gradient norm is not finite freezes the run: its parameters and
    statistics stay those before the step, now and for good. A gradient norm beyond float32
    counts as not finite. Parameters need no check of their own: the launcher bounds the learning
    rate and the weight decay by 1e6, so that a finite gradient cannot overflow them before the
    next loss does.

    The optimiser of a frozen run is fed zeros instead of being frozen too: nothing reads its
    state again, and selecting old against new for each of its leaves would cost a copy of it in
    every step of every healthy run (a fifth of the step, measured on the CPU).

    Returns:
      The new state, and a scalar for each of `METRICS`, `grad_norms` [L] and `finite`.
    """
    hparams = state.hparams
    (loss, (metrics, stats)), grads = jax.value_and_grad(
        lambda params: batch_loss(spec, transform, params, state.stats, hparams, state.step, batch),
        has_aux=True,
    )(state.params)

    # 1. Is it usable?
    grad_norms = layer_norms(grads)
    grad_norm = jnp.sqrt(jnp.sum(jnp.square(grad_norms)))
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    good = finite & ~state.diverged

    # 2. Clip, or silence.
    factor = optimizers.clip_factor(grad_norm, hparams.clip_norm)
    grads = jax.tree.map(lambda g: jnp.where(good, g * factor, 0), grads)

    # 3. Update.
    directions, opt_state = optimizers.update(
        spec.optimizer, hparams, grads, state.opt_state, state.params, jnp.where(good, loss, 0)
    )
    lr = schedules.learning_rate(spec.optimizer.schedule, state.step, hparams)
    params = jax.tree.map(lambda p, d: p + jnp.where(good, -lr * d, 0), state.params, directions)
    average = state.ema
    if average is not None:
        average = jax.tree.map(
            lambda a, p: jnp.where(good, optimizers.ema(a, p, hparams.ema_decay, state.step), a),
            average,
            params,
        )

    new_state = state.replace(
        step=state.step + 1,
        params=params,
        stats=jax.tree.map(lambda new, old: jnp.where(good, new, old), stats, state.stats),
        opt_state=opt_state,
        ema=average,
        diverged=~good,
        diverged_step=jnp.where(state.diverged | finite, state.diverged_step, state.step),
    )
    metrics |= {
        "loss": loss,
        "learning_rate": lr * optimizers.plateau_scale(spec.optimizer, opt_state),
        "grad_norm": grad_norm,
    }
    return new_state, {**metrics, "grad_norms": grad_norms, "finite": good}


def _record(interval: Interval, metrics: dict[str, jax.Array]) -> Interval:
    """Adds one step to the means: mean += (value − mean)/count, which does not lose digits."""
    good = metrics["finite"]
    count = interval.count + good.astype(jnp.int32)
    weight = 1 / jnp.maximum(count, 1).astype(jnp.float32)
    return Interval(
        count=count,
        means={
            name: jnp.where(good, mean + (metrics[name] - mean) * weight, mean)
            for name, mean in interval.means.items()
        },
        grad_norms=jnp.where(good, metrics["grad_norms"], interval.grad_norms),
    )


def batch_at(spec: Spec, data: Examples, seed: jax.Array, step: jax.Array) -> Batch:
    """The batch of a step: a function of (seed, step) alone.

    Each epoch has an order of its own, of which the last N mod B examples are left out.
    """
    num_examples = data.raw.shape[0]
    epoch, batch = jnp.divmod(step, num_examples // spec.batch_size)
    rng = jax.random.fold_in(random.stream(seed, random.ORDER), epoch)
    position = batch * spec.batch_size + jnp.arange(spec.batch_size, dtype=jnp.int32)
    index = random.shuffled(rng, position, num_examples)
    # As rows, and without a check of the indices, which are within bounds: on a CPU, three times as
    # fast as `data.raw[index]`.
    rows = data.raw.reshape(num_examples, -1).at[index].get(mode="promise_in_bounds")
    return Batch(rows.reshape(-1, *data.raw.shape[1:]), index)


def train_run(
    spec: Spec,
    data: Examples,
    step: jax.Array,
    num_steps: jax.Array,
    state: TrainState,
    interval: Interval,
) -> tuple[TrainState, Interval]:
    """`num_steps` steps of one run from `step` on.

    A loop over steps inside the program, of a length known at run time: one program serves any
    number of steps. `step` is not vmapped, so that runs share what depends on it alone.
    """

    def body(i, carry):
        state, interval = carry
        batch = batch_at(spec, data, state.hparams.seed, step + i)
        state, metrics = train_step(spec, data.transform, state, batch)
        return state, _record(interval, metrics)

    return jax.lax.fori_loop(0, num_steps, body, (state, interval))


def _train_chunk(
    spec: Spec, pack: str, population: Population, data: Examples, num_steps: jax.Array
) -> Population:
    states, interval = packing.over_runs(
        functools.partial(train_run, spec, data, population.step, num_steps),
        pack,
        population.states,
        population.interval,
    )
    return Population(step=population.step + num_steps, states=states, interval=interval)


train_chunk = jax.jit(_train_chunk, static_argnames=("spec", "pack"), donate_argnames="population")
train_chunk.__doc__ = """`num_steps` (int32) steps of every run; the population given is donated.

`population.interval` gathers from where it stood: start a reading with `reset_interval`.
"""


def reset_interval(population: Population) -> Population:
    """The same population with the means started anew; the gradient norms stay."""
    interval = population.interval
    return population.replace(
        interval=interval.replace(
            count=jnp.zeros_like(interval.count),
            means=jax.tree.map(jnp.zeros_like, interval.means),
        )
    )
