"""The signal itself, layer by layer: activations on the way forward, ∂ℓ/∂h on the way back.

ℓ is the loss of one example, h what a layer computes of it, at two places: `pre`, after the
normalisation and before the activation, and `post`, what the next layer reads. A head is linear:
its two places are one. Second moments are over units and examples, and are given as roots: the
square of a gradient under 1e-19 is 0 in float32, and where gradients vanish they are smaller.

    signal                   of a VAE's run, under its own loss
    observe                  the same, before anything is averaged
    random_net, propagate    of one of the library's networks alone, under any cotangent
    measure                  what is made of either

Of K samples of z each has its own h in the decoder and its own share of the loss, about 1/K: what
a parameter gets is the sum over samples. Where BatchNorm couples a batch, ∂ℓ/∂h is the gradient of
the sum of all losses of the batch in the h of one example.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae import elbo, loss, model, random, schedules
from vae.data import Transform
from vae.layers import layer_names
from vae.loss import Batch, Lens, batch_loss
from vae.nets import ACTIVATIONS, INITIALIZERS, Encoder
from vae.spec import ModelSpec, Spec
from vae.train import TrainState


class Slope(NamedTuple):
    """How an activation φ lets gradients through; a row of `SLOPES`.

    Attributes:
      largest: max |φ′|.
      saturates: whether φ′ fades to 0 along φ, rather than jump to a constant, or stay.
    """

    largest: float
    saturates: bool


# tanh and sigmoid saturate on both sides, elu, silu and gelu below 0.
SLOPES: dict[str, Slope] = {
    "relu": Slope(1.0, False),
    "tanh": Slope(1.0, True),
    "sigmoid": Slope(0.25, True),
    "gelu": Slope(1.1290, True),  # of the approximation by tanh, which is Flax's default
    "silu": Slope(1.0998, True),
    "leaky_relu": Slope(1.0, False),
    "elu": Slope(1.0, True),
    "identity": Slope(1.0, False),
}

# Below this share of its largest slope a unit is saturated: it passes less than 1% of the squared
# gradient that it could. For tanh that is |u| > 1.82, for sigmoid |u| > 3.64: the same point of
# both, as sigmoid(2u) = (1 + tanh u)/2.
SATURATED = 0.1

PARTS = ("encoder", "decoder")

# {layer: {place: values [B, ...], or [B, K, ...] in the decoder}}
Places = dict[str, dict[str, jax.Array]]


class Seen(NamedTuple):
    """What passed through the layers of a batch, by the names of `names`.

    Attributes:
      forward: h at each place. backward: ∂ℓ/∂h there.
      inputs: {part: ∂ℓ/∂ its input}: of what the encoder sees (not of the x that the likelihood
        compares with), [B, *x], and of the z that the decoder reads, [B, K, latent_size].
    """

    forward: Places
    backward: Places
    inputs: dict[str, jax.Array]


def names(params: model.Params) -> list[str]:
    """The layers of `signal`, in its order: those of the encoder, then those of the decoder."""
    return layer_names({part: params[part] for part in PARTS})


def signal(
    spec: Spec, transform: Transform, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, dict[str, jax.Array]]:
    """The signal through one run's encoder and decoder, at its parameters as they stand.

    Args:
      spec, transform: static. state, batch: of one run; vmap over runs for more.
      rng: key of all that is random: binarisation, corruption, z.

    Returns:
      {"layers": see `measure`, each [L] in the order of `names`; "inputs": `backward_rms` and
      `gradient_correlation`, each [2] in the order of `PARTS`}.
    """
    return measure(spec.model.activation, observe(spec, transform, state, batch, rng))


def measure(activation: str, seen: Seen) -> dict[str, dict[str, jax.Array]]:
    """Each layer's numbers; at a place, where their names end in `_pre` or `_post`:

    forward_rms             √E h²
    forward_std             √Var h
    backward_rms            √E (∂ℓ/∂h)²
    dead                    share of units that pass no gradient for any example: φ′ is exactly 0;
                            a channel of a convolution is one unit, wherever it stands
    saturated               share of (unit, example) with |φ′| < `SATURATED`·max |φ′|; none of an
                            activation that does not saturate: half of relu's are shut in health
    gradient_correlation    of ∂ℓ/∂h_post between examples, see `correlation`

    Returns: as `signal`.
    """
    layers = [
        _of_layer(activation, seen.forward[name], seen.backward[name])
        for name in _by_depth(seen.forward)
    ]
    inputs = [
        {"backward_rms": root_mean_square(g), "gradient_correlation": correlation(g)}
        for g in (seen.inputs[part] for part in PARTS if part in seen.inputs)
    ]
    return {"layers": _stacked(layers), "inputs": _stacked(inputs)}


def _stacked(rows: list[dict[str, jax.Array]]) -> dict[str, jax.Array]:
    return {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}


def _of_layer(
    activation: str, forward: dict[str, jax.Array], backward: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    row = {}
    for place in ("pre", "post"):
        h, gradient = (values.get(place, values["post"]) for values in (forward, backward))
        row[f"forward_rms_{place}"] = root_mean_square(h)
        row[f"forward_std_{place}"] = root_mean_square(h - jnp.mean(h))
        row[f"backward_rms_{place}"] = root_mean_square(gradient)
    has_activation = "pre" in forward
    kind = activation if has_activation else "identity"
    slope = jnp.abs(slopes(kind, forward["pre" if has_activation else "post"]))
    units = slope.reshape(-1, slope.shape[-1])
    steep = SATURATED * SLOPES[kind].largest if SLOPES[kind].saturates else 0.0
    shut = {"dead": jnp.all(units == 0, axis=0), "saturated": units < steep}
    row |= {name: jnp.mean(flags.astype(slope.dtype)) for name, flags in shut.items()}
    return row | {"gradient_correlation": correlation(backward["post"])}


def slopes(activation: str, u: jax.Array) -> jax.Array:
    """φ′(u), of the shape of u."""
    return jax.jvp(ACTIVATIONS[activation], (u,), (jnp.ones_like(u),))[1]


def root_mean_square(values: jax.Array) -> jax.Array:
    """√E v² over all of an array, which neither overflows nor vanishes before v does."""
    largest = jnp.max(jnp.abs(values))
    scale = jnp.where(largest > 0, largest, 1)
    return scale * jnp.sqrt(jnp.mean(jnp.square(values / scale)))


def correlation(gradients: jax.Array) -> jax.Array:
    """Mean cosine between the gradients of two examples, over all pairs; Balduzzi et al. 2017.

    1: all examples pull the same way. Near 0: the gradient is white noise as a function of x, it
    is shattered, and that of the batch averages out. With unit vectors u_i,
    Σ_{i≠j} u_i·u_j = ‖Σ u_i‖² − B, so that pairs cost nothing. Examples without any gradient are
    left out; of fewer than two examples it is not a number.

    Args:
      gradients: [B, ...]; all axes after the first are one vector.
    """
    rows = gradients.reshape(len(gradients), -1)
    largest = jnp.max(jnp.abs(rows), axis=1, keepdims=True)
    rows = rows / jnp.where(largest > 0, largest, 1)
    lengths = jnp.sqrt(jnp.sum(jnp.square(rows), axis=1, keepdims=True))
    units = rows / jnp.where(lengths > 0, lengths, 1)
    count = jnp.sum(largest > 0).astype(rows.dtype)
    pairs = jnp.sum(jnp.square(jnp.sum(units, axis=0))) - count
    return pairs / (count * (count - 1))


def observe(
    spec: Spec, transform: Transform, state: TrainState, batch: Batch, rng: jax.Array
) -> Seen:
    """What passes through one run's layers under its own loss; arguments as `signal`.

    Memory is that of a few steps on the batch. With `vaegan`, ∂ℓ/∂h in the decoder is of the
    reconstruction: the samples of the prior, which it decodes too, are not looked at.
    """
    params, stats, spec = state.params, state.stats, spec.in_training()
    taps, inputs = _forward(spec, transform, state, batch, rng)

    def total(taps):
        mean, _ = batch_loss(
            spec,
            transform,
            params,
            stats,
            state.hparams,
            state.step,
            batch,
            rng=rng,
            lens=Lens(taps=taps),
        )
        return mean * len(batch.index)

    gradients = jax.grad(total)(jax.tree.map(jnp.zeros_like, taps))
    backward = _places(gradients)
    of_inputs = {}
    for part, seen in inputs.items():
        heads, pull = jax.vjp(lambda seen, part=part: _apply(spec, state, part, seen)[0], seen)
        arriving = {
            name: backward[f"{part}/{name}"]["post"].reshape(h.shape) for name, h in heads.items()
        }
        (of_inputs[part],) = pull(arriving)
    return Seen(_places(taps), backward, of_inputs)


def _forward(
    spec: Spec, transform: Transform, state: TrainState, batch: Batch, rng: jax.Array
) -> tuple[model.Taps, dict[str, jax.Array]]:
    """The activations of both parts, as in a step, and what each part reads."""
    # The same numbers as in `batch_loss`.
    hparams = state.hparams
    hparams = hparams.replace(temperature=schedules.temperature(state.step, hparams))

    def one(raw, rng):
        drawn = loss.draw(spec, transform, hparams, raw, rng)
        terms, _ = elbo.terms(
            spec.model,
            state.params,
            state.stats,
            hparams,
            drawn.x,
            drawn.noise,
            True,
            encoded=drawn.encoded,
        )
        return {"encoder": drawn.encoded, "decoder": terms.z}

    inputs = jax.vmap(one, axis_name="batch")(batch.raw, random.example_rngs(rng, batch.index))
    taps = {
        part: _apply(spec, state, part, seen, "taps")[1]["taps"] for part, seen in inputs.items()
    }
    return taps, inputs


def _apply(
    spec: Spec, state: TrainState, part: str, inputs: jax.Array, *collections: str
) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """(heads, collections) of a part, of inputs [B, ...] or, in the decoder, [B, K, ...]."""
    mutable = ("batch_stats", *collections)

    def one(value):
        apply = getattr(model, part)
        return apply(spec.model, state.params, state.stats, value, True, mutable=mutable)

    if part == "decoder":
        one = jax.vmap(one, axis_name="sample")
    return jax.vmap(one, axis_name="batch")(inputs)


def _places(taps: model.Taps) -> Places:
    """The values of taps by layer and place."""
    found: Places = {}
    for part, tree in taps.items():
        for name, below in tree.items():
            if "value" in below:  # of no module of its own: named NAME_pre or NAME_post
                layer, _, place = name.rpartition("_")
                found.setdefault(f"{part}/{layer}", {})[place] = below["value"]
            else:
                places = {place: tap["value"] for place, tap in below.items()}
                found.setdefault(f"{part}/{name}", {}).update(places)
    return found


def _by_depth(places: Places) -> list[str]:
    tree: dict[str, dict[str, None]] = {}
    for name in places:
        part, layer = name.split("/")
        tree.setdefault(part, {})[layer] = None
    return layer_names(tree)


def random_net(
    spec: ModelSpec, rng: jax.Array, outputs: int = 1, gain: jax.Array | float = 1.0
) -> tuple[model.Params, model.Stats]:
    """(params, stats) of an encoder's `depth` layers and one head of `outputs` units.

    Kernels of one shape are drawn at once: a generator for each of 50 layers would take longer to
    compile than all else. gain: factor on kernels, as `HParams.init_gain`. Biases are 0.
    """

    def one(x):  # within the named axis, because BatchNorm asks for it even here
        return _net(spec, outputs).init(rng, x, True)

    variables = jax.vmap(one, axis_name="batch")(jnp.zeros((1, *spec.example_shape)))
    variables = jax.tree.map(lambda a: a[0], variables)
    leaves = jax.tree_util.tree_leaves_with_path(variables["params"])
    kernels = [leaf for path, leaf in leaves if path[-1].key == "kernel"]
    shapes = [kernel.shape for kernel in kernels]
    drawn = {}
    for i, shape in enumerate(dict.fromkeys(shapes)):
        rngs = jax.random.split(jax.random.fold_in(rng, i), shapes.count(shape))
        draw = functools.partial(
            INITIALIZERS[spec.init], shape=shape, dtype=kernels[shapes.index(shape)].dtype
        )
        drawn[shape] = iter(gain * jax.vmap(draw)(rngs))
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: next(drawn[leaf.shape]) if path[-1].key == "kernel" else leaf,
        variables["params"],
    )
    return params, variables.get("batch_stats", {})


def _net(spec: ModelSpec, outputs: int) -> Encoder:
    return Encoder(spec, (("output", outputs),))


def apply_net(
    spec: ModelSpec,
    params: model.Params,
    stats: model.Stats,
    x: jax.Array,
    taps: model.Taps | None = None,
) -> tuple[jax.Array, model.Taps]:
    """x [B, *x] ↦ (outputs [B, outputs], the activations; or, with `taps` added to them, {})."""
    outputs = params["output"]["bias"].shape[0]
    variables = {"params": params, "batch_stats": stats}

    def one(x, taps):
        given = variables if taps is None else {**variables, "taps": taps}
        mutable = ["batch_stats", "taps"] if taps is None else ["batch_stats"]
        heads, seen = _net(spec, outputs).apply(given, x, True, mutable=mutable)
        return heads["output"], seen.get("taps", {})

    return jax.vmap(one, axis_name="batch")(x, taps)


def propagate(
    spec: ModelSpec, params: model.Params, stats: model.Stats, x: jax.Array, cotangent: jax.Array
) -> Seen:
    """What passes through a network alone, without a VAE around it.

    Args:
      spec: of the layers. params, stats: of `random_net`, or of its structure.
      x: [B, *x]. cotangent: [B, outputs], ∂ℓ/∂ the outputs, whatever ℓ is.

    Returns:
      Seen: its layers are `encoder/layer_0`, ... and the head `encoder/output`.
    """
    _, taps = apply_net(spec, params, stats, x)
    zeros = jax.tree.map(jnp.zeros_like, taps)
    _, pull = jax.vjp(lambda taps, x: apply_net(spec, params, stats, x, taps)[0], zeros, x)
    gradients, of_input = pull(cotangent)
    return Seen(_places({"encoder": taps}), _places({"encoder": gradients}), {"encoder": of_input})
