"""Gaps of inference: a linear model, whose posterior is of the family; verdicts."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments.studies import inference_gaps as study
from experiments.studies import trained
from tests.experiments.studies import made
from vae.data import Examples
from vae.data.transform import Transform
from vae.hparams import HParams
from vae.spec import ModelSpec

NAMES = ("elbo", "half", "local", "log_p")


def test_gaps_of_a_linear_model_are_those_of_closed_forms():
    # x = zW + noise with orthogonal rows of W: p(z|x) is N(m, v), diagonal; q(z|x) is N(0, I/e).
    spec = ModelSpec((4,), 2, depth=0, likelihood="gaussian")
    w, sigma = np.array([[1.0, 1, 0, 0], [0, 0, 0.5, -0.5]]), 0.8
    zeros = {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
    params = {
        "encoder": {"mean": zeros, "scale": zeros | {"bias": -jnp.ones(2)}},
        "decoder": {"output": {"kernel": jnp.float32(w), "bias": jnp.zeros(4)}},
    }
    stats_of = {"encoder": {}, "decoder": {}}
    run = SimpleNamespace(
        spec=None, dataset=None, params=params, stats=stats_of, hparams=HParams(sigma=sigma)
    )
    x = np.random.default_rng(0).normal(size=(5, 4)) * 0.7
    examples = Examples(jnp.float32(x), Transform())
    found = study.gaps(spec, 1024, 4096, examples, trained._of(run).state)

    variance = 1 / (1 + np.square(w).sum(1) / sigma**2)
    mean = x @ w.T / sigma**2 * variance
    log_p = stats.multivariate_normal(np.zeros(4), w.T @ w + sigma**2 * np.eye(4)).logpdf(x)
    kl = 0.5 * (np.log(variance) + 1 + (np.exp(-1) + mean**2) / variance - 1).sum(1)
    # q* is p(z|x) up to the noise of Adam, of the order of its rate: all weights are log p(x) then.
    # Of the ELBOs log p(x|z) is a mean of 1024 samples: its standard deviation is below 1 under q*
    # and 3 under q, so five standard errors are .16 and .5.
    np.testing.assert_allclose(found["log_p"], log_p, atol=0.02)
    np.testing.assert_allclose(found["local"], log_p, atol=0.16)
    np.testing.assert_allclose(found["elbo"], log_p - kl, atol=0.5)
    assert np.all(np.asarray(found["half"]) <= np.asarray(found["local"]) + 0.02)
    assert kl.max() > 0.5


def found(approximation, amortisation):
    cases = []
    for seed in range(3):
        for split in study.SPLITS:
            local = -100.0 + 0.01 * seed - approximation
            elbo = local - amortisation - 0.2 * (split == "test")
            values = dict(zip(NAMES, (elbo, local, local, -100.0), strict=True))
            cases.append(({"split": split, "seed": seed}, {n: [v] * 4 for n, v in values.items()}))
    return made.found(cases)


@pytest.mark.parametrize(
    ("gaps", "expected"),
    [((1.0, 2.0), ("reproduced", "reproduced")), ((-0.3, -0.5), ("not reproduced",) * 2)],
)
def test_verdicts(gaps, expected):
    verdicts = made.verdicts(study, found(*gaps))
    assert verdicts["gap of approximation, test, nats"] == expected[0]
    assert verdicts["gap of amortisation, train, nats"] == expected[1]
    assert verdicts["gap of amortisation, test − train, nats"] == "reproduced"
    assert study.figure(found(*gaps))
