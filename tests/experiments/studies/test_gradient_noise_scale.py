"""The study of the gradient noise scale: statistics, a small run, verdicts on made-up numbers."""

import numpy as np
import pytest
from scipy import stats

from experiments.studies import gradient_noise_scale as study
from experiments.studies.cases import Case, Context, Found
from experiments.studies.quantity import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED


def replicates(scale, seed=0, shape=(5, 4), number=16, spread=0.1):
    """|G|² = 1 and tr Σ = `scale` [..., 2 ways, 2 parts] with this relative standard deviation."""
    rng = np.random.default_rng(seed)
    size = (*shape, number, 2, 2)
    scale = np.broadcast_to(scale, (*shape, 2, 2))[:, :, None]
    return {
        "squared_gradient": rng.normal(1, spread, size),
        "trace": scale * rng.normal(1, spread, size),
    }


def test_looks():
    assert study.looks(3000).tolist() == [0, 10, 30, 100, 300, 1000, 3000]
    assert study.looks(0).tolist() == [0]


def test_standard_errors_are_those_of_repetitions():
    logs, errors = study.estimates(replicates(50.0, shape=(400, 5)))
    # 8000 logarithms: their standard deviation is known to 1%. The mean is off by a relative
    # spread²/16 at most, and the errors, each of 16 replicates, are √ of means: 2% too small.
    assert errors.mean() == pytest.approx(logs.std(), rel=0.05)
    assert logs.mean() == pytest.approx(np.log(50), abs=4 * logs.std() / np.sqrt(8000) + 1e-3)


def test_p_is_uniform_where_the_two_ways_agree():
    p = study.p_values(replicates(50.0, shape=(200, 5))).ravel()
    assert stats.kstest(p, "uniform").pvalue > 1e-3
    # One look of one seed in 40 tests, where one way is off by 20 standard errors.
    scale = np.full((5, 4, 2, 2), 50.0)
    scale[3, 2, 0, 1] *= 2
    assert study.smallest_p(study.p_values(replicates(scale))) < 1e-4


def test_where_no_gradient_stands_out():
    values = replicates(5.0)
    values["squared_gradient"][2, 1] = -0.1
    assert np.all(study.pooled(values)[2, 1] == np.inf)
    assert np.isfinite(study.pooled(values)).sum() == 5 * 4 * 2 - 2
    assert np.isnan(study.estimates(values)[0][2, 1]).all()


@pytest.mark.thorough
def test_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "BIG", 128)
    monkeypatch.setattr(study, "SMALL", 16)
    arguments = {"schedule": "constant", "steps": 0, "seeds": 2, "replicates": 6}
    values = study.run(arguments, Context(tmp_path, None, None))
    assert values["trace"].shape == (1, 2, 6, 2, 2) and values["step"].tolist() == [0]
    logs, errors = study.estimates(values)
    # ln 2 nats of 64 pixels and some more: no weight has learned anything yet.
    assert np.all(np.abs(values["loss"] - 64 * np.log(2)) < 5)
    assert np.all(
        np.abs(np.diff(logs, axis=2)) < 6 * np.sqrt((errors**2).sum(axis=2, keepdims=True))
    )
    # A gradient that all examples share: a few of them tell it.
    assert np.all((logs > np.log(0.5)) & (logs < np.log(30)))
    # Sums of 128 float32 numbers in two orders.
    assert np.all(values["difference"] < 1e-5)


def made_up(growth=(1.0, 1.0), ways=1.0, difference=1e-7, spread=0.01):
    """B_simple from 10 on, by these powers of ten over training, at a loss that falls from 20."""
    cases = []
    for number, arguments in enumerate(study.cases("quick")):
        step = study.looks(arguments["steps"])
        loss = 20.0 - np.arange(len(step))[:, None] - np.linspace(0, 0.1, 4)
        decades = np.linspace(0, 1, len(step))[:, None, None, None] * np.array(growth)
        scale = 10 * 10**decades * np.array([[ways, 1]]).T
        values = replicates(scale, number, (len(step), 4), spread=spread)
        values |= {"step": step, "loss": loss, "difference": np.full(loss.shape, difference)}
        cases.append(Case(arguments, values, 1.0))
    return Found("quick", None, tuple(cases))


def verdicts(**changes):
    return {q.name: q.verdict for q in study.measure(made_up(**changes)) if q.asked}


def test_true_claims_are_reproduced():
    found = verdicts()
    assert set(found.values()) == {REPRODUCED} and len(found) == 16
    rows = {q.name: q.measured for q in study.measure(made_up())}
    assert rows["encoder, cosine rate: B_simple after 3000 steps, examples"] == pytest.approx(
        100, rel=0.02
    )


def test_an_encoder_whose_scale_falls():
    found = verdicts(growth=(-1.0, 1.0))
    for name, verdict in found.items():
        asked = REPRODUCED if not name.startswith("encoder,") or "two batch" in name else None
        assert verdict == (asked or NOT_REPRODUCED), name


def test_two_ways_that_disagree():
    found = verdicts(ways=1.3)
    wrong = {name for name, verdict in found.items() if verdict == NOT_REPRODUCED}
    assert len(wrong) == 3 and all("two ways" in n or "two batch sizes" in n for n in wrong)
    assert (
        verdicts(difference=1e-3)[
            "mean of single gradients against the batch gradient, relative, the largest"
        ]
        == NOT_REPRODUCED
    )


def test_a_scale_that_is_not_known_is_inconclusive():
    found = made_up()
    found.cases[0].values["squared_gradient"][-1, 2, :, :, 0] -= 2
    rows = {q.name: q for q in study.measure(found)}
    row = rows["encoder, constant rate: log10 of B_simple, after training − before"]
    assert row.verdict == INCONCLUSIVE and row.missing == 1


def test_figure():
    assert all(len(panel.lines) >= 2 for panel in study.figure(made_up()).axes)
