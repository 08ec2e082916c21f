"""The dataset: raw arrays in memory, the transform to model inputs, and the record of both."""

import difflib
import functools
import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from vae.data import cache, sources, splits
from vae.data.arrays import check_same_form
from vae.data.transform import Transform, draw_bits
from vae.errors import UserError

SCALINGS = ("unit", "symmetric", "standardize", "none")
BINARIZATIONS = ("none", "threshold", "static", "dynamic")
# Separate streams of fixed bits for the two splits of one data seed.
_STREAM = {"train": 0, "test": 1, "some": 2, "folds": 3}


@dataclass(frozen=True, eq=False)
class Dataset:
    """Train and test examples as stored, and how to make model inputs of them.

    Attributes:
      name: the source as text.
      train: raw training examples [N, *x], uint8 or float32; *x is [D] or [H, W, C].
      test: raw test examples [M, *x], same form.
      train_labels: int32 [N], or None.
      test_labels: int32 [M], or None.
      transform: applied by `vae.data.prepare` to each raw example.
      seed: data seed: fixes static bits, and the bits on which dynamic binarisation is evaluated.
      protocol: what a result must record of its data, JSON-able: source, version, splits, counts,
        shapes, dtype, max_value, scaling, binarization, seed, transform, and `fingerprint`, the
        SHA-256 of the arrays in use.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    train_labels: np.ndarray | None
    test_labels: np.ndarray | None
    transform: Transform
    seed: int
    protocol: dict[str, Any]

    @property
    def example_shape(self) -> tuple[int, ...]:
        """Shape *x of one example."""
        return self.train.shape[1:]

    @property
    def num_train(self) -> int:
        return len(self.train)

    @property
    def num_test(self) -> int:
        return len(self.test)

    def value_range(self) -> tuple[float, float]:
        """Least and largest model input over both splits; (0, 1) after binarisation.

        A likelihood must cover it: Bernoulli needs [0, 1].
        """
        if self.protocol["binarization"] != "none":
            return 0.0, 1.0
        ends = [end for array in (self.train, self.test) for end in (array.min(), array.max())]
        return float(_scale(self.transform, min(ends))), float(_scale(self.transform, max(ends)))

    @functools.cached_property
    def train_mean(self) -> np.ndarray:
        """Mean training input, float32 [*x]; for dynamic bits the mean probability."""
        return _scale(self.transform, self.train.mean(axis=0, dtype=np.float64))

    @property
    def bytes(self) -> bool:
        """Whether model inputs are whole bytes, k/255: what 256 levels are."""
        protocol = self.protocol
        raw = self.train.dtype == np.uint8 and protocol["max_value"] == 255
        return raw and protocol["binarization"] == "none" and protocol["scaling"] == "unit"

    def some_inputs(self, count: int) -> np.ndarray:
        """`count` training inputs, float32 [count, *x], chosen by the data seed, none twice."""
        rng = np.random.default_rng((self.seed, _STREAM["some"]))
        chosen = rng.choice(self.num_train, count, replace=False)
        return _scale(self.transform, self.train[chosen].astype(np.float64))

    def evaluation(
        self, split: Literal["train", "test"], limit: int | None = None
    ) -> tuple[np.ndarray, Transform]:
        """Examples of one split that are the same at each evaluation and in each run.

        With dynamic binarisation, bits are drawn once, fixed by (data seed, split, example), so
        that curves and runs differ by the model and not by the draw. Drawing costs about a second
        for 60,000 MNIST images: keep the result.

        Args:
          split: "train" or "test".
          limit: at most so many examples, from the start; None for all.

        Returns:
          (raw examples [n, *x], deterministic transform: `prepare` needs no key).
        """
        raw = {"train": self.train, "test": self.test}[split][:limit]
        if self.transform.binarization == "none":
            return raw, self.transform
        return draw_bits(self.transform, raw, self.seed, _STREAM[split]), Transform()


def load(
    source,
    *,
    dir=None,
    train_split="train",
    test_split="test",
    binarization="none",
    scaling="unit",
    folds=None,
    fold=0,
    seed=0,
) -> Dataset:
    """Loads a dataset into memory.

    (The arguments carry no type annotations because they come from users: a wrong type is reported
    like any other bad value, also under a run-time type checker.)

    Args:
      source: "digits", "tfds:<name>", "npz:<path>", "call:<module>:<function>", or a function
        without arguments that returns a dict of arrays: `train`, `test`, optionally `train_labels`,
        `test_labels`.
      dir: data_dir of TFDS sources (None: `TFDS_DATA_DIR`, else `~/tensorflow_datasets`); others
        ignore it.
      train_split: base split with an optional slice, for example "train[:80%]".
      test_split: likewise; must share no example with `train_split`.
      binarization: "none"; "threshold" (x >= 1/2); "static" (Bernoulli(x), drawn once, fixed by
        `seed`); "dynamic" (Bernoulli(x), fresh at every step). All but "none" need scaling "unit".
      scaling: "unit" ([0, 1]), "symmetric" ([-1, 1]), "standardize" (mean 0 and standard deviation
        1 over all values of the training examples), "none" (values as stored). Float arrays must
        already lie in [0, 1] for the first two.
      folds: K of K-fold cross-validation, or None. The training split is dealt into K parts by
        `seed`; `test` is then the part that is left out, and `test_split` is not read.
      fold: the part that is left out, 0 <= fold < folds.
      seed: data seed, 0 <= seed < 2^32.

    Raises:
      UserError: anything above that does not hold; the message names the config field.
    """
    _check_choice("data.scaling", scaling, SCALINGS)
    _check_choice("data.binarization", binarization, BINARIZATIONS)
    if binarization != "none" and scaling != "unit":
        raise UserError(
            f"data.binarization: {binarization!r} reads values as probabilities, so it needs "
            f"data.scaling='unit', not {scaling!r}. Change one of the two."
        )
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UserError(f"data.seed: {seed!r} is not an integer from 0 to 2^32 - 1. Choose one.")

    # 1. Rows: parse before reading, so that only the base splits in use are read.
    parts = [splits.parse(train_split, "data.train_split")]
    if folds is None:
        parts.append(splits.parse(test_split, "data.test_split"))
    raw = sources.read(source, dir, {part.base: part.field for part in reversed(parts)})
    counts = {base: len(images) for base, images in raw.images.items()}
    rows = [splits.resolve(part, counts) for part in parts]
    name = sources.describe(source)
    train, train_labels = _take(raw, rows[0])
    trained_on, tested_on = train_split, test_split
    if folds is None:
        splits.check_disjoint(*rows)
        test, test_labels = _take(raw, rows[1])
    else:
        kept, out = splits.leave_out(len(train), folds, fold, (seed, _STREAM["folds"]))
        test, test_labels = train[out], _some(train_labels, out)
        train, train_labels = train[kept], _some(train_labels, kept)
        trained_on = f"{train_split} without fold {fold} of {folds}"
        tested_on = f"fold {fold} of {folds} of {train_split}"
    check_same_form(train, test, name)

    # 2. Values: the transform, and the binarisations that are done once.
    transform = _choose_transform(scaling, train, test, raw.max_value, name)
    if binarization == "threshold":
        train, test = ((a >= 0.5 * raw.max_value).astype(np.uint8) for a in (train, test))
        transform = Transform()
    elif binarization != "none":
        transform = Transform(transform.scale, transform.offset, "dynamic")
    if binarization == "static":
        train = draw_bits(transform, train, seed, _STREAM["train"])
        test = draw_bits(transform, test, seed, _STREAM["test"])
        transform = Transform()

    # 3. The record.
    protocol = {
        "source": name,
        "version": raw.version,
        "splits": {"train": trained_on, "test": tested_on},
        "counts": {"train": len(train), "test": len(test)},
        "shapes": {"train": list(train.shape), "test": list(test.shape)},
        "dtype": str(train.dtype),
        "max_value": raw.max_value,
        "scaling": scaling,
        "binarization": binarization,
        "seed": seed,
        "transform": {"scale": transform.scale, "offset": transform.offset},
        "fingerprint": _fingerprint(train, test),
    }
    return Dataset(name, train, test, train_labels, test_labels, transform, seed, protocol)


def _take(raw: sources.Raw, rows: splits.Rows) -> tuple[np.ndarray, np.ndarray | None]:
    part = slice(rows.start, rows.stop)
    return raw.images[rows.base][part], _some(raw.labels[rows.base], part)


def _some(labels: np.ndarray | None, part: slice | np.ndarray) -> np.ndarray | None:
    return None if labels is None else labels[part]


def _check_choice(field: str, value, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{field}: {value!r} is not one of {', '.join(allowed)}.{hint}")


def _choose_transform(
    scaling: str, train: np.ndarray, test: np.ndarray, max_value: float, name: str
) -> Transform:
    if scaling == "none":
        return Transform()
    if scaling == "standardize":
        mean, std = _moments(train)
        # Not `std == 0`: rounding of the mean may leave a little.
        if train.min() == train.max():
            raise UserError(
                "data.scaling: 'standardize' divides by the standard deviation, but all training "
                f"values of {name} are {mean:g}. Use data.scaling='none'."
            )
        return Transform(1.0 / std, -mean / std)
    if train.dtype != np.uint8:
        low, high = min(train.min(), test.min()), max(train.max(), test.max())
        if low < 0.0 or high > 1.0:
            raise UserError(
                f"data.scaling: {scaling!r} expects float values in [0, 1], but those of {name} "
                f"span [{low:g}, {high:g}]. Rescale the arrays, store them as uint8, or use "
                "data.scaling='standardize' or 'none'."
            )
    if scaling == "symmetric":
        return Transform(2.0 / max_value, -1.0)
    return Transform(1.0 / max_value)


def _moments(array: np.ndarray, rows: int = 4096) -> tuple[float, float]:
    """Mean and standard deviation over all values in float64, by rows to need little memory."""
    mean = float(array.mean(dtype=np.float64))
    squares = sum(
        float(np.square(array[start : start + rows] - mean, dtype=np.float64).sum())
        for start in range(0, len(array), rows)
    )
    return mean, float(np.sqrt(squares / array.size))


def _scale(transform: Transform, values) -> np.ndarray:
    """The affine part of `prepare` on the host: float32."""
    scaled = np.float32(values) * np.float32(transform.scale) + np.float32(transform.offset)
    return np.asarray(scaled, np.float32)


def _fingerprint(train: np.ndarray, test: np.ndarray) -> str:
    return hashlib.sha256(f"{cache.digest(train)} {cache.digest(test)}".encode()).hexdigest()
