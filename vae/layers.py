"""The layers of a parameter tree, by name and in order of depth, and their norms."""

import re
from typing import Any

import jax
import jax.numpy as jnp

_PARTS = {"encoder": 0, "decoder": 1, "likelihood": 2}
_HEADS = {"project": -1, "mean": 10**6, "scale": 10**6 + 1, "output": 10**6, "variance": 10**6 + 1}


def _depth(name: str) -> tuple[int, int]:
    part, layer = name.split("/")
    number = re.fullmatch(r"layer_(\d+)", layer)
    return _PARTS[part], int(number[1]) if number else _HEADS.get(layer, 0)


def layer_names(params: dict[str, Any]) -> list[str]:
    """Names such as `encoder/layer_0`, from the input to the output of the model."""
    return sorted((f"{part}/{layer}" for part in params for layer in params[part]), key=_depth)


def layer_norms(tree: dict[str, Any]) -> jax.Array:
    """L2 norm of each layer's leaves (kernel, bias, normalisation together), [layers].

    Args:
      tree: parameters, or anything of their structure: gradients, updates.
    """
    norms = []
    for name in layer_names(tree):
        part, layer = name.split("/")
        leaves = jax.tree.leaves(tree[part][layer])
        # Row by row: XLA's CPU backend leaves a sum over all axes at once to one core.
        rows = [jnp.linalg.norm(jnp.atleast_1d(leaf), axis=-1) for leaf in leaves]
        norms.append(jnp.sqrt(sum(jnp.sum(jnp.square(row)) for row in rows)))
    return jnp.stack(norms)
