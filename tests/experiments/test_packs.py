"""Who decides whether runs go together or in turn."""

import pytest

from experiments import packs
from vae.spec import ModelSpec, Spec

MLP, CONV = Spec(ModelSpec((8, 8, 1))), Spec(ModelSpec((8, 8, 1), net="conv"))
SMALL, MIDDLE, LARGE = packs.IN_DOUBT[0] - 1, packs.MAP_FROM_PARAMS, packs.IN_DOUBT[1] + 1


@pytest.fixture(params=["cpu", "gpu"])
def backend(request, monkeypatch):
    monkeypatch.setattr(packs.jax, "default_backend", lambda: request.param)
    return request.param


def choose(spec, size, asked="auto", steps=1000, runs=16, trial="default"):
    """The choice, and what a trial was asked for."""
    asked_for = []

    def other(expected):
        asked_for.append(expected)
        return packs.Choice({"vmap": "map", "map": "vmap"}[expected], "measured")

    trial = other if trial == "default" else trial
    return packs.choose(asked, spec, size, steps, runs, trial), asked_for


@pytest.mark.parametrize("way", ["vmap", "map"])
def test_what_is_asked_for_is_done(way, backend):
    found, tried = choose(CONV, MIDDLE, asked=way)
    assert found == (way, "asked for") and not tried


def test_what_is_clear_is_not_measured(backend):
    sure = {"cpu": {SMALL: "vmap", LARGE: "map"}, "gpu": dict.fromkeys((SMALL, LARGE), "vmap")}
    for size, way in sure[backend].items():
        found, tried = choose(MLP, size)
        assert found == (way, "by rule") and not tried


def test_what_is_in_doubt_is_measured(backend):
    cases = {"cpu": [(MLP, MIDDLE), (MLP, MIDDLE - 1), (CONV, SMALL)], "gpu": [(CONV, SMALL)]}
    for spec, size in cases[backend]:
        found, (expected,) = choose(spec, size)
        assert found == (("map" if expected == "vmap" else "vmap"), "measured")
        # A plan that is only printed measures nothing, and says so.
        assert choose(spec, size, trial=None) == ((expected, "by rule, unmeasured"), [])


@pytest.mark.parametrize("steps, runs", [(1000, 1), (packs.TRIAL_FROM_STEPS - 1, 100), (200, 9)])
def test_a_short_training_is_over_before_a_trial_pays(steps, runs, backend):
    found, tried = choose(CONV, MIDDLE, steps=steps, runs=runs)
    assert found.why == "by rule" and not tried
