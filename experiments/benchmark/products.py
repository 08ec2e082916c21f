"""The matrix products of a training step of an MLP, and nothing else.

What a step costs at least: whatever else it does comes on top.
"""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Weights = tuple[tuple[jax.Array, ...], jax.Array, jax.Array, tuple[jax.Array, ...]]


def _shapes(num_values: int, widths: tuple[int, ...], latent_dim: int) -> tuple:
    encoder = list(itertools.pairwise((num_values, *widths)))
    decoder = list(itertools.pairwise((latent_dim, *widths[::-1], num_values)))
    head = (widths[-1], latent_dim)
    return encoder, head, head, decoder


def count(widths: tuple[int, ...]) -> int:
    """Products in a step: one forwards and two backwards for each matrix, but for the first, whose
    input needs no gradient.
    """
    return 3 * (2 * len(widths) + 3) - 1


def weights(num_values: int, widths: tuple[int, ...], latent_dim: int) -> Weights:
    """The encoder's matrices, mean and scale heads, and the decoder's, each [in, out]."""
    rng = np.random.default_rng(0)
    shapes = _shapes(num_values, widths, latent_dim)
    return jax.tree.map(
        lambda shape: jnp.asarray(0.02 * rng.normal(size=shape), jnp.float32),
        (tuple(shapes[0]), shapes[1], shapes[2], tuple(shapes[3])),
        is_leaf=lambda node: isinstance(node, tuple) and isinstance(node[0], int),
    )


def flops(
    batch_size: int, num_values: int, widths: tuple[int, ...], latent_dim: int, samples: int = 1
) -> int:
    """Of one step with K samples of z per example: two for each multiply-add."""
    encoder, mean, scale, decoder = _shapes(num_values, widths, latent_dim)
    encoded = 3 * sum(n * m for n, m in (*encoder, mean, scale)) - encoder[0][0] * encoder[0][1]
    decoded = 3 * sum(n * m for n, m in decoder)
    return 2 * batch_size * (encoded + samples * decoded)


def once(weights: Any, x: Any, samples: int = 1) -> tuple:
    """The products of one step on a batch x [B, D]; arrays of JAX or PyTorch's tensors.

    With K samples, of JAX alone, the decoder's have K times as many rows.

    Returns:
      The gradients of the weights, and what no other product reads: each feeds another or is
      returned, and takes operands that no other of its kind has, so that XLA can neither drop nor
      merge any.
    """
    encoder, w_mean, w_scale, decoder = weights
    # 1. Forward.
    encoded = [x]
    for w in encoder:
        encoded.append(encoded[-1] @ w)
    h = encoded[-1]
    mean, scale = h @ w_mean, h @ w_scale
    decoded = [mean if samples == 1 else jnp.repeat(mean, samples, axis=0)]
    for w in decoder:
        decoded.append(decoded[-1] @ w)
    # 2. Backward: the gradients of the weights, and those of the activations.
    g, of_decoder = decoded[-1], []
    for a, w in zip(decoded[-2::-1], decoder[::-1], strict=True):
        of_decoder.append(a.T @ g)
        g = g @ w.T
    if samples > 1:
        g = g.reshape(len(mean), samples, -1).sum(axis=1)
    g_mean, g_scale = h.T @ g, h.T @ scale
    g, g_h_scale = g @ w_mean.T, scale @ w_scale.T
    of_encoder = [encoded[-2].T @ g]
    for a, w in zip(encoded[-3::-1], encoder[:0:-1], strict=True):
        g = g @ w.T
        of_encoder.append(a.T @ g)
    return (tuple(of_encoder[::-1]), g_mean, g_scale, tuple(of_decoder[::-1])), g_h_scale


def loop(weights: Weights, x: jax.Array, num_steps: jax.Array, samples: int = 1) -> tuple:
    """`once` for `num_steps` steps, in a loop like that of training.

    The barrier ties the operands to the step, without which the loop's products would be moved in
    front of it.
    """

    def body(i, results):
        del results
        x_i, _ = jax.lax.optimization_barrier((x, i))
        return once(weights, x_i, samples)

    hidden = jnp.zeros((x.shape[0], weights[1].shape[0]), jnp.float32)
    start = (jax.tree.map(jnp.zeros_like, weights), hidden)
    return jax.lax.fori_loop(0, num_steps, body, start)
