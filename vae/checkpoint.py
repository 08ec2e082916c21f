"""Checkpoints on disk: whole or absent, verified when read; the only importer of Orbax.

    FOLDER/<step>/         the tree, as Orbax writes it (temporary name, then rename)
    FOLDER/<step>.sha256   digest of its files; written after it, and checked before reading

The two newest are kept: when one is damaged, the one before serves. The folder belongs to this
module: `save` removes what an interrupted or damaged write left in it.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import shutil
import sys
import threading
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import logging

from vae import writers
from vae.errors import UserError

KEEP = 2


def save(folder: pathlib.Path, step: int, tree: Any) -> None:
    """Writes a pytree of arrays as the checkpoint of `step`, then drops all but the newest two.

    Those of later steps go too: training only gets here when they are damaged.

    Raises:
      OSError: it could not be written (ENOSPC: the disk is full); the older ones are untouched.
    """
    folder = folder.resolve()
    save_tree(folder / str(step), tree)
    writers.write_text(folder / f"{step}.sha256", _digest(folder / str(step)))
    kept = [old for old in _steps(folder) if old <= step][-KEEP:]
    names = {name for old in kept for name in (str(old), f"{old}.sha256")}
    # Digests first: what lacks one is no checkpoint, so a crash in between loses nothing.
    for path in sorted(folder.iterdir(), key=lambda path: path.suffix != ".sha256"):
        if path.name not in names:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def restore(folder: pathlib.Path, like: Any) -> tuple[int, Any] | None:
    """The newest checkpoint that is intact, as (step, tree of NumPy arrays), or None.

    Args:
      like: a pytree of arrays or `jax.ShapeDtypeStruct`s of the same structure and shapes.

    A damaged one is reported by a warning and passed over for the one before.

    Raises:
      UserError: an intact checkpoint of something else than `like`.
    """
    for step in reversed(_steps(folder)):
        path = folder / str(step)
        if path.is_dir() and _digest(path) == (folder / f"{step}.sha256").read_text():
            return step, restore_tree(path, like)
        logging.warning(
            "The checkpoint %s is damaged (its files are not those that were written): "
            "going back to the one before.",
            path,
        )
    return None


def save_tree(path: pathlib.Path, tree: Any) -> None:
    """Writes one pytree of arrays to the folder `path`, replacing what is there."""
    import orbax.checkpoint as ocp

    path = path.resolve()
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            checkpointer.save(path, jax.tree.map(np.asarray, tree), force=True)
        except Exception as error:
            # Orbax wraps what the system said in errors of its own.
            for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                if os.strerror(number) in str(error) or getattr(error, "errno", 0) == number:
                    raise OSError(number, os.strerror(number), str(path)) from error
            raise


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the tracebacks of Orbax's and TensorStore's threads: the error is raised too.

    TensorStore's threads go on for a moment after a failure and find Orbax's event loop closed;
    so on failure their hook stays.
    """
    before = sys.unraisablehook

    def hook(what: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            before(what)

    def passes(record: Any) -> bool:
        return record.levelno < logging.converter.STANDARD_ERROR or "orbax" not in record.pathname

    logger = logging.get_absl_logger()
    logger.addFilter(passes)
    sys.unraisablehook = hook
    try:
        yield
        sys.unraisablehook = before
    finally:
        logger.removeFilter(passes)


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


def _steps(folder: pathlib.Path) -> list[int]:
    """Steps that have a digest, that is, whose writing came to its end."""
    return sorted(int(f.stem) for f in folder.glob("*.sha256") if f.stem.isdigit())


def _digest(folder: pathlib.Path) -> str:
    """SHA-256 over the names and bytes of the files below a folder."""
    digest = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(folder)} {content}\n".encode())
    return digest.hexdigest()
