"""The results folder: one process at a time, one config for good, and a table of what is done."""

import csv
import dataclasses
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from typing import Any

import pytest

from experiments import workdir as workdirs
from experiments.workdir import Workdir
from tests.experiments import launch
from vae import writers
from vae.errors import UserError
from vae.packing import Packing


@dataclasses.dataclass
class Run:
    """As much of a run as the folder asks of it."""

    run_id: str
    overrides: dict[str, Any]
    flat: dict[str, Any] = dataclasses.field(default_factory=dict)


BASE = {"seed": 0, "model": {"depth": 2, "width": (64, 32)}, "train": {"epochs": None}}
AXES = {"seed": [0, 1]}
RUNS = [Run("aa", {"seed": 0}, {"seed": 0}), Run("bb", {"seed": 1}, {"seed": 1})]


@pytest.fixture
def workdir(tmp_path):
    opened = Workdir(tmp_path / "deep" / "results")
    opened.open()
    yield opened
    opened.close()


# One process --------------------------------------------------------------------------------------


def test_a_second_holder_is_refused_until_the_first_lets_go(workdir):
    second = Workdir(workdir.path)
    with pytest.raises(UserError, match="--workdir: .* in use by another process") as caught:
        second.open()
    assert f"process {os.getpid()} on {os.uname().nodename}" in str(caught.value)
    workdir.close()
    second.open()
    second.close()
    second.close()  # twice is no error


