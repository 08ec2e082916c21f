"""Checkpoints on disk: whole or absent, verified when read; the only importer of Orbax.

    FOLDER/<step>/       the tree, as Orbax writes it (temporary name, then rename)
    FOLDER/<step>.json   what is in it: name, shape and dtype of each array, a digest of their
                         values, a score; written just before that rename

The digest is of the values that were handed over, not of files, so that a write that went wrong
is seen too, and the same however the arrays lie on devices. When a checkpoint is damaged, the one
before serves. The folder belongs to its `Writer`, which removes what an interrupted or damaged
write left in it.
"""

import asyncio.log
import contextlib
import errno
import functools
import json
import math
import os
import pathlib
import shutil
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from vae import digests, writers
from vae.errors import FULL, UserError

KEEP = 2

# Where several processes write together: how long one waits for the others.
PATIENCE_SECONDS = 600


class Writer:
    """Writes the checkpoints of a folder in the background, one at a time.

    The newest `keep` stay, and the one of the highest score. Where JAX runs in several processes
    each of them makes the same calls: each writes its own shards, the first one does the rest.
    """

    def __init__(self, folder: pathlib.Path, keep: int = KEEP) -> None:
        self._folder = folder.resolve()
        self._keep = keep
        self._checkpointer: Any = None
        self._writing: int | None = None  # the step in flight
        self._contents: dict[str, Any] = {}  # of its description, but for the digest
        self._pieces: digests.Pieces = []  # of it, until their digest is known
        self.newest: int | None = None  # the last step that this writer finished

    def save(self, step: int, tree: Any, score: float | None = None) -> None:
        """Starts to write a pytree of arrays as the checkpoint of `step`.

        Returns when their values are in the host's memory, so that they may be donated or changed;
        before that, waits for the write before this one.

        Args:
          tree: NumPy arrays or `jax.Array`s. One that is spread over processes is spread over
            its first axis alone.
          score: higher is better; None or not finite: no candidate for the best.

        Raises:
          OSError: this one could not be begun, or the one before not be written (ENOSPC: the disk
            is full). Those on disk stand; then this one is not begun.
        """
        self.wait()
        import orbax.checkpoint as ocp

        self._contents = {
            "step": step,
            "score": score if score is not None and math.isfinite(score) else None,
            "arrays": digests.described(tree),
        }
        self._pieces = digests.pieces_of(tree)
        path = self._folder / str(step)
        self._writing = step
        _quiet()
        with self._cleaning(path):
            if jax.process_count() > 1:
                # Orbax has all meet before the first one finishes: it finds the parts of all.
                part = self._folder / _part_name(step, jax.process_index())
                writers.write_text(part, str(digests.digest(self._pieces)))
            self._checkpointer = self._checkpointer or ocp.AsyncCheckpointer(
                ocp.PyTreeCheckpointHandler(),
                async_options=ocp.options.AsyncOptions(
                    timeout_secs=PATIENCE_SECONDS,
                    post_finalization_callback=self._describe,
                    create_directories_asynchronously=False,
                ),
            )
            self._checkpointer.save(path, tree, force=True)

    def prepare(self) -> None:
        """Imports in the background what a write needs: half a second that a signal has not got."""

        def load() -> None:
            import orbax.checkpoint  # noqa: F401

        threading.Thread(target=load, daemon=True).start()

    def wait(self) -> None:
        """Waits for the write in flight; then drops the checkpoints that need not be kept.

        Raises:
          OSError: as `save`.
        """
        if self._writing is None:
            return
        step = self._writing
        with self._cleaning(self._folder / str(step)):
            self._checkpointer.wait_until_finished()
            self._settle()
            self.newest = step
            if jax.process_index() == 0:
                self._drop(step)
            if jax.process_count() > 1:  # nobody begins the next one while the first one clears up
                from jax.experimental import multihost_utils

                multihost_utils.sync_global_devices(f"checkpoint {step}")

    def close(self) -> None:
        """Waits, and ends the threads."""
        self.wait()
        self._end_threads()

    def _end_threads(self) -> None:
        if self._checkpointer is not None:
            self._checkpointer.close()
            self._checkpointer = None

    def _describe(self) -> None:
        """In the background, when all is written: writes the description, before the rename."""
        step = self._contents["step"]
        if jax.process_count() > 1:
            parts = range(jax.process_count())
            texts = [(self._folder / _part_name(step, k)).read_text() for k in parts]
            digest = sum(map(int, texts))
        else:
            digest = digests.digest(self._pieces)
        contents = self._contents | {"digest": digests.text(digest)}
        record = {"sha256": digests.seal(contents), "contents": contents}
        writers.write_text(self._folder / f"{step}.json", json.dumps(record))

    def _settle(self) -> None:
        self._writing, self._pieces = None, []

    @contextlib.contextmanager
    def _cleaning(self, path: pathlib.Path) -> Iterator[None]:
        """On an error removes what was written: a full disk needs the room."""
        try:
            with _system_errors(path):
                yield
        except Exception:
            # Its threads may still write. What they meet now is of no interest.
            with contextlib.suppress(Exception):
                self._end_threads()
            self._checkpointer = None
            self._settle()
            if jax.process_index() == 0:
                for left in self._folder.glob(f"{path.name}.orbax-checkpoint-tmp*"):
                    shutil.rmtree(left, ignore_errors=True)
            raise

    def _drop(self, step: int) -> None:
        """Keeps the newest ones and the best.

        Those of later steps go too: training only gets here when they are damaged.
        """
        _sync(self._folder)
        found = [old for old in steps(self._folder) if old <= step]
        scores = {old: _score(self._folder, old) for old in found}
        best = max((old for old in found if scores[old] is not None), key=scores.get, default=step)
        names = {n for old in {*found[-self._keep :], best} for n in (str(old), f"{old}.json")}
        # Descriptions first: what lacks one is no checkpoint, so a crash in between loses nothing.
        for left in sorted(self._folder.iterdir(), key=lambda left: left.is_dir()):
            if left.name not in names:
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)


