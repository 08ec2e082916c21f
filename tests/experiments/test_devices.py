"""The shape of the mesh: what is chosen, and what is refused with which words."""

import os
import subprocess
import sys

import pytest

from experiments.devices import SHARED_FROM_FLOPS, SPREAD_FROM_FLOPS, Devices, Work, choose, cores
from tests.experiments.launch import REPOSITORY
from vae.errors import UserError

LITTLE, MUCH = SHARED_FROM_FLOPS / 2, SHARED_FROM_FLOPS


@pytest.mark.parametrize(
    ("count", "runs", "batch", "flops", "expected"),
    [
        (1, 10, 128, MUCH, (1, 1)),
        (8, 64, 128, LITTLE, (8, 1)),  # eight runs on each
        (8, 64, 128, MUCH, (8, 1)),  # sharing batches would not make it less work
        (8, 4, 128, LITTLE, (4, 1)),  # four devices would have nothing to do
        (8, 5, 128, LITTLE, (8, 1)),  # three inert: five runs on four devices take twice as long
        (8, 3, 128, LITTLE, (4, 1)),
        (8, 1, 128, LITTLE, (1, 1)),  # a small step gains nothing
        (8, 1, 128, MUCH, (1, 8)),
        (8, 4, 128, MUCH, (4, 2)),
        (8, 3, 128, MUCH, (1, 8)),  # 3 × 16 examples: (4, 2) would be 64 on the busiest
        (8, 1, 100, MUCH, (1, 4)),  # eight do not divide 100
        (6, 4, 7, MUCH, (6, 1)),  # four do not divide six, and on three it takes twice as long
    ],
)
def test_one_process_takes_the_devices_that_make_it_faster(count, runs, batch, flops, expected):
    assert choose(Devices(count), Work(runs, batch, flops)) == expected


@pytest.mark.parametrize(
    ("runs", "flops", "asked", "expected"),
    [
        (1, LITTLE, {}, (1, 1)),
        (1, MUCH, {}, (1, 1)),  # its products keep all cores busy
        (16, LITTLE, {}, (8, 1)),
        (3, MUCH, {}, (4, 1)),
        (16, MUCH, {"runs": 1}, (1, 1)),
        (1, LITTLE, {"data": 2}, (1, 2)),
    ],
)
def test_runs_take_a_core_each_and_share_no_batch(runs, flops, asked, expected):
    work = Work(runs, 128, flops, steps=10**6)
    assert choose(Devices(8, cores=True), work, **asked) == expected


def test_a_short_training_takes_the_cores_as_one_device():
    work = Work(10, 128, 1e8, steps=int(SPREAD_FROM_FLOPS / 1e9))
    assert choose(Devices(8, cores=True), work) == (8, 1)
    assert choose(Devices(8, cores=True), work._replace(steps=work.steps - 1)) == (1, 1)
    assert choose(Devices(8, cores=True), work._replace(steps=1), runs=2) == (2, 1)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, [cores(), cores() > 1]),
        ({"JAX_NUM_CPU_DEVICES": "3"}, [3, True]),
        ({"JAX_NUM_CPU_DEVICES": "1"}, [1, False]),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, [5, False]),
    ],
    ids=str,
)
def test_the_cores_are_devices_unless_the_user_says_how_many(said, expected):
    code = "from experiments import devices as d; d.use_cores(); print(d.here())"
    words = [sys.executable, "-c", code]
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    done = subprocess.run(words, env=env | said, cwd=REPOSITORY, capture_output=True, text=True)
    count, played = expected
    assert done.stdout.strip() == str(Devices(count, 1, played)), done.stderr


@pytest.mark.parametrize(
    ("devices", "runs", "batch", "expected"),
    [
        (Devices(4, 2), 8, 128, (4, 1)),
        (Devices(4, 2), 1, 128, (1, 4)),  # however small: each process has to have a part
        (Devices(4, 2), 2, 128, (2, 2)),
        (Devices(8, 8), 5, 128, (2, 4)),
        (Devices(4, 2), 3, 128, (4, 1)),
        (Devices(8, 2), 5, 127, (8, 1)),  # three inert runs, and no process without any
    ],
)
def test_several_processes_take_all_devices(devices, runs, batch, expected):
    assert choose(devices, Work(runs, batch, LITTLE)) == expected


def test_what_is_asked_for_is_taken():
    devices, work = Devices(8), Work(3, 128, LITTLE)
    assert choose(devices, work, runs=2, data=4) == (2, 4)
    assert choose(devices, work, runs=1, data=1) == (1, 1)
    assert choose(devices, work, runs=8) == (8, 1)
    assert choose(devices, work, data=8) == (1, 8)
    assert choose(devices, Work(3, 128, MUCH), runs=1) == (1, 8)
    assert choose(Devices(8, 2), work, runs=2, data=4) == (2, 4)


@pytest.mark.parametrize(
    ("devices", "work", "asked", "words"),
    [
        (
            Devices(8),
            Work(3, 128, 0),
            {"runs": 3},
            "mesh.runs: 3 .*devices, 8.*1, 2, 4 or 8.*null",
        ),
        (
            Devices(1),
            Work(3, 128, 0),
            {"data": 2},
            "mesh.data: 2 .*of devices, 1. Set it to 1",
        ),
        (Devices(8), Work(3, 128, 0), {"runs": 8, "data": 2}, "mesh.runs: 8 times mesh.data 2 is"),
        (Devices(8), Work(3, 100, 0), {"data": 8}, "mesh.data: 8 devices.*100.*train.batch_size"),
        (Devices(8, 2), Work(3, 128, 0), {"runs": 2, "data": 2}, "4 devices, .*not the 8 of all 2"),
        (Devices(4, 4), Work(2, 127, 0), {}, "4 processes of 1 device each.*2 runs.*at most 2"),
        (Devices(4, 4), Work(1, 128, 0), {"runs": 4}, "more than 1 run can use.*at most 1 process"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(devices, work, asked, words):
    with pytest.raises(UserError, match=words):
        choose(devices, work, **asked)
