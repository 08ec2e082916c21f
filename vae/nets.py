"""Encoder and decoder networks in Flax Linen: one example in, one example out.

Batching is the caller's `vmap(..., axis_name="batch")`. With `norm="batch"` the networks are
coupled over that axis (and over the axis `sample` in the decoder): the mean of per-example
gradients is then not the gradient of the batch, and the running statistics are in the collection
`batch_stats`.

With `precision="bfloat16"` the factors of products and convolutions, the activation functions and
what is kept of them for the way back are bfloat16. Parameters, sums (of a product, over the rows
of a batch in a gradient), biases, normalisation, residual sums and what the heads put out are
float32: rounded is what is multiplied, and never a total. Flows are float32 throughout: they are
inverted, and their log-determinants are terms of the loss.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vae import conv, linalg
from vae.matmul import dot_general
from vae.spec import ModelSpec

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": nn.sigmoid,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "leaky_relu": nn.leaky_relu,
    "elu": nn.elu,
    "identity": lambda h: h,
}

# Variances per weight, n the fan-in and m the fan-out. Biases start at zero.
INITIALIZERS: dict[str, nn.initializers.Initializer] = {
    "glorot": nn.initializers.glorot_uniform(),  # 2/(n + m); Glorot and Bengio 2010
    "he": nn.initializers.he_normal(),  # 2/n; He et al. 2015
    "lecun": nn.initializers.lecun_normal(),  # 1/n; LeCun et al. 1998
    "orthogonal": linalg.orthogonal,  # Saxe et al. 2014
    "uniform": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),  # U(±1/√n)
}


# What products are made of and activations are kept in; None: the type of the parameters.
PRECISIONS: dict[str, Any] = {"float32": None, "bfloat16": jnp.bfloat16}


def _narrow(spec: ModelSpec, h: jax.Array) -> jax.Array:
    dtype = PRECISIONS[spec.precision]
    return h if dtype is None else h.astype(dtype)


def _wide(h: jax.Array) -> jax.Array:
    return h.astype(jnp.float32) if h.dtype == jnp.bfloat16 else h


def _product(spec: ModelSpec) -> Callable[..., jax.Array]:
    return functools.partial(dot_general, narrow=PRECISIONS[spec.precision])


def _dense(spec: ModelSpec, size: int, name: str) -> Callable[[jax.Array], jax.Array]:
    kernel_init = INITIALIZERS[spec.init]
    dense = nn.Dense(size, kernel_init=kernel_init, dot_general=_product(spec), name=name)
    # A bfloat16 h is widened and narrowed again within the product, which XLA leaves out.
    return lambda h: dense(_wide(h))


class Tap(nn.Module):
    """h ↦ h: a place where instruments of gradients look (`vae.gradients`), free where none does.

    With the collection `taps` mutable it puts h there; with `taps` given it adds what is there, a
    zero, in which the gradient of the loss is that in h. What is there is never bfloat16.
    """

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        if self.is_initializing():
            return h
        if self.is_mutable_collection("taps"):
            self.put_variable("taps", "value", _wide(h))
            return h
        if not self.has_variable("taps", "value"):
            return h
        return (_wide(h) + self.get_variable("taps", "value")).astype(h.dtype)


class Normalize(nn.Module):
    """`none`, `layer` (Ba et al. 2016) or `batch` (Ioffe and Szegedy 2015) over named axes."""

    norm: str
    batch_axes: tuple[str, ...]

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        if self.norm == "layer":
            return nn.LayerNorm(name="layer")(h)
        if self.norm == "batch":
            axes = self.batch_axes if len(self.batch_axes) > 1 else self.batch_axes[0]
            return nn.BatchNorm(
                use_running_average=not train, momentum=0.9, axis_name=axes, name="batch"
            )(h)
        return h


class DenseLayer(nn.Module):
    """h ↦ φ(norm(Wh + b)), as a residual branch where the widths agree.

    residual: `plain` h + f(h); `scaled` h + f(h)/√L (L = `layers`); `zero_init` h + αf(h) with a
    learned α = 0 at the start (De and Smith 2020, SkipInit), so that the layer starts as identity.

    layers: those of the network that it is in; None: `depth`.
    """

    spec: ModelSpec
    width: int
    batch_axes: tuple[str, ...]
    layers: int | None = None

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        spec = self.spec
        f = _dense(spec, self.width, "dense")(h)
        f = Normalize(spec.norm, self.batch_axes, name="norm")(f, train)
        f = ACTIVATIONS[spec.activation](Tap(name="pre")(_narrow(spec, f)))
        if spec.residual == "none" or h.shape != f.shape:
            return Tap(name="post")(f)
        f = _wide(f)
        if spec.residual == "scaled":
            f = f / math.sqrt(self.layers or spec.depth)
        elif spec.residual == "zero_init":
            f = self.param("gate", nn.initializers.zeros, (), f.dtype) * f
        return Tap(name="post")(_narrow(spec, _wide(h) + f))


class Conv(nn.Module):
    """[H, W, C] ↦ [H', W', features]: a convolution and a bias, see `vae.conv`.

    The same parameters as `nn.Conv`, and with padding SAME the same function.

    way: `same`; `halved`; `doubled`, of the image first made twice as large, and cut to `size`.
    """

    spec: ModelSpec
    features: int
    kernel_size: int
    way: str = "same"
    size: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        k = self.kernel_size
        shape = (k, k, h.shape[-1], self.features)
        kernel = self.param("kernel", INITIALIZERS[self.spec.init], shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        # Patches of narrow numbers, widened and narrowed again within the product.
        h, wide = _narrow(self.spec, h), _product(self.spec)
        made = conv.WAYS[self.way](h, kernel, lambda a, w: wide(_wide(a), w), self.size)
        return made + bias[None, None]


class ConvLayer(nn.Module):
    """[H, W, C] ↦ φ(norm(conv)): 4 × 4 with stride 2 down, or up to `size`, twice as large.

    Up is nearest-neighbour resizing and a 3 × 3 convolution, which leaves no checkerboard (Odena
    et al. 2016).
    """

    spec: ModelSpec
    width: int
    batch_axes: tuple[str, ...]
    size: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, h: jax.Array, train: bool) -> jax.Array:
        spec = self.spec
        if self.size is None:
            h = Conv(spec, self.width, 4, "halved", name="conv")(h)
        else:
            h = Conv(spec, self.width, 3, "doubled", self.size, name="conv")(h)
        h = Normalize(spec.norm, self.batch_axes, name="norm")(h, train)
        h = Tap(name="pre")(_narrow(spec, h))
        return Tap(name="post")(ACTIVATIONS[spec.activation](h))


def _remade(layer: type[nn.Module], spec: ModelSpec) -> type[nn.Module]:
    """The kind of layer, or one whose inside is computed anew on the way back."""
    return nn.remat(layer, static_argnums=(2,)) if spec.remat == "layers" else layer


def conv_sizes(spec: ModelSpec) -> list[tuple[int, int]]:
    """Height and width before each strided layer and after the last: (28, 28), (14, 14), ..."""
    sizes = [tuple(spec.example_shape[:2])]
    for _ in range(spec.depth):
        sizes.append(tuple(-(-n // 2) for n in sizes[-1]))
    return sizes


# What follows is called inside a module's compact method, so that its layers are that module's own
# and are named `encoder/layer_0` and not `encoder/trunk/layer_0`.


# What a hidden layer makes of h, or, in a packed model, h itself in layers beyond the run's own.
def _passed(layers: jax.Array | None, number: int, new: jax.Array, h: jax.Array) -> jax.Array:
    return new if layers is None or number == 0 else jnp.where(number < layers, new, h)


# (name, numbers per pixel) -> so many numbers for each pixel, in any shape.
Head = Callable[[str, int], jax.Array]


def _mlp_encode(
    spec: ModelSpec, x: jax.Array, train: bool, layers: jax.Array | None = None
) -> jax.Array:
    h = x.reshape(-1)
    for i, width in enumerate(spec.widths):
        layer = _remade(DenseLayer, spec)
        new = layer(spec, width, ("batch",), spec.encoder_layers, name=f"layer_{i}")(h, train)
        h = _passed(layers, i, new, h)
    return h


def _mlp_decode(
    spec: ModelSpec, z: jax.Array, train: bool, layers: jax.Array | None = None
) -> Head:
    """With `latent_skip`, z is beside h in the input of each layer and head; Dieng et al. 2019."""
    h = z
    for i, width in enumerate(spec.widths[::-1]):
        layer = _remade(DenseLayer, spec)
        new = layer(spec, width, ("batch", "sample"), name=f"layer_{i}")(h, train)
        h = _passed(layers, i, new, h)
        h = h if spec.latent_skip == "none" else jnp.concatenate([_wide(h), z])

    def head(name: str, channels: int) -> jax.Array:
        size = spec.num_pixels * channels
        return Tap(name=f"{name}_post")(_dense(spec, size, name)(h))

    return head


def _conv_encode(spec: ModelSpec, x: jax.Array, train: bool) -> jax.Array:
    h = x
    for i, width in enumerate(spec.widths):
        h = _remade(ConvLayer, spec)(spec, width, ("batch",), name=f"layer_{i}")(h, train)
    return h.reshape(-1)


def _conv_decode(spec: ModelSpec, z: jax.Array, train: bool) -> Head:
    widths, sizes = spec.widths[::-1], conv_sizes(spec)[::-1]
    shape = (*sizes[0], widths[0])
    h = Tap(name="project_pre")(_dense(spec, math.prod(shape), "project")(z))
    h = ACTIVATIONS[spec.activation](_narrow(spec, h))
    h = Tap(name="project_post")(h).reshape(shape)
    for i, size in enumerate(sizes[1:]):
        width = widths[min(i + 1, len(widths) - 1)]
        layer = _remade(ConvLayer, spec)
        h = layer(spec, width, ("batch", "sample"), size, name=f"layer_{i}")(h, train)

    def head(name: str, channels: int) -> jax.Array:
        return Tap(name=f"{name}_post")(Conv(spec, channels, 3, name=name)(h))

    return head


class Layer(NamedTuple):
    """What one layer makes of one example, in numbers.

    values: its output. patches, terms, products: see `vae.conv.Cost`.
    """

    values: int
    patches: int = 0
    terms: int = 0
    products: int = 0


def _mlp_layers(spec: ModelSpec) -> tuple[list[Layer], list[Layer]]:
    layers = [Layer(width) for width in spec.widths]
    # With `latent_skip` z is copied beside each output.
    beside = spec.latent_dim if spec.latent_skip != "none" else 0
    return layers, [Layer(width + beside) for width in spec.widths[::-1]]


def _conv_layers(spec: ModelSpec) -> tuple[list[Layer], list[Layer]]:
    sizes, widths = conv_sizes(spec), spec.widths

    def layer(way: str, size: tuple[int, int], k: int, read: int, made: int) -> Layer:
        return Layer(math.prod(size) * made, *conv.cost(way, size, k, read, made))

    reads = (spec.example_shape[-1], *widths)
    down = [layer("halved", sizes[i + 1], 4, reads[i], widths[i]) for i in range(spec.depth)]
    up = [Layer(math.prod(sizes[-1]) * widths[-1])]  # `project`
    for i in range(len(widths) - 1, -1, -1):
        up.append(layer("doubled", sizes[i], 3, widths[i], widths[max(i - 1, 0)]))
    head = layer("same", sizes[0], 3, widths[0], spec.channels)
    return down, [*up, head._replace(values=0)]  # its output is the likelihood's


class Net(NamedTuple):
    """One architecture: a row of `NETS`.

    Attributes:
      encode: (spec, x [*x], train) -> features [n], which the heads of the posterior read.
      decode: (spec, z [n], train) -> a function that makes an output head, see `Head`.
        Both take `layers` too where models can be packed: those that are the run's own.
      layers: spec -> the hidden layers of (encoder, decoder), for estimates of memory.
      images: whether it convolves: examples must be [H, W, C], and one run is much work.
    """

    encode: Callable[..., jax.Array]
    decode: Callable[..., Head]
    layers: Callable[[ModelSpec], tuple[list[Layer], list[Layer]]]
    images: bool = False


NETS: dict[str, Net] = {
    "mlp": Net(_mlp_encode, _mlp_decode, _mlp_layers),
    "conv": Net(_conv_encode, _conv_decode, _conv_layers, images=True),
}


class Encoder(nn.Module):
    """x [*x] ↦ the posterior's heads, by name: one dense layer each on a trunk of `depth` layers.

    Heads `NAME_2`, `NAME_3`, ... are those of a ladder's higher rungs: rung l is read from
    `stochastic_depth` more layers on what rung l − 1 is read from.

    heads: pairs of a name and its size, rung by rung.
    """

    spec: ModelSpec
    heads: tuple[tuple[str, int], ...]

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, layers: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        spec, found = self.spec, {}
        own = {} if layers is None else {"layers": layers}
        h, number = NETS[spec.net].encode(spec, x, train, **own), spec.depth
        for rung, heads in itertools.groupby(self.heads, lambda head: rung_of(head[0])):
            if rung > 1:
                for _ in range(spec.stochastic_depth):
                    width, name = spec.stochastic_widths[rung - 2], f"layer_{number}"
                    layer = _remade(DenseLayer, spec)
                    layer = layer(spec, width, ("batch",), spec.encoder_layers, name=name)
                    h, number = layer(h, train), number + 1
            for name, size in heads:
                found[name] = Tap(name=f"{name}_post")(_dense(spec, size, name)(h))
        return found


def rung_of(head: str) -> int:
    """Of a head `NAME_l` l, of others 1."""
    number = head.rpartition("_")[2]
    return int(number) if number.isdecimal() else 1


class Conditional(nn.Module):
    """z [n] of one stochastic layer ↦ `mean` and `scale` [size] of the next one.

    `stochastic_depth` layers of `width` units, and a dense layer for each of the two. It reads
    samples, so that BatchNorm is over the axes `batch` and `sample`.
    """

    spec: ModelSpec
    size: int
    width: int

    @nn.compact
    def __call__(self, z: jax.Array, train: bool) -> dict[str, jax.Array]:
        spec, h = self.spec, z
        axes, layers = ("batch", "sample"), spec.stochastic_depth
        for i in range(layers):
            layer = _remade(DenseLayer, spec)
            h = layer(spec, self.width, axes, layers, name=f"layer_{i}")(h, train)
        return {name: _dense(spec, self.size, name)(h) for name in ("mean", "scale")}


class Decoder(nn.Module):
    """z [n] ↦ the likelihood's heads, by name: mirrors the encoder's widths.

    heads: pairs of a name and its numbers per pixel. With one number for each value of x a head
    has the shape of x, otherwise [*pixels, numbers]. A convolutional decoder starts with one more
    dense layer, `project`, to the smallest image.
    """

    spec: ModelSpec
    heads: tuple[tuple[str, int], ...]

    @nn.compact
    def __call__(
        self, z: jax.Array, train: bool, layers: jax.Array | None = None
    ) -> dict[str, jax.Array]:
        spec = self.spec
        own = {} if layers is None else {"layers": layers}
        head = NETS[spec.net].decode(spec, z, train, **own)
        return {
            name: head(name, channels).reshape(
                spec.example_shape if channels == spec.channels else (*spec.pixels, channels)
            )
            for name, channels in self.heads
        }


class Discriminator(nn.Module):
    """x ↦ (logit, the features [n] it is read from): an encoder's trunk and one dense layer."""

    spec: ModelSpec

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = _wide(NETS[self.spec.net].encode(self.spec, x, True))
        return _dense(self.spec, 1, "output")(features)[0], features
