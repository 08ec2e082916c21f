"""The matrix products of a training step of an MLP with one hidden layer, and nothing else.

What a step costs at least: whatever else it does comes on top.
"""

import jax
import jax.numpy as jnp
import numpy as np

# x·W₁, the two heads, z·W₂, d·Wₒ; backwards two each, but for the input, which needs no gradient.
COUNT = 5 + 4 * 2 + 1


def weights(num_values: int, width: int, latent_dim: int) -> tuple[jax.Array, ...]:
    """W₁ [D, w], mean and scale heads [w, d], W₂ [d, w], Wₒ [w, D]."""
    rng = np.random.default_rng(0)
    d, w = latent_dim, width
    shapes = ((num_values, w), (w, d), (w, d), (d, w), (w, num_values))
    return tuple(jnp.asarray(0.02 * rng.normal(size=s), jnp.float32) for s in shapes)


def flops(batch_size: int, num_values: int, width: int, latent_dim: int, samples: int = 1) -> int:
    """Of one step with K samples of z per example: two for each multiply-add."""
    encoder = 2 * num_values * width + 6 * width * latent_dim
    decoder = 3 * num_values * width + 3 * width * latent_dim
    return 2 * batch_size * (encoder + samples * decoder)


def loop(
    weights: tuple[jax.Array, ...], x: jax.Array, num_steps: jax.Array, samples: int = 1
) -> tuple:
    """The products of `num_steps` steps on one batch x [B, D], in a loop like that of training.

    With K samples the decoder's have K times as many rows.

    Each product feeds another or is carried out of the loop, and takes operands that no other
    product of its kind has, so that XLA can neither drop nor merge any. The barrier ties the
    operands to the step, without which the loop's products would be moved in front of it.
    """
    w_1, w_mean, w_scale, w_2, w_out = weights

    def body(i, results):
        del results
        x_i, _ = jax.lax.optimization_barrier((x, i))
        # 1. Forward.
        h = x_i @ w_1
        mean, scale = h @ w_mean, h @ w_scale
        z = jnp.repeat(mean, samples, axis=0)
        d = z @ w_2
        g = d @ w_out
        # 2. Backward: the gradients of the weights, and those of the activations.
        g_out, g_d = d.T @ g, g @ w_out.T
        g_2, g_z = z.T @ g_d, g_d @ w_2.T
        g_z = g_z.reshape(len(mean), samples, -1).sum(axis=1)
        g_mean, g_scale = h.T @ g_z, h.T @ scale
        g_h, g_h_scale = g_z @ w_mean.T, scale @ w_scale.T
        g_1 = x_i.T @ g_h
        return (g_1, g_mean, g_scale, g_2, g_out), g_h_scale

    hidden = jnp.zeros((x.shape[0], w_1.shape[1]), jnp.float32)
    start = (jax.tree.map(jnp.zeros_like, weights), hidden)
    return jax.lax.fori_loop(0, num_steps, body, start)
