"""Splits as strings, sliced as in TensorFlow Datasets: `train`, `test[8000:]`, `train[:80%]`; and
folds of a split, for cross-validation.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from vae.errors import UserError

_PATTERN = re.compile(r"(?P<base>\w[\w-]*)(?:\[(?P<lo>-?\d+%?)?:(?P<hi>-?\d+%?)?\])?")


class Split(NamedTuple):
    """A parsed split: a base split of the source and the two ends as written (None = that end).

    `field` is the config field that it comes from, for messages.
    """

    field: str
    text: str
    base: str
    lo: str | None
    hi: str | None


class Rows(NamedTuple):
    """The rows [start, stop) of one base split."""

    base: str
    start: int
    stop: int


def parse(text, field: str) -> Split:
    """Parses a split string.

    Args:
      text: for example `train`, `train[:8000]`, `test[-100:]`, `train[80%:]`.
      field: config field to name in the error.

    Raises:
      UserError: the text is not of this form.
    """
    match = _PATTERN.fullmatch(text.replace(" ", "")) if isinstance(text, str) else None
    if match is None:
        raise UserError(
            f"{field}: {text!r} is not a split. Write a name, optionally with one slice in "
            "examples or percent: 'train', 'train[:8000]', 'train[80%:]', 'test[-100:]'."
        )
    return Split(field, text, match["base"], match["lo"], match["hi"])


def resolve(split: Split, counts: Mapping[str, int]) -> Rows:
    """Finds the rows that a split names.

    Percentages go to the nearest example, as TFDS does, so `train[:80%]` and `train[80%:]` share no
    row and leave none out.

    Args:
      split: parsed split.
      counts: number of examples of each base split.

    Raises:
      UserError: unknown base split, ends outside the base split, or no rows at all.
    """
    if split.base not in counts:
        raise UserError(
            f"{split.field}: the source has no split {split.base!r}. Choose one of "
            f"{', '.join(sorted(counts))}."
        )
    total = counts[split.base]
    start = 0 if split.lo is None else _position(split, split.lo, total)
    stop = total if split.hi is None else _position(split, split.hi, total)
    if start >= stop:
        raise UserError(
            f"{split.field}: {split.text!r} is empty: it starts at example {start} and stops "
            f"before example {stop} of the {total} in {split.base!r}. Choose ends that leave at "
            "least one example."
        )
    return Rows(split.base, start, stop)


def _position(split: Split, end: str, total: int) -> int:
    if end.endswith("%"):
        position = round(total * int(end[:-1]) / 100)
        inside = abs(int(end[:-1])) <= 100  # of few examples, 101% rounds to all of them
    else:
        position = int(end)
        inside = abs(position) <= total
    if not inside:
        raise UserError(
            f"{split.field}: {split.text!r} asks for position {end}, but {split.base!r} has only "
            f"{total} examples. Choose ends inside it."
        )
    return position + total if position < 0 else position


def check_disjoint(train: Rows, test: Rows) -> None:
    """Refuses splits that share rows: a test score on training examples is not a test score.

    Raises:
      UserError: both take rows of one base split and the ranges meet.
    """
    first, last = max(train.start, test.start), min(train.stop, test.stop)
    if train.base == test.base and first < last:
        raise UserError(
            f"data.test_split: it shares rows {first} to {last - 1} of {train.base!r} with "
            f"data.train_split. Choose disjoint ranges, for example '{train.base}[:80%]' and "
            f"'{train.base}[80%:]'."
        )


def leave_out(num_examples: int, folds: int, fold: int, seed: Any) -> tuple[np.ndarray, np.ndarray]:
    """The rows to train on and those to leave out, of one fold of K-fold cross-validation.

    The rows are dealt out at random, for files are often sorted; every fold leaves out ⌊N/K⌋, no
    row is left out twice, and the rest of the division is trained on in all of them. So all
    folds have arrays of one shape, and share a compiled program.

    Args:
      num_examples: N. folds: K >= 2. fold: which, 0 to K − 1. seed: of the dealing, see
        `numpy.random.default_rng`.

    Returns:
      Ascending int64 [N − ⌊N/K⌋] and [⌊N/K⌋].

    Raises:
      UserError: no such fold, or more folds than examples.
    """
    if not 2 <= folds <= num_examples:
        raise UserError(
            f"data.folds: {folds!r} is not a number of folds for {num_examples} training examples. "
            f"Choose one from 2 to {num_examples}, or null for no cross-validation."
        )
    if not 0 <= fold < folds:
        raise UserError(
            f"data.fold: {fold!r} is none of {folds} folds. Choose one from 0 to {folds - 1}."
        )
    size = num_examples // folds
    order = np.random.default_rng(seed).permutation(num_examples)
    out = np.zeros(num_examples, bool)
    out[order[fold * size : (fold + 1) * size]] = True
    return np.flatnonzero(~out), np.flatnonzero(out)
