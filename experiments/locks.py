"""Locks on files of a folder that several processes share, perhaps on several nodes.

`flock`: a lock ends with the process that holds it, however that ends. What is relied on: the disk
passes `flock` on between nodes, as NFS (version 4, or 3 with lockd), Lustre and BeeGFS do as they
are usually mounted. Mounted with `localflock` or `nolock` it holds within one node; two nodes are
then kept apart only by what `experiments.submit` has on record. No clock is compared with another:
the waits below are measured by this process alone.
"""

import contextlib
import errno
import fcntl
import os
import pathlib
import time
from collections.abc import Callable
from typing import TextIO

from vae.errors import UserError

POLL_SECONDS = 0.1
# `is_held` takes a lock for a moment to see whether it is free: whoever is refused tries again.
MOMENT_SECONDS = 0.5


def acquire(
    path: pathlib.Path,
    *,
    shared: bool = False,
    wait: float = MOMENT_SECONDS,
    stop: Callable[[], bool] = lambda: False,
) -> TextIO | None:
    """Takes the lock of a file, which is made where it is absent.

    Args:
      shared: held by any number of processes at a time, while none holds it for itself.
      wait: seconds to try. stop: asked meanwhile; true ends the wait.

    Returns:
      The open file, whose closing gives the lock back; None: another process holds it.

    Raises:
      OSError: the file cannot be made.
      UserError: the disk has no locks.
    """
    end = time.monotonic() + wait
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    while True:
        lock = open(path, "a+", encoding="utf-8")
        try:
            fcntl.flock(lock, kind | fcntl.LOCK_NB)
            if _is(path, lock):
                return lock
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                lock.close()
                raise UserError(
                    f"--workdir: {path.parent} cannot be locked ({error.strerror}), as on some "
                    "network disks. Give a folder on another disk."
                ) from None
        lock.close()
        if time.monotonic() >= end or stop():
            return None
        time.sleep(POLL_SECONDS)


def _is(path: pathlib.Path, lock: TextIO) -> bool:
    """Whether the open file is still the one of that name: it may have been removed meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(lock.fileno()), path.stat())
    return False


def sign(lock: TextIO, text: str) -> None:
    """Writes into a lock's file who holds it, for those who are refused."""
    lock.truncate(0)
    lock.write(text + "\n")
    lock.flush()


def holder(path: pathlib.Path) -> str:
    """What the last holder wrote into the file; "unknown" where it wrote nothing."""
    try:
        return path.read_text(encoding="utf-8").strip() or "unknown"
    except OSError:
        return "unknown"


def is_held(path: pathlib.Path) -> bool:
    """Whether some process holds the lock for itself. (A shared one does not count.)"""
    if not path.exists():
        return False
    try:
        with open(path, encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def this_process() -> str:
    """This process in words: its number, its node, and what Slurm calls it."""
    variables = os.environ
    node = variables.get("SLURMD_NODENAME") or os.uname().nodename
    job = variables.get("SLURM_JOB_ID")
    if array := variables.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{variables.get('SLURM_ARRAY_TASK_ID')}"
    return f"process {os.getpid()} on {node}" + (f", Slurm job {job}" if job else "")
