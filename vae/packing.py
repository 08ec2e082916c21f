"""How the runs of a population share the machine: side by side, one after the other, spread."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from vae import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Packing:
    """What is static about where runs are computed.

    Attributes:
      how: `vmap` or `map`, of the runs on one device. mesh: None: one device.
    """

    how: str = "vmap"
    mesh: Mesh | None = None


def over_runs(
    function: Callable[..., Any],
    pack: str | Packing,
    shared: Any,
    *stacked: Any,
    parts: Any = meshes.WHOLE,
) -> Any:
    """Applies a function of one run to all runs of stacked pytrees; the same results either way.

    function: (shared, *pytrees of one run) -> a pytree; shared: what all runs read, on a mesh split
    as `parts` says, see `vae.mesh.over_runs`.
    pack: `vmap`, one batched program: little work a run fills the machine together; `map`, one
    run after the other inside the program: large matrices and convolutions on a CPU, where
    batching them costs copies. A single run is neither. A `Packing` says besides on what mesh.
    """
    pack = packing(pack)
    together = functools.partial(_together, function, pack.how)
    return meshes.over_runs(together, pack.mesh, shared, *stacked, parts=parts)


def packing(pack: str | Packing) -> Packing:
    """`vmap` and `map` alone mean one device."""
    return Packing(pack) if isinstance(pack, str) else pack


def _together(function: Callable[..., Any], how: str, shared: Any, *stacked: Any) -> Any:
    function = functools.partial(function, shared)
    if jax.tree.leaves(stacked)[0].shape[0] == 1:
        out = function(*jax.tree.map(lambda a: a[0], stacked))
        return jax.tree.map(lambda a: a[None], out)
    if how == "map":
        return jax.lax.map(lambda args: function(*args), stacked)
    return jax.vmap(function)(*stacked)
