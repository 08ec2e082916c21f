"""Checkpoints: what is written comes back bit for bit, and damage is seen and stepped over."""

import ast
import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import threading

import absl.logging
import jax
import jax.numpy as jnp
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


def save(folder, step, tree, score=None, **options):
    """One checkpoint, written to its end."""
    with contextlib.closing(checkpoint.Writer(folder, **options)) as writer:
        writer.save(step, tree, score)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder with the checkpoints of steps 10, 20 and 30, of which the oldest is dropped."""
    folder = tmp_path_factory.mktemp("checkpoints")
    with contextlib.closing(checkpoint.Writer(folder)) as writer:
        for step in (10, 20, 30):
            writer.save(step, tree_of(step))
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
    assert names(folder) == ["20", "20.json", "30", "30.json"]


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def replace(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new))


def copy_over(source, target):
    shutil.rmtree(target)
    shutil.copytree(source, target)


def largest_file(folder):
    return max(files(folder), key=lambda path: path.stat().st_size)


DAMAGES = {
    "truncated file": lambda folder: cut(largest_file(folder / "30")),
    "flipped bit": lambda folder: flip(largest_file(folder / "30")),
    "missing file": lambda folder: (folder / "30" / "manifest.ocdbt").unlink(),
    "missing folder": lambda folder: shutil.rmtree(folder / "30"),
    "missing description": lambda folder: (folder / "30.json").unlink(),
    "cut description": lambda folder: cut(folder / "30.json"),
    "flipped name": lambda folder: replace(folder / "30.json", b"kernel", b"kerneh"),
    "flipped name in a file of Orbax": lambda folder: replace(
        folder / "30" / "_METADATA", b"kernel", b"kerneh"
    ),
    # Whole files, and consistent, but not what was meant to be written.
    "files of another": lambda folder: copy_over(folder / "20", folder / "30"),
    "empty files, as after a power cut": lambda folder: [
        os.truncate(f, 0) for f in files(folder / "30")
    ],
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


def test_any_flipped_bit_of_any_file_is_seen_or_changes_nothing(written, tmp_path, caplog):
    rng = np.random.default_rng(0)
    seen = 0
    for file in [written / "30.json", *files(written / "30")]:
        folder = shutil.copytree(written, tmp_path / "checkpoints", dirs_exist_ok=True)
        flipped = folder / file.relative_to(written)
        content = bytearray(flipped.read_bytes())
        if content:
            content[rng.integers(len(content))] ^= 1 << rng.integers(8)
            flipped.write_bytes(bytes(content))
        step, tree = checkpoint.restore(folder, tree_of(0))
        assert_same_bits(tree, tree_of(step))
        seen += step == 20
    assert seen  # and so the flips were real


def test_one_whose_writing_was_cut_off_is_no_checkpoint(folder, caplog):
    os.rename(folder / "30", folder / "30.orbax-checkpoint-tmp")
    (folder / "30.json").unlink()
    assert checkpoint.restore(folder, tree_of(0))[0] == 20
    assert not caplog.records


def test_with_all_damaged_there_is_none_and_training_can_begin_anew(folder, caplog):
    for step in ("20", "30"):
        flip(largest_file(folder / step))
    assert checkpoint.restore(folder, tree_of(0)) is None
    assert len(caplog.records) == 2
    # The damaged ones are of later steps; they must not crowd out those of the new beginning.
    save(folder, 5, tree_of(5))
    assert names(folder) == ["5", "5.json"]
    assert checkpoint.restore(folder, tree_of(0))[0] == 5


def test_what_a_killed_process_left_is_removed(folder):
    (folder / "31.orbax-checkpoint-tmp-0" / "d").mkdir(parents=True)
    (folder / "17").mkdir()
    (folder / ".40.json.123.tmp").write_text("half")
    save(folder, 40, tree_of(40))
    assert names(folder) == ["30", "30.json", "40", "40.json"]


def test_a_step_is_written_again_over_an_older_try(folder):
    save(folder, 30, tree_of(7))
    step, tree = checkpoint.restore(folder, tree_of(0))
    assert step == 30
    assert_same_bits(tree, tree_of(7))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t | {"half": np.zeros(3, ml_dtypes.bfloat16)}, r"half of shape \(2,\).*\(3,\)"),
        (lambda t: t | {"half": np.zeros(2, np.float32)}, r"half of .*bfloat16 .*float32"),
        (lambda t: t | {"more": np.zeros(3)}, "other names"),
        (lambda t: {k: v for k, v in t.items() if k != "step"}, "other names"),
    ],
    ids=["shape", "dtype", "additional", "missing"],
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
def test_a_full_disk_is_an_os_error_and_the_older_ones_stand(folder, error, monkeypatch, caplog):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "save", fail)
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "async_save", fail)
    heard = []
    monkeypatch.setattr(sys, "unraisablehook", heard.append)
    with pytest.raises(OSError, match="No space left") as caught:
        save(folder, 40, tree_of(40))
    # What the threads of Orbax and TensorStore meet afterwards is not heard.
    late = compile("logging.error('again')", "site-packages/orbax/checkpoint/future.py", "exec")
    for meets in (lambda: exec(late, {"logging": absl.logging}), lambda: sys.unraisablehook("it")):
        thread = threading.Thread(target=meets)
        thread.start()
        thread.join()
    assert heard == [] and "again" not in caplog.text
    absl.logging.error("this is heard")
    assert "this is heard" in caplog.text
    assert caught.value.errno == errno.ENOSPC
    assert checkpoint.restore(folder, tree_of(0))[0] == 30


def test_other_errors_pass_unchanged(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("something else")

    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "save", fail)
    monkeypatch.setattr(ocp.PyTreeCheckpointHandler, "async_save", fail)
    with pytest.raises(RuntimeError, match="something else"):
        save(folder, 40, tree_of(40))


@pytest.fixture
def held(monkeypatch):
    """Lets writes end only once it is set."""
    gate = threading.Event()
    serialize = ocp.type_handlers.NumpyHandler._background_serialize

    async def waiting(*args, **kwargs):
        assert gate.wait(60)
        return await serialize(*args, **kwargs)

    monkeypatch.setattr(ocp.type_handlers.NumpyHandler, "_background_serialize", waiting)
    yield gate
    gate.set()


def test_a_write_goes_on_in_the_background_and_what_was_given_may_change(tmp_path, held):
    tree = tree_of(10)
    with contextlib.closing(checkpoint.Writer(tmp_path)) as writer:
        writer.save(10, tree)
        tree["seed"][:] = 0
        assert writer.newest is None
        assert checkpoint.restore(tmp_path, tree_of(0)) is None
        held.set()
        writer.wait()
        assert writer.newest == 10
    assert_same_bits(checkpoint.restore(tmp_path, tree_of(0))[1], tree_of(10))


def test_donated_arrays_are_written_as_they_were(tmp_path):
    tree = jax.tree.map(jnp.asarray, tree_of(10))
    with contextlib.closing(checkpoint.Writer(tmp_path)) as writer:
        writer.save(10, tree)
        jax.jit(
            lambda tree: jax.tree.map(lambda a: ~a if a.dtype == bool else a + 1, tree),
            donate_argnums=0,
        )(tree)
    assert_same_bits(checkpoint.restore(tmp_path, tree_of(0))[1], tree_of(10))


def fail(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_in_the_background_is_raised_and_the_next_write_succeeds(folder, monkeypatch):
    with contextlib.closing(checkpoint.Writer(folder)) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(ocp.type_handlers.NumpyHandler, "_background_serialize", fail_later)
            writer.save(40, tree_of(40))
            with pytest.raises(OSError, match="No space left"):
                writer.wait()
        assert names(folder) == ["20", "20.json", "30", "30.json"]
        assert writer.newest is None
        assert checkpoint.restore(folder, tree_of(0))[0] == 30
        writer.save(50, tree_of(50))
        writer.wait()
        assert writer.newest == 50
    assert checkpoint.restore(folder, tree_of(0))[0] == 50


async def fail_later(*args, **kwargs):
    fail()


def test_the_best_stays_beside_the_newest(tmp_path):
    with contextlib.closing(checkpoint.Writer(tmp_path, keep=1)) as writer:
        for step, score in ((10, -3.0), (20, -1.0), (30, -2.0), (40, float("nan")), (50, None)):
            writer.save(step, tree_of(step), score)
            writer.wait()
            assert checkpoint.steps(tmp_path) == sorted({step, 20 if step > 10 else 10})
    assert checkpoint.restore(tmp_path, tree_of(0))[0] == 50
    step, tree = checkpoint.restore(tmp_path, tree_of(0), best=True)
    assert step == 20
    assert_same_bits(tree, tree_of(20))
    # Nothing has a score: no best one.
    save(tmp_path / "other", 10, tree_of(10))
    assert checkpoint.restore(tmp_path / "other", tree_of(0), best=True) is None


def test_the_best_serves_where_the_newest_are_damaged(tmp_path):
    with contextlib.closing(checkpoint.Writer(tmp_path, keep=2)) as writer:
        for step in (10, 20, 30):
            writer.save(step, tree_of(step), -1.0 * step)
    for step in ("20", "30"):
        flip(largest_file(tmp_path / step))
    assert checkpoint.restore(tmp_path, tree_of(0))[0] == 10


# Saves on some devices ("8": rows spread over 8) and restores on others, in a process, or one of
# two, of so many devices.
ON_DEVICES = """
import pathlib, sys
import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P

