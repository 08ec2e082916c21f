"""What is in a checkpoint, by value: names, shapes, and a digest that no layout changes.

The digest is a sum over rows, so that the processes that have an array in parts each add theirs.
"""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

# Rows of arrays, from row `first` on: (name, first, values).
Pieces = list[tuple[str, int, np.ndarray]]


def total(digest: int | None) -> int:
    """The sum of the digests of all processes; −1 if one has none."""
    if jax.process_count() == 1:
        return -1 if digest is None else digest
    from jax.experimental import multihost_utils

    own = b"\0" * 33 if digest is None else b"\1" + (digest % 2**256).to_bytes(32, "big")
    rows = multihost_utils.process_allgather(np.frombuffer(own, np.uint8))
    if not rows[:, 0].all():
        return -1
    return sum(int.from_bytes(row[1:].tobytes(), "big") for row in np.asarray(rows))


def described(tree: Any) -> dict[str, list]:
    """Dtype and shape of each array by name."""
    return {name: [str(leaf.dtype), list(leaf.shape)] for name, leaf in named(tree)}


def named(tree: Any) -> Iterator[tuple[str, Any]]:
    """Each array with its path, as `params/encoder/...`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def pieces_of(tree: Any) -> Pieces:
    """What this process writes of a tree; of all processes together, each row once."""
    pieces = []
    for name, leaf in named(tree):
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            for shard in leaf.addressable_shards:
                if any(axis.indices(n)[:2] != (0, n) for axis, n in _rest(shard, leaf)):
                    raise ValueError(f"{name} is spread over processes by more than its first axis")
                if shard.replica_id == 0:
                    first = shard.index[0].start or 0 if leaf.ndim else 0
                    pieces.append((name, first, np.asarray(shard.data)))
        elif jax.process_index() == 0:
            # A `jax.Array` does not change: on a CPU its values are not even copied.
            held = np.asarray(leaf) if isinstance(leaf, jax.Array) else np.array(leaf)
            pieces.append((name, 0, held))
    return pieces


def _rest(shard: Any, leaf: jax.Array) -> Iterator[tuple[slice, int]]:
    """The slices of a shard along the axes after the first, and the lengths of those."""
    return zip(shard.index[1:], leaf.shape[1:], strict=True)


def digest(pieces: Pieces) -> int:
    """The sum of the SHA-256 of each row with its name and place: in any order, by any process."""
    total = 0
    for name, first, values in pieces:
        for row, value in enumerate(values if values.ndim else values[None], first):
            state = hashlib.sha256(f"{name} {row} ".encode())
            state.update(value.tobytes())
            total += int.from_bytes(state.digest(), "big")
    return total


def text(digest: int) -> str:
    """64 hexadecimal digits; `none` of what could not be read."""
    return "none" if digest < 0 else f"{digest % 2**256:064x}"


def seal(contents: dict[str, Any]) -> str:
    """What a description is checked by."""
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
