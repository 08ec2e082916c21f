"""Training examples on the host: the same runs, bit for bit, and no room taken on the device."""

import json
import signal

import pytest

from experiments import config, plan
from tests.experiments import launch
from vae.data import stream
from vae.errors import UserError

HOST = "--config.data.placement=host"


def found(workdir):
    """`launch.everything` but for the config, which says where the examples were."""
    runs = launch.everything(workdir)
    placements = {json.loads(run.pop("config"))["data"]["placement"] for run in runs.values()}
    return runs, placements


def test_the_results_are_those_of_examples_on_the_device(tmp_path):
    launch.run(tmp_path / "results", *launch.SWEEP, HOST)
    expected, _ = found(launch.finished()[0])
    assert found(tmp_path / "results") == (expected, {"host"})


@pytest.mark.thorough
def test_gone_on_with_from_the_device_after_a_kill(tmp_path):
    workdir = tmp_path / "results"
    process = launch.start(workdir, *launch.SWEEP, HOST, "--checkpoint_seconds=0")
    launch.wait_until(process, lambda: launch.checkpoints(workdir))
    process.send_signal(signal.SIGKILL)
    launch.finish(process)
    assert launch.checkpoints(workdir)[-1] < 200
    launch.run(workdir, *launch.SWEEP)
    assert found(workdir) == (found(launch.finished()[0])[0], {"device"})


def plan_of(*overrides):
    overrides = [("mesh.runs", "1"), ("mesh.data", "1"), *overrides]
    base, runs = config.from_args("configs/default.py", overrides, ["seed=0:3"])
    (population,) = plan.make(base, runs, {"seed": [0, 1, 2]}).populations
    return population


def test_batches_take_the_room_of_the_examples():
    of_device = plan_of()
    of_host = plan_of(("data.placement", "host"), ("train.epochs", "null"), ("train.steps", "2"))
    assert (of_device.stream(), of_device.placement) == (None, "device")
    example = 64  # bytes of a digit
    windows = stream.WINDOWS * 2 * 3 * 128 * example  # of two steps, three seeds
    assert of_device.estimate.data - of_host.estimate.data == 1438 * example - windows
    assert of_host.stream().shapes().raw.shape == (3, 2, 128, 8, 8, 1)
    assert [run.run_id for run in plan_of(("data.placement", "host")).runs] == [
        run.run_id for run in of_device.runs
    ]


@pytest.mark.parametrize(
    "field, value", [("probe.instruments", "signal"), ("optimizer.encoder_steps", "5")]
)
def test_what_reads_other_examples_is_refused(field, value):
    with pytest.raises(UserError, match=f"^data.placement: host .* {field} .*to device"):
        config.from_args("configs/default.py", [("data.placement", "host"), (field, value)], [])