processes, index, port, folder, *jobs = sys.argv[1:]
if int(processes) > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(index))

from vae import checkpoint

tree = {
    "params": np.random.default_rng(0).normal(size=(8, 30, 50)).astype(np.float32),
    "seed": np.arange(8, dtype=np.uint32) + 2**31,
    "step": np.int32(7),
    "seconds": np.float64(1.25),
}


def places(count):
    axes = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((count,), ("runs",), axes, devices=jax.devices()[:count])
    runs, everywhere = NamedSharding(mesh, P("runs")), NamedSharding(mesh, P())
    return {"params": runs, "seed": runs, "step": everywhere, "seconds": None}


def saved(path, count):
    at = places(count)
    put = {
        k: v if at[k] is None else jax.make_array_from_callback(v.shape, at[k], lambda i, v=v: v[i])
        for k, v in tree.items()
    }
    writer = checkpoint.Writer(path)
    writer.save(7, put)
    writer.close()
    assert writer.newest == 7


def restored(path, count):
    at = places(count)
    like = {k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=at[k]) for k, v in tree.items()}
    found = checkpoint.restore(path, like)
    if found is None:
        return print("none", flush=True)
    for name, value in found[1].items():
        assert value.dtype == tree[name].dtype, name
        assert getattr(value, "sharding", None) == at[name], name
        for shard in getattr(value, "addressable_shards", ()):
            assert (np.asarray(shard.data) == tree[name][shard.index]).all(), name
    assert found[0] == 7 and found[1]["seconds"] == 1.25
    print("intact", flush=True)


