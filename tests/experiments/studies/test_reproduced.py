"""The studies on real MNIST, as a user runs them: minutes each, so `-m slow` only."""

import csv
import subprocess
import sys

import pytest

from experiments.studies import STUDIES
from tests.experiments import launch


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_what_the_documents_say_is_found_again(name, shared_data, tmp_path):
    said = {
        tuple(cells[1:3]): cells[-2]
        for line in (launch.REPOSITORY / "docs" / "studies.md").read_text().splitlines()
        if len(cells := [cell.strip() for cell in line.split("|")]) == 9
    }
    if not any(study == name for study, _ in said):
        pytest.skip("docs/studies.md does not have it yet")
    flags = [f"--name={name}", f"--data_dir={shared_data / 'tfds'}", f"--workdir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.study", *flags],
        cwd=launch.REPOSITORY,
        env=launch.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "studies.csv", encoding="utf-8") as file:
        found = {(r["study"], r["quantity"]): r["verdict"] for r in csv.DictReader(file)}
    # On another machine a row on the edge may become inconclusive, and none may turn around.
    for key in said.keys() & found.keys():
        assert {said[key], found[key]} != {"reproduced", "not reproduced"}, key
    assert said.keys() & found.keys()
