"""Several processes as one: how they meet, real ones on this machine, and what goes wrong."""

import signal
import socket
import subprocess
import sys
import threading

import pytest

from experiments import distributed
from experiments.distributed import Group, find
from tests.experiments import launch
from vae.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_STEP_NODELIST": "n[1-2]",
}
DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


def free_port():
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


# Who they are ------------------------------------------------------------------------------------


def test_a_process_is_alone_unless_told_otherwise():
    assert find({}) is None
    assert find({}, "h:1", 1, 0) is None
    # The script of a job with two tasks is not one of them; nor is a job of one task.
    assert find({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NUM_TASKS"}) is None
    assert find({**SLURM, "SLURM_STEP_NUM_TASKS": "1"}) is None


def test_a_slurm_step_says_who_they_are():
    group = find(SLURM)
    assert group == Group("n1:59744", 2, 1)
    assert find({**SLURM, "SLURM_STEP_ID": "1"}).coordinator != group.coordinator
    # Flags win.
    assert find(SLURM, "h:1", 3, 2) == Group("h:1", 3, 2)


def test_gke_tells_the_hosts_of_a_tpu_slice():
    assert distributed.on_tpu_slice({"TPU_WORKER_HOSTNAMES": "a-0,a-1"})
    assert not distributed.on_tpu_slice({"TPU_WORKER_HOSTNAMES": "localhost"})
    assert not distributed.on_tpu_slice({})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-2]", "n1"),
        ("node[003-017,22],gpu1", "node003"),
        ("rack1-n[07,09]-ib", "rack1-n07-ib"),
    ],
)
def test_the_first_host_of_a_list(hosts, first):
    assert find({**SLURM, "SLURM_STEP_NODELIST": hosts}).coordinator.split(":")[0] == first


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((None, 2, 0), "--coordinator: missing.*--num_processes, --process_id"),
        (("h:1", None, 0), "--num_processes: missing"),
        (("h:1", 2, None), "--process_id: missing"),
        (("h", 2, 0), "--coordinator: 'h' is not HOST:PORT"),
        (("h:1", 2, 2), "--process_id: 2 is not one of 0 to 1"),
        (("h:1", 2, -1), "--process_id: -1"),
    ],
)
def test_incomplete_or_senseless_flags_are_refused(given, words):
    with pytest.raises(UserError, match=words):
        find({}, *given)


# How they meet -----------------------------------------------------------------------------------


def meet(groups, timeout=20.0):
    """What each of them says, in threads: None, or its error."""
    said = {}

    def one(number, group):
        end = distributed.time.monotonic() + timeout
        try:
            (distributed._welcome if group.index == 0 else distributed._knock)(group, end, timeout)
            said[number] = None
        except UserError as error:
            said[number] = str(error)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(groups)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [said[i] for i in range(len(groups))]


def test_all_meet_in_any_order_and_strangers_do_not_disturb():
    address = f"127.0.0.1:{free_port()}"
    groups = [Group(address, 3, index) for index in (2, 1, 0)]

    def stranger():
        for _ in range(20):
            try:
                with socket.create_connection(distributed._address(groups[0]), timeout=1) as door:
                    door.sendall(b"GET / HTTP/1.1\r\n\r\n")
                    return
            except OSError:
                distributed.time.sleep(0.05)

    visit = threading.Thread(target=stranger)
    visit.start()
    assert meet(groups) == [None, None, None]
    visit.join()


def test_who_is_missing_is_named():
    address = f"127.0.0.1:{free_port()}"
    first, second = meet([Group(address, 4, 0), Group(address, 4, 2)], timeout=1.0)
    assert "number 1, 3 did not come" in first
    assert "within 1 s" in first
    assert "process 2 of 4 waited for process 0" in second


def test_two_of_one_number_or_of_other_counts_are_named():
    address = f"127.0.0.1:{free_port()}"
    said = meet([Group(address, 3, 0), Group(address, 3, 1), Group(address, 3, 1)])
    assert "number 1 of 3" in said[0]
    assert "already" in said[0]
    address = f"127.0.0.1:{free_port()}"
    said = meet([Group(address, 2, 0), Group(address, 4, 1)])
    assert "number 1 of 4, and this is number 0 of 2" in said[0]
    assert "turned this one away" in said[1]


