"""Checks on arrays that come from outside: what a dataset may be made of."""

import numpy as np

from vae.errors import UserError


def check_images(value, name: str, source: str) -> np.ndarray:
    """Returns the examples of one split in their stored form, or says what is wrong with them.

    Args:
      value: array [N, D], [N, H, W] or [N, H, W, C]; uint8, bool or floating.
      name: name of the array in the source, for messages.
      source: the source as the user wrote it, for messages.

    Returns:
      uint8 (bool becomes 0 and 1) or float32 array, [N, D] or [N, H, W, C]; [N, H, W] gains C = 1.

    Raises:
      UserError: objects (would need pickle), other dtypes, wrong rank, no examples, non-finite
        values.
    """
    array = _as_array(value, name, source)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise UserError(
            f"data.source: array {name!r} of {source} has dtype {array.dtype}. "
            "Store pixels as uint8 (0 to 255, or 0 and 1) or as floats."
        )
    if array.ndim not in (2, 3, 4):
        raise UserError(
            f"data.source: array {name!r} of {source} has shape {array.shape}. "
            "Give [N, D] vectors, [N, H, W] or [N, H, W, C] images."
        )
    if array.size == 0:
        raise UserError(
            f"data.source: array {name!r} of {source} is empty (shape {array.shape}). Give at "
            "least one example."
        )
    if array.dtype != np.uint8:
        # A float64 beyond the float32 range becomes inf here and is reported below like any other
        # non-finite value.
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        # min passes NaN on and both pass inf on, without the temporary of np.isfinite(array).
        if not (np.isfinite(array.min()) and np.isfinite(array.max())):
            raise UserError(
                f"data.source: array {name!r} of {source} holds non-finite values (nan or inf, as "
                "float32). Remove or replace those examples."
            )
    return np.ascontiguousarray(array[..., None] if array.ndim == 3 else array)


def check_labels(value, count: int, base: str, source: str) -> np.ndarray:
    """Returns one int32 label per example [N].

    Raises:
      UserError: not integers, not one per example, or beyond the int32 range.
    """
    name = f"{base}_labels"
    array = _as_array(value, name, source)
    if array.shape != (count,):
        raise UserError(
            f"data.source: array {name!r} of {source} has shape {array.shape}, but there are "
            f"{count} examples. Give one label per example, shape ({count},)."
        )
    if not np.issubdtype(array.dtype, np.integer):
        raise UserError(
            f"data.source: array {name!r} of {source} has dtype {array.dtype}. Labels are "
            "integers: number the classes from 0."
        )
    labels = array.astype(np.int32)
    if not np.array_equal(labels, array):
        raise UserError(
            f"data.source: array {name!r} of {source} has labels beyond the int32 range. Number "
            "the classes from 0."
        )
    return labels


def check_same_form(train: np.ndarray, test: np.ndarray, source: str) -> None:
    """Refuses train and test examples of different shape or dtype.

    Raises:
      UserError: they differ.
    """
    if train.shape[1:] != test.shape[1:] or train.dtype != test.dtype:
        raise UserError(
            f"data.source: the train and test arrays of {source} differ: examples of shape "
            f"{train.shape[1:]} and dtype {train.dtype} against {test.shape[1:]} and {test.dtype}. "
            "Store both in the same form."
        )


def largest_value(arrays: list[np.ndarray]) -> float:
    """The stored value that stands for 1: 1 for floats and for binary uint8, else 255."""
    if arrays[0].dtype != np.uint8:
        return 1.0
    return 1.0 if max(int(a.max()) for a in arrays) <= 1 else 255.0


def _as_array(value, name: str, source: str) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:  # a ragged list
        raise UserError(
            f"data.source: {name!r} of {source} is no array: {error}. Give examples of one shape."
        ) from error
    if array.dtype.hasobject:
        raise UserError(
            f"data.source: array {name!r} of {source} holds Python objects, which would need "
            "pickle to read: refused. Store a plain numeric array."
        )
    return array
