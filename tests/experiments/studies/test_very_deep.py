"""The proxy of very deep models: its measurement on a small case, and verdicts of made-up ones."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import very_deep
from experiments.studies.cases import Context
from experiments.studies.quantity import NOT_REPRODUCED, REPRODUCED
from tests.experiments.studies import made
from vae import data, train
from vae.hparams import HParams, stack

CASE = {"layers": 2, "norm": "none", "scale": "logvar", "steps": 6, "seeds": 2}


@pytest.mark.thorough
def test_a_case_is_what_training_does(tmp_path, monkeypatch):
    # A learning rate at which nothing happens, and one that no float32 survives.
    monkeypatch.setattr(very_deep, "RATES", (1e-4, 1e6))
    monkeypatch.setattr(very_deep, "SKIP", (np.inf, 1e-3))
    found = very_deep.run(CASE, Context(tmp_path, None, None))
    assert set(found) == {"diverged", "skipped", "largest"}
    assert {values.shape for values in found.values()} == {(2, 2, 2)}
    # Nothing is skipped without a threshold; with one below every norm, everything is.
    np.testing.assert_array_equal(found["skipped"][:, 0], 0)
    np.testing.assert_array_equal(found["skipped"][:, 1], 1)
    np.testing.assert_array_equal(found["diverged"][0], 0)
    np.testing.assert_array_equal(found["diverged"][1], [[1, 1], [0, 0]])
    np.testing.assert_array_equal(found["largest"][1, 0], very_deep.OVERFLOW)
    # The largest norm of one run, step by step.
    digits = data.load("digits", binarization="dynamic")
    spec = very_deep.spec_of(CASE, digits)
    examples = data.Examples(jnp.asarray(digits.train), digits.transform)
    runs = stack([HParams(seed=1, learning_rate=1e-4, b2=0.9)])
    population, norms = train.init(spec, runs, digits.train_mean), []
    for _ in range(CASE["steps"]):
        population = train.train_chunk(spec, "vmap", population, examples, 1)
        norms.append(float(population.interval.means["grad_norm"][0]))
        population = train.reset_interval(population)
    assert np.ptp(norms) > 0.1
    assert found["largest"][0, 0, 1] == pytest.approx(np.log10(max(norms)), rel=1e-4)


def test_the_cases_are_every_combination():
    full = very_deep.cases("full")
    assert len(full) == 3 * 2 * 3 and {c["steps"] for c in full} == {2000}
    assert {c["layers"] for c in full} == {10, 20, 40}
    quick = very_deep.cases("quick")
    kept = [{k: c[k] for k in ("layers", "norm", "scale")} for c in full]
    assert all({k: c[k] for k in ("layers", "norm", "scale")} in kept for c in quick)


def made_up(diverged, largest):
    """Found: values for (scale, BatchNorm?, skip?), the same for all learning rates."""
    cases = []
    for arguments in very_deep.cases("quick"):
        shape = (len(very_deep.RATES), 2, arguments["seeds"])
        of = [(arguments["scale"], arguments["norm"] == "batch", skip) for skip in (False, True)]
        values = {
            "diverged": np.stack([np.full(shape[::2], diverged(*o)) for o in of], axis=1),
            "largest": np.stack([np.full(shape[::2], largest(*o)) for o in of], axis=1),
            "skipped": np.full(shape, 0.25),
        }
        values["largest"] = values["largest"] + 0.01 * np.arange(shape[2])
        cases.append((arguments, values))
    return made.found(cases)


def worst(scale, batch, skip):
    return 0.5 * (scale == "logvar" and not batch and not skip)


def test_the_claims_hold_where_exp_alone_diverges():
    of = made_up(worst, lambda *o: 2 + 10 * worst(*o))
    verdicts = made.verdicts(very_deep, of)
    assert len(verdicts) == 7 and set(verdicts.values()) == {REPRODUCED}
    found = {q.name: q for q in very_deep.measure(of)}
    assert found["share diverged, 10 layers, exp"].measured == 0.5
    assert found["share diverged, 10 layers, exp, skip"].measured == 0
    assert found["skip rate, 20 layers, softplus"].measured == 0.25
    assert found["log10 of the largest gradient norm, 10 layers, exp + BN"].measured < 2.1
    gain = "log10 of the largest gradient norm, exp − softplus: the sign"
    assert found[gain].values == pytest.approx((5,) * 4)


def test_they_do_not_where_the_remedies_make_it_worse():
    of = made_up(lambda *o: 0.5 - worst(*o), lambda *o: 7 - 10 * worst(*o))
    assert set(made.verdicts(very_deep, of).values()) == {NOT_REPRODUCED}


def test_the_figure_has_norms_below_shares():
    sheet = very_deep.figure(made_up(worst, lambda *o: 2 + 10 * worst(*o)))
    labels = [panel.get_ylabel() for panel in sheet.get_axes()]
    assert labels[:3:2] == ["share diverged", "log10 of the largest norm"]
    assert len(sheet.get_axes()[0].get_legend_handles_labels()[1]) == 9
