"""What studies of trained runs measure, of results folders whose numbers are made up; the pages."""

import csv
import math
import pathlib
import re

import pytest

from experiments import config as configs
from experiments import plan as plans
from experiments import sweep
from experiments.report.results import read_results
from experiments.studies import BUDGETS, STUDIES, cases, verdicts, writing
from experiments.studies.cases import Found
from experiments.studies.quantity import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from experiments.workdir import Workdir
from vae import writers

ROOT = pathlib.Path(__file__).parents[3]
MADE = {"cores": 2, "cpu": "a processor", "versions": {"python": "3.1", "jax": "0.1"}}


def folder_of(path, study, result, budget="quick"):
    """A folder of the study's runs, of which each has the row `result(its flat config)`."""
    base, runs = configs.from_args(str(ROOT / STUDIES[study].CONFIGS[budget]), [], [])
    made = []
    for overrides in runs:
        config = configs.resolve(base, overrides)
        made.append(plans.Run(configs.run_id(config), overrides, config))
    workdir = Workdir(path)
    axes = sweep.axes(runs)
    workdir.claim(base, axes, made)
    workdir.write_environment(MADE)
    for run in made:
        if (row := result(run.flat)) is not None:
            fixed = {"run_id": run.run_id, "status": "ok", "wall_s": 2.0, "test/nll_samples": 500}
            row = fixed | run.overrides | {"seed": run.flat["seed"]} | row
            writers.write_json(workdir.run(run.run_id) / "result.json", row)
    workdir.write_results(made, list(axes))
    return path


def found_in(folder, budget="quick"):
    return Found(budget, read_results(folder))


def measured(folder, study):
    return {q.name: q for q in STUDIES[study].measure(found_in(folder))}


def of_bounds(flat):
    # One nat of each seed, which a difference of runs of the same seed is free of.
    nll = {"elbo": 100.5, "iwae": 99.0}[flat["objective.name"]] + flat["seed"]
    return {"test/nll": nll, "test/active_units": 20 + 12 * (flat["objective.name"] == "iwae")}


def test_bounds_are_compared_seed_by_seed(tmp_path):
    found = measured(folder_of(tmp_path, "bounds", of_bounds), "bounds")
    vae = found["nll of VAE, nats"]
    assert (vae.measured, vae.error, vae.seeds) == (102.5, pytest.approx(math.sqrt(0.5)), 5)
    better = found["nll, VAE − IWAE-5, nats"]
    assert (better.measured, better.error, better.verdict) == (1.5, 0.0, REPRODUCED)
    assert found["active units, IWAE-5 − VAE"].measured == 12
    assert {q.verdict for q in found.values() if q.asked} == {REPRODUCED}


def test_the_table_of_iwae_is_asked_for_at_full_budget(tmp_path):
    # Burda et al. 2016, table 1, one stochastic layer: nll (active units).
    table = {
        ("elbo", 1): (86.76, 19),
        ("elbo", 5): (86.47, 20),
        ("elbo", 50): (86.35, 20),
        ("iwae", 5): (85.54, 22),
        ("iwae", 50): (84.78, 25),
    }

    def like_it(off):
        def row(flat):
            nats, units = table[flat["objective.name"], flat["objective.samples"]]
            return {"test/nll": nats + off, "test/active_units": units}

        return row

    for off, verdict in ((0.4, REPRODUCED), (0.6, NOT_REPRODUCED)):
        folder = folder_of(tmp_path / str(off), "bounds", like_it(off), "full")
        found = found_in(folder, "full")
        asked = {q.name: q.verdict for q in STUDIES["bounds"].measure(found) if q.asked}
        assert {v for n, v in asked.items() if n.startswith("nll of")} == {verdict}
        assert {v for n, v in asked.items() if "less" in n or "units" in n} == {REPRODUCED}
        assert len(asked) == 5 + 5 + 4
        STUDIES["bounds"].figure(found)


def test_superfluous_latents_may_cost_a_nat_and_no_more(tmp_path):
    for lost, verdict in ((0.9, REPRODUCED), (1.1, NOT_REPRODUCED)):

        def row(flat, lost=lost):
            size = flat["model.latent_dim"]
            on_train = -100 - 30 / size
            elbo = on_train - lost * (size == 200)
            # The gap widens by as much as the test images lose.
            return {"test/elbo": elbo, "train_eval/elbo": on_train, "gap/elbo": on_train - elbo}

        found = measured(folder_of(tmp_path / str(lost), "latents", row), "latents")
        asked = {q.name: q.verdict for q in found.values() if q.asked}
        assert len(asked) == 5
        gain = found["test ELBO, 200 − 20 latents, nats"].measured
        assert gain == pytest.approx(30 / 20 - 30 / 200 - lost)
        [gap] = (n for n in asked if n.startswith("ELBO of training images"))
        assert asked.pop(gap) == verdict
        assert set(asked.values()) == {REPRODUCED}


def test_latents_that_are_not_at_rest_are_told_from_overfitting(tmp_path):
    def row(flat):
        elbo = -100.0 - 9 * (flat["model.latent_dim"] == 200)
        return {"test/elbo": elbo, "train_eval/elbo": elbo + 5, "gap/elbo": 5.0, "steps": 3200}

    found = measured(folder_of(tmp_path, "latents", row), "latents")
    lost = found["test ELBO, 200 − 20 latents, nats"]
    assert lost.verdict == NOT_REPRODUCED
    assert lost.remark.startswith("training images lose 9.0 nats too: it is no overfitting")
    assert lost.remark.endswith("in 3,200 steps")


