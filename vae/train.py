"""Training: one pure step, scanned over steps, vmapped over the runs of a population.

    train_step   one run, one batch       (state, batch) -> (state, metrics)
    train_run    one run, n steps         a loop whose length is a run-time value
    train_chunk  R runs, n steps          one dispatch, state donated

A solo run is a population of one. `Population.step` is shared by its runs; everything else has a
leading axis [R].
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from vae import (
    aggressive,
    mesh,
    model,
    objectives,
    optimizers,
    packed,
    packing,
    random,
    schedules,
)
from vae.aggressive import Aggressive
from vae.data import Examples, Transform, Window
from vae.hparams import HParams
from vae.layers import layer_names, layer_norms, of_vae
from vae.loss import Batch, batch_at, batch_gradient
from vae.packing import Packing
from vae.spec import Spec

METRICS = (
    "loss",
    "elbo",
    "rate",
    "distortion",
    "beta",
    "learning_rate",
    "grad_norm",
    "clipped",
    "skipped",
)

# Updates that the encoder made ahead of the step, whether it still does, and the last estimate of
# what that hangs on.
AGGRESSIVE_METRICS = ("encoder_steps", "aggressive", "mutual_information")


@struct.dataclass
class TrainState:
    """One run.

    Attributes:
      step: updates made or, once `diverged`, passed over; int32.
      params, stats: parameters and running statistics of the model.
      opt_state: of the optimiser; nothing reads that of a diverged run.
      ema: moving average of params, or None.
      hparams: this run's numbers.
      clipped, skipped: updates made with a clipped gradient, and steps passed over because it was
        larger than `skip_norm`; int32.
      aggressive: of aggressive encoder training, see `vae.aggressive`; or None.
      diverged: whether the run is frozen at its last good state.
      diverged_step: the step whose loss or gradient was not finite; −1 before.
    """

    step: jax.Array
    params: model.Params
    stats: model.Stats
    opt_state: optax.OptState
    ema: model.Params | None
    hparams: HParams
    clipped: jax.Array
    skipped: jax.Array
    aggressive: Aggressive | None
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
      means: one scalar for each of `metric_names`.
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


def metric_names(spec: Spec) -> tuple[str, ...]:
    """`METRICS`, those of the objective, and those of aggressive encoder training."""
    names = (*METRICS, *objectives.OBJECTIVES[spec.objective.name].metrics)
    return (*names, *AGGRESSIVE_METRICS) if spec.optimizer.encoder_steps > 1 else names


def init_run(
    spec: Spec, hparams: HParams, data_mean: jax.Array, pseudo_inputs: jax.Array | None = None
) -> TrainState:
    """The state of one run before its first step, from its hyperparameters alone."""
    rng = random.stream(hparams.seed, random.INIT)
    params, stats = packed.init(spec.model, hparams, rng, data_mean, pseudo_inputs)
    # Folded in, so that the VAE starts the same with and without.
    adversary = objectives.init_adversary(spec, jax.random.fold_in(rng, 2))
    if adversary:
        params["discriminator"] = adversary
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=optimizers.init(spec.optimizer, hparams, params),
        ema=params if spec.optimizer.ema else None,
        hparams=hparams,
        clipped=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        aggressive=aggressive.start() if spec.optimizer.encoder_steps > 1 else None,
        diverged=jnp.zeros((), bool),
        diverged_step=-jnp.ones((), jnp.int32),
    )


def _empty_interval(spec: Spec, params: model.Params) -> Interval:
    zero = jnp.zeros((), jnp.float32)
    return Interval(
        count=jnp.zeros((), jnp.int32),
        means=dict.fromkeys(metric_names(spec), zero),
        grad_norms=jnp.zeros(len(layer_names(params)), jnp.float32),
    )


def _init(
    spec: Spec,
    hparams: HParams,
    data_mean: jax.Array,
    pseudo_inputs: jax.Array | None = None,
    on: Mesh | None = None,
) -> Population:
    def start(data, hparams):
        states = jax.vmap(lambda h: init_run(spec, h, *data))(hparams)
        return states, jax.vmap(lambda s: _empty_interval(spec, s.params))(states)

    states, interval = mesh.over_runs(start, on, (data_mean, pseudo_inputs), hparams)
    population = Population(step=jnp.zeros((), jnp.int32), states=states, interval=interval)
    return placed(population, on)


def placed(population: Population, on: Mesh | None) -> Population:
    """Inside a program: the population as it lies on a mesh, whatever the partitioner would do.

    What one chunk returns is then what the next one takes.
    """
    if on is None:
        return population
    return jax.lax.with_sharding_constraint(population, shardings(on))


def shardings(on: Mesh) -> Population:
    """How a population lies on a mesh: a prefix of its tree."""
    runs = mesh.of_runs(on)
    return Population(step=mesh.everywhere(on), states=runs, interval=runs)


init = jax.jit(_init, static_argnames=("spec", "on"))
init.__doc__ = """A population before its first step.

Args:
  spec: static. hparams: leaves [R], see `vae.hparams.stack`. data_mean: [*x].
  pseudo_inputs: [prior_components, *x], of the prior `vamp`.
  on: static; the mesh, of which the axis `runs` divides R, or None: one device.
