"""Runs the real command, as a user does, in a process of its own, and reads what it left."""

import contextlib
import csv
import errno
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
# Compiled programs are kept from one run of the tests to the next.
CACHE = REPOSITORY / ".pytest_cache" / "launch"

# Small enough that starting and compiling are the cost; 20 readings, so that there is time to kill.
SMALL = (
    "--config=configs/default.py",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.latent_dim=2",
    "--config.train.epochs=null",
    "--config.train.steps=200",
    "--config.eval.every=10",
    "--config.eval.iw_samples=8",
    "--noreport",
)
# Most tests share this one population of four runs, and with it its compiled programs.
SWEEP = ("--sweep=objective.beta=0.5,2", "--sweep=seed=0,1")


def command(workdir, *flags):
    """The command line; of a flag that is given twice the last one counts."""
    return [sys.executable, "-m", "experiments.run", *SMALL, f"--workdir={workdir}", *flags]


def environment(**changes):
    """A user's environment."""
    variables = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    variables["VAE_LAB_CACHE"] = str(CACHE)
    return variables | changes


def start(workdir, *flags, shell="", **options):
    """The running process, its output in pipes; `shell` is run in its place before it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {"env": environment(), "text": True} | pipes | options
    words = command(workdir, *flags)
    return subprocess.Popen(
        ["bash", "-c", f'{shell}; exec "$@"', "bash", *words] if shell else words,
        cwd=REPOSITORY,
        **options,
    )


def finish(process, timeout=300):
    """Waits for the end; the process with `stdout` and `stderr` as text."""
    stdout, stderr = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(workdir, *flags, status=0, **options):
    """Runs the command to its end, which must have the given exit status."""
    done = finish(start(workdir, *flags, **options))
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def user_error(*flags, workdir="absent", **options):
    """The message of a command that must fail as a mistake of the user."""
    done = run(workdir, *flags, status=2, **options)
    assert "Traceback" not in done.stderr + done.stdout
    _, found, message = done.stderr.partition("error: ")  # a library may have logged before it
    assert found, done.stderr
    return message


def wait_until(process, happened, timeout=200):
    """Waits until `happened()` is true while the process runs; ends it if that never comes."""
    end = time.monotonic() + timeout
    while not happened():
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            done = finish(process)
            raise AssertionError(f"it never happened:\n{done.stdout}\n{done.stderr}")
        time.sleep(0.001)


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="vae-lab-")  # removed when Python ends


@functools.cache
def finished():
    """The results folder of `SWEEP`, made without interruption, and what the command printed."""
    workdir = pathlib.Path(_folder().name) / "finished"
    return workdir, run(workdir, *SWEEP)


def rows(workdir):
    """results.csv by run id, cells as text."""
    with open(workdir / "results.csv", newline="", encoding="utf-8") as file:
        return {row["run_id"]: row for row in csv.DictReader(file)}


def readings(workdir, run_id, name="metrics.jsonl"):
    """The records of a run's file."""
    file = workdir / "runs" / run_id / name
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def checkpoints(workdir):
    """The steps of the finished checkpoints of all populations, ascending."""
    folders = workdir.glob("populations/*/checkpoints/*/")
    return sorted(int(folder.name) for folder in folders if folder.name.isdigit())


def half_written(workdir):
    """What a write in flight, or an interrupted one, has of checkpoints."""
    return list(workdir.glob("populations/*/checkpoints/*tmp*"))


@contextlib.contextmanager
def full_disk(folder):
    """A folder for results, what makes its disk full for a process, and what makes room.

    A small disk of its own where that may be mounted; else a limit on the size of each file.
    """
    disk = folder / "disk"
    disk.mkdir()

    def mount(*options):
        words = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(disk)]
        return subprocess.run(words, capture_output=True).returncode == 0

    if shutil.which("mount") and mount("size=1m"):
        (disk / "ballast").write_bytes(bytes(900 * 1024))
        try:
            yield disk / "results", "", lambda: mount("remount", "size=32m")
        finally:
            subprocess.run(["umount", str(disk)], check=True)
    else:
        yield disk / "results", "ulimit -f 4", lambda: True


def fill(file):
    """Writes a file until the disk is full."""
    try:
        with file.open("wb", buffering=0) as ballast:
            while True:
                ballast.write(bytes(4096))
    except OSError as error:
        assert error.errno == errno.ENOSPC


def params(workdir, run_id):
    """The arrays of params/, by name."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        tree = checkpointer.restore(workdir / "runs" / run_id / "params")
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def bits(arrays):
    return {name: (a.shape, str(a.dtype), a.tobytes()) for name, a in arrays.items()}


def everything(workdir, run_ids=None):
    """All that a sweep found, bit for bit, but for how long it took."""
    table = rows(workdir)
    found = {}
    for run_id in run_ids or table:
        folder = workdir / "runs" / run_id
        result = json.loads((folder / "result.json").read_text())
        with np.load(folder / "gallery.npz", allow_pickle=False) as archive:
            gallery = bits({name: archive[name] for name in archive})
        found[run_id] = {
            "row": {k: v for k, v in table[run_id].items() if k != "wall_s"},
            "result": {k: v for k, v in result.items() if k != "wall_s"},
            "metrics": (folder / "metrics.jsonl").read_bytes(),
            "config": (folder / "config.json").read_bytes(),
            "params": bits(params(workdir, run_id)),
            "gallery": gallery,
        }
    return found
