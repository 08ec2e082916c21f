"""Quickstart: what β, the latent dimension and the depth do to a VAE, on the embedded digits.

What it is: β {0.25, 0.5, 1, 2, 4} × latent dimension {2, 8, 16} × depth {1, 2} × 3 seeds = 90 runs
in 6 compiled programs: β and the seed are numbers, which cost no program of their own. Nothing is
downloaded.

    bash scripts/quickstart.sh

or, in an environment of your own,

    python -m experiments.run --config=configs/quickstart.py --workdir=results/quickstart

What to expect: as β grows the rate falls and the distortion grows, because β is the price of a nat
of rate (Higgins et al. 2017; Alemi et al. 2018), and the number of active units falls with it.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.width = 64
    config.optimizer.learning_rate = 3e-3
    config.train.epochs = 40
    config.eval.every = 44  # ten points: digits make 11 steps an epoch, 440 in all
    config.eval.iw_samples = 64
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.beta", [0.25, 0.5, 1.0, 2.0, 4.0]),
        sweep.axis("model.latent_dim", [2, 8, 16]),
        sweep.axis("model.depth", [1, 2]),
        sweep.axis("seed", range(3)),
    )
