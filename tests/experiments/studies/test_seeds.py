"""The studies of the five seeds, of cases and runs that are made up, and of small nets."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from configs.seeds import s0_vanishing as s0_config
from experiments.report.results import Looks
from experiments.studies import s0_vanishing as s0
from experiments.studies import s1_samples as s1
from experiments.studies import s2_stability as s2
from experiments.studies import s3_training as s3
from experiments.studies import s4_outlook as s4
from experiments.studies import scanned_nets
from experiments.studies.cases import Case, Found
from experiments.studies.quantity import NOT_REPRODUCED, REPRODUCED


@dataclasses.dataclass
class MadeUp:
    """A run as studies read it."""

    values: dict[str, Any]
    seed: int
    row: dict[str, float] = dataclasses.field(default_factory=dict)
    curves: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    looks: Looks = Looks(np.zeros(0), {})
    status: str = "ok"
    step: np.ndarray = dataclasses.field(default_factory=lambda: np.arange(2))
    gallery: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def setting(self, field, default=None):
        return self.values.get(field, default)

    def number(self, key):
        return self.row.get(key, math.nan)


class MadeUpResults(tuple):
    @property
    def runs(self):
        return tuple(self)


def verdicts(study, found):
    return {q.name: q.verdict for q in study.measure(found) if q.asked}


def spread(value, count=3):
    """Values near one, of which a confidence interval can be made."""
    return value + 1e-3 * np.arange(count)


# S0.


def test_s0_signal_is_the_gradient_of_the_net_written_out():
    rng = np.random.default_rng(0)
    depth, num_values = 3, 9
    kernels = {
        part: {
            "first": rng.normal(size=(fan_in, s0.WIDTH)) / 3,
            "rest": rng.normal(size=(49, s0.WIDTH, s0.WIDTH)) / 8,
            "head": rng.normal(size=(s0.WIDTH, fan_out)) / 8,
        }
        for part, fan_in, fan_out in (("encoder", num_values, 4), ("decoder", 2, num_values))
    }
    x = rng.uniform(size=(scanned_nets.EXAMPLES, num_values))
    with jax.enable_x64(True):
        kernels, x = jax.tree.map(jnp.asarray, (kernels, x))
        found = scanned_nets.signal(kernels, x, jnp.asarray(depth), "tanh", "none", "scaled")
        noise = jax.random.normal(jax.random.key(1), (scanned_nets.EXAMPLES, 2), x.dtype)

        def loss(taps):
            def trunk(of, h, taps):
                h = jnp.tanh(h @ of["first"]) + taps[0]
                for i in (1, 2):
                    h = h + jnp.tanh(h @ of["rest"][i - 1]) / math.sqrt(depth) + taps[i]
                return h @ of["head"]

            heads = trunk(kernels["encoder"], x, taps["encoder"])
            mean, logvar = heads[:, :2], heads[:, 2:]
            z = mean + jnp.exp(logvar / 2) * noise
            seen = jax.nn.sigmoid(trunk(kernels["decoder"], z, taps["decoder"]))
            kl = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1 - logvar)
            return jnp.sum((x - seen) ** 2) + kl

        zeros = jnp.zeros((3, scanned_nets.EXAMPLES, s0.WIDTH))
        taps = jax.grad(loss)({"encoder": zeros, "decoder": zeros})
        for part, values in zip(s0.PARTS, found, strict=True):
            expected = np.log10(np.sqrt(np.mean(np.square(taps[part]), (1, 2))))
            np.testing.assert_allclose(values[:depth], expected, rtol=1e-10)
            assert np.all(np.isnan(values[depth:]))


def s0_found(slopes):
    """Log gradients that fall by a slope per layer, by (activation, init, norm, residual)."""
    cases = []
    for arguments in s0.cases("quick"):
        values = {}
        own = {n: v for n, v in arguments.items() if n != "part"}
        if arguments["part"] == "start":
            layers = np.arange(50.0)[None, None, None]
            slope = np.array([slopes(init=init, **own) for init in s0.INITS])
            log = slope[:, None, None, None] * (50 - layers) * np.ones((1, len(s0.DEPTHS), 1, 1))
            seeds = 1 + 0.01 * np.arange(s0.SEEDS)
            values = dict.fromkeys(s0.PARTS, -log * seeds[None, None, :, None])
        elif arguments["part"] == "training":
            values = {p: np.ones((4, 3, 20)) for p in s0.PARTS} | {"loss": np.ones(3)}
        else:
            values = {"1": spread(0.64, 5)}
        cases.append(Case(arguments, values, 0.0))
    rows = [
        (s0_config.AS_PRINTED, 0.0, math.nan),
        (s0_config.IN_WORDS, 0.0, 0.0),
        (s0_config.CORRECTED, 2.0, 3.0),
    ]
    runs = [
        MadeUp(values, seed, {"test/active_units": a, "test/rate": r, "test/distortion": 1.0})
        for values, a, r in rows
        for seed in range(3)
    ]
    return Found("quick", MadeUpResults(runs), tuple(cases))


def test_s0_remedies_are_ranked_by_what_they_regain():
    def slopes(activation, init, norm, residual):
        if norm == "layer":
            return 0.01
        return 0.4 if activation == "sigmoid" else 0.1

    found = s0_found(slopes)
    gains = s0.remedies(found)
    assert max(gains, key=lambda n: gains[n].mean()) == "norm layer"
    # 49 layers, 0.1 against 0.01 decades each.
    np.testing.assert_allclose(gains["norm layer"][0], 49 * 0.09, rtol=1e-9)
    asked = verdicts(s0, found)
    [best] = [n for n in asked if n.startswith("remedy 1: norm layer")]
    [worst] = [n for n in asked if "activation sigmoid" in n]
    assert asked[best] == REPRODUCED and asked[worst] == NOT_REPRODUCED
    assert asked["rate in words, nats"] == asked["active units corrected"] == REPRODUCED
    [cosine] = [n for n in asked if n.startswith("cosine of the printed")]
    assert asked[cosine] == NOT_REPRODUCED
    # A tenth of a decade a layer is not He's.
    assert asked["decades over 50 layers of the encoder: relu, he"] == NOT_REPRODUCED


def test_intervals_at_once_are_bonferronis():
    values = np.random.default_rng(0).normal(size=5)
    low, high = s0.at_once(values, 10)
    alone = scipy.stats.t.interval(0.995, 4, values.mean(), scipy.stats.sem(values))
    np.testing.assert_allclose((low, high), alone, rtol=1e-10)


# S2.


def s2_values(loss, finite=True, ratio=0.1):
    shape = (len(s2.INITS), len(s2.RATES), s2.SEEDS)
    loss = np.broadcast_to(np.asarray(loss, float), (*shape, len(loss))).copy()
    flat = {name: np.full(shape, ratio) for name in s2.PREDICTORS}
    rate = np.broadcast_to(np.asarray(s2.RATES)[:, None], shape).copy()
    return flat | {"loss": loss, "finite": np.full(shape, finite), "rate": rate}


def test_s2_phases():
    down, level, up = [10.0, 5.0, 1.0], [10.0, 9.9, 9.8], [10.0, 5.0, 11.0]
    for loss, finite, phase in (
        (down, True, 0),
        (level, True, 1),
        (up, True, 2),
        (down, False, 2),
        ([10.0, math.nan, math.nan], True, 2),
    ):
        assert np.all(s2.phases(s2_values(loss, finite), 2.0) == phase)
    np.testing.assert_array_equal(s2.steps_to(s2_values(down), 5.5), 2 * s2.EVERY)
    assert np.all(np.isnan(s2.steps_to(s2_values(level), 5.5)))


def test_s2_area_is_that_under_the_roc_curve():
    values = np.array([1.0, 2, 3, 4])
    assert s2.area(values, np.array([False, False, True, True])) == 1
    assert s2.area(values, np.array([True, False, False, True])) == 0.5
    assert s2.area(np.ones(4), np.array([True, False, False, True])) == 0.5
    assert math.isnan(s2.area(values, np.zeros(4, bool)))


@pytest.mark.parametrize("told", [True, False])
def test_s2_verdicts(told):
    cases = []
    for arguments in s2.cases("quick"):
        values = s2_values([10.0, 5.0, 1.0])
        values["loss"][:, -1, :, -1] = 20.0  # the highest rate diverges
        values["update ratio"] = np.arange(6.0)[None, :, None] * np.ones_like(values["finite"])
        values["update ratio"] *= 1 if told else -1
        if arguments["schedule"] == "plateau":  # reduces two of the rates, to a loss of ½ or 2
            values["rate"][:, 3:5] /= 4
            values["loss"][:, 3:5, :, -1] = (0.5 if told else 2.0) + 1e-3 * np.arange(3)
        cases.append(Case(arguments, values, 0.0))
    corrected = 392 * math.log(math.pi)
    runs = [
        MadeUp(
            {"objective.name": name},
            seed,
            {"test/distortion": d + 0.001 * seed, "test/active_units": 22 + seed},
            {"train/penalty": np.array([3.0, 0.01])},
        )
        for name, d in (("tied", 392 * math.log(2 * math.pi * 392)), ("elbo", 20 + corrected))
        for seed in range(3)
    ]
    asked = verdicts(s2, Found("quick", MadeUpResults(runs), tuple(cases)))
    key = "update ratio at the start tells diverged"
    assert asked[key] == (REPRODUCED if told else NOT_REPRODUCED)
    [kl] = [n for n in asked if n.startswith("what stands for the KL")]
    assert asked[kl] == REPRODUCED
    gains = [v for n, v in asked.items() if n.startswith("last loss of these, constant −")]
    assert gains == 2 * [REPRODUCED if told else NOT_REPRODUCED]
    reported = {q.name: q.measured for q in s2.measure(Found("quick", MadeUpResults(runs), cases))}
    assert reported["share reduced: no norm, plateau"] == pytest.approx(2 / 6)


# S3.


def test_nearest_is_the_least_squared_distance():
    rng = np.random.default_rng(0)
    pictures, images = rng.uniform(size=(4, 3, 3)), rng.uniform(size=(7, 9))
    brute = [min(np.sum((p.ravel() - i) ** 2) for i in images) for p in pictures]
    assert s3.nearest(pictures, images) == pytest.approx(np.mean(brute))
    assert s1.nearest(pictures.reshape(4, 9), images) == pytest.approx(np.mean(brute))


@pytest.mark.parametrize("fight", [True, False])
def test_s3_verdicts(fight):
    norms = {
        "autoencoder": {"distortion": 1.0, "rate": 0.0, "penalty": 0.0},
        "elbo": {"distortion": 1.0, "rate": 3.0, "penalty": 0.0},
        "vaegan": {"distortion": 0.0, "rate": 1.0, "penalty": 1.0},
    }
    runs = []
    for name, terms in norms.items():
        for seed in range(3):
            curves = {}
            for layer in s3.LAYERS:
                for term, norm in terms.items():
                    here = 0.0 if term == "rate" and "decoder" in layer else norm
                    curves[f"grad/{layer}/{term}"] = np.array([9.0, here])
                cosine = (-0.5 if fight else 0.5) + 0.01 * seed
                curves[f"grad/{layer}/cosine_distortion_rate"] = np.array([0.0, cosine])
            row = {"test/distortion": {"autoencoder": 1.0, "elbo": 5.0, "vaegan": 9.0}[name] + seed}
            looks = Looks(np.arange(2), curves)
            runs.append(MadeUp({"objective.name": name}, seed, row, looks=looks))
    far = {"autoencoder": 3.0, "VAE": 1.0, "VAE-GAN": 1.0}
    cases = [
        Case({"objective": n}, {"samples": spread(d), "reconstructions": np.ones(3)}, 0.0)
        for n, d in far.items()
    ]
    assert s3.shares(runs[3], "encoder/mean") == {"distortion": 0.25, "rate": 0.75, "penalty": 0.0}
    asked = verdicts(s3, Found("quick", MadeUpResults(runs), tuple(cases)))
    fights = {v for n, v in asked.items() if n.startswith("cosine")}
    assert fights == {REPRODUCED if fight else NOT_REPRODUCED}
    assert {v for n, v in asked.items() if not n.startswith("cosine")} == {REPRODUCED}


# S4.


def s4_found(sharper):
    runs, cases = [], []
    for row, (own, remedy) in s4.ROWS.items():
        helps = "collapse" in remedy
        cases.append(
            Case(
                {"row": row},
                {
                    f"{kind} {m}": spread(
                        1.0 if kind == "data" else 0.1 * (1 + sharper * bool(own))
                    )
                    for kind in ("data", "reconstructions", "samples")
                    for m in ("laplacian", "high")
                },
                0.0,
            )
        )
        for seed in range(3):
            metrics = {"test/active_units": 9 + 5 * helps + seed, "test/rate": 4 + helps + seed}
            runs.append(MadeUp(s4.FIRST | own, seed, metrics))
    return Found("quick", MadeUpResults(runs), tuple(cases))


@pytest.mark.parametrize("sharper", [0.5, -0.5])
def test_s4_verdicts(sharper):
    asked = verdicts(s4, s4_found(sharper))
    blur = {v for n, v in asked.items() if n.startswith("sharpness of") and "− VAE" in n}
    assert blur == {REPRODUCED if sharper > 0 else NOT_REPRODUCED}
    assert asked["sharpness of the VAE's reconstructions, log10"] == REPRODUCED
    assert asked["active units, free bits − VAE"] == REPRODUCED
    assert "active units, adversarial decoder − VAE" not in asked


# S1.


@pytest.mark.parametrize("overfits", [True, False])
def test_s1_verdicts(overfits):
    cases = []
    for d in s1.DIMENSIONS:
        value = -500.0 + min(d, 20) - (30 if overfits and d == 40 else 0)
        folds = np.broadcast_to(spread(value), (s1.FOLDS, 3))
        cases.append(
            Case(
                {"part": "dimension", "latent_dim": d},
                {"held_out": spread(value), "folds": folds},
                0,
            )
        )
    noise = {"VAE": spread(20.0), "VAE, z + ε": spread(30.0), "without noise": spread(40.0)}
    cases.append(Case({"part": "noise"}, noise, 0.0))
    maps = {
        f"{n} {k}": spread(0.001) for n in ("latent", "error") for k in ("missing", "agreement")
    }
    cases.append(Case({"part": "attribution"}, maps, 0.0))
    runs = [
        MadeUp({"model.sigma": sigma}, seed, {"test/rate": rate, "test/active_units": units})
        for sigma, rate, units in (((784 / 2) ** 0.5, 0.0, 0.0), (s1.SIGMA, 9.0, 20.0))
        for seed in range(3)
    ]
    asked = verdicts(s1, Found("quick", MadeUpResults(runs), tuple(cases)))
    more = asked.pop("held-out ELBO, 40 − 20 latents, nats")
    assert more == (NOT_REPRODUCED if overfits else REPRODUCED)
    assert set(asked.values()) == {REPRODUCED}
