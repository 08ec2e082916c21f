"""Mistakes of the user, made with the real command: status 2, no traceback, the field named.

What each function refuses is tested beside it; here it is what reaches the user.
"""

import os
import re
import signal

import numpy as np
import pytest

from tests.experiments import launch


@pytest.mark.sampled
@pytest.mark.parametrize(
    "flags, message",
    [
        (["--config.model.latentdim=3"], r"model\.latentdim: no such field.*model\.latent_dim\b"),
        (["--config.model.depth=two"], r"model\.depth: .*whole number.* got 'two'"),
        (["--config.optimizer.name=adm"], r"optimizer\.name: .* got 'adm'.*Did you mean 'adam'\?"),
        (["--sweep=objective.betta=1,2"], r"objective\.betta: no such field\. .*objective\.beta\?"),
        (["--sweep=seed=0:0"], "seed: the range 0:0 is empty"),
        (["--config.train.epochs=5"], r"train\.epochs and train\.steps: both .*5 and 200"),
        (["--config.train.steps=null"], r"train\.epochs and train\.steps: neither is set"),
        (["--config.train.batch_size=0"], r"train\.batch_size: .* got 0"),
        (["--config.model.width=-16"], r"model\.width: .* got -16"),
        (["--config.model.latent_dim=0"], r"model\.latent_dim: .* got 0"),
        (["--config.model.depth=-1"], r"model\.depth: .* got -1"),
        (["--config.train.steps=0"], r"train\.steps: .* got 0"),
        (["--config.optimizer.learning_rate=nan"], r"optimizer\.learning_rate: .* finite"),
        (["--config=configs/quikstart.py"], r"--config: .*quikstart\.py does not exist\. Did"),
        (["--wrokdir=x"], "wrokdir.*workdir.*--help"),
        (["--pack=side_by_side"], "--pack=side_by_side.*auto.*vmap.*map"),
        (["model.depth=3"], "model.depth=3: not a flag.*--config.FIELD=VALUE"),
        (["--workdir="], "--workdir: missing"),
        (["--config="], "--config: missing"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_in_the_command(tmp_path, flags, message):
    said = launch.user_error(*flags, workdir=tmp_path / "results")
    assert re.match(message, said, re.DOTALL) or re.search(message, said)
    assert not (tmp_path / "results").exists()


def test_a_batch_larger_than_the_dataset(tmp_path):
    said = launch.user_error("--config.train.batch_size=1439", workdir=tmp_path / "results")
    assert "train.batch_size: 1439 is more than the 1438 training examples of digits" in said


def test_values_that_the_likelihood_cannot_have(tmp_path):
    images = np.random.default_rng(0).normal(size=(20, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", train=images, test=images)
    flags = (f"--config.data.source=npz:{tmp_path / 'data.npz'}", "--config.train.batch_size=5")
    flags += ("--config.data.binarization=none",)
    said = launch.user_error(*flags, workdir=tmp_path / "results")
    assert re.search(r"data\.scaling: .*\[0, 1\]|model\.likelihood: bernoulli needs data in", said)
    # Values as they are, and a likelihood that needs others: refused before anything is read.
    said = launch.user_error(*flags, "--config.data.scaling=none", workdir=tmp_path / "results")
    assert "model.likelihood: bernoulli needs values in [0, 1]" in said


@pytest.mark.sampled
@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda a: np.where(a > 0.99, np.nan, a), "train.*nan"),
        (lambda a: np.where(a > 0.99, np.inf, a), "train.*inf"),
        (lambda a: a[:0], "train.*no examples|train.*empty"),
        (lambda a: a.astype(object), "train.*pickle"),
    ],
    ids=["nan", "inf", "empty", "objects"],
)
def test_arrays_that_cannot_be_trained_on(tmp_path, damage, message):
    images = np.random.default_rng(0).uniform(size=(50, 6)).astype(np.float32)
    np.savez(tmp_path / "data.npz", train=damage(images), test=images)
    said = launch.user_error(
        f"--config.data.source=npz:{tmp_path / 'data.npz'}", workdir=tmp_path / "results"
    )
    assert said.startswith("data.source: ")
    assert re.search(message, said, re.IGNORECASE)
    assert str(tmp_path / "data.npz") in said


def test_a_dataset_that_is_not_there(tmp_path):
    # No network is asked for, so that this is the same with and without one.
    said = launch.user_error(
        "--config.data.source=tfds:mnist",
        f"--config.data.dir={tmp_path / 'nothing'}",
        workdir=tmp_path / "results",
    )
    assert said.startswith("data.source: tfds:mnist is not prepared")
    assert str(tmp_path / "nothing" / "mnist") in said  # where it looked
    assert "bash scripts/prepare_data.sh mnist" in said  # what to run


def test_a_workdir_below_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    said = launch.user_error(workdir=tmp_path / "file" / "results")
    assert f"--workdir: cannot write to {tmp_path / 'file' / 'results'}" in said
    assert (tmp_path / "file").read_text() == "mine"


def test_a_workdir_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    said = launch.user_error(workdir=tmp_path / "file")
    assert f"--workdir: cannot write to {tmp_path / 'file'}" in said
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="no /proc, where root cannot write")
def test_a_workdir_on_a_read_only_disk():
    assert "--workdir: cannot write to /proc/results" in launch.user_error(workdir="/proc/results")


@pytest.mark.sampled
@pytest.mark.parametrize(
    "flags, difference",
    [
        (["--config.model.depth=2"], "model.depth: 1 -> 2"),
        (["--sweep=seed=0,1,2"], "sweep seed: 0, 1 -> 0, 1, 2"),
        (["--sweep=optimizer.b1=0.8,0.9"], "sweep optimizer.b1: not swept -> 0.8, 0.9"),
    ],
    ids=["config", "values", "axis"],
)
def test_a_workdir_of_another_config(flags, difference):
    workdir, _ = launch.finished()
    before = {f: f.stat().st_mtime_ns for f in workdir.rglob("*") if f.is_file()}
    sweep = [s for s in launch.SWEEP if "=seed=" not in s or "seed" not in flags[0]]
    said = launch.user_error(*sweep, *flags, workdir=workdir)
    assert f"--workdir: {workdir} holds the results of another config:\n  {difference}\n" in said
    lock = workdir / ".lock"  # the only file that is written before the config is compared
    after = {f: f.stat().st_mtime_ns for f in workdir.rglob("*") if f.is_file()}
    assert before.keys() == after.keys()
    assert {f for f in before if before[f] != after[f]} <= {lock}


@pytest.mark.thorough
def test_data_that_changed_since_the_runs_began(tmp_path):
    rng = np.random.default_rng(0)

    def write():
        np.savez(tmp_path / "d.npz", **{n: rng.uniform(size=(50, 6)) for n in ("train", "test")})

    write()
    flags = (f"--config.data.source=npz:{tmp_path / 'd.npz'}", "--config.train.batch_size=10")
    process = launch.start(tmp_path / "results", *flags)
    launch.wait_until(process, (tmp_path / "results" / "environment.json").exists)
    process.kill()
    launch.finish(process)
    write()
    said = launch.user_error(*flags, workdir=tmp_path / "results")
    assert said.startswith(f"data.source: npz:{tmp_path / 'd.npz'} has changed since the runs in")


def test_two_processes_on_one_workdir_and_a_stop_by_sigterm(tmp_path):
    flags = (*launch.SWEEP, "--config.train.steps=10000000", "--config.eval.every=2000")
    flags += ("--checkpoint_seconds=0",)
    first = launch.start(tmp_path / "results", *flags)
    launch.wait_until(first, lambda: launch.checkpoints(tmp_path / "results"))
    said = launch.user_error(*flags, workdir=tmp_path / "results")
    assert f"--workdir: {tmp_path / 'results'} is in use by another process" in said
    assert f"process {first.pid} on {os.uname().nodename}" in said
    assert first.poll() is None
    seen = launch.checkpoints(tmp_path / "results")[-1]
    first.send_signal(signal.SIGTERM)
    done = launch.finish(first)
    assert done.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in done.stderr
    assert "Stopped by SIGTERM; all is saved. To go on:\n  python -m experiments.run" in done.stderr
    assert f"--workdir={tmp_path / 'results'}" in done.stderr
    assert launch.checkpoints(tmp_path / "results")[-1] >= seen
