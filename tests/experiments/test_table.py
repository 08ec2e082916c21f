"""The table that the command prints: means and standard errors over seeds."""

import math

import pytest

from configs import default
from experiments import config as configs
from experiments import plan as plans
from experiments import sweep
from experiments.table import results_table
from experiments.workdir import Workdir
from vae import writers

AXES = (sweep.axis("objective.beta", [0.5, 2.0]), sweep.axis("seed", [0, 1, 2]))


def folder_of(path, axes, result):
    """A results folder in which run i has the row `result(i)`; None: it is not finished."""
    base = default.get_config().to_dict()
    runs = []
    for overrides in sweep.product(*axes):
        config = configs.resolve(base, overrides)
        runs.append(plans.Run(configs.run_id(config), overrides, config))
    workdir = Workdir(path)
    workdir.claim(base, sweep.axes(sweep.product(*axes)), runs)
    for i, run in enumerate(runs):
        if (row := result(i)) is not None:
            row = {"run_id": run.run_id, **run.overrides, "seed": run.flat["seed"]} | row
            writers.write_json(workdir.run(run.run_id) / "result.json", row)
    workdir.write_results(runs, list(sweep.axes(sweep.product(*axes))))
    return path


def good(elbo):
    return {"status": "ok", "test/elbo": elbo, "test/nll": 30.0, "test/nll_samples": 64}


def lines(text):
    return [line.split() for line in text.splitlines()]


def test_means_and_standard_errors_over_seeds(tmp_path):
    values = [-30.0, -31.0, -35.0, -20.0, -20.0, -20.0]
    text = results_table(folder_of(tmp_path, AXES, lambda i: good(values[i])))
    header, rule, half, two = text.splitlines()
    assert header.split() == ["beta", "runs", "elbo", "nll", "(K", "=", "64)"]
    assert set(rule) == {"-"} and len(rule) == len(header) == len(half) == len(two)
    # Standard error: sample deviation over √n; of -30, -31, -35 it is √7/√3.
    error = f"{math.sqrt(7 / 3):.2f}"
    assert half.split() == ["0.5", "3", "-32.00", "±", error, "30.00", "±", "0.00"]
    assert two.split()[:5] == ["2.0", "3", "-20.00", "±", "0.00"]


def test_one_seed_has_no_error_and_one_config_no_axis(tmp_path):
    text = results_table(folder_of(tmp_path, [sweep.axis("seed", [0])], lambda i: good(-30.0)))
    header, _, only = text.splitlines()
    assert header.split()[0] == "runs"
    assert only.split() == ["1", "-30.00", "30.00"]


def test_diverged_runs_are_counted_and_left_out_of_the_mean(tmp_path):
    bad = {"status": "diverged", "diverged/step": 3}

    def result(i):
        return bad if i in (1, 3, 4, 5) else good(-30.0 - i)

    _, _, some, all_ = lines(results_table(folder_of(tmp_path, AXES, result)))
    assert some[:6] == ["0.5", "2", "of", "3", "-31.00", "±"]
    assert all_ == ["2.0", "0", "of", "3", "diverged", "diverged"]


def test_columns_that_nothing_was_measured_for_are_left_out(tmp_path):
    def result(i):
        return {"status": "ok", "test/elbo": -30.0}

    assert "nll" not in results_table(folder_of(tmp_path, AXES, result))


@pytest.mark.parametrize("samples", [(8, 8), (8, 64)])
def test_nll_says_its_k(tmp_path, samples):
    axes = (sweep.axis("eval.iw_samples", [8, 64]),)

    def result(i):
        return good(-30.0) | {"test/nll_samples": samples[i]}

    text = results_table(folder_of(tmp_path, axes, result))
    assert f"nll (K = {', '.join(map(str, sorted(set(samples))))})" in text
