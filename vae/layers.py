"""The layers of a parameter tree, by name and in order of depth, and their norms."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_PARTS = ("encoder", "posterior", "prior", "decoder", "likelihood", "discriminator")
_HEADS = ("mean", "logits", "scale", "factor", "context", "output", "variance")


def _depth(name: str) -> tuple[int, int]:
    part, layer = name.split("/")
    word, _, number = layer.rpartition("_")
    if word == "layer":
        depth = int(number)
    elif word == "z":  # from the bottom up where z is inferred, from the top down where it is made
        depth = int(number) if part == "posterior" else -int(number)
    elif layer in _HEADS:
        depth = 10**6 + _HEADS.index(layer)
    elif word in _HEADS:  # of a ladder's rung
        depth = 10**6 + len(_HEADS) * int(number) + _HEADS.index(word)
    else:
        depth = -1 if layer == "project" else 0
    return _PARTS.index(part), depth


def layer_names(params: dict[str, Any]) -> list[str]:
    """Names such as `encoder/layer_0`, from the input to the output of the model."""
    return sorted((f"{part}/{layer}" for part in params for layer in params[part]), key=_depth)


def of_vae(params: dict[str, Any]) -> np.ndarray:
    """Which layers are the VAE's own, and not its discriminator's; bool [layers]."""
    return np.array([not name.startswith("discriminator/") for name in layer_names(params)])


def layer_norms(tree: dict[str, Any]) -> jax.Array:
    """L2 norm of each layer's leaves (kernel, bias, normalisation together), [layers].

    Args:
      tree: parameters, or anything of their structure: gradients, updates.
    """
    norms = []
    for leaves in _leaves(tree):
        # Row by row: XLA's CPU backend leaves a sum over all axes at once to one core.
        rows = [jnp.linalg.norm(jnp.atleast_1d(leaf), axis=-1) for leaf in leaves]
        norms.append(jnp.sqrt(sum(jnp.sum(jnp.square(row)) for row in rows)))
    return jnp.stack(norms)


def layer_dots(one: dict[str, Any], other: dict[str, Any]) -> jax.Array:
    """Inner product of each layer's leaves in two trees like the parameters, [layers]."""
    dots = [
        sum(jnp.sum(a * b) for a, b in zip(first, second, strict=True))
        for first, second in zip(_leaves(one), _leaves(other), strict=True)
    ]
    return jnp.stack(dots)


def _leaves(tree: dict[str, Any]) -> list[list[jax.Array]]:
    """The leaves of each layer, in the order of `layer_names`."""
    names = [name.split("/") for name in layer_names(tree)]
    return [jax.tree.leaves(tree[part][layer]) for part, layer in names]
