"""Cross-validation: what --folds makes of a command, and what comes of it."""

import csv
import json

import numpy as np
import pytest

from experiments import config as configs
from experiments.report import aggregate
from experiments.report.results import read_results
from tests.experiments import launch
from vae import data
from vae.errors import UserError

DEFAULT = "configs/default.py"
FLAGS = (*launch.SWEEP, "--config.eval.every=100")


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """Two conditions, three folds, two seeds."""
    workdir = tmp_path_factory.mktemp("folds") / "work"
    launch.run(workdir, *FLAGS, "--folds=3", "--report")
    return workdir


def rows_of(workdir):
    with (workdir / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_run_is_made_for_every_fold():
    base, runs = configs.from_args(DEFAULT, [], ["objective.beta=1,2"], folds=3)
    assert base["data"]["folds"] == 3
    places = [(run["data.fold"], run["objective.beta"]) for run in runs]
    assert sorted(places) == [(fold, beta) for fold in range(3) for beta in (1.0, 2.0)]


@pytest.mark.parametrize(
    ("overrides", "sweeps", "field"),
    [([("data.folds", "4")], [], "data.folds"), ([], ["data.fold=0,1"], "data.fold")],
)
def test_folds_given_twice_are_refused(overrides, sweeps, field):
    with pytest.raises(UserError, match=rf"^{field}: --folds=3 sets it"):
        configs.from_args(DEFAULT, overrides, sweeps, folds=3)


def test_one_fold_is_refused():
    assert "--folds=1" in launch.user_error("--folds=1").replace("flag ", "")


@pytest.mark.thorough
def test_a_fold_is_the_run_on_its_arrays(folded, tmp_path):
    """The same numbers as of a file that holds the fold's two parts."""
    part = data.load("digits", folds=3, fold=1)
    assert part.transform.scale == 1 / 16
    np.savez(
        tmp_path / "part.npz",
        train=(part.train / 16).astype(np.float32),
        test=(part.test / 16).astype(np.float32),
    )
    flags = (*FLAGS, f"--config.data.source=npz:{tmp_path / 'part.npz'}")
    launch.run(tmp_path / "work", *flags)

    def numbers(workdir, **wanted):
        return {
            (row["objective.beta"], row["seed"]): float(row["test/elbo"])
            for row in rows_of(workdir)
            if all(row[name] == value for name, value in wanted.items())
        }

    folds, alone = numbers(folded, **{"data.fold": "1"}), numbers(tmp_path / "work")
    assert folds.keys() == alone.keys() and len(folds) == 4
    for key, value in folds.items():
        # Bytes over 16 are exact in float32: the programs differ by a scaling alone.
        assert value == pytest.approx(alone[key], rel=1e-5)


@pytest.mark.thorough
def test_means_are_over_folds(folded):
    results = read_results(folded)
    assert [axis.field for axis in results.axes] == ["objective.beta"]
    assert results.folds == (0, 1, 2) and results.repeats == "folds"
    rows = rows_of(folded)
    for group in aggregate.groups(results):
        of = [row for row in rows if float(row["objective.beta"]) == group.values[0]]
        means = [
            np.mean([float(row["test/elbo"]) for row in of if row["data.fold"] == str(fold)])
            for fold in range(3)
        ]
        seen = group.estimate("test/elbo")
        assert seen.n == 3
        assert seen.mean == pytest.approx(np.mean(means), rel=1e-12)
        assert seen.error == pytest.approx(np.std(means, ddof=1) / np.sqrt(3), rel=1e-9)


def test_the_report_says_so(folded):
    page = (folded / "report.html").read_text()
    assert "folds: 0, 1, 2, seeds: 0, 1" in page
    assert "<h3>Over folds</h3>" in page and "Folds share training data" in page
    environment = json.loads((folded / "environment.json").read_text())
    assert "fold" in json.dumps(environment["dataset"])


@pytest.mark.thorough
def test_one_fold_of_several_is_a_split_and_its_seeds_are_the_replicates(tmp_path):
    flags = (*FLAGS, "--config.data.folds=3", "--config.data.fold=1")
    launch.run(tmp_path / "work", *flags)
    results = read_results(tmp_path / "work")
    assert results.folds == () and results.repeats == "seeds"
    assert {group.estimate("test/elbo").n for group in aggregate.groups(results)} == {2}
