"""The command that shows how runs stand; what it shows is tested in test_survey.py."""

import subprocess
import sys

import pytest

from tests.experiments import launch


def status(*flags):
    words = [sys.executable, "-m", "experiments.status", *flags]
    return subprocess.run(words, cwd=launch.REPOSITORY, capture_output=True, text=True)


@pytest.mark.parametrize(
    "flags, message",
    [
        ((), "--workdir: missing"),
        (("--workdir=absent",), "--workdir: absent has no populations.json"),
        (("--workdir=a", "--config.seed=1"), "--config: a results folder says itself"),
        (("--wrokdir=a",), "wrokdir"),
    ],
)
def test_mistakes(flags, message):
    done = status(*flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr


def test_a_finished_folder_that_was_never_submitted():
    workdir, _ = launch.finished()
    before = {file: file.stat().st_mtime_ns for file in workdir.rglob("*")}
    done = status(f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert f"4 runs in {workdir}: 4 done." in done.stdout
    assert {file: file.stat().st_mtime_ns for file in workdir.rglob("*")} == before
