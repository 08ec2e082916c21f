"""What several tests build: parameters without the library's initialisers, populations, data."""

import jax
import jax.numpy as jnp
import numpy as np

from vae import model, objectives, random, train
from vae.data import Examples, Transform
from vae.hparams import HParams, stack
from vae.priors import PRIORS
from vae.spec import ModelSpec, Spec

# For programs that run once, compilation is the cost; 0 is two to four times as fast to compile.
COMPILE_FAST = {"xla_backend_optimization_level": 0}


def parameters(spec: ModelSpec, seed: int = 0, dtype=np.float32, size: float = 0.4):
    """(params, stats) of the model's structure: N(0, size²) in every leaf; statistics as at init.

    No leaf is at its neutral start, so biases, scales and gates matter too. A codebook, which
    starts at random, is N(0, 1).
    """
    inputs = jnp.zeros((spec.prior_components, *spec.example_shape))

    def start():
        return model.init(spec, HParams(), jax.random.key(0), jnp.zeros(spec.example_shape), inputs)

    shapes, stats = jax.eval_shape(start)
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda a: jnp.asarray(size * rng.normal(size=a.shape), dtype), shapes)
    ones = ("var", "variance", "count")
    stats = jax.tree_util.tree_map_with_path(
        lambda path, a: jnp.full(a.shape, path[-1].key in ones, dtype), stats
    )
    if "codebook" in stats.get("posterior", {}):
        codebook = jnp.asarray(rng.normal(size=stats["posterior"]["codebook"].shape), dtype)
        stats["posterior"] |= {"codebook": codebook, "total": codebook}
    return params, stats


def examples(n: int, *shape: int, seed: int = 0, scale: float = 1.0) -> Examples:
    """n standard normal vectors, or images of bits where the shape has three axes."""
    rng = np.random.default_rng(seed)
    raw = (
        rng.integers(0, 2, (n, *shape)) if len(shape) == 3 else scale * rng.normal(size=(n, *shape))
    )
    return Examples(jnp.asarray(raw, jnp.float32), Transform())


def order_of(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of n training examples in an epoch: the indices of its batches, in turn."""
    rng = jax.random.fold_in(random.stream(jnp.uint32(seed), random.ORDER), epoch)
    return np.asarray(random.shuffled(rng, jnp.arange(n), n))


def population(spec: Spec, runs: list[HParams], data_mean=None) -> train.Population:
    """A population before its first step; its pseudo-inputs, if it has any, are `examples`."""
    shape = spec.model.example_shape
    if data_mean is None:
        data_mean = jnp.zeros(shape)
    inputs = None
    if PRIORS[spec.model.prior].pseudo_inputs:
        inputs = examples(spec.model.prior_components, *shape).raw
    return INIT(spec, stack(runs), data_mean, inputs)


INIT = jax.jit(train.init.__wrapped__, static_argnames="spec", compiler_options=COMPILE_FAST)


def context(spec: Spec, hparams: HParams, **values) -> objectives.Context:
    """What an objective reads beside the terms; None but for what is given."""
    unset = dict.fromkeys(objectives.Context._fields)
    given = {"spec": spec, "hparams": hparams, "beta": hparams.beta, **values}
    return objectives.Context(**{**unset, **given})


def hand_made(spec: Spec, params, stats=None, **hparams) -> train.Population:
    """A population of one run that has the given parameters, for evaluation."""
    stats = {"encoder": {}, "decoder": {}} if stats is None else stats
    runs = stack([HParams(**hparams)])
    one = jax.tree.map(lambda a: a[0], runs)
    state = train.TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt_state=(),
        ema=None,
        hparams=one,
        clipped=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        aggressive=None,
        diverged=jnp.zeros((), bool),
        diverged_step=-jnp.ones((), jnp.int32),
    )
    interval = train.Interval(jnp.zeros((), jnp.int32), {}, jnp.zeros(1))
    states, interval = jax.tree.map(lambda a: a[None], (state, interval))
    return train.Population(jnp.zeros((), jnp.int32), states, interval)
