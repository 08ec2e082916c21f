"""The studies on real MNIST, as a user runs them: minutes each, so `-m slow` only."""

import subprocess
import sys

import pytest

from experiments.report.results import read_results
from experiments.studies import STUDIES
from tests.experiments import launch


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_what_is_asked_is_met(name, shared_data, tmp_path):
    flags = [f"--name={name}", f"--data_dir={shared_data / 'tfds'}", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.study", *flags],
        cwd=launch.REPOSITORY,
        env=launch.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    asked = [q for q in STUDIES[name].measure(read_results(tmp_path / name)) if q.verdict != "–"]
    assert asked and {q.name: q.verdict for q in asked} == {q.name: "met" for q in asked}
