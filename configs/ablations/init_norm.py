"""Ablation over initialisation and normalisation, in a shallow and in a deep net.

What it is: init {glorot, he, lecun, orthogonal, uniform} × norm {none, layer, batch} × depth {2, 8}
× 3 seeds = 90 runs in 30 compiled programs, on the embedded digits. Width 64.

    python -m experiments.run --config=configs/ablations/init_norm.py --workdir=results/init_norm

What to look at: the gradient norm of each layer at the first steps, and how much of the difference
between initialisations a normalisation takes away. With batch the examples of a batch are coupled.
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
        sweep.axis("model.init", ["glorot", "he", "lecun", "orthogonal", "uniform"]),
        sweep.axis("model.norm", ["none", "layer", "batch"]),
        sweep.axis("model.depth", [2, 8]),
        sweep.axis("seed", range(3)),
    )
