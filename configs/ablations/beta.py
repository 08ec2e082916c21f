"""Ablation over β: the rate-distortion curve of one model.

What it is: 9 values of β from 0.1 to 10, evenly spaced in the logarithm, × 3 seeds = 27 runs in one
compiled program, on the embedded digits.

    python -m experiments.run --config=configs/ablations/beta.py --workdir=results/beta

What to look at: the rate-distortion plane. The runs trace a curve along which β is minus the slope
of distortion against rate (Alemi et al. 2018, "Fixing a Broken ELBO"), and latent dimensions switch
off one after the other as β grows.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    return default.get_config()


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.beta", sweep.logspace(-1, 1, 9)),
        sweep.axis("seed", range(3)),
    )