def of_beta(flat):
    beta, dip = flat["objective.beta"], 1.0 * (flat["objective.beta"] == 2)
    return {"test/rate": 10 / beta, "test/distortion": 50 + beta - 2 * dip, "test/active_units": 9}


def test_the_smallest_step_tells_whether_a_curve_is_monotone(tmp_path):
    found = measured(folder_of(tmp_path, "beta", of_beta), "beta")
    assert found["rate at β = 4, nats"].measured == 2.5
    rate = found["rate falls: its smallest step"]
    assert rate.measured == pytest.approx(10 / 4 - 10 / 8) and rate.verdict == REPRODUCED
    distortion = found["distortion rises: its smallest step"]
    assert distortion.measured == pytest.approx(-1) and distortion.verdict == NOT_REPRODUCED
    assert found["active units falls, or stays: its smallest step"].verdict == REPRODUCED


def of_priors(flat):
    place = ["standard", "vamp", "mixture", "flow"].index(flat["model.prior"])
    return {"test/nll": 100.0 + place, "test/elbo": -110.0 + place, "wall_s": 7.0 + place}


def test_priors_are_reported_either_way(tmp_path):
    found = measured(folder_of(tmp_path, "priors", of_priors), "priors")
    vamp = found["nll, N(0, I) − VampPrior, nats"]
    assert vamp.measured == -1 and vamp.verdict == NOT_REPRODUCED
    assert found["ELBO, flow − N(0, I), nats"].measured == 3
    assert not found["nll, N(0, I) − flow, nats"].asked


def test_an_unfinished_study_is_inconclusive(tmp_path):
    def only_the_vae(flat):
        return of_bounds(flat) if flat["objective.name"] == "elbo" else None

    found = measured(folder_of(tmp_path, "bounds", only_the_vae), "bounds")
    assert found["nll of VAE, nats"].seeds == 5
    better = found["nll, VAE − IWAE-5, nats"]
    assert better.verdict == INCONCLUSIVE and "5 of 5 seeds diverged or have no" in better.remark


def test_a_diverged_run_is_in_the_verdict(tmp_path):
    def one_diverges(flat):
        row = of_bounds(flat)
        bad = flat["seed"] == 3 and flat["objective.name"] == "elbo"
        return {"status": "diverged"} if bad else row

    folder = folder_of(tmp_path, "bounds", one_diverges)
    better = measured(folder, "bounds")["nll, VAE − IWAE-5, nats"]
    assert better.verdict == INCONCLUSIVE and better.remark.startswith("1 of 5 seeds diverged")
    assert "1 diverged" in verdicts.effort(found_in(folder))


def test_the_tables_and_the_page(tmp_path):
    results = {"bounds": of_bounds, "beta": of_beta, "priors": of_priors}
    found = {n: found_in(folder_of(tmp_path / n, n, of)) for n, of in results.items()}
    writing.write(found, tmp_path, MADE)
    with open(tmp_path / "studies.csv", encoding="utf-8") as file:
        rows = {(r["study"], r["quantity"]): r for r in csv.DictReader(file)}
    row = rows["bounds", "nll, VAE − IWAE-5, nats"]
    assert (row["expected"], row["measured"], row["relation"]) == ("1.3", "1.5", ">=")
    assert (row["seeds"], row["verdict"], row["seconds"]) == ("5", "reproduced", "20.0")
    row = rows["beta", "distortion rises: its smallest step"]
    assert (row["verdict"], row["ci_low"], row["ci_high"]) == ("not reproduced", "-1.0", "-1.0")

    page = (tmp_path / "study.html").read_text()
    assert page.index("Verdicts") < page.index(">B1 bounds<")
    assert 'class="verdict not-reproduced"' in page and "<script>" not in page
    assert "2 cores of a processor; Python 3.1, JAX 0.1" in page

    writing.write_page(tmp_path / "x.md", found, MADE, "python -m experiments.study --all")
    text = (tmp_path / "x.md").read_text()
    assert "Written by `python -m experiments.study --all`" in text
    line = (
        "| beta | distortion rises: its smallest step | ≥ 0 | −1 | [−1, −1] | 3 "
        "| not reproduced |  |"
    )
    assert line in text
    assert "10 of 10 runs finished, 0:00:20" in text
    for name in found:
        assert " ".join(STUDIES[name].__doc__.split("\n\n")[0].split()) in text
    assert re.search(r"\| seconds a run \|\n.*\n\| standard .* 7 \|\n\| vamp .* 8 \|", text)
    assert "not reproduced" in writing.terminal(found)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_says_claim_paper_and_config(name):
    study = STUDIES[name]
    first = study.__doc__.partition("\n")[0]
    source = r"\(.*seed S\d.*\)\.$" if study.ID[0] == "S" else r"\(.*(19|20)\d\d.*\)\.$"
    assert re.search(source, first) and len(first) <= 100, first
    assert re.fullmatch(r"[ABCS]\d*\+?", study.ID)
    assert hasattr(study, "CONFIGS") or hasattr(study, "cases")
    if hasattr(study, "CONFIGS"):
        assert f"--name={name} " in (ROOT / study.CONFIGS["quick"]).read_text()
        assert (ROOT / study.CONFIGS["full"]).is_file()
    for budget in BUDGETS:
        for arguments in cases.of_study(study, budget):
            assert arguments == writers.plain(arguments)


def test_names_and_order():
    assert len({study.ID for study in STUDIES.values()}) == len(STUDIES)
    for name, study in STUDIES.items():
        assert study.__name__ == f"experiments.studies.{name}"
