"""Ablation over the latent dimension: how many dimensions does the model use?

What it is: latent dimension {1, 2, 4, 8, 16, 32} × 3 seeds = 18 runs in 6 compiled programs, on the
embedded digits.

    python -m experiments.run --config=configs/ablations/latent_dim.py --workdir=results/latent_dim

What to look at: test/active_units against the latent dimension. Dimensions that the data does not
repay are left at the prior, so the two part once there are enough.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    return default.get_config()


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("model.latent_dim", [1, 2, 4, 8, 16, 32]),
        sweep.axis("seed", range(3)),
    )
