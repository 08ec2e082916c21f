"""The sweeps that several report tests share, written once per session."""

import pathlib

import pytest

from tests.experiments.report.synthetic import write_workdir


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The quickstart's size: 81 runs, beta x latent_dim x depth x seed, one diverged."""
    axes = {
        "objective.beta": [4.0, 0.5, 1.0],
        "model.latent_dim": [2, 8, 32],
        "model.depth": [1, 2, 3],
        "seed": [0, 1, 2],
    }
    diverged = 3 * 3 * 3 - 3  # In the order above beta = 4 comes first: its last group, seed 0.
    folder = tmp_path_factory.mktemp("report") / "sweep"
    return write_workdir(folder, axes, diverged=(diverged,))


@pytest.fixture(scope="session")
def single(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """One run, nothing swept."""
    return write_workdir(tmp_path_factory.mktemp("report") / "single", {})
