"""How much memory a population takes, estimated before anything is built."""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae import data, gallery, objectives, train
from vae.hparams import HParams, stack
from vae.likelihoods import LIKELIHOODS
from vae.model import Params
from vae.nets import NETS, Layer
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec, Spec

# Rows (examples × samples) decoded at once by an evaluation, and the bytes that they may take, on a
# CPU and on an accelerator: small enough for the caches of the one, large enough to fill the other.
EVAL_ROWS, EVAL_BYTES = {"cpu": 4096}, {"cpu": 2**28}
EVAL_ROWS_ACCELERATOR, EVAL_BYTES_ACCELERATOR = 2**16, 2**32

# Images that a run shows, in all: originals, reconstructions, samples, traversals.
PICTURES = (
    2 * gallery.NUM_IMAGES + gallery.NUM_SAMPLES + gallery.NUM_TRAVERSED * len(gallery.TRAVERSAL)
)

# Arrays of a layer's size that wait for its way back. The output always, a factor of the next
# layer's gradient: tanh' and sigmoid' are functions of it. relu' is one of the input. The others
# keep the exponential or tanh that they made on the way too.
KEPT = dict.fromkeys(("identity", "tanh", "sigmoid"), 1) | {"relu": 2, "leaky_relu": 2}
KEPT |= dict.fromkeys(("gelu", "silu", "elu"), 3)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Bytes by what they are for. What a checkpoint copies is the host's, and not counted.

    Attributes:
      data: the examples on the device, shared by all runs.
      state: parameters, optimiser and statistics of all runs.
      training: beside these in a step, of which a reading looks at the size.
      evaluation: beside these in an evaluation, or while the runs show their pictures.
    """

    data: int
    state: int
    training: int
    evaluation: int

    @property
    def total(self) -> int:
        return self.data + self.state + max(self.training, self.evaluation)

    def times(self, devices: int) -> "Estimate":
        """Of so many devices with as much."""
        parts = dataclasses.asdict(self)
        return Estimate(**{name: devices * size for name, size in parts.items()})

    def describe(self) -> str:
        parts = dataclasses.asdict(self).items()
        return ", ".join(f"{name} {gib(size)}" for name, size in parts)


def _shapes(spec: Spec) -> train.TrainState:
    shape = spec.model.example_shape
    return jax.eval_shape(
        lambda h, m, u: train.init_run(spec, h, m, u),
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), stack([HParams()])),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((spec.model.prior_components, *shape), jnp.float32),
    )


def _bytes(tree: object) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def num_params(spec: Spec) -> int:
    """Parameters of one run."""
    return sum(leaf.size for leaf in jax.tree.leaves(parameters(spec)))


def step_flops(spec: Spec) -> float:
    """Floating-point operations of a training step of one run, roughly.

    Two for each weight, example and place that it is used at, forward, and twice that backward.
    """
    net = NETS[spec.model.net]
    weights = num_params(spec)
    if net.images:  # used at every place of the image that it is moved over
        weights += sum(layer.products for part in net.layers(spec.model) for layer in part)
    return 6.0 * weights * spec.batch_size * objectives.num_samples(spec)


def parameters(spec: Spec) -> Params:
    """The shapes of the parameters of one run."""
    return _shapes(spec).params


def _arrays(spec: ModelSpec, side_by_side: bool = False) -> int:
    """Arrays of a layer's size that a step keeps of it: `KEPT`, and those of its norm."""
    if spec.norm == "none":
        return KEPT[spec.activation]
    # The norm's input, and the activation's, which is then not the same. Of LayerNorm, whose means
    # are each example's own, one more, and of runs side by side three: measured, from 4 runs on.
    of_norm = 1 if spec.norm == "batch" else 4 if side_by_side else 2
    return max(2, KEPT[spec.activation]) + of_norm


class _Step(NamedTuple):
    """Float32 numbers that one example takes in a training step.

    Attributes:
      encoder: of the encoder alone, its input with it.
      kept: from the way there to the way back. top: besides, at the top, where the way back begins.
      bottom: at its end, with the gradients of all parameters.
    """

    encoder: float
    kept: float
    top: float
    bottom: float


def _step(spec: Spec, side_by_side: bool) -> _Step:
    """Of a training step: of (the encoder and its input, and the decoder for each sample)."""
    model = spec.in_training().model
    encoder, decoder = NETS[model.net].layers(model)
    # Of the VAE-GAN, a reconstruction and two decoded images for its discriminator besides.
    samples = objectives.num_samples(spec) + (3 if spec.objective.name == "vaegan" else 0)
    # bfloat16 is half of it, but not on a CPU, which widens it.
    narrow = model.precision == "bfloat16" and jax.default_backend() != "cpu"
    size = 0.5 if narrow else 1
    arrays = _arrays(model, side_by_side)

    def inside(layer: Layer) -> float:
        return size * (arrays * layer.values + layer.patches)

    def kept(layers: list[Layer]) -> float:
        if model.remat == "layers":  # of each its output alone
            return size * sum(layer.values for layer in layers)
        return sum(map(inside, layers))

    def most(layers: list[Layer]) -> float:
        # A layer on its way back: gradients in its output and in what is made on the way there,
        # and what is made anew.
        again = inside if model.remat == "layers" else lambda layer: 0
        return max((size * (a.values + a.patches + a.terms) + again(a) for a in layers), default=0)

    inputs = model.num_values * (2 if spec.objective.corruption != "none" else 1)
    # Of each number of a head its logit, the gradient in it, and a term of the likelihood. Of a
    # binarised x the bits that it was drawn from.
    heads = model.num_pixels * sum(LIKELIHOODS[model.likelihood].heads(model.channels).values())
    outputs = model.num_values + samples * max(3 * heads, most(decoder))
    own = inputs + kept(encoder)
    return _Step(
        encoder=own,
        kept=own + samples * (kept(decoder) + _latent_values(model)),
        top=outputs,
        bottom=inputs + (inside(encoder[0]) if encoder else 0) + most(encoder),
    )


