import gzip
import importlib.machinery
import sys
import types

import numpy as np
import pytest

from vae.data import load, sources
from vae.errors import UserError

BASES = {"train": "data.train_split", "test": "data.test_split"}


def test_digits_are_the_whole_dataset():
    raw = sources.read("digits", None, BASES)
    labels = np.concatenate([raw.labels["train"], raw.labels["test"]])
    # The class counts of scikit-learn's documentation; the sum of all pixels from load_digits.
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert sum(int(images.sum()) for images in raw.images.values()) == 561718
    assert raw.images["train"].shape == (1438, 8, 8, 1)
    assert raw.images["test"].shape == (359, 8, 8, 1)
    assert raw.images["train"].dtype == np.uint8 and raw.max_value == 16.0
    assert max(int(images.max()) for images in raw.images.values()) == 16


def test_digits_rule_is_every_fifth_example():
    # The file starts with the digits 0 to 9 in order: examples 4 and 9 are test examples.
    raw = sources.read("digits", None, BASES)
    assert raw.labels["test"][:2].tolist() == [4, 9]
    assert raw.labels["train"][:8].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert raw.images["test"][:2].sum(axis=(1, 2, 3)).tolist() == [258, 329]
    assert raw.images["train"][0, 0, :, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]


def test_digits_without_the_file_come_from_load_digits(monkeypatch):
    expected = sources.read("digits", None, BASES)
    order = np.concatenate([np.flatnonzero(np.arange(1797) % 5 != 4), np.arange(4, 1797, 5)])
    whole = np.empty((1797, 65), np.uint8)
    whole[order, :-1] = np.concatenate(list(expected.images.values())).reshape(1797, 64)
    whole[order, -1] = np.concatenate(list(expected.labels.values()))
    # A stand-in: importing the real sklearn.datasets takes seconds.
    fake = types.ModuleType("sklearn.datasets")
    fake.load_digits = lambda: types.SimpleNamespace(
        data=whole[:, :-1].astype(np.float64), target=whole[:, -1].astype(np.int64)
    )
    monkeypatch.setitem(sys.modules, "sklearn.datasets", fake)
    monkeypatch.setitem(sys.modules, "sklearn", types.ModuleType("sklearn"))
    spec = importlib.machinery.ModuleSpec("sklearn", None, origin="/nowhere/__init__.py")
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: spec)

    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(gzip, "open", missing)
    raw = sources.read("digits", None, BASES)
    for base in BASES:
        np.testing.assert_array_equal(raw.images[base], expected.images[base])
        np.testing.assert_array_equal(raw.labels[base], expected.labels[base])


def test_digits_without_scikit_learn(monkeypatch):
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"data\.source: 'digits' is part of scikit-learn"):
        load("digits")


@pytest.mark.parametrize(
    ("source", "nearest"),
    [
        ("mnist", "tfds:mnist"),
        ("tdfs:mnist", "tfds:mnist"),
        ("digit", "digits"),
        ("my/data.npz", "npz:my/data.npz"),
        ("nzp:my/data.npz", "npz:my/data.npz"),
        ("cal:module:function", "call:module:function"),
        ("tfds", "tfds:<name>"),
        ("npz:", "npz:<name>"),
    ],
)
def test_unknown_source_names_the_nearest(source, nearest):
    with pytest.raises(UserError) as error:
        load(source)
    assert str(error.value).startswith(f"data.source: unknown source {source!r}")
    assert f"Did you mean {nearest!r}?" in str(error.value)
    for allowed in ("digits", "tfds:<name>", "npz:<path>", "call:<module>:<function>"):
        assert repr(allowed) in str(error.value)


def test_source_of_the_wrong_type():
    with pytest.raises(UserError, match=r"data\.source: 3 is neither text nor a function"):
        load(3)


