"""Statistics over seeds against independent computations, and the choice of runs to show."""

import csv
import math

import numpy as np
import pytest

from experiments.report import aggregate
from experiments.report.results import read_results
from tests.experiments.report.synthetic import write_workdir


def read_rows(workdir):
    with (workdir / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_estimate_is_mean_and_standard_error():
    values = [1.0, 4.0, math.nan, 2.5]
    seen = aggregate.estimate(values)
    kept = np.array([1.0, 4.0, 2.5])
    assert seen.n == 3
    assert seen.mean == pytest.approx(kept.mean(), rel=1e-12)
    assert seen.error == pytest.approx(np.sqrt(((kept - 2.5) ** 2).sum() / 2 / 3), rel=1e-12)


def test_one_value_has_no_error_and_none_has_nothing():
    assert math.isnan(aggregate.estimate([3.0]).error)
    assert aggregate.estimate([math.nan]).n == 0


def test_ablation_averages_within_a_seed_before_it_averages_over_seeds(sweep):
    results = read_results(sweep)
    beta, latent_dim, _ = results.axes
    curves = aggregate.ablation(results, beta, latent_dim, "test/rate")
    assert [value for value, _ in curves] == [2, 8, 32]
    rows = read_rows(sweep)
    for value, points in curves:
        assert [point.position for point in points] == [0, 1, 2]
        for point in points:
            per_seed = []
            for seed in range(3):
                rates = [
                    row["test/rate"]
                    for row in rows
                    if float(row["objective.beta"]) == beta.values[point.position]
                    and int(row["model.latent_dim"]) == value
                    and int(row["seed"]) == seed
                ]
                assert len(rates) == 3
                if all(rates):
                    per_seed.append(np.mean([float(rate) for rate in rates]))
            diverged = (value, beta.values[point.position]) == (32, 4.0)
            assert point.estimate.n == len(per_seed) == (2 if diverged else 3)
            assert (point.runs, point.expected) == (3 * len(per_seed), 9)
            assert point.estimate.mean == pytest.approx(np.mean(per_seed), rel=1e-12)
            error = np.std(per_seed, ddof=1) / math.sqrt(len(per_seed))
            assert point.estimate.error == pytest.approx(error, rel=1e-9)


def test_a_point_without_a_whole_seed_is_left_out(tmp_path):
    axes = {"objective.beta": [1.0, 2.0], "model.depth": [1, 2], "seed": [0]}
    results = read_results(write_workdir(tmp_path / "w", axes, diverged=(3,)))
    ((_, points),) = aggregate.ablation(results, results.axes[0], None, "test/elbo")
    assert [point.position for point in points] == [0]


def test_the_companion_is_the_next_axis_and_the_last_has_the_first(sweep):
    results = read_results(sweep)
    names = [aggregate.companion(results, axis).label for axis in results.axes]
    assert names == ["latent_dim", "depth", "beta"]


def test_main_effects_are_the_ends_of_each_axis(sweep):
    results = read_results(sweep)
    effects = {
        axis.label: ends["test/rate"]
        for axis, ends in aggregate.main_effects(results, ["test/rate"])
    }
    rows = [row for row in read_rows(sweep) if float(row["objective.beta"]) == 0.5]
    assert effects["beta"][0] == pytest.approx(np.mean([float(r["test/rate"]) for r in rows]))
    assert effects["beta"][0] > effects["beta"][1]


def test_representatives_hold_middle_and_extremes_whatever_the_results(sweep):
    groups = aggregate.groups(read_results(sweep))
    assert len(groups) == 27
    chosen = [group.index for group in aggregate.representatives(groups)]
    assert len(chosen) == len(set(chosen)) == 12
    assert chosen == sorted(chosen)
    star = [(1, 1, 1), (0, 1, 1), (2, 1, 1), (1, 0, 1), (1, 2, 1), (1, 1, 0), (1, 1, 2)]
    assert set(star) | {(0, 0, 0), (2, 2, 2)} <= set(chosen)


def test_few_groups_are_all_shown(tmp_path):
    axes = {"objective.beta": [0.5, 1.0, 2.0], "seed": [0, 1]}
    groups = aggregate.groups(read_results(write_workdir(tmp_path / "w", axes)))
    assert aggregate.representatives(groups) == groups


def test_a_training_curve_leaves_a_diverged_run_out(tmp_path):
    workdir = write_workdir(tmp_path / "w", {"seed": [0, 1, 2]}, diverged=(1,))
    results = read_results(workdir)
    (group,) = aggregate.groups(results)
    curve = aggregate.training_curve(group, "test/elbo")
    kept = np.stack([results.runs[i].curves["test/elbo"] for i in (0, 2)])
    np.testing.assert_array_equal(curve.step, results.runs[0].step)
    np.testing.assert_allclose(curve.mean, kept.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(curve.error, kept.std(axis=0, ddof=1) / math.sqrt(2), rtol=1e-12)


def test_a_group_of_diverged_runs_shows_how_far_they_came(tmp_path):
    results = read_results(write_workdir(tmp_path / "w", {"seed": [0]}, diverged=(0,)))
    (group,) = aggregate.groups(results)
    curve = aggregate.training_curve(group, "test/elbo")
    assert curve.step[-1] == results.runs[0].number("diverged/step") == 600


@pytest.mark.parametrize(("low", "high"), [(-3.0, 17.0), (95.2, 131.0), (0.0101, 0.0133)])
def test_levels_are_round_and_inside(low, high):
    levels = aggregate.elbo_levels(low, high)
    assert 2 <= len(levels) <= 8
    assert low <= levels[0] <= levels[-1] <= high
    step = levels[1] - levels[0]
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5)) < 1e-6


def test_thin_keeps_the_ends():
    np.testing.assert_array_equal(aggregate.thin(5, 9), [0, 1, 2, 3, 4])
    kept = aggregate.thin(1000, 50)
    assert (len(kept), kept[0], kept[-1]) == (50, 0, 999)