for job in jobs:
    what, name, count = job.split(":")
    {"save": saved, "restore": restored}[what](pathlib.Path(folder) / name, int(count))
"""


def start(devices, folder, *jobs, processes=1, index=0, port=0):
    env = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
    env |= {"JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-c", ON_DEVICES, str(processes), str(index), str(port), str(folder)]
    root = pathlib.Path(vae.__file__).parents[1]
    return subprocess.Popen(
        [*words, *jobs],
        env=env,
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """What it printed of its restored checkpoints."""
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    return [line for line in stdout.splitlines() if not line.startswith("[Gloo]")]


def in_two_processes(folder, *jobs):
    """The same with 2 processes of 2 devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"processes": 2, "port": port}
    started = [start(2, folder, *jobs, index=index, **options) for index in range(2)]
    first, second = (finish(process) for process in started)
    assert first == second
    return first


def digests(folder):
    """Of the checkpoints of step 7 in a folder's folders."""
    files = folder.glob("*/7.json")
    return [json.loads(file.read_text())["contents"]["digest"] for file in files]


def test_saved_on_some_devices_and_restored_on_others(tmp_path):
    """8 simulated devices; 8 -> 1, 2, 4 and back, in processes that have 8 devices or 2."""
    finish(start(8, tmp_path, "save:on8:8", "save:on4:4", "save:on1:1"))
    jobs = ("restore:on8:1", "restore:on8:2", "restore:on4:2", "restore:on1:2", "save:on2:2")
    assert finish(start(2, tmp_path, *jobs)) == ["intact"] * 4
    jobs = ("restore:on1:8", "restore:on2:8", "restore:on4:8", "restore:on8:4")
    assert finish(start(8, tmp_path, *jobs)) == ["intact"] * 4
    assert len(digests(tmp_path)) == 4
    assert len(set(digests(tmp_path))) == 1  # of the values, wherever they lay


@pytest.mark.thorough
def test_several_processes_write_one_checkpoint_and_agree_whether_it_is_intact(tmp_path):
    assert in_two_processes(tmp_path, "save:two:4", "restore:two:4") == ["intact"]
    assert names(tmp_path / "two") == ["7", "7.json"]
    one = ("restore:two:4", "restore:two:1", "save:one:1")
    assert finish(start(4, tmp_path, *one)) == ["intact"] * 2
    assert len(set(digests(tmp_path))) == 1
    # Rows that only one of the two reads.
    shutil.copytree(tmp_path / "two", tmp_path / "damaged")
    folder = tmp_path / "damaged" / "7"
    for file in (folder / "ocdbt.process_1").rglob("*"):
        if file.is_file():
            cut(file)
    assert in_two_processes(tmp_path, "restore:one:4", "restore:damaged:4") == ["intact", "none"]


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


def test_a_first_axis_that_is_filled_up_may_have_another_length(tmp_path):
    # Five runs, filled up to eight where they were written, and to six or five where they are read.
    tree = {"a": np.arange(16.0, dtype=np.float32).reshape(8, 2), "step": np.int32(7)}
    writer = checkpoint.Writer(tmp_path)
    writer.save(7, tree)
    writer.close()
    for length in (5, 6, 8, 10):
        like = {
            "a": jax.ShapeDtypeStruct((length, 2), np.float32),
            "step": jax.ShapeDtypeStruct((), np.int32),
        }
        step, found = checkpoint.restore(tmp_path, like, rows=5)
        assert step == 7
        assert found["step"] == 7
        assert found["a"].shape == (length, 2)
        np.testing.assert_array_equal(found["a"][:5], tree["a"][:5])
    # Fewer than count are another population's.
    like = {"a": jax.ShapeDtypeStruct((10, 2), np.float32), "step": like["step"]}
    with pytest.raises(UserError, match="a of shape"):
        checkpoint.restore(tmp_path, like, rows=9)
    with pytest.raises(UserError, match="a of shape"):
        checkpoint.restore(tmp_path, like)
