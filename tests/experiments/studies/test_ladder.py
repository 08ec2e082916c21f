"""The study of what revives the top layers, of runs whose numbers are made up."""

import itertools

import pytest

from configs.studies import ladder as quick
from configs.studies import ladder_full as full
from experiments.studies import ladder
from experiments.studies.quantity import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from tests.experiments.studies import made

LAYERS = (32, 16, 8)


def runs_of(top, layers=LAYERS):
    """Two seeds of each: top(posterior, BatchNorm?, warm-up?) nats in each layer from z_3 up."""
    runs = []
    remedies = itertools.product(ladder.POSTERIORS, (False, True), (False, True), range(2))
    for posterior, batch, warm, seed in remedies:
        nats = top(posterior, batch, warm)
        row = {"test/elbo": -100 + nats + seed, "test/rate_z1": 15.0, "test/rate_z2": 5.0}
        row |= {"test/active_units_z1": 20, "test/active_units_z2": 10}
        for layer in range(3, 1 + len(layers)):
            row[f"test/rate_z{layer}"] = nats + 1e-3 * seed
            row[f"test/active_units_z{layer}"] = round(10 * nats)
        settings = {"model__posterior": posterior, "model__norm": "batch" if batch else "none"}
        settings |= {"objective__warmup_steps": 1600.0 * warm, "model__latent_dim": list(layers)}
        runs.append(made.run(seed, row, **settings))
    return runs


def alive_by_both(posterior, batch, warm):
    return 0.001 + 0.5 * batch + 0.5 * warm + 0.3 * (posterior == "ladder") * (batch and warm)


def measured(top, layers=LAYERS):
    of = made.found([], runs_of(top, layers))
    return {q.name: q for q in ladder.measure(of)}


def test_the_claim_holds_where_the_remedies_revive_the_top():
    found = measured(alive_by_both)
    asked = {name: q.verdict for name, q in found.items() if q.asked}
    assert set(asked.values()) == {REPRODUCED} and len(asked) == 10
    plain = found["KL above the second layer, VAE, nats"]
    assert plain.expected == pytest.approx(0.08) and plain.measured == pytest.approx(0.0015)
    assert found["KL above the second layer, VAE + BN + warm-up, nats"].measured > 1
    gain = found["active units above the second layer, VAE + BN + warm-up − VAE: the sign"]
    assert gain.values == (10, 10)
    ladders = "ELBO, ladder + BN + warm-up − VAE + BN + warm-up, nats: the sign"
    assert found[ladders].values == pytest.approx((0.3, 0.3))


def test_it_does_not_where_the_top_lives_without_or_stays_dead():
    alive = measured(lambda posterior, batch, warm: 1.0)
    assert alive["KL above the second layer, VAE, nats"].verdict == NOT_REPRODUCED
    assert alive["active units above the second layer, VAE"].verdict == NOT_REPRODUCED
    dead = measured(lambda posterior, batch, warm: 0.0)
    assert dead["KL above the second layer, VAE, nats"].verdict == REPRODUCED
    both = ladder.REMEDIES[ladder.BOTH]
    assert dead[f"KL above the second layer, ladder{both}, nats"].verdict == NOT_REPRODUCED
    worse = measured(lambda posterior, batch, warm: 0.5 - 0.2 * (batch and warm))
    gain = "KL above the second layer, VAE + BN + warm-up − VAE, nats: the sign"
    assert worse[gain].verdict == NOT_REPRODUCED


def test_all_layers_above_the_second_count():
    found = measured(alive_by_both, layers=(64, 32, 16, 8, 4))
    assert found["KL above the second layer, VAE, nats"].expected == pytest.approx(0.28)
    assert found["KL above the second layer, VAE + BN, nats"].measured == pytest.approx(1.5045)


def test_a_diverged_run_leaves_it_open():
    runs = runs_of(alive_by_both)
    for run in runs:
        if run.setting("model.norm") == "none" and run.seed == 1:
            run.status = "diverged"
    found = {q.name: q for q in ladder.measure(made.found([], runs))}
    assert found["KL above the second layer, VAE, nats"].verdict == INCONCLUSIVE


def test_the_figure_has_a_panel_for_each_posterior():
    sheet = ladder.figure(made.found([], runs_of(alive_by_both)))
    titles = [panel.get_title() for panel in sheet.get_axes()]
    assert titles == ["VAE", "ladder"]
    assert all(len(panel.get_legend_handles_labels()[1]) == 4 for panel in sheet.get_axes())


@pytest.mark.parametrize("config", [quick, full])
def test_its_configs_differ_in_size_alone(config):
    settings, runs = config.get_config(), config.get_sweep()
    dims = settings.model.latent_dim
    assert len(dims) >= 3 and len(settings.model.stochastic_width) == len(dims) - 1
    assert len(runs) >= 2 * 2 * 2 * 3
    assert {run["model.posterior"] for run in runs} == set(ladder.POSTERIORS)
    assert settings.objective.beta_schedule == "linear"
    assert min(run["objective.warmup_steps"] for run in runs) == 0
