"""What a result records of how it was made."""

import json
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from configs import default
from experiments import environment, sweep
from experiments import plan as plans
from vae import writers


def plan(*axes):
    runs = sweep.product(*axes) if axes else [{}]
    base = default.get_config().to_dict()
    return plans.make(base, runs, sweep.axes(runs), budget=2**40)


def test_versions_devices_commit_command_and_data(tmp_path):
    one = plan()
    made = environment.describe(one, ["python", "x"])
    writers.write_json(tmp_path / "e.json", made)
    assert json.loads((tmp_path / "e.json").read_text()) == made  # nothing that JSON changes
    assert made["command"] == ["python", "x"]
    assert made["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert made["versions"]["jax"] == jax.__version__
    assert len(made["devices"]) == len(jax.devices())
    assert made["dataset"] == {"digits": one.populations[0].dataset.protocol}


def test_every_dataset_of_a_sweep_is_recorded():
    several = plan(
        sweep.axis("data.binarization", ["none", "static"]),
        sweep.axis("data.train_split", ["train", "train[:50%]"]),
        sweep.axis("seed", [0, 1]),
    )
    recorded = environment.describe(several, [])["dataset"]
    assert list(recorded) == [
        f"digits data.train_split={split} data.binarization={binarization}"
        for binarization in ("none", "static")
        for split in ("train", "train[:50%]")
    ]
    assert len({protocol["fingerprint"] for protocol in recorded.values()}) == 4
    for population in several.populations:
        assert population.dataset.protocol in recorded.values()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of its own in which the module seems to lie; calls git in it."""

    def git(*words):
        identity = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        git("init", "-q")
    except OSError:
        pytest.skip("no git")
    (tmp_path / "environment.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    return git


def test_the_commit_and_whether_it_is_all(repository, tmp_path):
    repository("add", ".")
    repository("commit", "-q", "-m", "one")
    head = repository("rev-parse", "HEAD")
    assert environment._commit() == {"git_commit": head, "git_dirty": False}
    (tmp_path / "environment.py").write_text("changed")
    assert environment._commit() == {"git_commit": head, "git_dirty": True}


def test_the_commit_of_somebody_elses_repository_is_not_ours(repository):
    # The module lies in it, as in an environment inside a project, but git does not track it.
    repository("commit", "-q", "--allow-empty", "-m", "one")
    assert environment._commit() == {"git_commit": None, "git_dirty": None}


def test_without_git_there_is_no_commit(monkeypatch):
    def run(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(environment.subprocess, "run", run)
    assert environment._commit() == {"git_commit": None, "git_dirty": None}


def test_the_command_as_it_would_be_typed_again(monkeypatch):
    argv = [str(pathlib.Path("experiments/run.py")), "--config=a.py", "--sweep", "seed=0:2"]
    monkeypatch.setattr(sys, "argv", argv)
    for module in ("experiments.run", "experiments.study"):
        main = types.SimpleNamespace(__spec__=types.SimpleNamespace(name=module))
        monkeypatch.setitem(sys.modules, "__main__", main)
        assert environment.command_line() == [
            *["python", "-m", module],
            *["--config=a.py", "--sweep", "seed=0:2"],
        ]
