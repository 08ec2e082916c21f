"""The same VAE as Flax's tutorials have it: `TrainState`, and one jitted dispatch for each step.

Written against Flax and optax alone, so that it owes nothing to `vae`; the parameters of a run
here fit it after `renamed`.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from vae.model import Params
from vae.spec import ModelSpec


class VAE(nn.Module):
    """x [B, H, W, C], noise [B, d] ↦ (logits, mean, log σ²)."""

    spec: ModelSpec

    @nn.compact
    def __call__(self, x: jax.Array, noise: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean, logvar = Encoder(self.spec, name="encoder")(x)
        z = mean + jnp.exp(0.5 * logvar) * noise
        return Decoder(self.spec, name="decoder")(z).reshape(x.shape), mean, logvar


class Encoder(nn.Module):
    spec: ModelSpec

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        conv = self.spec.net == "conv"
        h = x if conv else x.reshape(len(x), -1)
        for i, width in enumerate(self.spec.widths):
            name = f"layer_{i}"
            layer = nn.Conv(width, (4, 4), 2, name=name) if conv else nn.Dense(width, name=name)
            h = nn.relu(layer(h))
        h = h.reshape(len(x), -1)
        d = self.spec.latent_dim
        return nn.Dense(d, name="mean")(h), nn.Dense(d, name="scale")(h)


class Decoder(nn.Module):
    spec: ModelSpec

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        spec, widths = self.spec, self.spec.widths[::-1]
        height, width, channels = spec.example_shape
        if spec.net == "mlp":
            for i, size in enumerate(widths):
                z = nn.relu(nn.Dense(size, name=f"layer_{i}")(z))
            return nn.Dense(spec.num_values, name="output")(z)
        # Each layer doubles the image, up to a size that so many halvings divide.
        height, width = height >> spec.depth, width >> spec.depth
        h = nn.relu(nn.Dense(height * width * widths[0], name="project")(z))
        h = h.reshape(len(z), height, width, widths[0])
        for i in range(spec.depth):
            h = jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)
            size = widths[min(i + 1, spec.depth - 1)]
            h = nn.relu(nn.Conv(size, (3, 3), name=f"layer_{i}")(h))
        return nn.Conv(channels, (3, 3), name="output")(h)


def renamed(params: Params) -> dict[str, Any]:
    """A run's parameters under the names that the modules here have."""
    return {
        part: {
            name: next((v for k, v in leaves.items() if k in ("dense", "conv")), leaves)
            for name, leaves in params[part].items()
        }
        for part in ("encoder", "decoder")
    }


def loss(spec: ModelSpec, params: Any, x: jax.Array, noise: jax.Array) -> jax.Array:
    """distortion + rate of a batch x [B, H, W, C] at the noise [B, d]: nats, mean over examples."""
    logits, mean, logvar = VAE(spec).apply({"params": params}, x, noise)
    distortion = jnp.sum(optax.sigmoid_binary_cross_entropy(logits, x))
    rate = -0.5 * jnp.sum(1 + logvar - jnp.square(mean) - jnp.exp(logvar))
    return (distortion + rate) / len(x)


def loop(
    spec: ModelSpec, params: Params, examples: np.ndarray, batch_size: int, learning_rate: float
) -> Callable[[int], None]:
    """n steps: a batch out of an array of NumPy, and a jitted step, whose loss nobody waits for."""
    state = [
        TrainState.create(
            apply_fn=VAE(spec).apply, params=renamed(params), tx=optax.adam(learning_rate)
        )
    ]

    @jax.jit
    def train_step(state, x, rng):
        noise = jax.random.normal(rng, (len(x), spec.latent_dim))
        value, grads = jax.value_and_grad(lambda p: loss(spec, p, x, noise))(state.params)
        return state.apply_gradients(grads=grads), value

    def batches():
        generator = np.random.default_rng(0)
        while True:
            order = generator.permutation(len(examples))
            yield from np.split(
                order[: len(order) // batch_size * batch_size], len(order) // batch_size
            )

    source, rng = batches(), [jax.random.key(0)]

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            rng[0], own = jax.random.split(rng[0])
            state[0], value = train_step(state[0], examples[next(source)], own)
        jax.block_until_ready((state[0], value))

    return run
