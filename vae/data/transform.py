"""From one raw example to one model input: scaling, and binarisation fresh at every step."""

import functools
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Float32, Key, Num

from vae import random

# Rows binarised at once by `draw_bits`: 4096 MNIST images are 13 MB of float32.
_CHUNK = 4096


@dataclass(frozen=True)
class Transform:
    """What `prepare` does to a raw example: x = raw * scale + offset, then bits when `binarization`
    is "dynamic".

    Frozen and hashable, so that it is a static part of a compiled program.

    Attributes:
      scale: factor on the stored values.
      offset: added after the factor.
      binarization: "none", or "dynamic": x is read as P(bit = 1) and a bit is drawn. (Threshold and
        static binarisation are done once at load: the stored values are then bits and the transform
        is the identity.)
    """

    scale: float = 1.0
    offset: float = 0.0
    binarization: Literal["none", "dynamic"] = "none"


@struct.dataclass
class Examples:
    """Examples on the device, raw as stored, with their transform.

    Attributes:
      raw: [N, *x]. transform: static; raw example -> model input, by `prepare`.
    """

    raw: jax.Array
    transform: Transform = struct.field(pytree_node=False)


def prepare(
    transform: Transform, raw: Num[Array, "*x"] | Num[np.ndarray, "*x"], rng: Key[Array, ""] | None
) -> Float32[Array, "*x"]:
    """One raw example to one model input.

    Pure, and the same under `jit` and `vmap`: the bits depend on `rng` and the example alone.

    Args:
      transform: what to do.
      raw: one stored example [*x], uint8 or float32.
      rng: key of this (seed, step, example); used only for dynamic binarisation, otherwise may be
        None.

    Returns:
      float32 [*x].

    Raises:
      ValueError: dynamic binarisation without a key.
    """
    x = jnp.asarray(raw).astype(jnp.float32) * transform.scale
    if transform.offset:
        x = x + transform.offset
    if transform.binarization == "none":
        return x
    if rng is None:
        raise ValueError("Dynamic binarization needs a key: pass `rng`.")
    # P(draw < threshold) = threshold / 2^16: within 2^-17 of x, and exactly 0 and 1 at x = 0 and x
    # = 1.
    threshold = jnp.round(x * 2.0**16).astype(jnp.uint32)
    draw = jax.random.bits(rng, x.shape, jnp.uint16).astype(jnp.uint32)
    return (draw < threshold).astype(jnp.float32)


def draw_bits(transform: Transform, raw: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Binarises a whole split once, with bits fixed by (seed, stream, row) whatever the number of
    rows.

    Args:
      transform: a transform with dynamic binarisation.
      raw: stored examples [N, *x].
      seed: data seed, 0 <= seed < 2^32.
      stream: number that keeps the draws of different splits apart.

    Returns:
      uint8 [N, *x] of zeros and ones.
    """
    key = jax.random.fold_in(random.key(jnp.uint32(seed)), stream)
    bits = np.empty(raw.shape, np.uint8)
    chunk = min(_CHUNK, len(raw))
    for start in range(0, len(raw), chunk):
        # The last chunk repeats its last row up to the chunk's size, so that one compiled program
        # serves all.
        rows = np.minimum(np.arange(start, start + chunk), len(raw) - 1).astype(np.int32)
        drawn = np.asarray(_draw_rows(transform, key, raw[rows], rows))
        bits[start : start + chunk] = drawn[: len(raw) - start]
    return bits


@functools.partial(jax.jit, static_argnums=0)
def _draw_rows(transform: Transform, key: Array, raw: Array, rows: Array) -> Array:
    def draw(example, row):
        return prepare(transform, example, jax.random.fold_in(key, row)).astype(jnp.uint8)

    return jax.vmap(draw)(raw, rows)
