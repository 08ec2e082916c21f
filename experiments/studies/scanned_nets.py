"""Gradients at initialisation in encoders and decoders of many depths, by one program.

Layers are the library's, scanned over, so that the depth is a number. Loss: |x − x̂|² + KL, of a
sigmoid output; float64, because float32 ends at 1e-38.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vae import data, distributions, nets
from vae.spec import ModelSpec

DEPTHS = (1, 2, 5, 10, 20, 50)
INITS = ("glorot", "he", "lecun", "orthogonal", "uniform")
PARTS = ("encoder", "decoder")
WIDTH, LATENTS, EXAMPLES, SEEDS = 64, 2, 16, 5


def at_start(images: data.Dataset, activation: str, norm: str, residual: str):
    """log10 g_l: `encoder`, `decoder` [inits, depths, seeds, 50]; nan beyond a net's depth."""
    x = images.train[: SEEDS * EXAMPLES].reshape(SEEDS, EXAMPLES, -1) / 255.0
    kernels = [kernels_of(init, x.shape[-1]) for init in INITS]
    with jax.enable_x64(True):
        kernels = jax.tree.map(lambda *a: jnp.asarray(np.stack(a), jnp.float64), *kernels)
        found = _at_start(kernels, jnp.asarray(x, jnp.float64), activation, norm, residual)
        return {part: np.asarray(values) for part, values in zip(PARTS, found, strict=True)}


@functools.partial(jax.jit, static_argnames=("activation", "norm", "residual"))
def _at_start(kernels, x, activation, norm, residual):
    def one(kernels, x, depth):
        return signal(kernels, x, depth, activation, norm, residual)

    over_seeds = jax.vmap(one, (0, 0, None))
    over_inits = jax.vmap(over_seeds, (0, None, None))
    found = jax.lax.map(lambda depth: over_inits(kernels, x, depth), jnp.array(DEPTHS))
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), found)


@functools.cache
def kernels_of(init: str, num_values: int):
    """Of both parts: the first layer's kernel, those of the 49 that follow, and the heads'."""

    def of_seed(seed):
        rngs = iter(jax.random.split(jax.random.key(seed), 6))
        shapes = {
            "encoder": {"first": (num_values, WIDTH), "head": (WIDTH, 2 * LATENTS)},
            "decoder": {"first": (LATENTS, WIDTH), "head": (WIDTH, num_values)},
        }
        draw = nets.INITIALIZERS[init]
        made = {
            part: {name: draw(next(rngs), shape, jnp.float32) for name, shape in of.items()}
            for part, of in shapes.items()
        }
        for part in PARTS:
            keys = jax.random.split(next(rngs), max(DEPTHS) - 1)
            rest = jax.lax.map(lambda key: draw(key, (WIDTH, WIDTH), jnp.float32), keys)
            made[part]["rest"] = rest
        return made

    # In turn: the QR decompositions of `orthogonal`, batched by vmap, were seen to hang on a CPU.
    draw_all = jax.jit(lambda seeds: jax.lax.map(of_seed, seeds))
    return jax.tree.map(np.asarray, draw_all(jnp.arange(SEEDS, dtype=jnp.uint32)))


def signal(kernels, x, depth, activation, norm, residual):
    """log10 of the root mean square of ∂loss/∂h_l, [50] of each part, for x [examples, D]."""
    # Residuals are added below, where the depth is a number.
    spec = ModelSpec((1,), depth=1, width=WIDTH, activation=activation, norm=norm)
    layer = nets.DenseLayer(spec, WIDTH, ("batch",))
    noise = jax.random.normal(jax.random.key(1), (EXAMPLES, LATENTS), x.dtype)
    # A gate at its start has no branch yet.
    scale = {
        "none": 1.0,
        "plain": 1.0,
        "scaled": 1 / jnp.sqrt(depth.astype(x.dtype)),
        "zero_init": 0.0,
    }[residual]

    def apply(kernel, h):
        zeros, ones = jnp.zeros(WIDTH, x.dtype), jnp.ones(WIDTH, x.dtype)
        made = {"dense": {"kernel": kernel, "bias": zeros}}
        if norm != "none":
            made["norm"] = {norm: {"scale": ones, "bias": zeros}}
        return layer.apply({"params": made}, h, True, mutable=["batch_stats"])[0]

    def trunk(of, h, taps):
        h = apply(of["first"], h) + taps[0]

        def step(h, scanned):
            number, kernel, tap = scanned
            f = apply(kernel, h)
            new = f if residual == "none" else h + scale * f
            return jnp.where(number < depth, new, h) + tap, None

        numbers = jnp.arange(1, max(DEPTHS))
        return jax.lax.scan(step, h, (numbers, of["rest"], taps[1:]))[0] @ of["head"]

    def loss(taps):
        def one(x, noise, taps):
            mean, logvar = jnp.split(trunk(kernels["encoder"], x, taps["encoder"]), 2)
            z = mean + jnp.exp(0.5 * logvar) * noise
            seen = jax.nn.sigmoid(trunk(kernels["decoder"], z, taps["decoder"]))
            kl = jnp.sum(distributions.kl_standard_normal(mean, logvar))
            return jnp.sum(jnp.square(x - seen)) + kl

        return jnp.sum(jax.vmap(one, axis_name="batch")(x, noise, taps))

    zeros = jnp.zeros((EXAMPLES, max(DEPTHS), WIDTH), x.dtype)
    gradients = jax.grad(loss)(dict.fromkeys(PARTS, zeros))
    there = jnp.arange(max(DEPTHS)) < depth

    def size(gradient):
        most = jnp.max(jnp.abs(gradient), (0, 2))  # squares of the smallest underflow
        scaled = gradient / jnp.where(most > 0, most, 1)[None, :, None]
        log = jnp.log10(most) + 0.5 * jnp.log10(jnp.mean(jnp.square(scaled), (0, 2)))
        return jnp.where(there, log, jnp.nan)

    return tuple(size(gradients[part]) for part in PARTS)
