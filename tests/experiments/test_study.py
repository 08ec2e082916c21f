"""The command that runs studies: the real one, on little data."""

import csv
import subprocess
import sys

import pytest

from experiments.studies import STUDIES
from tests.experiments import launch

LITTLE = (
    "--config.data.source=digits",
    "--config.data.train_split=train",
    "--config.data.test_split=test",
    "--config.train.epochs=null",
    "--config.train.steps=2",
    "--config.model.width=8",
    "--config.model.latent_dim=2",
    "--config.eval.iw_samples=2",
)


def study(*flags):
    return subprocess.run(
        [sys.executable, "-m", "experiments.study", *flags],
        cwd=launch.REPOSITORY,
        env=launch.environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_list():
    done = study("--list")
    assert done.returncode == 0
    assert [line.split()[1] for line in done.stdout.splitlines()] == list(STUDIES)


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=x"], "--name: missing"),
        (
            ["--name=bonds", "--workdir=x"],
            "--name: bonds is no study. There are linear_vae",
        ),
        (["--name=beta", "--workdir=x", "--config.model.dept=1"], "Did you mean model.depth"),
        (["--nme=beta"], "python -m experiments.study --help"),
    ],
)
def test_bad_input(flags, message, tmp_path):
    done = study(*flags)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.thorough
def test_a_study_and_its_page_and_again(tmp_path):
    flags = ("--name=beta", f"--workdir={tmp_path / 'studies'}", f"--out={tmp_path / 'x.md'}")
    done = study(*flags, *LITTLE)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "x.md").read_text()
    assert "18 of 18 runs finished" in text and "| beta | rate falls: its smallest step |" in text
    folder = tmp_path / "studies"
    for name in ("studies.csv", "study.html", "beta/report.html", "beta/figures/beta.png"):
        assert (folder / name).is_file(), name
    assert "verdict" in done.stdout and str(folder / "study.html") in done.stdout

    (tmp_path / "x.md").unlink()
    again = study(*flags, *LITTLE)
    assert again.returncode == 0 and "finished earlier" in again.stdout
    assert (tmp_path / "x.md").read_text() == text

    # Another study in the same workdir joins it.
    other = study("--name=infinite_gradients", f"--workdir={folder}")
    assert other.returncode == 0, other.stderr
    with open(folder / "studies.csv", encoding="utf-8") as file:
        assert {row["study"] for row in csv.DictReader(file)} == {"infinite_gradients", "beta"}
    page = (folder / "study.html").read_text()
    assert 'id="beta"' in page and 'id="infinite_gradients"' in page
    # What a study found with other code is left out.
    (folder / "beta" / "study.json").write_text('{"budget": "quick", "code": "0"}')
    assert study("--name=infinite_gradients", f"--workdir={folder}").returncode == 0
    assert 'id="beta"' not in (folder / "study.html").read_text()
