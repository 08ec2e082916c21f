"""The study of the linear VAE: its maxima by SciPy, and verdicts on made-up numbers."""

import numpy as np
import pytest
import scipy.stats

from experiments.studies import linear, linear_vae
from experiments.studies.cases import Case, Context, Found
from vae.errors import UserError


def test_the_maximum_is_that_of_probabilistic_pca():
    rng, q = np.random.default_rng(0), 2
    x = rng.normal(size=(50, 5)) * [3.0, 2.0, 1.0, 0.5, 0.4] + 1
    values, vectors = np.linalg.eigh(np.cov(x.T, ddof=0))
    noise = values[:-q].mean()
    directions = vectors[:, -q:]
    covariance = noise * np.eye(5) + directions @ np.diag(values[-q:] - noise) @ directions.T
    expected = scipy.stats.multivariate_normal(x.mean(0), covariance).logpdf(x).mean()
    best = linear_vae.best_log_likelihood(x, q)
    assert best == pytest.approx(expected, rel=1e-12)
    # The trap: a covariance over N − 1 takes d/2 · ln(N/(N − 1)) off.
    lost = best - linear_vae.best_log_likelihood(x, q, ddof=1)
    assert lost == pytest.approx(2.5 * np.log(50 / 49))


def test_descent_finds_what_the_theorem_says(tmp_path):
    arguments = {"form": "modes", "beta": 1.0, "eta2": 0.3, "seeds": 2, "steps": 20_000}
    values = linear_vae.run(arguments, Context(tmp_path, None, None))
    values = {name: np.asarray(value) for name, value in values.items()}
    assert values["singular"].shape == (2, 6) and values["loss"].dtype == np.float64
    # A third of the study's steps.
    np.testing.assert_allclose(values["singular"][:, :4], [[3.7, 1.7, 0.7, 0.2]] * 2, atol=1e-5)
    assert list(values["active_units"]) == [4, 4]


def test_training_on_images_comes_to_the_maximum_from_below():
    rng = np.random.default_rng(1)
    x = 0.5 + rng.normal(size=(200, 6)) * np.array([1.0, 0.6, 0.3, 0.2, 0.2, 0.2])
    arguments = {"latents": 2, "steps": 4200, "seeds": 2}
    values = linear_vae._images(arguments, x)
    elbo, best = np.asarray(values["elbo"]), float(values["best"])
    assert elbo.dtype == np.float64 and np.all(elbo < best)
    assert np.all(best - elbo < 0.05) and np.all(best - np.asarray(values["curve"])[:, 0] > 1)
    # In float32 the same, to its digits.
    np.testing.assert_allclose(np.asarray(values["curve"])[:, -1], elbo, atol=1e-4)


def test_mnist_is_asked_for_by_its_flag(tmp_path, monkeypatch):
    def missing(*_, **__):
        raise UserError("data.dir: nothing there.")

    monkeypatch.setattr(linear_vae.data, "load", missing)
    (mnist,) = [c for c in linear_vae.cases("full") if c.get("source") == "tfds:mnist"]
    with pytest.raises(UserError, match="--data_dir: .* tfds:mnist .*nothing there"):
        linear_vae.run(mnist, Context(tmp_path, None, str(tmp_path)))
    assert not [c for c in linear_vae.cases("quick") if c.get("source") == "tfds:mnist"]


def modes_case(beta=1.0, eta2=0.3, rate_error=0.0, stuck=0.0):
    """As theory has it, and off."""
    of, level = linear.optimum(beta, eta2), beta * eta2
    constants = 4 * np.log(2 * np.pi * eta2)
    loss = of.error / (2 * eta2) + constants + beta * of.rate
    values = {
        "loss": np.full(3, loss + stuck),
        "rate": np.full(3, of.rate + rate_error),
        "error": np.full(3, of.error),
        "active_units": np.full(3, of.active_units - (stuck > 0)),
        "singular": np.tile(np.maximum(linear.VARIANCES - level, 0)[:6], (3, 1)),
        "variances": np.tile(np.minimum(1, level / linear.VARIANCES)[:6], (3, 1)),
    }
    arguments = {"form": "modes", "beta": beta, "eta2": eta2, "seeds": 3, "steps": 60_000}
    return Case(arguments, values, 1.0)


def images_case(gap):
    arguments = {"form": "images", "source": "digits", "latents": 32}
    elbo = 35.0 - np.array([gap - 0.01, gap, gap + 0.01])
    return Case(arguments, {"elbo": elbo, "best": 35.0, "best_ddof1": 34.9}, 1.0)


def verdicts(*cases):
    return {q.name: q.verdict for q in linear_vae.measure(Found("quick", None, cases)) if q.asked}


def test_verdicts():
    true = verdicts(*(modes_case(*s) for s in linear_vae.SETTINGS), images_case(0.05))
    assert set(true.values()) == {"reproduced"} and len(true) == 4 * 6 + 2
    assert verdicts(modes_case(rate_error=1e-4))["rate at β = 1, η² = 0.3, nats"] == (
        "not reproduced"
    )
    # Where a mode is at the level itself, so much is left by then; elsewhere not.
    assert verdicts(modes_case(1.0, 0.5, 5e-4))["rate at β = 1, η² = 0.5, nats"] == "reproduced"
    stuck = verdicts(modes_case(stuck=0.1))
    assert stuck["loss above the global minimum at β = 1, η² = 0.3, nats"] == "not reproduced"
    assert stuck["active units at β = 1, η² = 0.3"] == "not reproduced"
    assert verdicts(images_case(0.5))["ELBO of digits, 32 latents, nats"] == "not reproduced"
    above = verdicts(images_case(-0.05))["maximum of log p − ELBO of digits, 32 latents, nats"]
    assert above == "not reproduced"
