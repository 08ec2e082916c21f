"""A sweep that was killed, stopped or damaged ends as if nothing had happened, bit for bit."""

import re
import shutil
import signal
import subprocess

import pytest

from tests.experiments import launch

OFTEN = (*launch.SWEEP, "--checkpoint_seconds=0")
EVERY = 10  # steps between two checkpoints, then


def folder(workdir):
    """Where the one population of the sweep has its checkpoints."""
    (found,) = workdir.glob("populations/*/checkpoints")
    return found


def half_written(workdir):
    return list(workdir.glob("populations/*/checkpoints/*tmp*"))


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
        workdir, lambda: newest() >= enough and half_written(workdir), signal.SIGKILL
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
    assert len(list(folder(workdir).iterdir())) == 4  # two checkpoints, two digests


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


def test_a_damaged_checkpoint_gives_way_to_the_one_before(battered, tmp_path):
    workdir = shutil.copytree(battered[0].parent / "stopped", tmp_path / "results")
    older, newest = launch.checkpoints(workdir)
    flip_a_bit(folder(workdir) / str(newest))
    done = launch.run(workdir, *OFTEN)
    assert done.stderr.count("is damaged") == 1
    assert f"checkpoints/{newest} is damaged" in done.stderr
    assert "going back to the one before" in done.stderr
    assert beginning(done) == percentage(older)
    assert launch.everything(workdir) == launch.everything(launch.finished()[0])


def test_with_all_checkpoints_damaged_training_starts_anew(battered, tmp_path):
    workdir = shutil.copytree(battered[0].parent / "stopped", tmp_path / "results")
    for step in launch.checkpoints(workdir):
        flip_a_bit(folder(workdir) / str(step))
    done = launch.run(workdir, *OFTEN)
    assert done.stderr.count("is damaged") == 2
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
    """A folder, what makes its disk full for a process, and a function that makes room.

    A small disk of its own where that may be mounted; else a limit on the size of each file.
    """
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(*options):
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)]
        return subprocess.run(words, capture_output=True).returncode == 0

    if shutil.which("mount") and mount("size=1m"):
        (disk / "ballast").write_bytes(bytes(900 * 1024))
        yield disk / "results", "", lambda: mount("remount", "size=32m")
        subprocess.run(["umount", str(disk)], check=True)
    else:
        yield disk / "results", "ulimit -f 4", lambda: True


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