def restore(
    folder: pathlib.Path, like: Any, *, best: bool = False, rows: int | None = None
) -> tuple[int, Any] | None:
    """The newest checkpoint that is intact, as (step, tree), or None.

    It may have been written from other devices, or by another number of processes.

    Args:
      like: a pytree of arrays or `jax.ShapeDtypeStruct`s of the same structure, shapes and dtypes.
        A struct with a `sharding` comes back as a `jax.Array` placed so, else as a NumPy array.
      best: the one of the highest score instead.
      rows: so many along the first axis are what counts, where that axis is filled up in `like`
        and, perhaps to another length, in what was written; the last row fills it up again.

    A damaged one is reported by a warning and passed over for the one before.

    Raises:
      UserError: an intact checkpoint of something else than `like`.
    """
    tried = sorted(steps(folder), reverse=True)
    if best:
        tried = [step for step in tried if _score(folder, step) is not None]
        tried.sort(key=lambda step: _score(folder, step), reverse=True)
    for step in tried:
        path = folder.resolve() / str(step)
        if (contents := _contents(folder, step)) is not None:
            filled = _filled_otherwise(like, contents["arrays"], rows)
            _compare(path, contents["arrays"], digests.described(filled))
            tree = _verified(path, filled, contents["digest"])
            if tree is not None:
                return step, jax.tree.map(functools.partial(_refilled, rows), like, tree)
        logging.warning(
            "The checkpoint %s is damaged (what it holds is not what was written): "
            "going back to the one before.",
            path,
        )
    return None


def _filled_otherwise(like: Any, stored: dict[str, list], rows: int | None) -> Any:
    """`like` with the first axes as long as they are in what is stored, on the host where longer.

    Where that is as `like` has it, or shorter than `rows`, it stays as it is.
    """

    def one(path: Any, leaf: Any) -> Any:
        _, shape = stored.get(jax.tree_util.keystr(path, simple=True, separator="/"), (None, None))
        if rows is None or not shape or not leaf.shape or shape[0] == leaf.shape[0]:
            return leaf
        if min(shape[0], leaf.shape[0]) < rows:
            return leaf
        return jax.ShapeDtypeStruct((shape[0], *leaf.shape[1:]), leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, like)


def _refilled(rows: int | None, like: Any, leaf: Any) -> Any:
    """A restored array as long and as placed as `like`."""
    if leaf.shape == like.shape:
        return leaf
    index = np.minimum(np.arange(like.shape[0]), rows - 1)
    whole = np.asarray(leaf)[index]
    if (sharding := getattr(like, "sharding", None)) is None:
        return whole
    return jax.make_array_from_callback(like.shape, sharding, lambda part: whole[part])


def steps(folder: pathlib.Path) -> list[int]:
    """The steps of the checkpoints in a folder, ascending, intact or not.

    One without its description, or without its folder, counts: it is damaged.
    """
    if not folder.is_dir():
        return []
    names = (path.stem if path.suffix == ".json" else path.name for path in folder.iterdir())
    return sorted({int(name) for name in names if name.isdigit()})