def _save(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return f"npz:{folder / 'data.npz'}"


@pytest.mark.parametrize("shape", [(6,), (4, 3), (4, 3, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path, shape, dtype, save):
    values = np.random.default_rng(0).integers(0, 256, (7, *shape)) / (
        1 if dtype == np.uint8 else 255
    )
    train, test = values[:5].astype(dtype), values[5:].astype(dtype)
    path = tmp_path / "data.npz"
    save(path, train=train, test=test, train_labels=np.arange(5), test_labels=np.arange(2))
    dataset = load(f"npz:{path}")
    stored = (*shape, 1) if len(shape) == 2 else shape
    assert dataset.example_shape == stored and (dataset.num_train, dataset.num_test) == (5, 2)
    assert dataset.train.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(
        dataset.train.reshape(train.shape), dataset.train.dtype.type(train)
    )
    np.testing.assert_array_equal(dataset.test.reshape(test.shape), dataset.test.dtype.type(test))
    assert (
        dataset.train_labels.tolist() == [0, 1, 2, 3, 4] and dataset.test_labels.dtype == np.int32
    )


def test_npz_without_labels_and_with_other_split_names(tmp_path):
    images = np.zeros((4, 3), np.uint8)
    source = _save(tmp_path, valid=images, train=images, other=np.zeros(3))
    dataset = load(source, test_split="valid[:50%]")
    assert dataset.train_labels is None and dataset.test_labels is None and dataset.num_test == 2


def test_npz_binary_uint8_is_read_as_bits(tmp_path):
    bits = np.eye(3, dtype=np.uint8)
    assert load(_save(tmp_path, train=bits, test=bits)).value_range() == (0.0, 1.0)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train": np.zeros((2, 3), np.uint8)}, "has no array 'test'; it has train"),
        ({"test": np.zeros((2, 3), np.uint8)}, "has no array 'train'; it has test"),
        ({}, "has no array 'test'; it has nothing"),
        (
            {"train": np.array([{}, {}]), "test": np.zeros((2, 3), np.uint8)},
            "array 'train' .* pickle",
        ),
        (
            {"train": np.zeros((2, 3), np.uint8), "test": np.array([[np.nan] * 3])},
            "array 'test' .* non-finite",
        ),
        (
            {"train": np.zeros((2, 3), np.uint8), "test": np.zeros((2, 4), np.uint8)},
            "the train and test arrays",
        ),
        (
            {
                "train": np.zeros((2, 3), np.uint8),
                "test": np.zeros((1, 3), np.uint8),
                "train_labels": np.zeros(1, np.int32),
            },
            "array 'train_labels' .* there are 2 examples",
        ),
    ],
)
def test_npz_errors_name_the_array(tmp_path, arrays, message):
    with pytest.raises(UserError, match=rf"data\.source: .*{message}"):
        load(_save(tmp_path, **arrays))


def test_npz_that_is_missing_or_no_archive(tmp_path):
    with pytest.raises(UserError, match=r"data\.source: .* there is no file '.*missing\.npz'"):
        load(f"npz:{tmp_path}/missing.npz")
    np.save(tmp_path / "single.npy", np.zeros((2, 3)))
    with pytest.raises(UserError, match=r"data\.source: .* is no npz archive"):
        load(f"npz:{tmp_path}/single.npy")


def test_npz_that_is_damaged(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (50, 30), dtype=np.uint8)
    source = _save(tmp_path, train=images, test=images)
    path = tmp_path / "data.npz"
    content = bytearray(path.read_bytes())
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"data\.source: .* is no npz archive"):
        load(source)
    content[1000] ^= 255  # inside the first array: the archive's checksum tells
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"data\.source: array 'train' .* cannot be read"):
        load(source)


def _arrays():
    return {
        "train": [[0.0, 0.5], [1.0, 0.25]],
        "test": np.ones((1, 2), np.float32),
        "test_labels": [4],
    }


def test_function_as_source():
    dataset = load(_arrays)
    assert dataset.name == f"call:{__name__}:_arrays" == dataset.protocol["source"]
    assert dataset.train.tolist() == [[0.0, 0.5], [1.0, 0.25]]
    assert dataset.train_labels is None and dataset.test_labels.tolist() == [4]


def test_function_by_name(monkeypatch):
    module = types.ModuleType("my_arrays")
    module.make = _arrays
    module.number = 3
    monkeypatch.setitem(sys.modules, "my_arrays", module)
    dataset = load("call:my_arrays:make")
    assert dataset.name == "call:my_arrays:make" and dataset.example_shape == (2,)
    for source, message in [
        ("call:my_arrays:mkae", "cannot be imported"),
        ("call:no_such_module:make", "cannot be imported"),
        ("call:my_arrays", "names no function"),
        ("call:my_arrays:number", "not a function"),
    ]:
        with pytest.raises(UserError, match=rf"data\.source: '{source}' .*{message}"):
            load(source)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1, 2], "returned a list"),
        ({"train": [[1.0]]}, "has no array 'test'"),
        ({"train": [[1.0]], "test": [["a"]]}, "array 'test' .* dtype"),
    ],
)
def test_function_that_returns_something_else(returned, message):
    with pytest.raises(UserError, match=rf"data\.source: .*{message}"):
        load(lambda: returned)
