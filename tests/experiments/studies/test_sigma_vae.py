"""A learned σ against fixed ones: the weight that a fixed σ is, σ² and the error, verdicts."""

import numpy as np
import pytest

from experiments.studies import sigma_vae as study
from tests.experiments.studies import made

D = 784
ENVIRONMENT = {"dataset": {"tfds:mnist": {"shapes": {"test": [2000, 28, 28, 1]}}}}


def test_a_fixed_sigma_is_a_beta_of_its_square():
    # Equal in exact arithmetic, so to some ulps of float64; with twice the weight the KL's part of
    # the gradient is off by itself.
    assert study.gradient_difference(0.25, 0.25) < 1e-12
    assert study.gradient_difference(0.25, 0.5) > 1e-3


def test_squared_error_is_that_of_the_distortion():
    variance, error = 0.04, 0.03
    distortion = 0.5 * D * (np.log(2 * np.pi * variance) + error / variance)
    np.testing.assert_allclose(study.squared_error(distortion, variance, D), error, rtol=1e-12)


def found(better, ratio=1.0, best=2):
    """The learned σ `better` nats per value than the best, σ² `ratio` times the error."""
    sigmas, runs, cases = [0.1, 0.12, 0.14, 0.17, 0.2], [], []
    for seed in range(3):
        for place, sigma in enumerate(sigmas):
            elbo = D * (0.5 - 0.1 * abs(place - best) + 0.001 * seed)
            fields = {"model__likelihood": "gaussian", "model__sigma": sigma}
            runs.append(made.run(seed, {"test/elbo": elbo}, **fields))
        for likelihood in study.LEARNED:
            variance = 0.02
            error = variance / ratio
            distortion = 0.5 * D * (np.log(2 * np.pi * variance) + error / variance)
            row = {
                "test/elbo": D * (0.5 + better + 0.001 * seed),
                "train_eval/distortion": distortion,
            }
            runs.append(made.run(seed, row, model__likelihood=likelihood, model__sigma=0.31))
            cases.append(({"of": likelihood, "seed": seed}, {"variance": variance}))
    cases += [
        ({"of": "sigma2", "seed": 0}, {"difference": 1e-15}),
        ({"of": "two_sigma2", "seed": 0}, {"difference": 0.2}),
    ]
    return made.found(cases, runs, ENVIRONMENT)


@pytest.mark.parametrize(
    ("better", "not_worse", "as_good"),
    [
        (0.01, "reproduced", "reproduced"),
        (-0.03, "not reproduced", "not reproduced"),
        (0.03, "reproduced", "not reproduced"),
    ],
)
def test_verdicts(better, not_worse, as_good):
    of = found(better)
    verdicts = made.verdicts(study, of)
    for how in study.LEARNED.values():
        name = f"the same, less that of the best fixed σ, {how}"
        assert verdicts[f"{name}: not worse"] == not_worse
        assert verdicts[f"{name}: as good"] == as_good
        assert verdicts[f"σ² learned {how} over the squared error of training images"] == (
            "reproduced"
        )
    assert verdicts["fixed σ against β = σ²: relative difference of gradients"] == "reproduced"
    assert study.figure(of)


def test_a_best_at_the_end_of_the_grid_is_no_best():
    name = "steps of the grid from the best σ to its end"
    assert made.verdicts(study, found(0.0))[name] == "reproduced"
    assert made.verdicts(study, found(0.0, best=4))[name] == "not reproduced"


def test_a_variance_that_is_not_the_error_is_seen():
    verdicts = made.verdicts(study, found(0.0, ratio=1.2))
    assert "not reproduced" in {v for n, v in verdicts.items() if "squared error" in n}
