"""Locks: alone or shared, of live processes alone, with a name on them."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from experiments import locks
from tests.experiments import launch
from vae.errors import UserError

HOLDER = """
import os, pathlib, signal, sys
from experiments import locks
lock = locks.acquire(pathlib.Path(sys.argv[1]))
locks.sign(lock, locks.this_process())
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """A lock's file, and the process that holds it."""
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
    process = subprocess.Popen(
        words, cwd=launch.REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield tmp_path / "lock", process
    process.kill()
    process.stdin.close()
    process.stdout.close()
    process.wait()


def test_one_holder_or_many_that_share(tmp_path):
    file = tmp_path / "lock"
    with locks.acquire(file, shared=True), locks.acquire(file, shared=True):
        assert locks.acquire(file, wait=0) is None
        assert not locks.is_held(file)
    with locks.acquire(file):
        assert locks.is_held(file)
        assert locks.acquire(file, wait=0) is None
        assert locks.acquire(file, shared=True, wait=0) is None
    assert not locks.is_held(file)
    assert not locks.is_held(tmp_path / "absent")


def test_a_lock_ends_with_its_process(held):
    file, process = held
    assert locks.is_held(file)
    assert locks.holder(file) == f"process {process.pid} on {os.uname().nodename}"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locks.acquire(file) as lock:
        assert lock is not None


def test_waiting_ends_when_the_holder_goes_or_when_one_is_told(held):
    file, process = held
    answers = iter([False, False, True])
    assert locks.acquire(file, wait=60, stop=lambda: next(answers)) is None
    assert next(answers, None) is None
    process.stdin.close()  # it ends
    began = time.monotonic()
    with locks.acquire(file, wait=60):
        assert time.monotonic() - began < 30


def test_a_file_that_was_removed_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """Else two processes would hold locks of the same name: one of the old file, one of the new."""
    file, flock = tmp_path / "lock", fcntl.flock

    def remove_first(lock, kind):
        monkeypatch.setattr(fcntl, "flock", flock)
        file.unlink()
        flock(lock, kind)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with locks.acquire(file):
        assert locks.acquire(file, wait=0) is None


def test_a_disk_without_locks(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match="--workdir: .* cannot be locked .*another disk"):
        locks.acquire(tmp_path / "lock")
    (tmp_path / "lock").touch()
    assert not locks.is_held(tmp_path / "lock")


def test_a_process_of_a_job_says_so(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n7")
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert locks.this_process() == f"process {os.getpid()} on n7, Slurm job 12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "11")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert locks.this_process().endswith("on n7, Slurm job 11_3")