def _latent_values(spec: ModelSpec) -> int:
    """Numbers that one z takes in training: its heads, its covariance, what makes it, its prior."""
    d, family = spec.latent_dim, POSTERIORS[spec.posterior]
    # Each with its gradient.
    values = 2 * (sum(family.heads(spec).values()) + family.latent_size(spec)) + _on_the_way(spec)
    # Matrices d × d, or of outer products of factors.
    values += {"full": 4 * d * d, "low_rank": 5 * d * spec.posterior_rank**2}.get(spec.posterior, 0)
    values += 4 * d * spec.codes if not family.continuous else 0
    if spec.prior in ("mixture", "vamp"):  # each component's differences, and their gradients
        values += 2 * spec.prior_components * d
    return values


def _on_the_way(spec: ModelSpec) -> int:
    """Numbers that training keeps of one z in flows, and in networks between stochastic layers."""
    d, values = spec.latent_dim, 0
    # A flow's layer: the hidden units of its network, before and after, and vectors like z. An
    # autoregressive layer has those of its gates too.
    for flow, vectors in ((spec.posterior, 10 if spec.posterior == "iaf" else 4), (spec.prior, 4)):
        if flow in ("iaf", "coupling", "flow"):
            values += spec.flow_layers * (2 * spec.flow_width + vectors * d)
    if POSTERIORS[spec.posterior].nets:
        # Two networks between two layers, and of each dimension means, variances, densities.
        values += 2 * _arrays(spec) * spec.stochastic_depth * sum(spec.stochastic_widths) + 10 * d
    return values


def _shared_bytes(spec: Spec, encoder: float) -> float:
    """Of one step and run, what is not one example's: pairs of examples, pseudo-inputs, nets."""
    objective, batch = spec.objective, spec.batch_size
    # Matrices of all pairs: what `vae.penalties` holds at most, in training steps measured.
    pairs = {"tcvae": 6, "mmd": 4}.get(objective.name, 0) * batch**2
    pseudo = spec.model.prior_components * encoder if spec.model.prior == "vamp" else 0
    discriminator = 0
    if objective.name == "factor":  # relu, of z and of z permuted; and a gradient in one layer
        layers = 4 * objective.discriminator_depth + 2
        discriminator = layers * batch * objective.discriminator_width
    if objective.name == "vaegan":  # of x, a reconstruction and a sample
        discriminator = 3 * batch * encoder
    return 4 * (pairs + pseudo + discriminator)


class _Seen(NamedTuple):
    """Numbers that an evaluation holds of the encoder of one example, and of a decoded sample:
    one of few, or one of many.
    """

    encoded: int
    decoded: int
    sampled: int


def _evaluated(spec: ModelSpec) -> _Seen:
    encoder, decoder = NETS[spec.net].layers(spec)
    all_heads = LIKELIHOODS[spec.likelihood].heads(spec.channels)
    heads = spec.num_pixels * sum(all_heads.values())
    d, family = spec.latent_dim, POSTERIORS[spec.posterior]
    posterior = sum(family.heads(spec).values()) + (2 * d * d if spec.posterior == "full" else 0)
    # Noise, z and its densities; with no gradients, half of what training keeps on the way.
    drawn = 3 * family.latent_size(spec) + _on_the_way(spec) // 2
    drawn += d * spec.posterior_rank if spec.posterior == "low_rank" else 0
    drawn += 2 * spec.prior_components if spec.prior in ("mixture", "vamp") else 0
    encoded = _forward(encoder, spec.num_values, 0) + posterior
    decoded = sampled = _forward(decoder, 0, heads) + drawn
    if spec.net == "mlp":
        sampled = drawn + _hidden_of_samples(spec, [layer.values for layer in decoder], all_heads)
    return _Seen(encoded, decoded, sampled)


def _hidden_of_samples(spec: ModelSpec, widths: list[int], heads: dict[str, int]) -> int:
    """Numbers that many samples hold each, between z and its log-likelihood."""
    widest = max(widths, default=0)
    simple = spec.norm == "none" and KEPT[spec.activation] < 3 and spec.latent_skip == "none"
    if jax.default_backend() == "cpu" and simple and len(heads) == 1:
        # One loop over small pieces of products, relu and what is summed of the head: no layer's
        # output is ever there as a whole. Of many layers there are several such loops.
        return 0 if spec.depth <= 5 else 4 * widest
    # XLA orders what it computes so that more than a layer and the next are there: at most nine
    # arrays, measured from 2 layers to 24. LayerNorm centres its input besides.
    several = (1 + (spec.norm == "layer")) * sum(widths) + widest
    return min(several, 9 * widest) + spec.num_pixels * sum(heads.values())


