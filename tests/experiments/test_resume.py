"""A sweep that was killed, stopped or damaged ends as if nothing had happened, bit for bit."""

import dataclasses
import functools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time

import jax
import jax.numpy as jnp
import pytest

from experiments import load, population
from tests.experiments import launch
from vae import evaluate, train
from vae.errors import UserError

OFTEN = (*launch.SWEEP, "--checkpoint_seconds=0")
EVERY = 10  # steps between two checkpoints, then
# Some seconds of training, with a checkpoint in flight for most of them.
LONG = (*OFTEN, "--config.train.steps=400")


def folder(workdir):
    """Where the one population of the sweep has its checkpoints."""
    (found,) = workdir.glob("populations/*/checkpoints")
    return found


def interrupt(workdir, happened, number):
    """Runs the sweep until something has happened, then sends a signal."""
    process = launch.start(workdir, *OFTEN)
    launch.wait_until(process, happened)
    process.send_signal(number)
    return launch.finish(process)


def beginning(done):
    """The percentage at which a process began to train, from its first line of progress."""
    return re.search(r"^ *(\d+)%", done.stderr, re.MULTILINE)[1]


def percentage(step):
    return f"{100 * step / 200:.0f}"


@pytest.fixture(scope="module")
def battered(tmp_path_factory):
    """A folder whose sweep was interrupted again and again, and what each process said."""
    workdir = tmp_path_factory.mktemp("battered") / "results"
    said = {}

    def newest():
        return max(launch.checkpoints(workdir), default=0)

    # 1. Before any step.
    said["compiling"] = interrupt(workdir, (workdir / "config.json").exists, signal.SIGKILL)
    # 2. After the first checkpoint.
    said["first"] = interrupt(workdir, newest, signal.SIGKILL)
    said["first", "newest"] = newest()
    shutil.copytree(workdir, workdir.parent / "early")
    # 3. While a later one is being written.
    enough = newest() + 3 * EVERY
    said["writing"] = interrupt(
        workdir, lambda: newest() >= enough and launch.half_written(workdir), signal.SIGKILL
    )
    said["writing", "newest"] = newest()
    # 4. Ctrl-C.
    more = newest() + 2 * EVERY
    said["ctrl-c"] = interrupt(workdir, lambda: newest() >= more, signal.SIGINT)
    said["ctrl-c", "newest"] = newest()
    shutil.copytree(workdir, workdir.parent / "stopped")
    # 5. While the results are being written.
    said["results"] = interrupt(
        workdir, lambda: list(workdir.glob("runs/*/gallery.npz")), signal.SIGKILL
    )
    said["end"] = launch.run(workdir, *OFTEN)
    return workdir, said


def test_interrupted_at_several_points_and_finished_the_results_are_the_same(battered):
    workdir, said = battered
    assert said["results"].returncode == -signal.SIGKILL
    assert launch.everything(workdir) == launch.everything(launch.finished()[0])


def test_at_most_one_interval_is_repeated(battered):
    _, said = battered
    assert beginning(said["first"]) == percentage(0)
    for before, after in (("first", "writing"), ("writing", "ctrl-c"), ("ctrl-c", "results")):
        assert beginning(said[after]) == percentage(said[before, "newest"])
    # After the training only the results are made again, if any was missing.
    if "finished earlier" not in said["end"].stdout:
        assert beginning(said["end"]) == percentage(200)


def test_ctrl_c_saves_and_says_how_to_go_on(battered):
    workdir, said = battered
    done = said["ctrl-c"]
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr
    last = done.stderr.rstrip().splitlines()[-2:]
    assert last[0].startswith("Stopped by SIGINT; all is saved. To go on:")
    assert last[1].strip().startswith("python -m experiments.run --config=configs/default.py")
    assert f"--workdir={workdir}" in last[1] and "--sweep=seed=0,1" in last[1]


def test_nothing_is_left_of_the_interruptions(battered):
    workdir, _ = battered
    leftovers = [f for f in workdir.rglob("*") if f.name.endswith(".tmp") or "tmp-" in f.name]
    assert leftovers == []
    kept = launch.checkpoints(workdir)
    assert kept[-2:] == [190, 200] and len(kept) <= 3  # the two newest, and the best
    assert len(list(folder(workdir).iterdir())) == 2 * len(kept)  # each with its description


def test_a_finished_sweep_returns_at_once_and_touches_nothing(battered):
    workdir, _ = battered
    before = {f: f.stat().st_mtime_ns for f in workdir.rglob("*") if f.is_file()}
    done = launch.run(workdir, *OFTEN)
    assert "4 runs, finished earlier." in done.stdout
    assert "%" not in done.stderr  # no progress, for nothing is trained
    after = {f: f.stat().st_mtime_ns for f in workdir.rglob("*") if f.is_file()}
    del before[workdir / ".lock"], after[workdir / ".lock"]
    assert after == before