"""


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
      The new state, and a scalar for each of `metric_names`, `grad_norms` [L] and `finite`.
    """
    hparams = state.hparams
    grads, (metrics, stats) = batch_gradient(
        spec, transform, state.params, state.stats, hparams, state.step, batch
    )
    loss = metrics["loss"]

    # 1. Is it usable?
    grad_norms = layer_norms(grads)
    finite = jnp.isfinite(loss) & jnp.isfinite(jnp.sum(jnp.square(grad_norms)))
    good = finite & ~state.diverged

    # 2. Clip the VAE's gradient, pass over the step, or silence it.
    grad_norm = jnp.sqrt(jnp.sum(jnp.where(of_vae(state.params), jnp.square(grad_norms), 0)))
    factor = optimizers.clip_factor(grad_norm, hparams.clip_norm)
    factors = {part: None if part == "discriminator" else factor for part in grads}
    grads = _scaled(factors, jax.tree.map(lambda g: jnp.where(good, g, 0), grads))
    skipped = (
        good & (grad_norm > hparams.skip_norm) if spec.optimizer.skip else jnp.zeros_like(good)
    )
    made = good & ~skipped

    # 3. Update.
    directions, opt_state = optimizers.update(
        spec.optimizer, hparams, grads, state.opt_state, state.params, jnp.where(good, loss, 0)
    )
    if spec.optimizer.skip:
        opt_state = _where(made, opt_state, state.opt_state)
    lr = schedules.learning_rate(spec.optimizer.schedule, state.step, hparams)
    directions = _scaled(optimizers.lr_factors(hparams, directions), directions)
    params = jax.tree.map(lambda p, d: p + jnp.where(made, -lr * d, 0), state.params, directions)
    average = state.ema
    if average is not None:
        average = jax.tree.map(
            lambda a, p: jnp.where(made, optimizers.ema(a, p, hparams.ema_decay, state.step), a),
            average,
            params,
        )

    clipped = made & (grad_norm > hparams.clip_norm)
    new_state = state.replace(
        step=state.step + 1,
        params=params,
        stats=_where(made, stats, state.stats),
        opt_state=opt_state,
        ema=average,
        clipped=state.clipped + clipped.astype(jnp.int32),
        skipped=state.skipped + skipped.astype(jnp.int32),
        diverged=~good,
        diverged_step=jnp.where(state.diverged | finite, state.diverged_step, state.step),
    )
    metrics |= {
        "learning_rate": lr * optimizers.plateau_scale(spec.optimizer, opt_state),
        "grad_norm": grad_norm,
        "clipped": clipped.astype(jnp.float32),
        "skipped": skipped.astype(jnp.float32),
    }
    return new_state, {**metrics, "grad_norms": grad_norms, "finite": good}


def _where(condition: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


def _scaled(factors: dict[str, Any], tree: model.Params) -> model.Params:
    """Each part of a tree like the parameters times its factor; None leaves it as it is."""

    def scaled(factor, leaves):
        return leaves if factor is None else jax.tree.map(lambda a: a * factor, leaves)

    return {part: scaled(factors[part], leaves) for part, leaves in tree.items()}


def _aggressive_step(
    spec: Spec, data: Examples, step: jax.Array, state: TrainState, batch: Batch
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The encoder's updates, then `train_step` of the decoder; once they are over, of both."""
    leads = state.aggressive.active & ~state.diverged
    params, opt_state, count = aggressive.train_encoder(
        spec, data, step, state.hparams, state.params, state.stats, state.opt_state, leads
    )
    ahead = state.replace(params=params, opt_state=opt_state)
    new, metrics = train_step(spec, data.transform, ahead, batch)
    # Where it leads, the encoder has had its updates.
    parts = {name: params[name] for name in optimizers.ENCODER_PARTS if name in params}
    kept = {name: _where(leads, tree, new.params[name]) for name, tree in parts.items()}
    held = optimizers.with_part(new.opt_state, ahead.opt_state, "encoder")
    new = new.replace(params={**new.params, **kept}, opt_state=_where(leads, held, new.opt_state))
    reviewed = aggressive.review(
        spec, data, step, new.hparams, new.params, new.stats, new.aggressive
    )
    metrics |= {
        "encoder_steps": count.astype(jnp.float32),
        "aggressive": leads.astype(jnp.float32),
        "mutual_information": reviewed.mutual_information,
    }
    return new.replace(aggressive=reviewed), metrics


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


def train_run(
    spec: Spec,
    data: Examples | Window,
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
        if spec.optimizer.encoder_steps > 1:
            state, metrics = _aggressive_step(spec, data, step + i, state, batch)
        else:
            state, metrics = train_step(spec, data.transform, state, batch)
        return state, _record(interval, metrics)

    return jax.lax.fori_loop(0, num_steps, body, (state, interval))


def _train_chunk(
    spec: Spec,
    pack: str | Packing,
    population: Population,
    data: Examples | Window,
    num_steps: jax.Array,
) -> Population:
    split = data.parts() if isinstance(data, Window) else mesh.WHOLE
    states, interval = packing.over_runs(
        lambda shared, state, interval: train_run(spec, *shared, state, interval),
        pack,
        (data, population.step, num_steps),
        population.states,
        population.interval,
        parts=(split, mesh.WHOLE, mesh.WHOLE),
    )
    after = Population(step=population.step + num_steps, states=states, interval=interval)
    return placed(after, packing.packing(pack).mesh)


train_chunk = jax.jit(_train_chunk, static_argnames=("spec", "pack"), donate_argnames="population")
train_chunk.__doc__ = """`num_steps` (int32) steps of every run; the population given is donated.

`data`: all training examples, or the window of a `vae.data.Stream` that has all these steps.
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
