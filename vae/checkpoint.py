"""Checkpoints on disk: whole or absent, verified when read; the only importer of Orbax.

    FOLDER/<step>/         the tree, as Orbax writes it (temporary name, then rename)
    FOLDER/<step>.sha256   digest of its files; written after it, and checked before reading

The two newest are kept: when one is damaged, the one before serves.
"""

import errno
import hashlib
import pathlib
import shutil
from typing import Any

import jax
import numpy as np
from absl import logging

from vae import writers

KEEP = 2


def save(folder: pathlib.Path, step: int, tree: Any) -> None:
    """Writes a pytree of arrays as the checkpoint of `step`, then drops all but the newest two.

    Raises:
      OSError: it could not be written (ENOSPC: the disk is full); the older ones are untouched.
    """
    folder = folder.resolve()
    save_tree(folder / str(step), tree)
    writers.write_text(folder / f"{step}.sha256", _digest(folder / str(step)))
    for old in _steps(folder)[:-KEEP]:
        (folder / f"{old}.sha256").unlink(missing_ok=True)
        shutil.rmtree(folder / str(old), ignore_errors=True)


def restore(folder: pathlib.Path, like: Any) -> tuple[int, Any] | None:
    """The newest checkpoint that is intact, as (step, tree of NumPy arrays), or None.

    Args:
      like: a pytree of arrays or `jax.ShapeDtypeStruct`s of the same structure and shapes.

    A damaged one is reported by a warning and passed over for the one before.
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
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        try:
            checkpointer.save(path, jax.tree.map(np.asarray, tree), force=True)
        except Exception as error:
            if "No space left" in str(error) or getattr(error, "errno", 0) == errno.ENOSPC:
                raise OSError(errno.ENOSPC, "No space left on device", str(path)) from error
            raise


def restore_tree(path: pathlib.Path, like: Any) -> Any:
    """Reads a tree written by `save_tree`, as NumPy arrays in the structure of `like`."""
    import orbax.checkpoint as ocp

    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(path.resolve(), target)
    return jax.tree.map(np.asarray, tree)


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