def _forward(layers: list[Layer], before: int, after: int) -> int:
    """Numbers of one example on its way through: of a layer its input, its output and between."""
    most = before + after if not layers else 0
    for layer in layers:
        made = layer.values or after  # the last one may be a head
        most = max(most, before + made + layer.patches + layer.terms)
        before = layer.values
    return max(most, before + after)


def _eval_rows(spec: ModelSpec) -> int:
    backend, seen = jax.default_backend(), _evaluated(spec)
    row = 4 * (seen.encoded + max(seen.decoded, seen.sampled))
    most = EVAL_BYTES.get(backend, EVAL_BYTES_ACCELERATOR) // row
    return max(1, min(EVAL_ROWS.get(backend, EVAL_ROWS_ACCELERATOR), most))


def eval_batch(spec: ModelSpec, rows_per_example: int, together: int) -> int:
    """Examples in one evaluation batch, for so many rows of each and so many runs together."""
    return max(1, min(512, _eval_rows(spec) // (rows_per_example * together)))


def estimate(
    spec: Spec,
    dataset: data.Dataset,
    train_limit: int,
    *,
    rows_per_example: int,
    num_runs: int,
    together: int,
    sharing: int = 1,
    streamed: int | None = None,
) -> Estimate:
    """Bytes on a device that has `num_runs` runs of a population.

    Args:
      train_limit: training examples that are evaluated. rows_per_example: samples of one example
        that an evaluation decodes at once.
      together: runs computed at the same time. sharing: devices that share each batch.
      streamed: bytes of the batches on the device, where the training examples are not.
    """
    shapes = _shapes(spec)
    state, params = _bytes(shapes), _bytes(shapes.params)
    in_turn = together < num_runs
    item = dataset.train.dtype.itemsize * math.prod(dataset.example_shape)
    training = item * dataset.num_train if streamed is None else streamed
    return Estimate(
        data=training + item * (dataset.num_test + train_limit),
        state=num_runs * state,
        # Of a reading's step, the parameters before it. Runs in turn: a loop reads what was and
        # writes what will be, of all runs, and holds one run's in between.
        training=num_runs * params
        + in_turn * (num_runs + 1) * state
        + together * _step_bytes(spec, params, sharing, together > 1),
        evaluation=in_turn * params
        + _evaluation_bytes(spec.model, dataset.num_test, rows_per_example, together)
        + num_runs * PICTURES * math.prod(spec.model.example_shape) * 4,
    )


def _step_bytes(spec: Spec, params: int, sharing: int, side_by_side: bool) -> int:
    """Of a training step of one run.

    On the way back what a layer kept gives way to the gradient of its parameters: most is held at
    one of the ends, all that is kept or all gradients. The update then is in their place.
    """
    step = _step(spec, side_by_side)
    batch = -(-spec.batch_size // (spec.accumulate * sharing))
    top = 4 * batch * (step.kept + step.top) + _shared_bytes(spec, step.encoder)
    bottom = 4 * batch * step.bottom + params
    # The sum of the parts' gradients, where a batch has parts.
    return int(max(top, bottom)) + (params if spec.accumulate > 1 else 0)


def _evaluation_bytes(spec: ModelSpec, num_test: int, rows_per_example: int, together: int) -> int:
    """The most of three: one sample of many examples, many samples of few, the pictures."""
    seen = _evaluated(spec)
    # Of convolutions, what the encoder made is gone before the decoder's largest layer comes.
    both = max(seen.encoded, seen.decoded) if NETS[spec.net].images else seen.encoded + seen.decoded
    one = min(num_test, eval_batch(spec, 1, together)) * both
    batch = min(num_test, eval_batch(spec, rows_per_example, together))
    many = batch * (seen.encoded + rows_per_example * seen.sampled)
    pictures = max(min(num_test, gallery.NUM_LATENTS) * seen.encoded, PICTURES * seen.decoded)
    # Where all runs read the same x, their first layers are one product, of weights turned.
    shared = together > 1 and spec.net == "mlp" and spec.depth > 0
    turned = spec.num_values * spec.widths[0] if shared else 0
    return 4 * together * (max(one, many, pictures) + turned)


def max_runs(of: Callable[[int], Estimate], budget: int, most: int) -> int:
    """The largest number of runs up to `most` whose estimate fits the budget; at least 1.

    Args:
      of: number of runs -> the estimate for a population of them.
    """
    if of(most).total <= budget:
        return most
    fits, too_many = 1, most  # the estimate grows with the runs: halve the interval
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if of(middle).total <= budget else (fits, middle)
    return fits


def gib(size: int | float) -> str:
    """A size for people: 1.5 GiB, 312 MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{np.ceil(size / 2**20):.0f} MiB"
