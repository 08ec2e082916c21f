"""The decoder's variance and collapse: the linear VAE's share, and verdicts."""

import numpy as np
import pytest

from experiments.studies import variance_collapse as study
from tests.experiments.studies import made


def test_linear_share_counts_the_components_below_the_variance():
    # Variances 4, 1 and ¼ along three of five axes, by two points on each of them.
    x = np.zeros((6, 5))
    for i, variance in enumerate((4, 1, 0.25)):
        x[2 * i, i], x[2 * i + 1, i] = np.sqrt(3 * variance), -np.sqrt(3 * variance)
    assert study.linear_share(x, 4, 0.5) == 2 / 4
    assert study.linear_share(x, 2, 0.5) == 0
    assert study.linear_share(x, 5, 2.0) == 4 / 5


def found(shares, near=0.0):
    """The share by the larger ε, and by the smaller one `near` less."""
    cases = [
        (
            {"variance": variance, "seed": seed},
            {
                "collapsed": share + 0.001 * seed - np.array([near, 0]),
                "curve": np.full(len(study.CURVE), share),
                "linear": 0.5,
            },
        )
        for variance, share in zip(study.VARIANCES, shares, strict=True)
        for seed in range(3)
    ]
    return made.found(cases)


@pytest.mark.parametrize(
    ("shares", "step", "ends"),
    [
        ((0.0, 0.2, 0.9, 1.0), "reproduced", "reproduced"),
        ((0.0, 0.2, 0.1, 1.0), "not reproduced", "reproduced"),
        ((0.5, 0.5, 0.5, 0.5), "reproduced", "not reproduced"),
    ],
)
def test_verdicts(shares, step, ends):
    verdicts = made.verdicts(study, found(shares))
    assert verdicts["share collapsed, ε = 0.01 nats: at σ² = 1 less at 0.1"] == step
    assert verdicts["share collapsed, ε = 0.1 nats: at the largest σ² less at the least"] == ends
    assert study.figure(found(shares))


def test_latents_that_are_not_at_rest_are_said():
    notes = {
        near: {q.name: q.note for q in study.measure(found((0.0, 0.5, 0.4, 1.0), near))}
        for near in (0.0, 0.3)
    }
    name = "share collapsed, ε = 0.01 nats: at σ² = 1 less at 0.1"
    assert notes[0.0][name] == ""
    assert "30% of the latents are between 0.01 and 0.1 nats" in notes[0.3][name]
    assert notes[0.3]["share collapsed, ε = 0.01 nats: at σ² = 10 less at 1"] == ""
