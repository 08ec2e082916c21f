"""Batches from the host's memory or disk, for data that are larger than a device.

The training examples stay where they are, for TFDS sources in a file that is mapped into memory.
grain's threads gather the batches of some steps ahead and put them on the devices as a `Window`,
which a training program takes in place of all examples. What is in the batch of a (seed, step) is
what it is with all examples on the device, so the place of a stream is its step and needs no state
of its own.
"""

import functools
from collections.abc import Sequence

import jax
import numpy as np
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vae import mesh as meshes
from vae import random
from vae.data.transform import Transform

# A window is about so large, and so many are on the device: one in use, the others ahead of it.
WINDOW_BYTES, WINDOWS = 2**25, 3


@struct.dataclass
class Window:
    """The batches of S steps for the seeds of a population, raw as stored, with their transform.

    Attributes:
      raw: [U, S, B, *x]. seeds: uint32 [U], whose batches they are; on a mesh, of each part of the
        axis `runs` in turn. first: int32, the step of `raw[:, 0]`.
      num_examples: N, of which a batch is drawn. transform: static; raw example -> model input.
    """

    raw: jax.Array
    seeds: jax.Array
    first: jax.Array
    num_examples: int = struct.field(pytree_node=False)
    transform: Transform = struct.field(pytree_node=False)

    def parts(self) -> "Window":
        """How its arrays are split over the axis `runs` of a mesh: a tree like it."""
        runs = PartitionSpec(meshes.RUNS)
        return self.replace(raw=runs, seeds=runs, first=meshes.WHOLE)


