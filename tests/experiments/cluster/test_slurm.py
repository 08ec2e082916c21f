"""Array jobs on a real Slurm: two nodes inside this machine, see scripts/slurm_test_cluster.sh.

Skips with the reason where Slurm is not installed or where this is not root.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from experiments import locks
from experiments.cluster import slurm, submissions
from tests.experiments import launch

SCRIPT = launch.REPOSITORY / "scripts" / "slurm_test_cluster.sh"
# As in test_run.py: the same run in another program has its sums in another order.
METRIC = 1e-5
READING = 1e-3
# Checkpoints at every reading, so that there is something to go on from.
OFTEN = (*launch.SWEEP, "--checkpoint_seconds=0")


def script(action, folder):
    words = ["bash", str(SCRIPT), action, str(folder)]
    return subprocess.run(words, capture_output=True, text=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The running cluster's folder, with the environment set so that Slurm's commands find it."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # as scripts/slurm_test_cluster.sh has it
    programs = ("munged", "slurmctld", "slurmd", "sbatch")
    missing = [name for name in programs if not shutil.which(name, path=path)]
    if missing:
        pytest.skip(f"no Slurm here ({', '.join(missing)} not found): needs slurm-wlm and munge")
    if os.geteuid() != 0:
        pytest.skip("the test cluster of Slurm needs root")
    folder = tmp_path_factory.mktemp("slurm") / "cluster"
    # Its sockets and keys are for those who may pass through the folders above.
    for above in (folder.parent, *folder.parent.parents):
        if above.stat().st_uid == os.geteuid() and above != above.parent:
            above.chmod(above.stat().st_mode | 0o711)
    # Its ports are the same for all: one at a time on this machine.
    turn = locks.acquire(pathlib.Path(tempfile.gettempdir(), "vae-lab-slurm.lock"), wait=900)
    assert turn, "another session's test cluster has been running for a quarter of an hour"
    with turn, pytest.MonkeyPatch.context() as patch:
        started = script("start", folder)
        assert started.returncode == 0, started.stderr
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield folder
        subprocess.run(["scancel", "--user=root"], check=False)
        script("stop", folder)


@pytest.fixture(autouse=True)
def _nodes_and_queue_as_at_first(request):
    """What a test did to the cluster does not reach the next one."""
    yield
    if "cluster" in request.fixturenames:
        subprocess.run(["scancel", "--user=root"], check=False)
        states = nodes()
        folder = request.getfixturevalue("cluster")
        for node in states:
            if not pathlib.Path(
                "/proc", (folder / f"slurmd.{node}.pid").read_text().strip()
            ).exists():
                subprocess.run(["slurmd", "-f", str(folder / "slurm.conf"), "-N", node], check=True)
            if states[node] not in ("idle", "allocated", "mixed", "completing"):
                words = ["scontrol", "update", f"nodename={node}", "state=resume"]
                subprocess.run(words, check=False)  # it may have come back by itself meanwhile
        await_(lambda: set(nodes().values()) == {"idle"}, "both nodes idle")


def python(module, *flags, **options):
    words = [sys.executable, "-m", module, *flags]
    options = {"cwd": launch.REPOSITORY, "env": launch.environment()} | options
    return subprocess.run(words, capture_output=True, text=True, timeout=300, **options)


def submit(workdir, *flags, status=0, **options):
    """Submits the small sweep; what the command said."""
    words = ("--cluster=slurm", *launch.SMALL, f"--workdir={workdir}", *flags)
    done = python("experiments.submit", *words, **options)
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


def look(workdir, status=None):
    """What experiments.status prints."""
    done = python("experiments.status", f"--workdir={workdir}")
    assert "Traceback" not in done.stderr, done.stderr
    assert status is None or done.returncode == status, done.stdout + done.stderr
    return done.stdout


def control(*words):
    return subprocess.run(["scontrol", *words], check=True, capture_output=True, text=True).stdout


def nodes():
    words = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
    lines = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()
    return {node: state.rstrip("*") for node, state in map(str.split, lines)}


def unplug(node, cluster):
    """Ends the slurmd of a node and all that it started, so that none can say another word."""
    parents, started = [], []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            stat = (process / "stat").read_text().rpartition(")")[2].split()
            above = (pathlib.Path("/proc") / stat[1] / "comm").read_text()
        except OSError:  # it has ended meanwhile
            continue
        ours = f"SLURM_CONF={cluster / 'slurm.conf'}", f"SLURMD_NODENAME={node}"
        if all(variable.encode() in variables for variable in ours):
            started.append(int(process.name))
            parents += [int(stat[1])] if above.startswith("slurmstepd") else []
    assert parents and started
    slurmd = int((cluster / f"slurmd.{node}.pid").read_text())
    for number in [slurmd, *dict.fromkeys(parents), *started]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


def job(workdir):
    return submissions.recorded(workdir)[-1].job


def task(workdir, index=0):
    """What Slurm says of a task of the last submission."""
    number = job(workdir)
    return slurm.tasks([number])[number, index]


def log(workdir, index=0):
    file = submissions.recorded(workdir)[-1].log(index)
    return file.read_text() if file.exists() else ""


def await_(happened, what, workdir=None, seconds=300):
    """Waits until `happened()`; fails with what the tasks said where it never comes."""
    end = time.monotonic() + seconds
    while not (found := happened()):
        if time.monotonic() > end:
            said = look(workdir) + log(workdir) if workdir else str(nodes())
            raise AssertionError(f"never: {what}\n{said}")
        time.sleep(0.05)
    return found


def ended(workdir, count=1):
    """Waits until so many tasks of the last submission have ended; their exit statuses."""
    last = submissions.recorded(workdir)[-1]

    def statuses():
        found = [last.exit_status(i) for i in range(count)]
        return None if None in found else found

    return await_(statuses, "the end of the tasks", workdir)


# An array sweep -----------------------------------------------------------------------------------


def test_an_array_job_does_what_one_command_does(cluster, tmp_path):
    workdir = tmp_path / "results"
    flags = (*launch.SWEEP, "--runs_per_task=2", "--report", "--cpus_per_task=2", "--time=10")
    said = submit(workdir, *flags)
    number = job(workdir)
    assert f"Submitted 2 tasks as Slurm job {number}." in said
    # The same again while the first is queued or runs: nothing is done twice.
    again = submit(workdir, *flags)
    assert "Nothing to submit." in again and f"Slurm job {number}_" in again
    assert len(submissions.recorded(workdir)) == 1
    # Nor may a plain run come between.
    # While the first task is held in its midst.
    (first,), _ = submissions.recorded(workdir)[-1].tasks
    lock = workdir / "populations" / first / ".lock"
    await_(lambda: lock.exists() and "Slurm job" in lock.read_text(), "a holder", workdir)
    control("suspend", f"{number}_0")
    assert "in use by another process" in launch.user_error(*launch.SWEEP, workdir=workdir)
    control("resume", f"{number}_0")
    assert ended(workdir, 2) == [0, 0]
    assert "4 runs in" in look(workdir, status=0) and "4 done" in look(workdir)

    # Packed by two, not by four: the same within rounding.
    rows, expected = launch.rows(workdir), launch.rows(launch.finished()[0])
    assert rows.keys() == expected.keys()
    for run_id, row in rows.items():
        for name in ("test/elbo", "test/rate", "test/nll"):
            assert float(row[name]) == pytest.approx(float(expected[run_id][name]), rel=METRIC)
    assert (workdir / "report.html").exists()  # by the task that was last
    # Both tasks ran on alike machines, which is recorded once.
    assert "earlier" not in (workdir / "environment.json").read_text()
    assert not [f for f in workdir.rglob("*") if f.suffix == ".pkl" or f.suffix == ".tmp"]
    # What is finished is neither submitted nor trained again.
    assert "Nothing to submit." in submit(workdir, *flags)
    assert "finished earlier" in launch.run(workdir, *launch.SWEEP, "--report").stdout


@pytest.mark.thorough
def test_one_run_over_two_nodes(cluster, tmp_path):
    """Both processes save when Slurm says so, are queued again together, and end as one would."""
    workdir = tmp_path / "results"
    flags = ("--nodes=2", "--config.mesh.data=2", "--config.objective.beta=0.5")
    submit(workdir, *flags, "--checkpoint_seconds=0")
    await_(lambda: launch.checkpoints(workdir), "a checkpoint", workdir)
    assert task(workdir).nodes == "n[1-2]"
    subprocess.run(["scancel", "--signal=USR1", f"{job(workdir)}_0"], check=True)
    assert ended(workdir) == [0]
    assert task(workdir).restarts == 1
    (made,) = submissions.recorded(workdir)
    first, second = (file.read_text() for file in made.logs(0))
    assert "Stopped by SIGUSR1; all is saved" in first
    assert "2 = 1 runs x 2 data" in first and "2 = 1 runs x 2 data" not in second
    assert "1 done" in look(workdir, status=0)
    ((run_id, row),) = launch.rows(workdir).items()
    expected = launch.rows(launch.finished()[0])[run_id]
    for name in ("test/elbo", "test/rate", "test/nll"):
        # The sums of gradients in another order, through 200 steps of Adam: as in test_run.py.
        assert float(row[name]) == pytest.approx(float(expected[name]), rel=READING)


# Requeued -----------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_stopped_requeued_and_moved_from_a_lost_node_the_results_are_the_same(cluster, tmp_path):
    workdir = tmp_path / "results"
    submit(workdir, *OFTEN)
    number = job(workdir)

    # 1. What Slurm sends before the time limit: it saves, and queues itself again.
    await_(lambda: launch.checkpoints(workdir), "a checkpoint", workdir)
    subprocess.run(["scancel", "--signal=USR1", f"{number}_0"], check=True)
    await_(lambda: task(workdir).restarts == 1, "requeued", workdir)
    assert "Stopped by SIGUSR1; all is saved" in log(workdir)
    saved = max(launch.checkpoints(workdir))
    assert saved < 200, "it had finished before it was stopped"
    said = look(workdir, status=3)
    assert re.search(rf"waiting +Slurm job {number}_0 +requeued 1 time", said), said

    # 2. Its node is lost.
    enough = lambda: max(launch.checkpoints(workdir)) > saved  # noqa: E731
    await_(lambda: enough() and task(workdir).state == "RUNNING", "going on", workdir)
    node = task(workdir).nodes
    unplug(node, cluster)
    control("update", f"nodename={node}", "state=down", "reason=unplugged")
    await_(lambda: task(workdir).restarts == 2, "requeued once more", workdir)
    assert f"its node {node} is lost (down, unplugged)" in look(workdir, status=3)

    # 3. It ends on the other one, as if nothing had happened.
    assert ended(workdir) == [0]
    assert task(workdir).nodes != node
    assert re.search(rf"^ *{100 * saved // 200}%", log(workdir), re.MULTILINE)  # not from the start
    assert launch.everything(workdir) == launch.everything(launch.finished()[0])
    assert "4 done" in look(workdir, status=0)


# Failed -------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_killed_task_fails_and_is_resubmitted_alone(cluster, tmp_path):
    workdir = tmp_path / "results"
    submit(workdir, *OFTEN, "--runs_per_task=2")
    (first,), _ = submissions.recorded(workdir)[-1].tasks
    lock = workdir / "populations" / first / ".lock"
    await_(lambda: lock.exists() and "Slurm job" in lock.read_text(), "a holder", workdir)
    os.kill(int(re.search(r"process (\d+) on n\d", lock.read_text())[1]), 9)
    assert ended(workdir, 2) == [137, 0]
    said = look(workdir, status=1)
    assert "2 done, 2 failed" in said
    assert re.search(rf"{first} .*failed .*killed \(SIGKILL\)", said)
    assert f"{first}, the end of " in said and "  | " in said
    assert "Submitted 1 task" in submit(workdir, *OFTEN, "--failed_only")
    assert submissions.recorded(workdir)[-1].tasks == ((first,),)
    assert ended(workdir) == [0]
    assert "4 done" in look(workdir, status=0)


@pytest.mark.thorough
def test_a_cancelled_task_and_one_that_is_refused(cluster, tmp_path):
    workdir = tmp_path / "cancelled"
    control("update", "nodename=n1,n2", "state=drain", "reason=service")
    submit(workdir, *launch.SWEEP)
    assert re.search(r"4 waiting.*Slurm job \d+_0", look(workdir, status=3), re.DOTALL)
    subprocess.run(["scancel", job(workdir)], check=True)
    await_(lambda: task(workdir).state == "CANCELLED", "cancelled", workdir)
    assert "cancelled (scancel)" in look(workdir, status=1)
    # The config file has changed by the time that the task starts.
    config = tmp_path / "config.py"
    source = (launch.REPOSITORY / "configs" / "default.py").read_text()
    config.write_text(source)
    submit(tmp_path / "edited", f"--config={config}", *launch.SWEEP)
    config.write_text(source.replace("beta=1.0", "beta=3.0", 1).replace("beta = 1.0", "beta = 3.0"))
    assert config.read_text() != source
    control("update", "nodename=n1,n2", "state=resume")
    assert ended(tmp_path / "edited") == [2]
    said = look(tmp_path / "edited", status=1)
    assert "holds the results of another config" in said and "objective.beta: 1.0 -> 3.0" in said


def test_a_folder_that_a_node_does_not_see(cluster, tmp_path):
    workdir = cluster / "not_on_n2" / "results"
    seen = ["srun", "--nodelist=n2", "ls", str(workdir.parent)]
    workdir.mkdir()
    if subprocess.run(seen, check=True, capture_output=True, text=True).stdout:
        pytest.skip("this system does not let root give a node a disk of its own (unshare)")
    control("update", "nodename=n1", "state=drain", "reason=service")
    submit(workdir, *launch.SWEEP)
    await_(lambda: task(workdir).state == "FAILED", "failed", workdir)
    said = look(workdir, status=1)
    assert "left no log: n2 does not see --workdir" in said and "disk that all nodes share" in said


# Refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--partition=absent"], r"--partition: .*invalid partition.* There are debug\.$"),
        (["--gpus_per_node=3"], r"--gpus_per_node: .*gres"),
        (["--mem=900G"], r"--mem: .*[Mm]emory"),
        (["--sweep=seed=0:10", "--runs_per_task=1"], r"--runs_per_task: 10 tasks are more .*\(9, "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_slurm_refuses(cluster, tmp_path, flags, message):
    said = submit(tmp_path / "results", *flags, status=2)
    assert re.match("error: " + message, said.strip(), re.DOTALL), said
    # Nothing was submitted, and the right flags on the same folder are welcome.
    assert submissions.recorded(tmp_path / "results") == []
    queue = subprocess.run(["squeue", "--noheader"], check=True, capture_output=True, text=True)
    assert queue.stdout == ""


@pytest.mark.thorough
def test_an_array_of_the_greatest_size(cluster, tmp_path):
    """MaxArraySize is 9 in the test cluster: the largest number of a task is 8."""
    control("update", "nodename=n1,n2", "state=drain", "reason=service")
    submit(tmp_path / "results", "--sweep=seed=0:9", "--runs_per_task=1")
    assert len(submissions.recorded(tmp_path / "results")[-1].tasks) == 9
    # Of tasks that share: three populations of three runs.
    submit(tmp_path / "shared", "--sweep=seed=0:9", "--runs_per_task=3")
    assert len(submissions.recorded(tmp_path / "shared")[-1].tasks) == 3
