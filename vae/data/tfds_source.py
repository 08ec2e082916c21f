"""Prepared TensorFlow Datasets, read without TensorFlow (array_record files) and decoded once.

Nothing is ever downloaded or prepared here: `scripts/prepare_data.sh` does that. TFDS itself is
imported only when the cache does not have the arrays, because importing it takes longer than
reading them.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vae.data import cache
from vae.errors import UserError

# Examples decoded per request: by batches TFDS reads several times faster than one by one.
_BATCH = 1024
_NAME = re.compile(r"(?P<name>\w+)(?:/(?P<config>[\w.\-]+))?(?::(?P<version>\d+\.\d+\.\d+))?")


class _Name(NamedTuple):
    name: str
    config: str | None
    version: str | None

    @property
    def text(self) -> str:
        """The form that TFDS reads: `name[/config][:version]`."""
        return (
            self.name
            + (f"/{self.config}" if self.config else "")
            + (f":{self.version}" if self.version else "")
        )


class _Prepared(NamedTuple):
    """A prepared dataset on disk: its folder, version, file format and the size of each split."""

    folder: Path
    version: str
    file_format: str
    counts: dict[str, int]


def read(
    text: str, directory: str | os.PathLike | None, bases: Mapping[str, str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray | None], str | None]:
    """Reads images, and labels where there are any, of some splits of a prepared dataset.

    Args:
      text: `name[/config][:version]`, for example `mnist` or `mnist:3.0.1`; without a version, the
        newest one there is.
      directory: data_dir of TFDS; None means `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
      bases: names of whole splits, each with the config field that asks for it.

    Returns:
      (images by split [N, H, W, C], labels by split [N] or None, version or None when TFDS found
      the data elsewhere).

    Raises:
      UserError: malformed or unknown name, data missing or unreadable, unknown split, no images of
        one size.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(
            f"data.source: 'tfds:{text}' is not a TFDS name. Write 'tfds:<name>', "
            "'tfds:<name>/<config>' or 'tfds:<name>:<version>'."
        )
    name = _Name(**match.groupdict())
    root = os.fspath(directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = os.path.expanduser(root)
    prepared = _find(name, Path(root))
    if prepared is None:
        # TFDS knows more places than ours (default configs, registered folders); it has the last
        # word.
        examples = {base: _decode(name, root, base) for base in bases}
        version = None
    else:
        _check_prepared(prepared, name, bases)
        name = name._replace(version=prepared.version)
        examples = {base: _cached(name, root, base, prepared) for base in bases}
        version = prepared.version
    return (
        {base: arrays["image"] for base, arrays in examples.items()},
        {base: arrays.get("label") for base, arrays in examples.items()},
        version,
    )


def _find(name: _Name, root: Path) -> _Prepared | None:
    folder = root / name.name / (name.config or "")
    versions = [
        path.parent
        for path in folder.glob("*/dataset_info.json")
        if re.fullmatch(r"\d+\.\d+\.\d+", path.parent.name)
        and name.version in (None, path.parent.name)
    ]
    if not versions:
        return None
    newest = max(versions, key=lambda path: tuple(map(int, path.name.split("."))))
    try:
        info = json.loads((newest / "dataset_info.json").read_text())
        counts = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
        return _Prepared(newest, newest.name, info.get("fileFormat", "tfrecord"), counts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"data.source: {str(newest / 'dataset_info.json')!r} is damaged ({error!r}). Remove "
            f"{str(newest)!r} and prepare the dataset again: {_how_to_prepare(name, root)}"
        ) from error


def _check_prepared(prepared: _Prepared, name: _Name, bases: Mapping[str, str]) -> None:
    if prepared.file_format != "array_record":
        raise UserError(
            f"data.source: {str(prepared.folder)!r} is in {prepared.file_format} format, which "
            "needs TensorFlow to read. Prepare the dataset as array_record in another folder, and "
            f"name that in data.dir: {_how_to_prepare(name, 'DIR')}"
        )
    for base, field in bases.items():
        if base not in prepared.counts:
            raise UserError(
                f"{field}: tfds:{name.text} has no split {base!r}. Choose one of "
                f"{', '.join(sorted(prepared.counts))}."
            )


def _cached(name: _Name, root: str, base: str, prepared: _Prepared) -> dict[str, np.ndarray]:
    folder = f"{name.name}-{prepared.version}-{_key(name, prepared)}"
    entry = cache.cache_dir() / "datasets" / folder
    arrays = cache.read(entry, base)
    if arrays is None or "image" not in arrays:
        arrays = _decode(name, root, base, entry)
        # TFDS's mock_data invents examples for a real folder: only what the folder itself holds may
        # be kept.
        if len(arrays["image"]) == prepared.counts[base]:
            cache.write(entry, base, arrays)
            arrays = cache.read(entry, base) or arrays
    return arrays


def _key(name: _Name, prepared: _Prepared) -> str:
    files = sorted((path.name, path.stat()) for path in prepared.folder.iterdir() if path.is_file())
    identity = [name.text, *[[file, status.st_size, status.st_mtime_ns] for file, status in files]]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]


def _decode(name: _Name, root: str, base: str, folder: Path | None = None) -> dict[str, np.ndarray]:
    """Decodes one split: `image` [N, H, W, C] and, where there are integer labels, `label` [N].

    folder: where the images may lie meanwhile; None: in memory.
    """
    source = _open(name, root, base)
    features = source.dataset_info.features
    shape = features["image"].shape if "image" in features else None
    if shape is None or None in shape:
        raise UserError(
            f"data.source: tfds:{name.text} has no feature 'image' of one fixed size (features: "
            f"{', '.join(features)}). Write a function that returns the arrays, and use "
            "'call:<module>:<function>'."
        )
    has_labels = "label" in features and features["label"].shape == ()
    images, labels = None, []
    try:
        for start in range(0, len(source), _BATCH):
            examples = _get_batch(source, range(start, min(start + _BATCH, len(source))))
            if images is None:
                whole = (len(source), *shape), np.asarray(examples[0]["image"]).dtype
                images = cache.scratch(folder, *whole) if folder else np.empty(*whole)
            for offset, example in enumerate(examples):
                images[start + offset] = example["image"]
            if has_labels:
                labels.extend(example["label"] for example in examples)
    # Readers and image decoders raise many types; each means that the file is unreadable.
    except Exception as error:
        raise UserError(
            f"data.source: split {base!r} of tfds:{name.text} in {root!r} cannot be read "
            f"({_first_line(error)}). Remove its folder and prepare it again: "
            f"{_how_to_prepare(name, root)}"
        ) from error
    if images is None:
        raise UserError(
            f"data.source: split {base!r} of tfds:{name.text} is empty. Choose another split."
        )
    labels = np.asarray(labels)
    is_class = has_labels and np.issubdtype(labels.dtype, np.integer)
    return {"image": images, "label": labels.astype(np.int32)} if is_class else {"image": images}


def _get_batch(source, rows: range) -> list[dict]:
    try:
        return source.__getitems__(list(rows))
    except TypeError:
        # The data source of tfds 4.9's `testing.mock_data` fails on batches; one by one it answers.
        return [source[row] for row in rows]


def _open(name: _Name, root: str, base: str):
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import DatasetNotFoundError

    try:
        return tfds.data_source(name.text, split=base, data_dir=root, download=False)
    except DatasetNotFoundError as error:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.name, known, n=1)
        hint = f"Did you mean 'tfds:{near[0]}'?" if near else "Its catalogue lists the names."
        raise UserError(f"data.source: TFDS knows no dataset {name.name!r}. {hint}") from error
    # Unprepared data shows as one of several types, by dataset and version.
    except Exception as error:
        looked_in = os.path.join(root, *filter(None, (name.name, name.config, name.version)))
        # TFDS takes a dataset that is not there for one in the wrong format: no help to repeat it.
        reason = "" if isinstance(error, NotImplementedError) else f" ({_first_line(error)})"
        raise UserError(
            f"data.source: tfds:{name.text} is not prepared: nothing to read in {looked_in!r}"
            f"{reason}. Set data.dir to the folder that holds {name.name!r}, or prepare it with: "
            f"{_how_to_prepare(name, root)}"
        ) from error


def _how_to_prepare(name: _Name, root: str | Path) -> str:
    return (
        f"`bash scripts/prepare_data.sh {name.text} --data_dir={root}` "
        "(needs network; installs the `prepare` extra with TensorFlow)."
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
