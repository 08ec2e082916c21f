"""A folder of decoded arrays: a dataset is decoded once per machine, not once per process.

Arrays are mapped from their files, not read into memory, which they may exceed.
"""

import hashlib
import json
import math
import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging


def cache_dir() -> Path:
    """The folder for everything that can be made again: decoded datasets, compiled programs.

    `VAE_LAB_CACHE` if set, else `vae-lab` under `XDG_CACHE_HOME`, else `~/.cache/vae-lab`. Not
    created here.
    """
    if own := os.environ.get("VAE_LAB_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says to ignore relative paths.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "vae-lab"


def digest(array: np.ndarray) -> str:
    """SHA-256 (hex) of an array's dtype, shape and bytes in C order."""
    state = hashlib.sha256(f"{array.dtype.str} {array.shape}\n".encode())
    state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return state.hexdigest()


def read(folder: Path, name: str) -> dict[str, np.ndarray] | None:
    """Reads the arrays that `write` stored under a name.

    Returns:
      The arrays by key, mapped from their files, not to be written to, and verified against their
      digests; None when there is no such entry or it is damaged (logged).
    """
    index = folder / f"{name}.json"
    try:
        digests = json.loads(index.read_text())
        arrays = {}
        for key, expected in digests.items():
            file = folder / f"{name}-{key}.npy"
            arrays[key] = np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
            if digest(arrays[key]) != expected:
                raise ValueError(f"{key!r} changed since it was written")
        return arrays
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, AttributeError) as error:
        logging.warning("Cache entry %s is damaged (%s): decoding the dataset again.", index, error)
        return None


def write(folder: Path, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Stores arrays under a name; a folder that cannot be written is logged and otherwise ignored.

    The index of digests goes last: a reader sees a whole entry or none. Two processes may write the
    same entry at once, because both write the same bytes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for key, array in arrays.items():
            _replace(
                folder / f"{name}-{key}.npy",
                lambda file, array=array: np.save(file, array, allow_pickle=False),
            )
        index = json.dumps({key: digest(array) for key, array in arrays.items()})
        _replace(folder / f"{name}.json", lambda file: file.write(index.encode()))
    except OSError as error:
        logging.warning(
            "Could not write the cache in %s (%s): the dataset will be decoded again next time. "
            "Set VAE_LAB_CACHE to a writable folder.",
            folder,
            error,
        )


def scratch(folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array to fill, in a file of the folder that has no name and ends with the array.

    Where there can be none, or no room for it, the array is in memory.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            # The room is taken here: a write into a mapped file has no way to fail but a signal.
            os.posix_fallocate(file.fileno(), 0, max(1, math.prod(shape) * dtype.itemsize))
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape))
    except (OSError, AttributeError):  # macOS has no posix_fallocate
        return np.empty(shape, dtype)


def _replace(path: Path, save) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            save(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
