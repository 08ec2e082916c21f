"""The plane of rate and distortion: β of ¼ to 8 (Alemi et al. 2018; Higgins et al. 2017).

What it is: 6 β × 3 seeds in one program on the reduced MNIST of configs/mnist_8k.py, 60 epochs.

    python -m experiments.study --name=beta --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/beta.py --config.data.dir=DIR \\
        --workdir=results/beta

What to expect: with β the rate falls, the distortion rises and latent dimensions fall out of use;
docs/studies.md has the numbers.
"""

import ml_collections

from configs import mnist_8k
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = mnist_8k.get_config()
    config.train.epochs = 60
    return config


def get_sweep() -> sweep.Sweep:
    beta = sweep.axis("objective.beta", [0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
    return sweep.product(beta, sweep.axis("seed", range(3)))
