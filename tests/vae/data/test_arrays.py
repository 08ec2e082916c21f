import numpy as np
import pytest

from vae.data.arrays import check_images, check_labels, check_same_form, largest_value
from vae.errors import UserError


@pytest.mark.parametrize(
    ("shape", "stored"),
    [((5, 4), (5, 4)), ((5, 4, 3), (5, 4, 3, 1)), ((5, 4, 3, 2), (5, 4, 3, 2))],
)
@pytest.mark.parametrize(
    ("dtype", "stored_dtype"),
    [
        (np.uint8, np.uint8),
        (np.bool_, np.uint8),
        (np.float16, np.float32),
        (np.float32, np.float32),
        (np.float64, np.float32),
    ],
)
def test_forms_that_are_accepted(shape, stored, dtype, stored_dtype):
    value = (np.arange(np.prod(shape)) % 2).reshape(shape).astype(dtype)
    images = check_images(value, "train", "npz:x")
    assert images.shape == stored and images.dtype == stored_dtype
    np.testing.assert_array_equal(images.reshape(shape), value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((2, 3), np.int64), "dtype int64"),
        (np.zeros((2, 3), np.complex64), "dtype complex64"),
        (np.array([["a"]]), "dtype <U1"),
        (np.zeros(3, np.uint8), r"shape \(3,\)"),
        (np.zeros((1, 1, 1, 1, 1), np.uint8), r"shape \(1, 1, 1, 1, 1\)"),
        (np.float32(1.0), r"shape \(\)"),
        (np.zeros((0, 3), np.uint8), "is empty"),
        (np.zeros((3, 0, 2), np.float32), "is empty"),
        (np.array([[0.0, np.nan]]), "non-finite"),
        (np.array([[0.0, np.inf]], np.float32), "non-finite"),
        (np.array([[0.0, -np.inf]], np.float32), "non-finite"),
        (np.array([[1e300]]), "non-finite"),
        (np.array([[object()]]), "pickle"),
        ([[1.0], [1.0, 2.0]], "is no array"),
    ],
)
def test_forms_that_are_refused(value, message):
    with pytest.raises(UserError, match=rf"data\.source: .*'valid' of npz:x .*{message}"):
        check_images(value, "valid", "npz:x")


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.int32])
def test_labels_become_int32(dtype):
    labels = check_labels(np.array([3, 1], dtype), 2, "train", "npz:x")
    assert labels.dtype == np.int32 and labels.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(3, np.int32), "there are 2 examples"),
        (np.zeros((2, 1), np.int32), "there are 2 examples"),
        (np.zeros(2, np.float32), "Labels are integers"),
        (np.array([0, 2**40]), "int32 range"),
    ],
)
def test_labels_that_are_refused(value, message):
    with pytest.raises(
        UserError, match=rf"data\.source: array 'train_labels' of npz:x .*{message}"
    ):
        check_labels(value, 2, "train", "npz:x")


def test_train_and_test_must_agree():
    a = np.zeros((2, 3), np.uint8)
    check_same_form(a, a[:1], "npz:x")
    for other in (np.zeros((2, 4), np.uint8), np.zeros((2, 3), np.float32)):
        with pytest.raises(UserError, match=r"data\.source: the train and test arrays of npz:x"):
            check_same_form(a, other, "npz:x")


def test_largest_value():
    binary, gray = np.array([[0, 1]], np.uint8), np.array([[0, 2]], np.uint8)
    assert largest_value([binary, binary]) == 1.0
    assert largest_value([binary, gray]) == 255.0
    assert largest_value([np.array([[0.3]], np.float32)]) == 1.0
