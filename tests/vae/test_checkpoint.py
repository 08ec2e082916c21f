"""Checkpoints: what is written comes back bit for bit, and damage is seen and stepped over."""

import ast
import errno
import logging
import os
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

import vae
from vae import checkpoint
from vae.errors import UserError


def tree_of(value):
    rng = np.random.default_rng(value)
    return {
        "params": {"encoder": {"layer_0": {"kernel": rng.normal(size=(3, 4)).astype(np.float32)}}},
        "seed": np.array([2**32 - 1, 0], np.uint32),
        "diverged": np.array([True, False]),
        "step": np.int32(value),
        "half": np.array([1.5, -0.0], ml_dtypes.bfloat16),
    }


def assert_same_bits(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the checkpoints of steps 10, 20 and 30, of which the oldest is dropped."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for step in (10, 20, 30):
        checkpoint.save(folder, step, tree_of(step))
    return folder


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "checkpoints")


def test_none_where_there_is_none(tmp_path):
    assert checkpoint.restore(tmp_path, tree_of(0)) is None
    assert checkpoint.restore(tmp_path / "absent", tree_of(0)) is None


def test_the_newest_comes_back_bit_for_bit(folder, caplog):
    step, tree = checkpoint.restore(folder, tree_of(0))
    assert step == 30
    assert_same_bits(tree, tree_of(30))
    assert not caplog.records


def test_shapes_are_enough_to_restore(folder):
    like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree_of(0))
    assert_same_bits(checkpoint.restore(folder, like)[1], tree_of(30))


def test_the_newest_two_are_kept(folder):
    assert names(folder) == ["20", "20.sha256", "30", "30.sha256"]


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def largest_file(folder):
    return max(files(folder), key=lambda path: path.stat().st_size)


DAMAGES = {
    "truncated file": lambda folder: cut(largest_file(folder / "30")),
    "flipped bit": lambda folder: flip(largest_file(folder / "30")),
    "missing file": lambda folder: largest_file(folder / "30").unlink(),
    "additional file": lambda folder: (folder / "30" / "zz").write_text("?"),
    "missing folder": lambda folder: shutil.rmtree(folder / "30"),
    "cut digest": lambda folder: cut(folder / "30.sha256"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_gives_way_to_the_one_before_with_a_warning(folder, damage, caplog):
    DAMAGES[damage](folder)
    step, tree = checkpoint.restore(folder, tree_of(0))
    assert step == 20
    assert_same_bits(tree, tree_of(20))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(folder / "30") in record.message
    assert "damaged" in record.message


def test_one_whose_writing_was_cut_off_is_no_checkpoint(folder, caplog):
    (folder / "30.sha256").unlink()
    assert checkpoint.restore(folder, tree_of(0))[0] == 20
    assert not caplog.records


def test_with_all_damaged_there_is_none_and_training_can_begin_anew(folder, caplog):
    for step in ("20", "30"):
        flip(largest_file(folder / step))
    assert checkpoint.restore(folder, tree_of(0)) is None
    assert len(caplog.records) == 2
    # The damaged ones are of later steps; they must not crowd out those of the new beginning.
    checkpoint.save(folder, 5, tree_of(5))
    assert names(folder) == ["5", "5.sha256"]
    assert checkpoint.restore(folder, tree_of(0))[0] == 5


def test_what_a_killed_process_left_is_removed(folder):
    (folder / "31.orbax-checkpoint-tmp-0" / "d").mkdir(parents=True)
    (folder / "17").mkdir()
    (folder / ".40.sha256.123.tmp").write_text("half")
    checkpoint.save(folder, 40, tree_of(40))
    assert names(folder) == ["30", "30.sha256", "40", "40.sha256"]


def test_a_step_is_written_again_over_an_older_try(folder):
    checkpoint.save(folder, 30, tree_of(7))
    step, tree = checkpoint.restore(folder, tree_of(0))
    assert step == 30
    assert_same_bits(tree, tree_of(7))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t | {"half": np.zeros(3, ml_dtypes.bfloat16)}, r"half of shape \(2,\).*\(3,\)"),
        (lambda t: t | {"more": np.zeros(3)}, "other names"),
        (lambda t: {k: v for k, v in t.items() if k != "step"}, "other names"),
    ],
    ids=["shape", "additional", "missing"],
)
def test_another_model_is_refused_and_the_folder_named(folder, change, message):
    with pytest.raises(UserError, match=f"checkpoint: .*30 holds other arrays.*{message}"):
        checkpoint.restore(folder, change(tree_of(0)))
    assert checkpoint.restore(folder, tree_of(0))[0] == 30


def test_a_tree_is_replaced(tmp_path):
    for value in (1, 2):
        checkpoint.save_tree(tmp_path / "params", tree_of(value))
    assert_same_bits(checkpoint.restore_tree(tmp_path / "params", tree_of(0)), tree_of(2))
    assert names(tmp_path) == ["params"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "out of space"), ValueError("write: No space left on device [28]")],
    ids=["from the system", "wrapped by Orbax"],
)
def test_a_full_disk_is_an_os_error_and_the_older_ones_stand(folder, error, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "save", fail)
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "async_save", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        checkpoint.save(folder, 40, tree_of(40))
    assert caught.value.errno == errno.ENOSPC
    assert checkpoint.restore(folder, tree_of(0))[0] == 30


def test_other_errors_pass_unchanged(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "save", fail)
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "async_save", fail)
    with pytest.raises(RuntimeError, match="something else"):
        checkpoint.save(folder, 40, tree_of(40))


def imports_and_flags(source):
    """Modules that a file imports, and the names of its keyword arguments that are True."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.keyword) and getattr(node.value, "value", None) is True:
            yield f"{node.arg}=True"


def test_nothing_loads_a_pickle():
    refused = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "allow_pickle=True"}
    root = pathlib.Path(vae.__file__).parents[1]
    sources = [f for part in ("vae", "experiments", "configs") for f in (root / part).rglob("*.py")]
    assert len(sources) > 40
    found = {str(f): refused & set(imports_and_flags(f.read_text())) for f in sources}
    assert {file: names for file, names in found.items() if names} == {}


def test_the_search_for_pickles_finds_them():
    source = "import pickle\nfrom dill import load\nnp.load(f, allow_pickle=True)"
    assert set(imports_and_flags(source)) == {"pickle", "dill", "allow_pickle=True"}
