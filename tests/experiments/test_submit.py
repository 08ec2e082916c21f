"""Submitting: what is refused, what would be submitted, and tasks on this machine."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from experiments import submit
from experiments.cluster import submissions
from tests.experiments import launch
from vae.errors import UserError


def start(workdir, *flags, **options):
    words = (sys.executable, "-m", "experiments.submit", *launch.SMALL, f"--workdir={workdir}")
    options = {"cwd": launch.REPOSITORY, "env": launch.environment(), "text": True} | options
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([*words, *flags], **pipes, **options)


def run(workdir, *flags, status=0, **options):
    done = launch.finish(start(workdir, *flags, **options))
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def look(workdir, status):
    words = [sys.executable, "-m", "experiments.status", f"--workdir={workdir}"]
    done = subprocess.run(words, cwd=launch.REPOSITORY, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


# Refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "--cluster: missing"),
        (["--cluster=pbs"], "--cluster=pbs.*slurm.*local"),
        (["--cluster=local", "--workdir="], "--workdir: missing"),
        (["--cluster=local", "--nodes=2"], "--nodes: means nothing with --cluster=local"),
        (["--cluster=local", "--time=10"], "--time: means nothing with --cluster=local"),
        (["--cluster=slurm", "--time=soon"], "--time: 'soon' is no time"),
        (["--cluster=slurm", "--time=2"], "--time: 2 is too short.*5 minutes"),
        (["--cluster=slurm", "--mem=much"], "--mem: 'much' is no amount"),
        (["--cluster=slurm", "--nodes=0"], "--nodes"),
        (["--cluster=slurm", "--populations=a"], "--populations: is for the tasks"),
        (["--cluster=slurm", "--process_id=0"], "--process_id: is for the tasks"),
        (["--cluster=slurm", "--config.model.latentdim=3"], r"model\.latentdim: no such field"),
        (["--cluster=slurm", "--sedd=3"], "sedd"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(tmp_path, flags, message):
    said = run(tmp_path / "results", *flags, "--dry_run", status=2).stderr
    assert re.search("error: .*" + message, said, re.DOTALL), said
    assert not (tmp_path / "results").exists()


def test_without_slurm_one_can_look_but_not_submit(tmp_path):
    without = launch.environment(PATH=str(tmp_path))
    said = run(tmp_path / "results", "--cluster=slurm", status=2, env=without).stderr
    assert re.search(r"--cluster: sbatch.* not found: this machine has no Slurm.*--cluster=l", said)
    assert not (tmp_path / "results").exists()
    done = run(tmp_path / "results", "--cluster=slurm", "--dry_run", env=without)
    assert "#SBATCH --array=0-0%1" in done.stdout


def test_devices_that_the_tasks_would_not_have(tmp_path):
    flags = ("--cluster=slurm", "--dry_run", "--gpus_per_node=4", "--nodes=2")
    said = run(tmp_path / "results", *flags, "--config.mesh.runs=3", status=2).stderr
    assert "mesh.runs: 3 does not divide the number of devices, 8." in said
    flags = ("--cluster=slurm", "--dry_run", "--nodes=3", "--config.train.batch_size=128")
    assert "mesh.runs: 3 processes" in run(tmp_path / "results", *flags, status=2).stderr


@pytest.mark.parametrize(
    "text, seconds",
    [("5", 300), ("5:30", 330), ("1:00:00", 3600), ("2-0", 172800), ("1-12:30", 131400)]
    + [("1-0:0:1", 86401)],
)
def test_times_as_sbatch_reads_them(text, seconds):
    assert submit._seconds(text) == seconds


@pytest.mark.parametrize("text, size", [("500", 500 * 2**20), ("16G", 2**34), ("2gb", 2**31)])
def test_memory_as_sbatch_reads_it(text, size):
    assert submit._bytes(text) == size


def test_no_memory_at_all():
    with pytest.raises(UserError, match="--mem: '0'"):
        submit._bytes("0")


# What would be submitted --------------------------------------------------------------------------


def test_the_script_of_a_dry_run(tmp_path):
    flags = ("--cluster=slurm", "--dry_run", *launch.SWEEP, "--sweep=model.norm=none,layer")
    slurm = ("--nodes=2", "--gpus_per_node=4", "--cpus_per_task=8", "--mem=16G", "--time=2:00:00")
    slurm += ("--partition=gpu", "--account=lab", "--qos=high", "--array_parallelism=1")
    own = ("--setup=module load cuda", "--setup=echo 'ready'", "--config.objective.free_bits=0.1")
    done = run(tmp_path / "a folder", *flags, *slurm, *own, "--memory_gib=2")
    before, script = done.stdout.split("#!/bin/bash", 1)
    assert "8 runs in 2 populations" in before
    for line in (
        "--array=0-1%1",
        "--nodes=2",
        "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--cpus-per-task=8",
        "--mem=16G",
        "--time=2:00:00",
        "--partition=gpu",
        "--account=lab",
        "--qos=high",
        "--requeue",
        "--signal=USR1@120",
    ):
        assert f"#SBATCH {line}\n" in script, line
    assert script.index("module load cuda\necho 'ready'\n") < script.index("srun ")
    [command] = [line for line in script.splitlines() if line.startswith("srun ")]
    assert "--cpus-per-task=8" in command.split("-m experiments.run")[0]
    for word in ("--sweep=seed=0,1", "--noreport", "--config.objective.free_bits=0.1"):
        assert word in command
    assert "--memory_gib=2.0" in command and f"'--workdir={tmp_path / 'a folder'}'" in command
    assert "--dry_run" not in command and "--nodes" not in command.split("experiments.run")[1]
    ids = re.findall(r"^ +([0-9a-f]{10}) ", before, re.MULTILINE)
    assert f"populations=({ids[0]} {ids[1]})" in script
    syntax = subprocess.run(["bash", "-n"], input="#!/bin/bash" + script, text=True)
    assert syntax.returncode == 0
    assert not (tmp_path / "a folder").exists()


@pytest.mark.sampled
@pytest.mark.parametrize(
    "per_task, tasks",
    [
        (2, ["x", "x", "x", "x"]),
        (6, ["x,x"]),
    ],
)
def test_runs_per_task_splits_populations_and_lets_small_ones_share(tmp_path, per_task, tasks):
    """Of six runs in two populations of three."""
    flags = ["--cluster=slurm", "--dry_run", "--sweep=seed=0:3", "--sweep=model.norm=none,layer"]
    said = run(tmp_path / "results", *flags, f"--runs_per_task={per_task}").stdout
    found = re.search(r"^populations=\((.*)\)$", said, re.MULTILINE)[1]
    assert sorted(re.sub(r"\w+", "x", found).split()) == sorted(tasks)


# This machine -------------------------------------------------------------------------------------


def test_tasks_on_this_machine(tmp_path):
    workdir = tmp_path / "results"
    flags = (*launch.SWEEP, "--cluster=local", "--array_parallelism=2", "--runs_per_task=2")
    said = run(workdir, *flags, "--setup=export GREETING=hello", "--setup=echo $GREETING").stdout
    assert "2 tasks, 2 at a time." in said and said.count("ended well") == 2
    assert "4 done" in look(workdir, 0)
    (made,) = submissions.recorded(workdir)
    assert all(made.log(i).read_text().startswith("hello\n") for i in range(2))
    rows, expected = launch.rows(workdir), launch.rows(launch.finished()[0])
    for run_id, row in rows.items():
        # Packed otherwise: see METRIC in test_run.py.
        assert float(row["test/elbo"]) == pytest.approx(
            float(expected[run_id]["test/elbo"]), rel=1e-5
        )
    assert "Nothing to submit" in run(workdir, *flags).stdout


@pytest.mark.thorough
def test_stopped_while_tasks_run_and_submitted_again(tmp_path):
    workdir = tmp_path / "results"
    flags = (*launch.SWEEP, "--cluster=local", "--checkpoint_seconds=0")
    process = start(workdir, *flags)
    launch.wait_until(process, lambda: launch.checkpoints(workdir))
    (lock,) = workdir.glob("populations/*/.lock")
    task = int(re.search(r"process (\d+)", lock.read_text())[1])
    os.kill(task, signal.SIGSTOP)  # or it might end before the second command has looked
    assert "Nothing to submit" in run(workdir, *flags).stdout  # while the first one runs
    process.send_signal(signal.SIGTERM)
    time.sleep(1)  # the signal is passed on meanwhile, and waits
    os.kill(task, signal.SIGCONT)
    done = launch.finish(process)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert "To go on:\n  python -m experiments.submit" in done.stderr
    said = look(workdir, 1)
    assert "stopped by SIGTERM, with all saved" in said and "To go on" in said
    run(workdir, *flags, "--failed_only")
    assert launch.everything(workdir) == launch.everything(launch.finished()[0])


@pytest.mark.thorough
def test_a_submitter_that_was_killed_leaves_its_tasks_to_their_work(tmp_path):
    workdir = tmp_path / "results"
    process = start(workdir, *launch.SWEEP, "--cluster=local", "--checkpoint_seconds=0")
    launch.wait_until(process, lambda: launch.checkpoints(workdir))
    process.kill()
    launch.finish(process)
    assert "4 running" in look(workdir, 3)
    end = time.monotonic() + 120
    while (
        len(list(workdir.glob("runs/*/result.json"))) < 4 or not (workdir / "results.csv").exists()
    ):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert launch.everything(workdir) == launch.everything(launch.finished()[0])


# Clocks -------------------------------------------------------------------------------------------

# A run of the command by a clock that is days off.
OFF = """
import runpy, sys, time
now, off = time.time, float(sys.argv.pop(1))
time.time = lambda: now() + off
time.time_ns = lambda: int(time.time() * 1e9)
sys.argv[0] = "run.py"
runpy.run_module("experiments.run", run_name="__main__", alter_sys=True)
"""


@pytest.mark.thorough
def test_nodes_whose_clocks_are_days_apart(tmp_path):
    """Begun on a node whose clock is ahead and ended on one that is behind: nothing is lost."""
    workdir = tmp_path / "results"

    def begin(off):
        words = [sys.executable, "-c", OFF, str(off), *launch.command(workdir, *launch.SWEEP)[3:]]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            [*words, "--checkpoint_seconds=0"],
            cwd=launch.REPOSITORY,
            env=launch.environment(),
            **pipes,
        )

    ahead = begin(3 * 86400)
    launch.wait_until(ahead, lambda: launch.checkpoints(workdir))
    ahead.send_signal(signal.SIGTERM)
    assert launch.finish(ahead).returncode == 128 + signal.SIGTERM
    saved = max(launch.checkpoints(workdir))
    behind = launch.finish(begin(-3 * 86400))
    assert behind.returncode == 0, behind.stderr
    # From where the first one stopped, and no step twice.
    assert re.search(rf"^ *{100 * saved // 200}%", behind.stderr, re.MULTILINE)
    assert launch.everything(workdir) == launch.everything(launch.finished()[0])