def flip_a_bit(checkpoint):
    file = max((f for f in checkpoint.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


@pytest.mark.thorough
def test_a_damaged_checkpoint_gives_way_to_the_one_before(battered, tmp_path):
    workdir = shutil.copytree(battered[0].parent / "stopped", tmp_path / "results")
    *_, older, newest = launch.checkpoints(workdir)
    flip_a_bit(folder(workdir) / str(newest))
    done = launch.run(workdir, *OFTEN)
    assert done.stderr.count("is damaged") == 1
    assert f"checkpoints/{newest} is damaged" in done.stderr
    assert "going back to the one before" in done.stderr
    assert beginning(done) == percentage(older)
    assert launch.everything(workdir) == launch.everything(launch.finished()[0])


@pytest.mark.thorough
def test_with_all_checkpoints_damaged_training_starts_anew(battered, tmp_path):
    workdir = shutil.copytree(battered[0].parent / "stopped", tmp_path / "results")
    steps = launch.checkpoints(workdir)
    for step in steps:
        flip_a_bit(folder(workdir) / str(step))
    done = launch.run(workdir, *OFTEN)
    assert done.stderr.count("is damaged") == len(steps)
    assert beginning(done) == percentage(0)
    assert launch.everything(workdir) == launch.everything(launch.finished()[0])


def assert_readable(workdir):
    """Whatever has its final name is whole."""
    for run in (workdir / "runs").glob("*"):
        if (run / "metrics.jsonl").exists():
            launch.readings(workdir, run.name)
    for name in ("config.json", "sweep.json", "populations.json", "environment.json"):
        assert (workdir / name).read_text().endswith(("}\n", "]\n"))


@pytest.fixture
def full_disk(tmp_path):
    with launch.full_disk(tmp_path) as found:
        yield found


@pytest.mark.thorough
def test_a_full_disk_and_then_room(full_disk, tmp_path):
    workdir, shell, make_room = full_disk
    expected = launch.everything(launch.finished()[0])
    # The limit also cuts what JAX keeps of compiled programs: let it spoil a cache of its own.
    env = launch.environment(**{"VAE_LAB_CACHE": str(tmp_path / "cache")} if shell else {})
    done = launch.run(workdir, *OFTEN, status=1, shell=shell, env=env)
    message = done.stderr.rstrip().splitlines()[-1]
    assert message.startswith("error: ")
    assert "No space left on device" in message or "File too large" in message
    assert "make room and run the same command again" in message
    assert "Traceback" not in done.stderr
    assert_readable(workdir)
    assert make_room()
    launch.run(workdir, *OFTEN, env=env)
    assert launch.everything(workdir) == expected


@functools.cache
def uninterrupted():
    """What `LONG` finds, and how long it takes from its first file on: seconds."""
    workdir = pathlib.Path(tempfile.mkdtemp(prefix="vae-lab-")) / "results"
    process = launch.start(workdir, *LONG)
    launch.wait_until(process, (workdir / "config.json").exists)
    began = time.monotonic()
    done = launch.finish(process)
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    found = launch.everything(workdir)
    for run in found.values():
        steps = [json.loads(line)["step"] for line in run["metrics"].splitlines()]
        assert steps == list(range(EVERY, 400 + 1, EVERY))
    shutil.rmtree(workdir.parent)
    return found, seconds


def killed_after(workdir, seconds):
    """Kills `LONG` so long after its first file; what it was at: a word."""
    process = launch.start(workdir, *LONG)
    launch.wait_until(process, (workdir / "config.json").exists)
    time.sleep(seconds)
    process.kill()
    process.communicate()
    if list(workdir.glob("runs/*/result.json")) or list(workdir.glob("runs/*/gallery.npz")):
        return "results"
    if launch.half_written(workdir):
        return "checkpoint"
    return "training" if launch.checkpoints(workdir) else "compiling"


def kill_and_finish(count, rng, tmp_path):
    """`count` times: a fresh folder, a kill at a random moment, and to the end; at what it was."""
    expected, seconds = uninterrupted()
    at = []
    for number in range(count):
        workdir = tmp_path / str(number)
        at.append(killed_after(workdir, rng.uniform(0, seconds)))
        launch.run(workdir, *LONG)
        assert launch.everything(workdir) == expected, f"killed at {at[-1]}, number {number}"
        shutil.rmtree(workdir)
    return at


@pytest.mark.thorough
def test_killed_at_random_moments_the_results_are_the_same(tmp_path):
    kill_and_finish(2, random.Random(), tmp_path)


@pytest.mark.slow
def test_killed_at_50_random_moments_the_results_are_the_same(tmp_path):
    """Minutes: pytest -m slow -k 50_random -s tests/experiments/test_resume.py"""
    began = time.monotonic()
    at = kill_and_finish(50, random.Random(0), tmp_path)
    counts = {what: at.count(what) for what in sorted(set(at))}
    print(f"\n50 kills in {time.monotonic() - began:.0f} s, while at: {counts}")
    assert counts["checkpoint"] >= 5  # of them in flight


def logged(tmp_path, workdir, *flags):
    """The running process, and a function that reads what it has written to stderr so far."""
    log = tmp_path / "stderr"
    with log.open("w") as file:
        process = launch.start(workdir, *flags, stdout=subprocess.DEVNULL, stderr=file)
    return process, log.read_text


@pytest.mark.sampled
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_at_once(number, tmp_path):
    """Within a dispatch of half a second and a save; the rest of the time is for a busy machine.

    Without a stop the training takes an hour.
    """
    workdir = tmp_path / "results"
    flags = (*launch.SWEEP, "--config.train.steps=10000000", "--config.eval.every=5000000")
    flags += ("--config.model.width=64",)
    process, said = logged(tmp_path, workdir, *flags)
    launch.wait_until(process, lambda: "run-steps/s" in said())
    process.send_signal(number)
    try:
        process.wait(200)
    finally:
        process.kill()
    assert process.returncode == 128 + number, said()
    assert f"Stopped by {signal.Signals(number).name}; all is saved. To go on:" in said()
    (step,) = launch.checkpoints(workdir)  # between two readings
    assert 0 < step < 5000000


@pytest.mark.thorough
def test_a_signal_is_heard_while_programs_compile(tmp_path):
    """Compiling takes a minute; there is nothing to save, and nothing to wait for."""
    workdir = tmp_path / "results"
    env = launch.environment(VAE_LAB_CACHE=str(tmp_path / "cache"))
    process = launch.start(workdir, "--config.model.depth=150", env=env)
    launch.wait_until(process, (workdir / "environment.json").exists)
    time.sleep(2)
    began = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    done = launch.finish(process)
    assert done.returncode == 128 + signal.SIGUSR1, done.stderr
    assert time.monotonic() - began < 30  # a second; the rest is for a busy machine
    assert launch.checkpoints(workdir) == []


@pytest.mark.thorough
def test_a_signal_ends_a_report_and_the_next_command_makes_it(tmp_path):
    workdir = tmp_path / "results"
    shutil.copytree(launch.finished()[0], workdir)
    process = launch.start(workdir, *launch.SWEEP, "--report")
    launch.wait_until(process, (workdir / "figures").exists)
    process.send_signal(signal.SIGTERM)
    done = launch.finish(process)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "Traceback" not in done.stderr
    assert not (workdir / "report.html").exists()
    launch.run(workdir, *launch.SWEEP, "--report")
    assert (workdir / "report.html").exists()


@pytest.mark.thorough
def test_a_disk_that_is_full_for_a_while_ends_nothing(full_disk, tmp_path):
    workdir, shell, make_room = full_disk
    if shell:
        pytest.skip("no disk can be mounted here: needs root")
    make_room()
    process, said = logged(tmp_path, workdir, *LONG)
    launch.wait_until(process, lambda: launch.checkpoints(workdir))
    launch.fill(workdir.parent / "filler")
    launch.wait_until(process, lambda: said().count("Could not write") >= 3)
    os.unlink(workdir.parent / "filler")
    assert process.wait(300) == 0, said()
    assert "Traceback" not in said()
    assert launch.everything(workdir) == uninterrupted()[0]
    assert launch.checkpoints(workdir)[-1] == 400


@pytest.mark.thorough
def test_the_best_checkpoint_gives_the_reading_at_its_step_again(tmp_path):
    """Mean test ELBO over the runs; at this learning rate it goes up and down."""
    workdir = tmp_path / "results"
    launch.run(workdir, *OFTEN, "--config.optimizer.learning_rate=0.1")
    (packed,) = json.loads((workdir / "populations.json").read_text())
    elbos = {}
    for run_id in packed["runs"]:
        for record in launch.readings(workdir, run_id):
            elbos.setdefault(record["step"], []).append(record["test/elbo"])
    best = max(elbos, key=lambda step: sum(elbos[step]))
    assert launch.checkpoints(workdir) == sorted({best, 190, 200})
    for run_id, expected in zip(packed["runs"], elbos[best], strict=True):
        run = load.load_run(workdir / "runs" / run_id, best=True)
        state = train.TrainState(
            **dict.fromkeys(f.name for f in dataclasses.fields(train.TrainState))
        ).replace(params=run.params, stats=run.stats, hparams=run.hparams)
        found = evaluate.evaluate_run(
            run.spec.model,
            population.DeviceData(run.dataset).evaluation("test", run.dataset.num_test),
            jnp.int32(evaluate.SPLITS["test"]),
            jax.tree.map(jnp.asarray, state),
            num_samples=1,
            batch_size=64,
        )
        # Another program: batches of another size, vmapped otherwise; float32 sums over 64 pixels.
        assert float(found["elbo"]) == pytest.approx(expected, rel=1e-5)


def test_without_a_checkpoint_there_is_no_best(tmp_path):
    workdir = shutil.copytree(launch.finished()[0], tmp_path / "results")
    shutil.rmtree(folder(workdir))
    with pytest.raises(UserError, match="^best: .*no intact checkpoint.*final parameters"):
        load.load_run(next((workdir / "runs").iterdir()), best=True)