def test_a_port_in_use_is_named():
    with socket.socket() as door:
        door.bind(("", 0))
        door.listen()
        (said,) = meet([Group(f"127.0.0.1:{door.getsockname()[1]}", 2, 0)])
    assert "--coordinator: process 0 cannot listen" in said


# Real ones ---------------------------------------------------------------------------------------


def start(workdir, *flags, count=2):
    """The processes of one training, number 0 last, so that the others have to wait for it."""
    address = f"--coordinator=127.0.0.1:{free_port()}"
    own = [[address, f"--num_processes={count}", f"--process_id={i}"] for i in range(count)]
    environment = launch.environment(**DEVICES, JAX_PLATFORMS="cpu")
    return [
        launch.start(workdir, *flags, *own[i], env=environment) for i in reversed(range(count))
    ][::-1]


def finish(processes):
    return [launch.finish(process) for process in processes]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The results of one process with four devices."""
    workdir = tmp_path_factory.mktemp("one") / "results"
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    launch.run(workdir, *launch.SWEEP, env=launch.environment(**devices, JAX_PLATFORMS="cpu"))
    return workdir


def test_two_processes_leave_what_one_leaves(tmp_path, one_process):
    done = finish(start(tmp_path, *launch.SWEEP))
    assert [d.returncode for d in done] == [0, 0], done
    # The same four devices, one run each: the same programs, and so the same bits.
    assert launch.everything(tmp_path) == launch.everything(one_process)
    assert "4 = 4 runs x 1 data" in done[0].stdout
    assert not done[1].stdout.replace("[Gloo]", "").strip() or "runs" not in done[1].stdout


@pytest.mark.thorough
def test_two_processes_read_from_the_host_what_their_devices_hold(tmp_path, one_process):
    done = finish(start(tmp_path, *launch.SWEEP, "--config.data.placement=host"))
    assert [d.returncode for d in done] == [0, 0], done
    found, expected = launch.everything(tmp_path), launch.everything(one_process)
    for run in (*found.values(), *expected.values()):
        del run["config"]  # which says where the examples were
    assert found == expected


@pytest.mark.thorough
def test_a_signal_to_one_stops_both_and_one_process_goes_on(tmp_path, one_process):
    flags = (*launch.SWEEP, "--checkpoint_seconds=0")
    processes = start(tmp_path, *flags, "--config.mesh.data=2", "--config.mesh.runs=2")
    launch.wait_until(processes[0], lambda: any(tmp_path.glob("populations/*/checkpoints/*.json")))
    processes[1].send_signal(signal.SIGTERM)
    done = finish(processes)
    assert [d.returncode for d in done] == [143, 143], done
    assert not (tmp_path / "results.csv").exists()
    # One device, another mesh, another number of processes: within the rounding of sums.
    done = launch.run(tmp_path, *flags, "--config.mesh.data=null")
    rows, expected = launch.rows(tmp_path), launch.rows(one_process)
    assert rows.keys() == expected.keys()
    for run_id, row in rows.items():
        elbo, other = (float(r["test/elbo"]) for r in (row, expected[run_id]))
        # Rounding grows in 200 steps of Adam, to some 1e-4 of 27 nats here.
        assert elbo == pytest.approx(other, abs=0.02)
        steps = [r["step"] for r in launch.readings(tmp_path, run_id)]
        assert steps == list(range(10, 201, 10))


def test_a_process_that_is_gone_ends_the_other_with_a_reason(tmp_path):
    processes = start(tmp_path, *launch.SWEEP, "--config.train.steps=100000")
    launch.wait_until(
        processes[0],
        lambda: (
            any(tmp_path.glob("runs/*/metrics.jsonl"))
            or any(tmp_path.glob("populations/*"))
            or any(tmp_path.glob(".mark.*"))
        ),
    )
    processes[1].kill()
    done = finish(processes)
    assert done[0].returncode == 1
    assert "error: process 0 of 2 stopped" in done[0].stderr
    assert "*** Check failure" not in done[0].stderr


WAITS = """
import sys, time
from experiments import distributed
distributed.join(distributed.Group(sys.argv[1], 2, int(sys.argv[2])), 60)
print("in", flush=True)
time.sleep(120)
"""


def test_without_process_0_jax_aborts_and_the_reason_is_said():
    """Process 1 asks nothing of the other: a thread of JAX hears of it first."""
    address = f"127.0.0.1:{free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WAITS, address, str(index)],
            cwd=launch.REPOSITORY,
            env=launch.environment(JAX_PLATFORMS="cpu"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    assert [process.stdout.readline() for process in processes] == ["in\n", "in\n"]
    processes[0].kill()
    _, other = finish(processes)
    assert other.returncode == 1
    last = other.stderr.rstrip().splitlines()[-1]
    assert last.startswith("error: process 1 of 2 stopped, most likely because another one ended")


@pytest.mark.thorough
@pytest.mark.parametrize("number", [0, 1])
def test_one_killed_while_a_checkpoint_is_written_they_go_on_to_the_same_end(
    number, tmp_path, one_process
):
    flags = (*launch.SWEEP, "--checkpoint_seconds=0")
    processes = start(tmp_path, *flags)
    launch.wait_until(
        processes[0],
        lambda: (
            max(launch.checkpoints(tmp_path), default=0) >= 50 and launch.half_written(tmp_path)
        ),
    )
    processes[number].kill()
    done = finish(processes)
    other = done[1 - number]
    assert done[number].returncode == -signal.SIGKILL
    assert other.returncode == 1, other
    assert f"error: process {1 - number} of 2 stopped" in other.stderr
    assert not (tmp_path / "results.csv").exists()
    done = finish(start(tmp_path, *flags))
    assert [d.returncode for d in done] == [0, 0], done
    assert launch.everything(tmp_path) == launch.everything(one_process)


@pytest.mark.thorough
def test_a_full_disk_ends_both_and_with_room_they_go_on_to_the_same_end(tmp_path, one_process):
    flags = (*launch.SWEEP, "--checkpoint_seconds=0")
    with launch.full_disk(tmp_path) as (workdir, shell, make_room):
        if shell:
            pytest.skip("no disk can be mounted here: needs root")
        make_room()
        processes = start(workdir, *flags)
        launch.wait_until(processes[0], lambda: launch.checkpoints(workdir))
        launch.fill(workdir.parent / "filler")
        done = finish(processes)
        assert [d.returncode for d in done] == [1, 1], done
        assert any("No space left on device. Nothing that was written" in d.stderr for d in done)
        for process in done:
            assert "Traceback" not in process.stderr
            assert process.stderr.rstrip().splitlines()[-1].startswith("error: ")
        (workdir.parent / "filler").unlink()
        done = finish(start(workdir, *flags))
        assert [d.returncode for d in done] == [0, 0], done
        assert launch.everything(workdir) == launch.everything(one_process)


def test_processes_that_do_not_meet_say_so(tmp_path):
    flags = ("--num_processes=2", "--coordinator_timeout=1")
    address = f"--coordinator=127.0.0.1:{free_port()}"
    message = launch.user_error(address, "--process_id=1", *flags, workdir=tmp_path / "a")
    assert "waited for process 0" in message
    message = launch.user_error(address, "--process_id=0", *flags, workdir=tmp_path / "a")
    assert "number 1 did not come" in message
    assert not (tmp_path / "a").exists()


def test_a_mistake_ends_all_of_them(tmp_path):
    processes = start(tmp_path, "--sweep=seed=0", "--config.train.batch_size=127")
    done = finish(processes)
    assert [d.returncode for d in done] == [2, 2]
    assert "2 processes of 2 devices each are more than 1 run can use" in done[0].stderr
    assert "process 0 of 2 could not begin" in done[1].stderr


def test_a_folder_that_is_not_shared_is_refused(tmp_path):
    from experiments import workdir as workdirs

    folder = workdirs.Workdir(tmp_path)
    folder.write_mark(7)
    folder.await_mark(7)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdirs, "SEEN_SECONDS", 0.0)
        with pytest.raises(UserError, match="not the folder that process 0 writes to"):
            folder.await_mark(8)


def test_alone_all_agree():
    assert distributed.gather([1, 2]).tolist() == [[1, 2]]
    assert not distributed.any_of(False)
    assert float(distributed.first(2.5)) == 2.5
    assert distributed.in_turn(lambda: "first", lambda: "other") == "first"
    with pytest.raises(ValueError, match="mine"):
        distributed.in_turn(lambda: (_ for _ in ()).throw(ValueError("mine")), lambda: None)
    distributed.leave()
