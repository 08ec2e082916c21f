"""What studies measure, of results folders whose numbers are made up."""

import math
import pathlib
import re

import pytest

from experiments import config as configs
from experiments import plan as plans
from experiments import sweep
from experiments.report.aggregate import Estimate
from experiments.report.results import read_results
from experiments.studies import STUDIES, page
from experiments.studies.quantity import Quantity, difference
from experiments.workdir import Workdir
from vae import writers

ROOT = pathlib.Path(__file__).parents[3]


def folder_of(path, study, result):
    """A folder of the study's runs, of which each has the row `result(its flat config)`."""
    base, runs = configs.from_args(str(ROOT / STUDIES[study].CONFIG), [], [])
    made = []
    for overrides in runs:
        config = configs.resolve(base, overrides)
        made.append(plans.Run(configs.run_id(config), overrides, config))
    workdir = Workdir(path)
    axes = sweep.axes(runs)
    workdir.claim(base, axes, made)
    workdir.write_environment({"cores": 2, "cpu": "a processor", "versions": {"jax": "0.1"}})
    for run in made:
        if (row := result(run.flat)) is not None:
            fixed = {"run_id": run.run_id, "status": "ok", "wall_s": 2.0, "test/nll_samples": 500}
            row = fixed | run.overrides | {"seed": run.flat["seed"]} | row
            writers.write_json(workdir.run(run.run_id) / "result.json", row)
    workdir.write_results(made, list(axes))
    return path


def measured(folder, study):
    return {q.name: q for q in STUDIES[study].measure(read_results(folder))}


def of_bounds(flat):
    # One nat of each seed, which a difference of runs of the same seed is free of.
    nll = {"elbo": 100.5, "iwae": 99.0}[flat["objective.name"]] + flat["seed"]
    nll -= 0.25 * (flat["objective.estimator"] == "dreg")
    return {"test/nll": nll, "test/active_units": 20 + 12 * (flat["objective.name"] == "iwae")}


def test_bounds_are_compared_seed_by_seed(tmp_path):
    found = measured(folder_of(tmp_path, "bounds", of_bounds), "bounds")
    assert found["nll of VAE, nats"].seen == Estimate(102.5, pytest.approx(math.sqrt(0.5)), 5)
    assert found["nll, VAE − IWAE-5, nats"].seen == Estimate(1.5, 0.0, 5)
    assert found["active units, IWAE-5 − VAE"].seen.mean == 12
    assert found["nll, IWAE-5 − IWAE-5 by DReG, nats"].seen.mean == 0.25
    asked = {name: q.verdict for name, q in found.items() if q.at_least is not None}
    assert set(asked.values()) == {"met"} and len(asked) == 3


def of_beta(flat):
    beta, dip = flat["objective.beta"], 1.0 * (flat["objective.beta"] == 2)
    return {"test/rate": 10 / beta, "test/distortion": 50 + beta - 2 * dip, "test/active_units": 9}


def test_the_smallest_step_tells_whether_a_curve_is_monotone(tmp_path):
    found = measured(folder_of(tmp_path, "beta", of_beta), "beta")
    assert found["rate at β = 4, nats"].seen.mean == 2.5
    rate = found["rate falls: its smallest step"]
    assert rate.seen.mean == pytest.approx(10 / 4 - 10 / 8) and rate.verdict == "met"
    distortion = found["distortion rises: its smallest step"]
    assert distortion.seen.mean == pytest.approx(-1) and distortion.verdict == "not met"
    assert found["active units falls, or stays: its smallest step"].verdict == "met"


def of_priors(flat):
    place = ["standard", "vamp", "mixture", "flow"].index(flat["model.prior"])
    return {"test/nll": 100.0 + place, "test/elbo": -110.0 + place, "wall_s": 7.0 + place}


def test_priors_are_reported_either_way(tmp_path):
    found = measured(folder_of(tmp_path, "priors", of_priors), "priors")
    vamp = found["nll, N(0, I) − VampPrior, nats"]
    assert vamp.seen.mean == -1 and vamp.verdict == "not met"
    assert found["ELBO, flow − N(0, I), nats"].seen.mean == 3
    assert found["nll, N(0, I) − flow, nats"].verdict == "–"


def test_an_unfinished_study_has_no_verdict(tmp_path):
    def only_the_vae(flat):
        return of_bounds(flat) if flat["objective.name"] == "elbo" else None

    found = measured(folder_of(tmp_path, "bounds", only_the_vae), "bounds")
    assert found["nll of VAE, nats"].seen.n == 5
    assert found["nll, VAE − IWAE-5, nats"].verdict == "–"
    text = page.page({"bounds": tmp_path})
    assert (
        "5 of 15 runs finished" in text and "| bounds | nll, VAE − IWAE-5, nats | 0 | – |" in text
    )


def test_differences_are_over_the_seeds_that_both_have():
    seen = difference({0: 1.0, 1: 2.0, 2: 9.0}, {0: 0.5, 1: 0.5})
    assert seen == Estimate(1.0, pytest.approx(0.5), 2)


@pytest.mark.parametrize(("mean", "verdict"), [(1.0, "met"), (0.99, "not met"), (math.nan, "–")])
def test_verdict(mean, verdict):
    assert Quantity("x", Estimate(mean, 0.1, 3), at_least=1.0).verdict == verdict
    assert Quantity("x", Estimate(mean, 0.1, 3)).verdict == "–"


def test_the_page(tmp_path):
    results = {"bounds": of_bounds, "beta": of_beta, "priors": of_priors}
    folders = {name: folder_of(tmp_path / name, name, of) for name, of in results.items()}
    text = page.page(folders)
    assert "experiments.study --all --data_dir=DIR" in text
    assert "| bounds | nll, VAE − IWAE-5, nats | 5 | 1.50 ± 0.00 | 1.9 | ≥ 1.3 | met |" in text
    assert (
        "| beta | distortion rises: its smallest step | 3 | -1.00 ± 0.00 |  | ≥ 0 | not met |"
        in text
    )
    assert "15 of 15 runs finished, seeds 0, 1, 2, 3, 4, 0:00:30 of training" in text
    assert "on 2 cores of a processor" in text
    assert "| iwae, estimator = dreg | 5 |" in text.replace("objective = ", "")
    for study in STUDIES.values():
        assert " ".join(study.__doc__.split("\n\n")[0].split()) in text
    assert re.search(r"\| seconds a run \|\n.*\n\| standard .* 7 \|\n\| vamp .* 8 \|", text)
    table = page.verdicts({"beta": folders["beta"]})
    assert len(table.splitlines()) == 2 + 3 and "not met" in table


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_claim_paper_and_config(name):
    study = STUDIES[name]
    assert any(year in study.__doc__.partition("\n")[0] for year in ("2016", "2017", "2018"))
    assert (ROOT / study.CONFIG).is_file()
    assert f"--name={name} " in (ROOT / study.CONFIG).read_text()