class Stream:
    """The windows of a population's training, in the order of its steps.

    Where there are several processes each reads what its own devices hold.
    """

    def __init__(
        self,
        raw: np.ndarray,
        transform: Transform,
        seeds: Sequence[int],
        batch_size: int,
        num_steps: int,
        on: Mesh | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
          raw: training examples [N, *x] on the host; may be mapped from a file.
          seeds: of each row of the population; on a mesh a multiple of its axis `runs`.
          on: None: the default device.
        """
        self._raw = raw
        self._transform = transform
        self._on = on
        self._seeds = distinct([int(s) for s in seeds], on.shape[meshes.RUNS] if on else 1)
        self._num_steps = num_steps
        self._batch_size = batch_size
        self._steps = window_steps(raw, batch_size, len(self._seeds), num_steps)
        self._windows: tuple[int, object] | None = None  # of the next window, and an iterator
        self._current: tuple[int, Window] | None = None

    def shapes(self) -> Window:
        """A window's shapes, and how they lie on the devices."""
        shape = (len(self._seeds), self._steps, self._batch_size, *self._raw.shape[1:])
        of_raw, of_seeds, everywhere = self._shardings()
        return self._window(
            jax.ShapeDtypeStruct(shape, self._raw.dtype, sharding=of_raw),
            jax.ShapeDtypeStruct((len(self._seeds),), np.uint32, sharding=of_seeds),
            jax.ShapeDtypeStruct((), np.int32, sharding=everywhere),
        )

    def at(self, step: int) -> tuple[Window, int]:
        """The window with the batches of a step, and for how many steps from it on it lasts."""
        number = step // self._steps
        if self._current is None or self._current[0] != number:
            if self._windows is None or self._windows[0] != number:
                self._windows = number, self._read_from(number)
            windows = self._windows[1]
            self._current = None  # the one before gives way first
            self._current = number, next(windows)
            self._windows = number + 1, windows
        return self._current[1], (number + 1) * self._steps - step

    def one(self, seed: int, step: int) -> Window:
        """The batch of one step of one run, on the default device."""
        raw = self._gather(np.uint32([seed]), np.int32([step]), slice(None))
        window = self._window(raw, np.uint32([seed]), np.int32(step))
        return jax.tree.map(jax.numpy.asarray, window)

    def _read_from(self, number: int):
        import grain

        windows = grain.MapDataset.source(_Windows(self._put, -(-self._num_steps // self._steps)))
        # A thread for each window that is ahead: gathering rows lets other threads run.
        ahead = grain.ReadOptions(num_threads=WINDOWS - 1, prefetch_buffer_size=WINDOWS - 1)
        return iter(windows[number:].to_iter_dataset(ahead))

    def _put(self, number: int) -> Window:
        """Window `number`, on the devices."""
        shapes = self.shapes()
        first = number * self._steps
        # The last one goes on beyond the training; nothing reads that.
        steps = np.arange(first, first + self._steps, dtype=np.int32)

        def gather(index):
            seeds, _, rows, *_ = index
            return self._gather(self._seeds[seeds], steps, rows)

        if self._on is None:
            arrays = gather([slice(None)] * 3), self._seeds, np.int32(first)
            return self._window(*map(jax.numpy.asarray, arrays))
        return self._window(
            jax.make_array_from_callback(shapes.raw.shape, shapes.raw.sharding, gather),
            meshes.put(self._seeds, shapes.seeds.sharding),
            meshes.put(np.int32(first), shapes.first.sharding),
        )

    def _gather(self, seeds: np.ndarray, steps: np.ndarray, rows: slice) -> np.ndarray:
        """Raw examples [seeds, steps, rows, *x]; rows: of each batch."""
        index = _indices(seeds, steps, self._batch_size, len(self._raw))
        return self._raw[index[:, :, rows]]

    def _window(self, raw, seeds, first) -> Window:
        return Window(raw, seeds, first, len(self._raw), self._transform)

    def _shardings(self) -> tuple[NamedSharding | None, ...]:
        if self._on is None:
            return None, None, None
        sharing = self._on.shape[meshes.DATA]
        data = meshes.DATA if self._batch_size % sharing == 0 else None
        runs = PartitionSpec(meshes.RUNS, None, data)
        return (
            NamedSharding(self._on, runs),
            meshes.of_runs(self._on),
            meshes.everywhere(self._on),
        )


class _Windows:
    """What grain reads: a sequence of windows."""

    def __init__(self, put, count: int) -> None:
        self._put, self._count = put, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Window:
        return self._put(number)


def distinct(seeds: Sequence[int], parts: int) -> np.ndarray:
    """The distinct seeds of each of `parts` equal parts, filled up to one length: uint32 [U]."""
    size = len(seeds) // parts
    found = [list(dict.fromkeys(seeds[k * size : (k + 1) * size])) for k in range(parts)]
    longest = max(map(len, found))
    return np.uint32([part + part[-1:] * (longest - len(part)) for part in found]).reshape(-1)


def window_steps(raw: np.ndarray, batch_size: int, num_seeds: int, num_steps: int) -> int:
    """Steps of a window: about `WINDOW_BYTES`, at least one step."""
    return max(1, min(WINDOW_BYTES // (num_seeds * batch_size * raw[:1].nbytes), num_steps))


def held_bytes(raw: np.ndarray, batch_size: int, num_seeds: int, num_steps: int) -> int:
    """Bytes of the windows that are on the devices at once."""
    steps = window_steps(raw, batch_size, num_seeds, num_steps)
    return WINDOWS * steps * num_seeds * batch_size * raw[:1].nbytes


def _indices(seeds: np.ndarray, steps: np.ndarray, batch_size: int, num_examples: int):
    """`vae.random.batch` of each seed and step: int32 [seeds, steps, B]."""
    with jax.default_device(_host()):
        return np.asarray(_batches(seeds, steps, batch_size, num_examples))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _batches(seeds, steps, batch_size, num_examples):
    def one(seed, step):
        return random.batch(seed, step, batch_size, num_examples)

    return jax.vmap(lambda seed: jax.vmap(functools.partial(one, seed))(steps))(seeds)


@functools.cache
def _host() -> jax.Device | None:
    """The CPU as JAX's device; None, the default one, where JAX_PLATFORMS leaves it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None