def _verified(path: pathlib.Path, like: Any, digest: str) -> Any:
    """The tree in `path`, or None where it is not what was written; in all processes the same."""
    import orbax.checkpoint as ocp

    def arguments(leaf):
        if (sharding := getattr(leaf, "sharding", None)) is None or isinstance(leaf, jax.Array):
            return ocp.RestoreArgs(restore_type=np.ndarray)
        return ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)

    tree, found = None, None
    try:
        # The handler itself: a Checkpointer would have the processes wait for one that failed.
        _quiet()
        with contextlib.closing(ocp.PyTreeCheckpointHandler()) as handler:
            wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
            args = ocp.args.PyTreeRestore(wanted, restore_args=jax.tree.map(arguments, like))
            tree = handler.restore(path, args=args)
        found = digests.digest(digests.pieces_of(tree))
    # Whatever TensorStore, Orbax and the JSON decoder say of torn files.
    except Exception as error:
        logging.info("%s cannot be read: %s", path, error)
    return tree if digests.text(digests.total(found)) == digest else None


def _contents(folder: pathlib.Path, step: int) -> dict[str, Any] | None:
    """The description of a checkpoint, or None where it is damaged."""
    try:
        record = json.loads((folder / f"{step}.json").read_text(encoding="utf-8"))
        return record["contents"] if digests.seal(record["contents"]) == record["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _score(folder: pathlib.Path, step: int) -> float | None:
    contents = _contents(folder, step)
    return contents and contents["score"]


def _compare(path: pathlib.Path, stored: dict[str, list], wanted: dict[str, list]) -> None:
    if missing := sorted(wanted.keys() ^ stored.keys()):
        raise _mismatch(path, f"other names, such as {missing[0]}")
    for name, (dtype, shape) in wanted.items():
        if stored[name] != [dtype, shape]:
            had = f"{name} of shape {tuple(stored[name][1])} and type {stored[name][0]}"
            raise _mismatch(path, f"{had} instead of {tuple(shape)} and {dtype}")


def _part_name(step: int, process: int) -> str:
    return f".{step}.{process}.part"


def _sync(folder: pathlib.Path) -> None:
    """Has the system write down which names a folder holds, before older ones are removed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network disks know no such thing
            raise
    finally:
        os.close(handle)


def save_tree(path: pathlib.Path, tree: Any) -> None:
    """Writes one pytree of arrays to the folder `path`, replacing what is there."""
    import orbax.checkpoint as ocp

    path = path.resolve()
    # Of several processes this one alone writes: the others are not waited for.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(), active_processes={jax.process_index()}
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    _quiet()
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        with _system_errors(path):
            checkpointer.save(path, jax.tree.map(np.asarray, tree), force=True)


@contextlib.contextmanager
def _system_errors(path: pathlib.Path) -> Iterator[None]:
    """Raises what the system said as its own error: Orbax wraps it in errors of other kinds."""
    try:
        yield
    except Exception as error:
        for number in FULL:
            if os.strerror(number) in str(error) or getattr(error, "errno", 0) == number:
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


def _quiet() -> None:
    """From now on silences the tracebacks of Orbax's and TensorStore's threads.

    What went wrong is raised too. Those threads go on after a failure, for how long nobody knows:
    they log the same error again, find Orbax's event loop closed, leave coroutines unawaited, and
    asyncio finds that when it cleans up. So this is not taken back.
    """
    asyncio.log.logger.addFilter(_was_retrieved)
    logging.get_absl_logger().addFilter(_is_not_of_orbax)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    if getattr(sys.unraisablehook, "func", None) is not _unless_late:
        sys.unraisablehook = functools.partial(_unless_late, sys.unraisablehook)


def _was_retrieved(record: Any) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def _is_not_of_orbax(record: Any) -> bool:
    return record.levelno < logging.converter.STANDARD_ERROR or "orbax" not in record.pathname


def _unless_late(before: Any, what: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        before(what)


def restore_tree(path: pathlib.Path, like: Any) -> Any:
    """Reads a tree written by `save_tree`, as NumPy arrays in the structure of `like`.

    Raises:
      UserError: the folder holds a tree of other structure or shapes.
    """
    import orbax.checkpoint as ocp

    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore(path.resolve(), target)
    except (ValueError, TypeError, KeyError) as error:  # what Orbax says of another structure
        raise _mismatch(path, "other names, or damaged files") from error
    # Orbax lets shapes pass.
    for (place, wanted), leaf in zip(
        jax.tree_util.tree_leaves_with_path(target), jax.tree.leaves(tree), strict=True
    ):
        if leaf.shape != wanted.shape:
            name = jax.tree_util.keystr(place, simple=True, separator="/")
            raise _mismatch(path, f"{name} of shape {leaf.shape} instead of {wanted.shape}")
    return jax.tree.map(np.asarray, tree)


def _mismatch(path: pathlib.Path, difference: str) -> UserError:
    return UserError(
        f"checkpoint: {path} holds other arrays than this model has ({difference}): another "
        "config or another version of the code wrote it. Use that one, or remove the folder "
        "to start anew."
    )
