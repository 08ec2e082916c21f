"""The mesh of devices that a population runs on, and how its arrays lie on it.

Two axes. `runs`: each device has some runs of the population, and computes them as if they were
all there were; nothing is exchanged. `data`: the devices of one run share each batch, and their
gradients are summed. Where it runs changes no random number, no order of data, and of results
only the rounding of sums that are taken in another order.

    leaves [R, ...] of a population      split over `runs`, the same on all of `data`
    the examples, scalars                the same everywhere
    a batch [B, ...] inside a step       split over `data`, see `spread`

A mesh may reach over several processes (`jax.distributed`). Each of them then calls the same
functions in the same order, and has of an array what lies on its own devices.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

RUNS, DATA = "runs", "data"

# Not split: each device has all of it.
WHOLE = PartitionSpec()


def make(runs: int, data: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `runs` × `data` devices: the first of `devices`, by default of all there are.

    The devices of one run's batch are neighbours: of one host, as far as that goes.

    Raises:
      ValueError: there are fewer.
    """
    devices = jax.devices() if devices is None else devices
    if runs * data > len(devices):
        raise ValueError(f"{runs} x {data} devices of {len(devices)}.")
    return jax.make_mesh(
        (runs, data),
        (RUNS, DATA),
        axis_types=(AxisType.Auto,) * 2,  # under the explicit type a vmapped axis is an error
        devices=devices[: runs * data],
    )


def padded(num_runs: int, mesh: Mesh | None) -> int:
    """The least multiple of the axis `runs` that holds `num_runs`."""
    parts = mesh.shape[RUNS] if mesh else 1
    return -(-num_runs // parts) * parts


def over_runs(
    function: Callable[..., Any],
    mesh: Mesh | None,
    shared: Any,
    *stacked: Any,
    parts: Any = WHOLE,
) -> Any:
    """Applies a function of R runs to pytrees [R, ...], each device to its own runs.

    Not left to the partitioner: what loops for as long as any run needs would ask all devices at
    each turn. Each device's loops are its own here. Over `data` it is left to the partitioner.

    Args:
      function: (shared, *pytrees [n, ...]) -> a pytree of [n, ...], for any n. It closes over no
        array: that would be one of the whole mesh.
      mesh: None: no mesh, `function(shared, *stacked)`.
      shared: a pytree that each device has whole, but for what `parts` says: a prefix of it, of
        axes that are split.
    """
    if mesh is None:
        return function(shared, *stacked)
    runs = PartitionSpec(RUNS)
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(parts, *(runs for _ in stacked)),
        out_specs=runs,
        axis_names={RUNS},
        check_vma=False,
    )(shared, *stacked)


def spread(batch: jax.Array) -> jax.Array:
    """Spreads a batch [B, ...] over `data`, inside `over_runs`; elsewhere it is left as it is.

    So it is where B is no multiple of the axis: each device then has all of it.
    """
    devices = jax.sharding.get_abstract_mesh().shape.get(DATA, 1)
    if devices == 1 or batch.shape[0] % devices:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(DATA))


def of_runs(mesh: Mesh | None) -> NamedSharding | None:
    """How leaves [R, ...] lie; None: on the default device, without a mesh."""
    return NamedSharding(mesh, PartitionSpec(RUNS)) if mesh else None


def everywhere(mesh: Mesh | None) -> NamedSharding | None:
    """How what each device has whole lies; None: on the default device, without a mesh."""
    return NamedSharding(mesh, WHOLE) if mesh else None


def put(tree: Any, sharding: NamedSharding | None) -> Any:
    """Host arrays, equal in all processes, as arrays on the devices; None: on the default one.

    Each process moves only what its devices hold.
    """
    if sharding is None:
        return jax.tree.map(jax.numpy.asarray, tree)

    def one(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.tree.map(one, tree)


def fetch(tree: Any) -> Any:
    """Arrays on the devices as host arrays, whole in every process, one leaf after the other.

    With several processes all must call it.
    """
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental import multihost_utils

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return jax.device_get(leaf)
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_data(0))
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)
