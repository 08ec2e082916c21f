"""The loss of a batch, and which examples are in it: functions of (seed, step)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae import elbo, mesh, model, objectives, random, schedules
from vae.data import Examples, Transform, Window, prepare
from vae.hparams import HParams
from vae.likelihoods import LIKELIHOODS
from vae.spec import Spec


class Batch(NamedTuple):
    """B raw examples [B, *x] and their indices in the training set, int32 [B]."""

    raw: jax.Array
    index: jax.Array


class Keys(NamedTuple):
    """The keys of one example and step, one for each use; each is used once."""

    data: jax.Array
    noise: jax.Array
    objective: jax.Array
    corruption: jax.Array


class Lens(NamedTuple):
    """What instruments put before a loss: its value stays, its gradient is split or found inside.

    Attributes:
      gates: factors on the gradient that arrives through each of `TERMS`, or None.
      taps: zeros added to the layers of `encoder` [B, ...] and `decoder` [B, K, ...], or None.
    """

    gates: dict[str, jax.Array] | None = None
    taps: model.Taps | None = None


CLEAR = Lens()

# By which way a gradient leaves the loss: through log p(x|z); through the KL, or log p(z) and
# log q(z|x); or through anything else that an objective makes of z, of q(z|x) and of parameters.
TERMS = ("distortion", "rate", "penalty")


class Drawn(NamedTuple):
    """One example as a training step sees it: x and what the encoder sees of it [*x], noise."""

    x: jax.Array
    encoded: jax.Array
    noise: jax.Array
    objective_rng: jax.Array


def batch_at(spec: Spec, data: Examples | Window, seed: jax.Array, step: jax.Array) -> Batch:
    """The batch of a step, see `vae.random.batch`, spread over the axis `data`.

    data: a window must have the seed and the step; which is not checked.
    """
    if isinstance(data, Window):
        index = random.batch(seed, step, spec.batch_size, data.num_examples)
        raw = data.raw[jnp.argmax(data.seeds == seed), step - data.first]
    else:
        index = random.batch(seed, step, spec.batch_size, data.raw.shape[0])
        raw = rows(data, index)
    # Whatever the examples came from, what is computed of them is then the same, bit for bit.
    raw, index = jax.lax.optimization_barrier((raw, index))
    return Batch(mesh.spread(raw), index)


def rows(data: Examples, index: jax.Array) -> jax.Array:
    """The raw examples at `index` [B], which is within bounds: [B, *x]."""
    # As rows, and without a check of the indices: on a CPU, three times as fast as
    # `data.raw[index]`.
    flat = data.raw.reshape(len(data.raw), -1).at[index].get(mode="promise_in_bounds")
    return flat.reshape(-1, *data.raw.shape[1:])


def batch_loss(
    spec: Spec,
    transform: Transform,
    params: model.Params,
    stats: model.Stats,
    hparams: HParams,
    step: jax.Array,
    batch: Batch,
    *,
    rng: jax.Array | None = None,
    data_rng: jax.Array | None = None,
    lens: Lens = CLEAR,
) -> tuple[jax.Array, tuple[dict[str, jax.Array], model.Stats]]:
    """Mean loss of a batch, with its decomposition and the new running statistics.

    Examples are vmapped with the axis name `batch`, over which batch-coupled terms are
    collectives. Everything random comes from `rng`, by default the key of (seed, step); what is
    random about the data, binarisation, from `data_rng` where it is given.

    The networks are computed as `Spec.precision` and `Spec.remat` say, all examples at once: see
    `batch_gradient` for `Spec.accumulate`.

    Returns (what is differentiated, (metrics, stats)), nats per example. That is the
    loss, and, where there is a discriminator, its own loss added: neither has a gradient in the
    parameters of the other.
    """
    spec = spec.in_training()
    beta = schedules.BETA_SCHEDULES[spec.objective.beta_schedule](step, hparams)
    hparams = hparams.replace(temperature=schedules.temperature(step, hparams))
    step_rng = random.stream(hparams.seed, step) if rng is None else rng
    rngs = random.example_rngs(step_rng, batch.index)
    data_rngs = rngs if data_rng is None else random.example_rngs(data_rng, batch.index)
    # Beyond any example's index, and so no example's key.
    shared_rng = jax.random.fold_in(step_rng, 2**32 - 1)
    gates = lens.gates

    def through(term, value):
        if gates is None:
            return value
        return jax.tree.map(lambda a: _gated(a, gates[term]), value)

    free = through("penalty", params)

    def one(raw, rng, data_rng, taps):
        drawn = draw(spec, transform, hparams, raw, rng, data_rng)

        def terms_of(path, held):
            terms, new_stats = elbo.terms(
                spec.model,
                hold(params, held),
                stats,
                hparams,
                drawn.x,
                drawn.noise,
                True,
                path=path,
                encoded=drawn.encoded,
                taps=taps,
            )
            return through_terms(through, terms), new_stats

        def decode(z):
            same = taps is not None and len(z) == len(drawn.noise)
            decoded, _ = model.decode(
                spec.model, free, stats, hparams, z, True, taps=taps["decoder"] if same else None
            )
            return decoded.each(LIKELIHOODS[spec.model.likelihood].mean)

        context = objectives.Context(
            spec, hparams, beta, step, drawn.x, drawn.objective_rng, shared_rng, free, stats, decode
        )
        loss, extra, terms, new_stats = objectives.example_loss(context, terms_of)
        return (loss, {**objectives.metrics(terms), **extra}), new_stats

    (losses, metrics), new_stats = jax.vmap(one, axis_name="batch", out_axes=(0, None))(
        batch.raw, rngs, data_rngs, lens.taps
    )
    metrics = {name: jnp.mean(values) for name, values in metrics.items()}
    loss = jnp.mean(losses)
    metrics |= {"loss": loss, "beta": beta}
    return loss + metrics.get("discriminator_loss", 0.0), (metrics, new_stats)


def batch_gradient(
    spec: Spec,
    transform: Transform,
    params: model.Params,
    stats: model.Stats,
    hparams: HParams,
    step: jax.Array,
    batch: Batch,
    *,
    rng: jax.Array | None = None,
    held: model.Params | None = None,
) -> tuple[model.Params, tuple[dict[str, jax.Array], model.Stats]]:
    """The gradient of `batch_loss` in `params`, and (metrics, stats).

    With `Spec.accumulate` = M the batch goes in M parts, one after the other: the mean of their
    gradients is that of the batch, and the activations of one part are there at a time. What an
    example draws hangs on its index, and so not on its part. What couples the examples of a batch
    has no such parts: `vae.validity` refuses it.

    Args:
      held: further parameters, which have no gradient.
    """

    def gradient(batch):
        def loss(params):
            everything = {**(held or {}), **params}
            return batch_loss(spec, transform, everything, stats, hparams, step, batch, rng=rng)

        return jax.grad(loss, has_aux=True)(params)

    if spec.accumulate == 1:
        return gradient(batch)
    # Part m has the examples m, M + m, 2M + m, ...: where devices share the batch, one block each,
    # they so share every part.
    parts = jax.tree.map(
        lambda a: a.reshape(-1, spec.accumulate, *a.shape[1:]).swapaxes(0, 1), batch
    )
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda a: a[0], parts))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes[1][0])
    totals = (jax.tree.map(jnp.zeros_like, params), zeros)

    def add(totals, part):
        grads, (metrics, stats) = gradient(part)
        return jax.tree.map(jnp.add, totals, (grads, metrics)), stats

    totals, part_stats = jax.lax.scan(add, totals, parts)
    grads, metrics = jax.tree.map(lambda a: a / spec.accumulate, totals)
    return grads, (metrics, jax.tree.map(lambda a: a[-1], part_stats))


def draw(
    spec: Spec,
    transform: Transform,
    hparams: HParams,
    raw: jax.Array,
    rng: jax.Array,
    data_rng: jax.Array | None = None,
) -> Drawn:
    """What is random about one example, from its key; see `batch_loss`."""
    keys = Keys(*jax.random.split(rng, len(Keys._fields)))
    of_data = keys if data_rng is None else Keys(*jax.random.split(data_rng, len(Keys._fields)))
    x = prepare(transform, raw, of_data.data)
    return Drawn(
        x,
        corrupt(spec.objective.corruption, hparams, x, keys.corruption),
        model.noise(spec.model, keys.noise, objectives.num_samples(spec), hparams),
        keys.objective,
    )


def through_terms(through: Callable[[str, Any], Any], terms: elbo.Terms) -> elbo.Terms:
    """Each part of the terms sent through the gate of its term."""
    return elbo.Terms(
        log_px=through("distortion", terms.log_px),
        log_pz=through("rate", terms.log_pz),
        log_qz=through("rate", terms.log_qz),
        kl=through("rate", terms.kl),
        posterior=through("penalty", terms.posterior),
        z=through("penalty", terms.z),
    )


def _gated(value: jax.Array, gate: jax.Array) -> jax.Array:
    # What is no real number, such as the index of a code, has no gradient.
    real = jnp.issubdtype(value.dtype, jnp.floating)
    return elbo.scale_gradient(value, gate.astype(value.dtype)) if real else value


def hold(params: model.Params, part: str) -> model.Params:
    """Parameters without gradients in one half of the model: `encoder`, `decoder` or "" (none)."""
    held = {"": (), "encoder": ("encoder", "posterior")}.get(
        part, ("decoder", "likelihood", "prior")
    )
    return {
        name: jax.lax.stop_gradient(tree) if name in held else tree for name, tree in params.items()
    }


def corrupt(kind: str, hparams: HParams, x: jax.Array, rng: jax.Array) -> jax.Array:
    """What the encoder sees of x [*x]: Gaussian noise of standard deviation `corruption_level`
    added, or (`mask`) that share of the values set to 0; Vincent et al. 2010, section 3.3.
    """
    if kind == "gaussian":
        return x + hparams.corruption_level * jax.random.normal(rng, x.shape, x.dtype)
    if kind == "mask":
        return jnp.where(jax.random.uniform(rng, x.shape) < hparams.corruption_level, 0, x)
    return x
