"""The study of IWAE's signal-to-noise ratios: against NumPy, and verdicts on made-up numbers."""

import numpy as np
import pytest

from experiments.studies import gaussian_toy, iwae_snr
from experiments.studies.cases import Case, Context, Found
from experiments.studies.quantity import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from tests.experiments.studies.test_gaussian_toy import by_hand, float64


@pytest.mark.thorough
def test_ratios_are_those_of_a_program_of_its_own(tmp_path):
    samples, points, draws = 5, 4, 2000
    arguments = {"samples": samples, "groups": 2, "points": points, "seeds": 1}
    context = Context(tmp_path, None, None)
    found = iwae_snr.run(arguments | {"draws": draws * samples * 2}, context)
    toy, rng = gaussian_toy.draw(0, points), np.random.default_rng(0)
    noises = rng.normal(size=(points, draws, 2, samples, gaussian_toy.DIM))

    def gradients(estimator):  # [points, draws, 40]
        x, (a, b, mu) = np.asarray(toy.x, np.float64), float64(toy)
        rows = [[by_hand(estimator, x[i], a, b, mu, e) for e in noises[i]] for i in range(points)]
        return np.array([[np.append(row["b"], row["μ"]) for row in of] for of in rows])

    plain, dreg = gradients("reparameterization"), gradients("dreg")
    for part, place in ((slice(0, 20), 1), (slice(20, 40), 2)):
        mean, variance = dreg.mean(1)[:, part], plain.var(1)[:, part].sum(-1)
        # Less the error of the mean: signals of DReG are known to a percent, σ to 1/√(2·20·2000).
        error = dreg.var(1)[:, part].sum(-1) / draws
        one = np.sqrt(np.mean((mean**2).sum(-1) - error) / np.mean(variance))
        whole = np.sqrt((mean.mean(0) ** 2).sum() - error.mean() / points)
        assert found["one"][0, place] == pytest.approx(one, rel=0.05)
        whole /= np.sqrt(variance.mean() / points)
        assert found["mean"][0, place] == pytest.approx(whole, rel=0.05)
    assert found["floor"][0] == pytest.approx(1 / np.sqrt(draws))


def made_up(in_k=(-0.5, -0.5, 0.5), in_m=(0.5, 0.5, 0.5), theory=0.0):
    """Cases whose SNRs have these slopes, of A, b and μ, and |∇_μ L_K| the slope `theory`."""
    cases, seeds = [], np.linspace(0.9, 1.1, 4)
    for arguments in iwae_snr.cases("quick"):
        k, m = arguments["samples"], arguments["groups"]
        snr = seeds[:, None] * (k / 10) ** np.array(in_k) * m ** np.array(in_m)
        values = {"one": snr, "mean": snr, "read": snr + 0.1, "floor": np.full(4, 0.1)}
        values |= {"model_signal": seeds * k**theory, "second_term": np.full(4, 0.5)}
        cases.append(Case(arguments, values, 1.0))
    return Found("quick", None, tuple(cases))


def verdicts(found):
    return {q.name: q.verdict for q in iwae_snr.measure(found) if q.asked}


def test_true_slopes_are_reproduced():
    found = made_up()
    assert set(verdicts(found).values()) == {REPRODUCED} and len(verdicts(found)) == 10
    assert iwae_snr.measure(found)[-1].verdict not in (REPRODUCED, NOT_REPRODUCED)


def test_an_encoder_that_gains_from_samples_is_not():
    found = verdicts(made_up(in_k=(-0.5, 0.0, 0.5), in_m=(0.5, 0.5, 0.3)))
    wrong = {name for name, verdict in found.items() if verdict == NOT_REPRODUCED}
    assert wrong == {
        "slope of ln SNR in ln K, encoder's b, one example",
        "slope of ln SNR in ln K, encoder's b, mean of all",
        "slope of ln SNR in ln M, model's μ, mean of all",
    }


def test_the_second_term_of_the_theorem():
    # As near to the best μ: the slope is 0.4 and both terms say so.
    rows = {q.name: q for q in iwae_snr.measure(made_up(in_k=(-0.5, -0.5, 0.4), theory=-0.1))}
    row = rows["slope of ln SNR in ln K, model's μ, mean of all"]
    assert row.verdict == NOT_REPRODUCED and "the slope of both is 0.40" in row.note
    assert rows[f"{row.name}, less that of both terms"].verdict == REPRODUCED
    # Where the theorem would say otherwise, it does not reproduce.
    rows = {q.name: q.verdict for q in iwae_snr.measure(made_up(theory=-0.1))}
    assert rows[f"{row.name}, less that of both terms"] == NOT_REPRODUCED


def test_a_missing_seed_is_inconclusive():
    found = made_up()
    found.cases[0].values["one"][2] = np.nan
    assert verdicts(found)["slope of ln SNR in ln K, encoder's b, one example"] == INCONCLUSIVE


def test_figure():
    panels = iwae_snr.figure(made_up()).axes
    assert [len(panel.lines) > 3 for panel in panels] == [True] * 3
