"""Looking at runs as they train: the real command with config.probe, on and off."""

import signal

import pytest

from experiments import fields, rules
from tests.experiments import launch
from vae.errors import UserError
from vae.gradients.instruments import INSTRUMENTS

# 200 steps with a reading each 10; looks at 0, 35, 70, ... and 200: on and off the readings.
LOOKS = ("--config.probe.instruments=all", "--config.probe.every=35", "--config.probe.examples=16")
STEPS = [*range(0, 200, 35), 200]


def unlabelled(workdir):
    """Every number of every run in the order of the sweep, but for ids, times and looks."""
    found = []
    for run_id, row in launch.rows(workdir).items():
        kept = {n: v for n, v in row.items() if n not in ("run_id", "wall_s")}
        params = launch.bits(launch.params(workdir, run_id))
        found.append((kept, launch.readings(workdir, run_id), params))
    return found


@pytest.fixture(scope="module")
def looked(tmp_path_factory):
    """The folder of the sweep with all instruments on."""
    workdir = tmp_path_factory.mktemp("looked") / "results"
    launch.run(workdir, *launch.SWEEP, *LOOKS)
    return workdir


def test_looking_changes_nothing_bit_for_bit(looked):
    assert unlabelled(looked) == unlabelled(launch.finished()[0])


def test_looks_are_at_the_steps_asked_for_and_of_every_layer(looked):
    for run_id in launch.rows(looked):
        looks = launch.readings(looked, run_id, "probe.jsonl")
        assert [r["step"] for r in looks] == STEPS
        for layer in ("encoder/layer_0", "encoder/mean", "decoder/output"):
            assert all(r[f"grad/{layer}/whole"] > 0 for r in looks)


@pytest.mark.thorough
def test_a_killed_run_looks_again_where_it_was_and_at_the_same(looked, tmp_path):
    workdir = tmp_path / "results"
    flags = (*launch.SWEEP, *LOOKS, "--checkpoint_seconds=0")
    process = launch.start(workdir, *flags)
    launch.wait_until(process, lambda: max(launch.checkpoints(workdir), default=0) >= 40)
    process.send_signal(signal.SIGKILL)
    launch.finish(process)
    launch.run(workdir, *flags)
    for run_id in launch.rows(looked):
        for file in ("metrics.jsonl", "probe.jsonl"):
            assert launch.readings(workdir, run_id, file) == launch.readings(looked, run_id, file)


def test_the_words_of_the_launcher_are_those_of_the_library():
    assert fields.INSTRUMENTS == tuple(INSTRUMENTS)


def test_names_of_instruments():
    assert rules.instruments("none") == ()
    assert rules.instruments("all") == fields.INSTRUMENTS
    assert rules.instruments("terms + noise") == ("terms", "noise")
    with pytest.raises(UserError, match="there is no instrument term. Write none, all, or names"):
        rules.instruments("term")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.probe.instruments=snr"], "probe.instruments: there is no instrument snr"),
        (
            ["--config.probe.instruments=terms", "--config.probe.layers=encoder/layer_7"],
            "probe.layers: there is no layer encoder/layer_7. The layers are encoder/layer_0,",
        ),
        (
            ["--config.probe.instruments=terms", "--config.probe.examples=100000"],
            "probe.examples: 100000 is more than the 1438 training examples of digits",
        ),
        (["--config.probe.draws=1"], "probe.draws: expected a whole number >= 2, got 1"),
        (
            [
                "--config.probe.instruments=terms",
                "--config.objective.estimator=score",
                "--config.objective.samples=2",
            ],
            "probe.instruments: terms would tell nothing here. objective.estimator: score",
        ),
    ],
)
def test_bad_input(flags, message, tmp_path):
    assert message in launch.user_error(*flags, workdir=tmp_path / "x")