def test_the_lock_of_a_dead_process_is_none(workdir):
    workdir.close()
    holder = (
        "import os, pathlib, signal, sys; from experiments.workdir import Workdir\n"
        "Workdir(pathlib.Path(sys.argv[1])).open(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    words = [sys.executable, "-c", holder, str(workdir.path)]
    assert subprocess.run(words, cwd=launch.REPOSITORY).returncode == -signal.SIGKILL
    workdir.open()


def test_a_disk_without_locks_is_named(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="--workdir: .* cannot be locked .*another disk"):
        Workdir(tmp_path).open()


def test_what_killed_processes_left_is_removed(tmp_path):
    run = tmp_path / "runs" / "aa"
    (run / "params.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    kept = [tmp_path / "results.csv", run / "metrics.jsonl", tmp_path / "notes.tmp"]
    for file in [*kept, tmp_path / ".results.csv.12.tmp", run / ".gallery.npz.12.tmp"]:
        file.write_text("x")
    held = Workdir(tmp_path)
    held.open()
    held.close()
    left = {f for f in tmp_path.rglob("*") if f.is_file()}
    assert left == {*kept, tmp_path / ".lock"}
    assert not (run / "params.orbax-checkpoint-tmp").exists()


# Shared -------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Population:
    id: str
    runs: list[Any]
    pack: Packing = Packing()


@pytest.fixture
def sharing(tmp_path):
    """Makes openers of one shared folder."""
    opened = []

    def one_more():
        opened.append(Workdir(tmp_path / "results"))
        opened[-1].open(shared=True)
        return opened[-1]

    yield one_more
    for each in opened:
        each.close()


def never():
    return False


def test_tasks_share_a_folder_and_a_plain_run_does_not(sharing):
    first, _ = sharing(), sharing()
    with pytest.raises(UserError, match="in use by another process .tasks of experiments.submit"):
        Workdir(first.path).open()


def test_a_plain_run_keeps_tasks_out(workdir):
    with pytest.raises(UserError, match=f"in use by another process .process {os.getpid()} on"):
        Workdir(workdir.path).open(shared=True)


def test_a_population_has_one_task_at_a_time(sharing, monkeypatch, capsys):
    monkeypatch.setattr(workdirs, "HOLD_SECONDS", 0.3)
    first, second = sharing(), sharing()
    populations = [Population("p", RUNS[:1]), Population("q", RUNS[1:])]
    assert first.hold(populations[:1], never)
    assert second.hold(populations[1:], never)  # another one, at the same time
    with pytest.raises(UserError, match="--populations: p is in use by another .* Wait for it"):
        second.hold(populations[:1], never)
    assert "Population p is held by process" in capsys.readouterr().out
    assert not second.hold(populations[:1], lambda: True)  # told to stop while it waits
    first.close()
    assert second.hold(populations[:1], never)


def test_a_task_removes_what_was_left_in_its_own_runs_alone(sharing):
    task = sharing()
    left = []
    for run in ("aa", "bb"):
        folder = task.run(run)
        (folder / "params.orbax-checkpoint-tmp").mkdir(parents=True)
        (folder / ".gallery.npz.n1.12.tmp").touch()
        left += [folder / "params.orbax-checkpoint-tmp", folder / ".gallery.npz.n1.12.tmp"]
    common = task.path / ".results.csv.n1.12.tmp"  # another task may be writing it
    common.touch()
    assert task.hold([Population("p", RUNS[:1])], never)
    assert [file.exists() for file in left] == [False, False, True, True]
    assert common.exists()


def test_one_task_at_a_time_writes_what_is_common(sharing, monkeypatch):
    monkeypatch.setattr(workdirs, "WRITE_SECONDS", 0.3)
    first, second = sharing(), sharing()
    with first.writing():
        first.write_results(RUNS, ["seed"])  # which asks for its turn again
        with pytest.raises(UserError, match="has been written to by process .* hangs, end it"):
            second.claim(BASE, AXES, RUNS)
    second.claim(BASE, AXES, RUNS)
    with pytest.raises(UserError, match="results of another config"):
        first.claim(BASE | {"seed": 7}, AXES, RUNS)


def test_tasks_add_nothing_to_the_environment_that_is_there_already(sharing):
    one, other = {"cpu": "a"}, {"cpu": "b"}
    tasks = [sharing() for _ in range(4)]
    for task, record in zip(tasks, (one, other, one, other), strict=True):
        task.write_environment(record)
    recorded = json.loads((tasks[0].path / "environment.json").read_text())
    assert recorded == other | {"earlier": [one]}


def test_a_folder_of_the_same_name_on_another_disk(sharing, monkeypatch):
    monkeypatch.setattr(workdirs, "SEEN_SECONDS", 0)
    task = sharing()
    with pytest.raises(UserError, match=r"--workdir: .*/1-abc/submission.json is not there.*share"):
        task.await_submission("1-abc")
    writers.write_json(task.path / "submissions" / "1-abc" / "submission.json", {})
    task.await_submission("1-abc")


def test_a_record_that_another_node_sees_late(sharing, monkeypatch):
    task = sharing()

    def arrives(seconds):
        writers.write_json(task.path / "submissions" / "1-abc" / "submission.json", {})

    monkeypatch.setattr(workdirs.time, "sleep", arrives)
    task.await_submission("1-abc")


def test_a_folder_that_others_share_stays(sharing):
    first, second = sharing(), sharing()
    first.close()
    assert first.path.exists()
    second.close()
    assert first.path.exists()  # it did not make it


# One config ---------------------------------------------------------------------------------------


def test_the_first_claim_is_recorded_and_the_same_one_again_is_welcome(workdir):
    workdir.claim(BASE, AXES, RUNS)
    before = (workdir.path / "config.json").stat().st_mtime_ns
    assert json.loads((workdir.path / "config.json").read_text())["model"]["width"] == [64, 32]
    assert json.loads((workdir.path / "sweep.json").read_text()) == {
        "axes": {"seed": [0, 1]},
        "runs": [
            {"run_id": "aa", "overrides": {"seed": 0}},
            {"run_id": "bb", "overrides": {"seed": 1}},
        ],
    }
    workdir.claim(BASE, AXES, RUNS)
    workdir.claim(BASE, AXES, RUNS[::-1])  # in another order they are the same runs
    assert (workdir.path / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "base, axes, runs, difference",
    [
        (BASE | {"seed": 7}, AXES, RUNS, "seed: 0 -> 7"),
        (BASE | {"model": {"depth": 3, "width": (64, 32)}}, AXES, RUNS, "model.depth: 2 -> 3"),
        (BASE | {"new": 1}, AXES, RUNS, "new: (absent) -> 1"),
        (BASE, {"seed": [0, 1, 2]}, RUNS, "sweep seed: 0, 1 -> 0, 1, 2"),
        (BASE, {}, RUNS[:1], "sweep seed: 0, 1 -> not swept"),
        (BASE, AXES | {"a.b": [1.5]}, RUNS, "sweep a.b: not swept -> 1.5"),
        (BASE, AXES, [RUNS[0], Run("cc", {})], "sweep: other combinations"),
    ],
)
def test_another_claim_is_refused_and_the_difference_shown(workdir, base, axes, runs, difference):
    workdir.claim(BASE, AXES, RUNS)
    with pytest.raises(UserError) as caught:
        workdir.claim(base, axes, runs)
    said = str(caught.value).splitlines()
    assert said[0] == f"--workdir: {workdir.path} holds the results of another config:"
    assert said[1].strip().startswith(difference) and len(said) == 3
    assert said[2] == "Give another folder, or the config that made this one."


def test_a_claim_that_was_cut_short_is_made_again(workdir):
    workdir.claim(BASE, AXES, RUNS)
    (workdir.path / "config.json").unlink()
    workdir.claim(BASE | {"seed": 7}, AXES, RUNS)
    assert json.loads((workdir.path / "config.json").read_text())["seed"] == 7


@pytest.mark.parametrize("name", ["config.json", "sweep.json"])
def test_a_damaged_record_is_named(workdir, name):
    workdir.claim(BASE, AXES, RUNS)
    (workdir.path / name).write_text("{")
    with pytest.raises(UserError, match=f"--workdir: .*{name} cannot be read"):
        workdir.claim(BASE, AXES, RUNS)


def test_other_data_is_refused(workdir):
    digits, own = {"fingerprint": "abc"}, {"fingerprint": "def"}
    workdir.check_data({"digits": digits})  # nothing is known yet
    writers.write_json(workdir.path / "environment.json", {"dataset": {"npz:a.npz": digits}})
    workdir.check_data({"npz:a.npz": digits, "digits": own})
    with pytest.raises(UserError, match=r"data\.source: npz:a\.npz has changed .*abc -> def"):
        workdir.check_data({"npz:a.npz": own})


def test_environments_of_earlier_executions_are_kept(workdir):
    def recorded():
        return json.loads((workdir.path / "environment.json").read_text())

    first, second = {"versions": {"jax": "1"}}, {"versions": {"jax": "2"}}
    workdir.write_environment(first)
    assert recorded() == first
    workdir.write_environment(first)  # the same again says nothing new
    assert recorded() == first
    workdir.write_environment(second)
    workdir.write_environment(first)
    assert recorded() == first | {"earlier": [first, second]}


@pytest.mark.parametrize("made", [True, False])
def test_a_folder_made_for_a_refused_command_goes_with_it(tmp_path, made):
    if not made:
        (tmp_path / "results").mkdir()
    refused = Workdir(tmp_path / "results")
    refused.open()
    refused.close()
    assert (tmp_path / "results").exists() != made
    kept = Workdir(tmp_path / "kept")
    kept.open()
    kept.claim(BASE, AXES, RUNS)
    kept.close()
    assert (kept.path / "config.json").exists()


# Packing and results ------------------------------------------------------------------------------


def test_how_runs_are_packed_comes_back(workdir):
    assert workdir.packed() is None
    packs = [Packing("map"), Packing("vmap")]
    workdir.write_packed([Population("p", RUNS[:1], packs[0]), Population("q", RUNS[1:], packs[1])])
    assert workdir.packed() == [
        {"id": "p", "runs": ["aa"], "pack": "map"},
        {"id": "q", "runs": ["bb"], "pack": "vmap"},
    ]
    assert workdir.populations() == {"p": ["aa"], "q": ["bb"]}


def finish(workdir, run_id, **row):
    writers.write_json(workdir.run(run_id) / "result.json", {"run_id": run_id} | row)


def table(workdir):
    with open(workdir.path / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_result_that_is_absent_or_damaged_is_none(workdir):
    assert workdir.result("aa") is None
    finish(workdir, "aa", status="ok")
    assert workdir.result("aa") == {"run_id": "aa", "status": "ok"}
    (workdir.run("aa") / "result.json").write_text('{"run_id": "a')
    assert workdir.result("aa") is None


def test_the_table_has_finished_runs_in_the_order_of_the_sweep(workdir):
    metrics = {"test/elbo": -30.5, "test/nll": 29.25}
    finish(workdir, "bb", status="ok", seed=1, steps=10, wall_s=0.5, **metrics)
    rows = workdir.write_results(RUNS, ["seed"])
    assert [row["run_id"] for row in rows] == ["bb"] == [row["run_id"] for row in table(workdir)]
    cause = {"diverged/step": 3, "diverged/term": "rate", "diverged/layer": "encoder/scale"}
    finish(workdir, "aa", status="diverged", seed=0, steps=3, wall_s=0.5, **cause)
    workdir.write_results(RUNS, ["seed"])
    first, second = table(workdir)
    # The columns do not depend on which run diverged, nor on whether any did.
    assert list(first) == ["run_id", "status", "seed", "steps", "wall_s", *metrics, *cause]
    assert [first[name] for name in metrics] == ["", ""]
    assert [first[name] for name in cause] == ["3", "rate", "encoder/scale"]
    assert [second[name] for name in metrics] == ["-30.5", "29.25"]
    assert [second[name] for name in cause] == ["", "", ""]


def test_a_field_that_a_run_does_not_sweep_has_its_configs_value(workdir):
    runs = [
        Run("aa", {"x.beta": 0.5}, {"x.beta": 0.5, "x.width": (64, 32), "x.clip": None}),
        Run("bb", {"x.width": 16}, {"x.beta": 1.0, "x.width": 16, "x.clip": None}),
    ]
    for run in runs:
        finish(workdir, run.run_id, status="ok", **run.overrides)
    workdir.write_results(runs, ["x.beta", "x.width", "x.clip"])
    cells = [[row[f"x.{name}"] for name in ("beta", "width", "clip")] for row in table(workdir)]
    assert cells == [["0.5", "[64, 32]", ""], ["1.0", "16", ""]]


def test_an_unchanged_table_is_not_written_again(workdir):
    finish(workdir, "aa", status="ok", seed=0)
    workdir.write_results(RUNS, ["seed"])
    before = (workdir.path / "results.csv").stat()
    workdir.write_results(RUNS, ["seed"])
    after = (workdir.path / "results.csv").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
