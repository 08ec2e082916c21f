"""Ablation over depth, with and without residual connections.

What it is: {1, 2, 3, 4, 6, 8, 10} hidden layers in the encoder and in the decoder × residual {none,
plain} × 3 seeds = 42 runs in 14 compiled programs, on the embedded digits. Width 64.

    python -m experiments.run --config=configs/ablations/depth.py --workdir=results/depth

What to look at: test/elbo against depth, and the gradient norm of each layer over training. A deep
stack without residual connections has to carry the gradient through every layer; with them there is
a path that skips each.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.width = 64
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("model.depth", [1, 2, 3, 4, 6, 8, 10]),
        sweep.axis("model.residual", ["none", "plain"]),
        sweep.axis("seed", range(3)),
    )
