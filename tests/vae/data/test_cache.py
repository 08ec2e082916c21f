import errno
import os
from pathlib import Path

import numpy as np
import pytest

from vae.data import cache

ARRAYS = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "label": np.array([3, 1], np.int32),
}


def test_cache_dir_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VAE_LAB_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("VAE_LAB_CACHE")
    assert cache.cache_dir() == tmp_path / "xdg" / "vae-lab"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.cache_dir() == Path.home() / ".cache" / "vae-lab"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_dir() == Path.home() / ".cache" / "vae-lab"


def test_round_trip_leaves_no_temporary_files(tmp_path):
    cache.write(tmp_path / "new", "train", ARRAYS)
    arrays = cache.read(tmp_path / "new", "train")
    assert arrays.keys() == ARRAYS.keys()
    for key, array in arrays.items():
        assert array.dtype == ARRAYS[key].dtype
        np.testing.assert_array_equal(array, ARRAYS[key])
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "train-image.npy",
        "train-label.npy",
        "train.json",
    ]


def test_missing_entry_is_silent(tmp_path, caplog):
    assert cache.read(tmp_path, "train") is None
    cache.write(tmp_path, "train", ARRAYS)
    (tmp_path / "train-label.npy").unlink()
    assert cache.read(tmp_path, "train") is None
    assert not caplog.records


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: _flip_a_bit(folder / "train-image.npy"),
        lambda folder: (folder / "train-image.npy").write_bytes(b""),
        lambda folder: (folder / "train-image.npy").write_bytes(b"not numpy"),
        lambda folder: (folder / "train-image.npy").write_bytes(
            (folder / "train-image.npy").read_bytes()[:-3]
        ),
        lambda folder: np.save(folder / "train-image.npy", np.array([{}])),
        lambda folder: (folder / "train.json").write_text("{"),
        lambda folder: (folder / "train.json").write_text("[]"),
        lambda folder: (folder / "train.json").write_text('["image"]'),
    ],
    ids=["bit", "empty", "foreign", "short", "pickle", "index", "list", "keys"],
)
def test_damaged_entry_is_logged_and_ignored(tmp_path, caplog, damage):
    cache.write(tmp_path, "train", ARRAYS)
    damage(tmp_path)
    assert not cache.read(tmp_path, "train")
    assert all(record.levelname == "WARNING" for record in caplog.records)
    assert "damaged" in caplog.text


def test_unwritable_cache_is_logged_and_ignored(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    cache.write(tmp_path / "file" / "folder", "train", ARRAYS)
    assert "Could not write the cache" in caplog.text and "VAE_LAB_CACHE" in caplog.text


def test_full_disk_leaves_no_half_written_file(tmp_path, caplog, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    cache.write(tmp_path, "train", ARRAYS)
    assert "No space left" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_digest_is_of_dtype_shape_and_bytes():
    array = np.arange(6, dtype=np.uint8)
    assert cache.digest(array) == cache.digest(np.arange(12, dtype=np.uint8)[::2] // 2)
    others = [array.reshape(2, 3), array.astype(np.int8), array[::-1], array[:5]]
    assert len({cache.digest(other) for other in [array, *others]}) == 5


def test_arrays_are_mapped_and_cannot_be_written_to(tmp_path):
    cache.write(tmp_path, "train", {"image": np.arange(6, dtype=np.uint8)})
    image = cache.read(tmp_path, "train")["image"]
    assert isinstance(image.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        image[0] = 1


def test_what_is_filled_before_it_is_kept_has_no_name(tmp_path):
    array = cache.scratch(tmp_path, (2, 3), np.dtype(np.float32))
    array[:] = 1.5
    assert isinstance(array.base, np.memmap)
    assert list(tmp_path.iterdir()) == []
    cache.write(tmp_path, "train", {"image": array})
    assert np.array_equal(cache.read(tmp_path, "train")["image"], array)


@pytest.mark.parametrize("folder", ["file/below", "."], ids=["no folder", "no room"])
def test_without_a_place_it_is_in_memory(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    array = cache.scratch(tmp_path / folder, (2, 3), np.dtype(np.uint8))
    assert array.base is None and array.shape == (2, 3) and array.dtype == np.uint8
