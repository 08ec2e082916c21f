"""Where examples come from: embedded digits, prepared TFDS folders, npz files, functions."""

import difflib
import gzip
import importlib
import importlib.metadata
import importlib.util
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae.data import tfds_source
from vae.data.arrays import check_images, check_labels, largest_value
from vae.errors import UserError

_PREFIXES = ("tfds", "npz", "call")
_ALLOWED = "'digits', 'tfds:<name>', 'npz:<path>', 'call:<module>:<function>'"


class Raw(NamedTuple):
    """The base splits of a source, whole and checked.

    Attributes:
      images: examples of each base split [N, *x], uint8 or float32.
      labels: int32 [N] of each base split, or None.
      max_value: the stored value that stands for 1 under unit scaling.
      version: version of the data, where the source has one.
    """

    images: dict[str, np.ndarray]
    labels: dict[str, np.ndarray | None]
    max_value: float
    version: str | None


def describe(source: str | Callable) -> str:
    """The source as one line of text: itself, or `call:<module>:<function>` for a function."""
    if isinstance(source, str):
        return source
    name = getattr(source, "__qualname__", type(source).__qualname__)
    return f"call:{getattr(source, '__module__', '?')}:{name}"


def read(source, directory: str | os.PathLike | None, bases: Mapping[str, str]) -> Raw:
    """Reads the named base splits of a source.

    Args:
      source: "digits", "tfds:<name>", "npz:<path>", "call:<module>:<function>", or a function
        without arguments that returns a mapping of arrays with the keys of an npz: `train`, `test`,
        optionally `train_labels`, `test_labels`.
      directory: data_dir of TFDS; other sources ignore it.
      bases: base splits to read, each with the config field that asks for it.

    Returns:
      The base splits that were asked for; for digits, both there are.

    Raises:
      UserError: unknown source, missing data, or arrays that cannot be a dataset.
    """
    if callable(source):
        return _from_mapping(source(), describe(source), bases)
    if not isinstance(source, str):
        raise UserError(
            f"data.source: {source!r} is neither text nor a function. Use one of {_ALLOWED}."
        )
    if source == "digits":
        return _read_digits()
    prefix, _, rest = source.partition(":")
    if prefix not in _PREFIXES or not rest:
        raise UserError(
            f"data.source: unknown source {source!r}. Did you mean {_nearest(source)!r}? Allowed: "
            f"{_ALLOWED}."
        )
    if prefix == "tfds":
        images, labels, version = tfds_source.read(rest, directory, bases)
        return _checked(images, labels, source, version)
    if prefix == "npz":
        return _read_npz(rest, source, bases)
    return _from_mapping(_import_function(rest, source)(), source, bases)


def _nearest(source: str) -> str:
    prefix, colon, rest = source.partition(":")
    if colon:
        nearest = difflib.get_close_matches(prefix, _PREFIXES, n=1, cutoff=0.0)[0]
        return f"{nearest}:{rest or '<name>'}"
    if source.endswith(".npz"):
        return f"npz:{source}"
    if source in _PREFIXES:
        return f"{source}:<name>"
    return "digits" if difflib.get_close_matches(source, ["digits"]) else f"tfds:{source}"


def _read_digits() -> Raw:
    """The 1797 8 x 8 images (0 to 16) inside scikit-learn: 1438 to train on and 359 to test on.

    Every fifth example (index % 5 == 4) is a test example: a rule that anyone can repeat, and that
    spreads the classes evenly.

    Source: UCI Optical Recognition of Handwritten Digits, test part (Alpaydin & Kaynak 1998).
    """
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise UserError(
            "data.source: 'digits' is part of scikit-learn. Run `pip install scikit-learn`."
        )
    # `import sklearn.datasets` pulls in SciPy and takes seconds; the file it would read takes
    # milliseconds.
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        with gzip.open(path) as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    except FileNotFoundError:  # a scikit-learn that keeps the file elsewhere
        from sklearn.datasets import load_digits

        digits = load_digits()
        table = np.column_stack([digits.data, digits.target]).astype(np.uint8)
    images = table[:, :-1].reshape(-1, 8, 8, 1)
    labels = table[:, -1].astype(np.int32)
    is_test = np.arange(len(table)) % 5 == 4
    return Raw(
        images={"train": images[~is_test], "test": images[is_test]},
        labels={"train": labels[~is_test], "test": labels[is_test]},
        max_value=16.0,
        version=f"scikit-learn {importlib.metadata.version('scikit-learn')}",
    )


def _read_npz(path: str, source: str, bases: Mapping[str, str]) -> Raw:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"data.source: {source}: there is no file {str(file.absolute())!r}. Check the path."
        )
    try:
        # Not np.load on the path: it would take a single array or a pickle for an archive and fail
        # less clearly.
        if not zipfile.is_zipfile(file):
            raise UserError(
                f"data.source: {source} is no npz archive. "
                "Write it with numpy.savez_compressed(path, train=..., test=...)."
            )
        with np.load(file, allow_pickle=False) as archive:
            wanted = [
                key for base in bases for key in (base, f"{base}_labels") if key in archive.files
            ]
            arrays = {key: _member(archive, key, source) for key in wanted}
            return _from_mapping(arrays, source, bases, available=archive.files)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"data.source: {source} cannot be read ({error}). Check the file, or write it again."
        ) from error


def _member(archive, key: str, source: str) -> np.ndarray:
    try:
        return archive[key]
    except (
        ValueError,
        EOFError,
        zlib.error,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
    ) as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"data.source: array {key!r} of {source} holds Python objects, which would need "
                "pickle to read: refused. Store a plain numeric array."
            ) from error
        raise UserError(
            f"data.source: array {key!r} of {source} cannot be read ({error}). Write the file "
            "again."
        ) from error


def _import_function(path: str, source: str) -> Callable:
    module_name, _, function_name = path.partition(":")
    if not module_name or not function_name:
        raise UserError(
            f"data.source: {source!r} names no function. Write 'call:<module>:<function>'."
        )
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"data.source: {source!r} cannot be imported ({error}). "
            "Check both names, and that the module's folder is on PYTHONPATH."
        ) from error
    if not callable(function):
        raise UserError(f"data.source: {source!r} is a {type(function).__name__}, not a function.")
    return function


def _from_mapping(
    arrays, source: str, bases: Mapping[str, str], available: Sequence[str] | None = None
) -> Raw:
    if not isinstance(arrays, Mapping):
        raise UserError(
            f"data.source: {source} returned a {type(arrays).__name__}. "
            "Return a dict of arrays with the keys 'train' and 'test'."
        )
    for base in bases:
        if base not in arrays:
            found = arrays if available is None else available
            keys = ", ".join(sorted(map(str, found))) or "nothing"
            raise UserError(
                f"data.source: {source} has no array {base!r}; it has {keys}. Name the arrays "
                "'train' and 'test', or name those there are in data.train_split and "
                "data.test_split."
            )
    return _checked(
        {base: arrays[base] for base in bases},
        {base: arrays.get(f"{base}_labels") for base in bases},
        source,
        version=None,
    )


def _checked(images: Mapping, labels: Mapping, source: str, version: str | None) -> Raw:
    checked = {base: check_images(value, base, source) for base, value in images.items()}
    checked_labels = {
        base: None if value is None else check_labels(value, len(checked[base]), base, source)
        for base, value in labels.items()
    }
    return Raw(checked, checked_labels, largest_value(list(checked.values())), version)
