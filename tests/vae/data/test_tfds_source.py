import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from vae.data import load, tfds_source
from vae.errors import UserError

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "tfds"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="no prepared TFDS data beside the repository (../shared/data/tfds)"
)


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    """One cache for this module, so that each real dataset is decoded once."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_LAB_CACHE", str(folder))
        yield folder


def _forbid_decoding(monkeypatch):
    def fail(*args):
        raise AssertionError("decoded although the cache has the arrays")

    monkeypatch.setattr(tfds_source, "_decode", fail)


# First and last label, pixel sum of the first and last image and of all: read from the array_record
# bytes with array_record and pillow alone. Class counts of MNIST: LeCun's files.
FACTS = {
    ("mnist", "train"): (4, 5, 16400, 29718, 1567298545),
    ("mnist", "test"): (2, 5, 33963, 21567, 264923200),
    ("fashion_mnist", "train"): (2, 9, 42826, 83122, 3431114169),
    ("fashion_mnist", "test"): (4, 1, 63356, 45839, 573469082),
}
CLASS_COUNTS = {
    ("mnist", "train"): [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    ("mnist", "test"): [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ("fashion_mnist", "train"): [6000] * 10,
    ("fashion_mnist", "test"): [1000] * 10,
}


@pytest.mark.sampled
@needs_data
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_real_data(name, monkeypatch):
    dataset = load(f"tfds:{name}", dir=DATA)
    for split, images, labels in (
        ("train", dataset.train, dataset.train_labels),
        ("test", dataset.test, dataset.test_labels),
    ):
        count = {"train": 60000, "test": 10000}[split]
        assert images.shape == (count, 28, 28, 1) and images.dtype == np.uint8
        assert labels.shape == (count,) and labels.dtype == np.int32
        sums = images[0].sum(), images[-1].sum(), images.sum(dtype=np.int64)
        assert (labels[0], labels[-1], *sums) == FACTS[name, split]
        assert np.bincount(labels).tolist() == CLASS_COUNTS[name, split]
    assert dataset.protocol["version"] == "3.0.1" and dataset.protocol["max_value"] == 255.0
    assert dataset.value_range() == (0.0, 1.0)

    # The second time comes from the cache, equal to the last byte.
    _forbid_decoding(monkeypatch)
    again = load(f"tfds:{name}:3.0.1", dir=str(DATA), train_split="train[:50000]")
    np.testing.assert_array_equal(again.train, dataset.train[:50000])
    np.testing.assert_array_equal(again.train_labels, dataset.train_labels[:50000])
    assert load(f"tfds:{name}", dir=DATA).protocol == dataset.protocol


@pytest.fixture
def mnist_test_only(tmp_path):
    """A data_dir with a writable copy of the real mnist, test split only (6 MB)."""
    if not DATA.is_dir():
        pytest.skip("no prepared TFDS data beside the repository (../shared/data/tfds)")
    folder = tmp_path / "tfds" / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    for path in (DATA / "mnist" / "3.0.1").iterdir():
        if "-train." not in path.name:
            shutil.copyfile(path, folder / path.name)
    return folder


HALVES = {"train_split": "test[:5000]", "test_split": "test[5000:]"}


def test_cache_is_rebuilt_when_damaged(mnist_test_only, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("VAE_LAB_CACHE", str(tmp_path / "cache"))
    root = mnist_test_only.parents[1]
    first = load("tfds:mnist", dir=root, **HALVES)
    (file,) = (tmp_path / "cache").rglob("test-image.npy")
    content = bytearray(file.read_bytes())
    content[1_000_000] ^= 1
    file.write_bytes(content)
    second = load("tfds:mnist", dir=root, **HALVES)
    assert "damaged" in caplog.text
    assert second.protocol["fingerprint"] == first.protocol["fingerprint"]
    _forbid_decoding(monkeypatch)
    assert load("tfds:mnist", dir=root, **HALVES).protocol == first.protocol


def test_cache_key_follows_the_files(mnist_test_only, tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_LAB_CACHE", str(tmp_path / "cache"))
    root = mnist_test_only.parents[1]
    load("tfds:mnist", dir=root, **HALVES)
    os.utime(next(mnist_test_only.glob("*array_record*")), (1, 1))
    _forbid_decoding(monkeypatch)
    with pytest.raises(AssertionError, match="decoded"):
        load("tfds:mnist", dir=root, **HALVES)


def test_unwritable_cache_is_no_error(mnist_test_only, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VAE_LAB_CACHE", str(tmp_path / "file"))
    assert load("tfds:mnist", dir=mnist_test_only.parents[1], **HALVES).num_train == 5000
    assert "Could not write the cache" in caplog.text


def test_damaged_files_say_so(mnist_test_only, tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_LAB_CACHE", str(tmp_path / "cache"))
    record = next(mnist_test_only.glob("*array_record*"))
    content = bytearray(record.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 10_000] = bytes(10_000)
    record.write_bytes(content)
    with pytest.raises(
        UserError, match=r"data\.source: split 'test' of tfds:mnist.* cannot be read"
    ):
        load("tfds:mnist", dir=mnist_test_only.parents[1], **HALVES)
    (mnist_test_only / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"data\.source: .*dataset_info\.json' is damaged"):
        load("tfds:mnist", dir=mnist_test_only.parents[1], **HALVES)


def _write_info(folder, **changes):
    folder.mkdir(parents=True)
    splits = [{"name": "train", "shardLengths": ["3"]}, {"name": "test", "shardLengths": ["2"]}]
    info = {"name": "mnist", "fileFormat": "array_record", "splits": splits, **changes}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_unknown_split_names_those_there_are(tmp_path):
    _write_info(tmp_path / "mnist" / "3.0.1")
    with pytest.raises(UserError, match=r"data\.test_split: .*'valid'. Choose one of test, train"):
        load("tfds:mnist", dir=tmp_path, test_split="valid[:10]")


def test_tfrecord_folder_is_refused(tmp_path):
    _write_info(tmp_path / "mnist" / "3.0.1", fileFormat="tfrecord")
    with pytest.raises(UserError, match=r"data\.source: .* is in tfrecord format.*prepare_data"):
        load("tfds:mnist", dir=tmp_path)


def test_newest_version_is_taken_unless_one_is_named(tmp_path):
    for version in ("3.0.1", "3.0.10", "2.9.0"):
        _write_info(tmp_path / "mnist" / version)
    _write_info(tmp_path / "mnist" / "incomplete.4.0.0")
    name = tfds_source._Name("mnist", None, None)
    assert tfds_source._find(name, tmp_path).version == "3.0.10"
    assert tfds_source._find(name._replace(version="2.9.0"), tmp_path).version == "2.9.0"
    assert tfds_source._find(name._replace(version="1.0.0"), tmp_path) is None


def test_missing_dataset_says_where_it_looked_and_what_to_run(tmp_path):
    with pytest.raises(UserError) as error:
        load("tfds:mnist", dir=tmp_path)
    message = str(error.value)
    assert message.startswith("data.source: tfds:mnist is not prepared")
    assert str(tmp_path / "mnist") in message and "data.dir" in message
    assert f"`bash scripts/prepare_data.sh mnist --data_dir={tmp_path}`" in message


def test_missing_dataset_in_the_default_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"data\.source: tfds:mnist is not prepared") as error:
        load("tfds:mnist")
    assert str(tmp_path / "mnist") in str(error.value)


def test_unknown_name_suggests_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"data\.source: .* no dataset 'mnits'. .*'tfds:mnist'"):
        load("tfds:mnits", dir=tmp_path)
    with pytest.raises(UserError, match=r"data\.source: 'tfds:mn ist' is not a TFDS name"):
        load("tfds:mn ist", dir=tmp_path)


def test_mocked_data_on_any_machine(tmp_path, cache_folder):
    import tensorflow_datasets as tfds

    had_tensorflow = "tensorflow" in sys.modules
    before = sorted(cache_folder.rglob("*"))
    with tfds.testing.mock_data(num_examples=30):
        dataset = load("tfds:mnist", dir=tmp_path, binarization="dynamic")
        color = load("tfds:cifar10", dir=tmp_path)
    assert dataset.example_shape == (28, 28, 1) and color.example_shape == (32, 32, 3)
    assert dataset.num_train == dataset.num_test == 30
    assert dataset.train.dtype == np.uint8 and dataset.train_labels.dtype == np.int32
    assert dataset.train.max() > 1 and dataset.value_range() == (0.0, 1.0)
    assert dataset.protocol["version"] is None
    # Reading needs no TensorFlow, and invented examples are not kept.
    assert ("tensorflow" in sys.modules) == had_tensorflow
    assert sorted(cache_folder.rglob("*")) == before


def test_mock_over_a_real_folder_leaves_the_cache_alone(mnist_test_only, tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    monkeypatch.setenv("VAE_LAB_CACHE", str(tmp_path / "cache"))
    with tfds.testing.mock_data(num_examples=30):
        load("tfds:mnist", dir=mnist_test_only.parents[1], test_split="test[:3]")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


class _Source(list):
    """A data source with given features, as `tfds.data_source` returns one."""

    def __init__(self, examples, features):
        super().__init__(examples)
        self.dataset_info = type("Info", (), {"features": features})

    def __getitems__(self, rows):
        return [self[row] for row in rows]


def _feature(*shape):
    return type("Feature", (), {"shape": shape})


def test_features_other_than_image_and_label(monkeypatch, tmp_path):
    def load_from(features, example, count=3):
        source = _Source([example] * count, features)
        monkeypatch.setattr(tfds_source, "_open", lambda *args: source)
        return load("tfds:something", dir=tmp_path)

    image = np.full((4, 4, 1), 7, np.uint8)
    unlabelled = load_from({"image": _feature(4, 4, 1), "id": _feature()}, {"image": image})
    assert unlabelled.train_labels is None and unlabelled.train.shape == (3, 4, 4, 1)
    text_labels = {"image": image, "label": b"seven"}
    features = {"image": _feature(4, 4, 1), "label": _feature()}
    assert load_from(features, text_labels).train_labels is None
    with pytest.raises(UserError, match=r"data\.source: .* no feature 'image' of one fixed size"):
        load_from({"text": _feature()}, {"text": b""})
    with pytest.raises(UserError, match=r"data\.source: .* no feature 'image' of one fixed size"):
        load_from({"image": _feature(None, None, 3)}, {"image": image})
    with pytest.raises(UserError, match=r"data\.source: .* is empty"):
        load_from(features, text_labels, count=0)
