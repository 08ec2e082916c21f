"""The decoder's variance and posterior collapse: σ² of .01 to 10 (Lucas et al. 2019).

What it is: 4 σ² × 5 seeds in one program, of a Gaussian likelihood on the grey images of
configs/mnist_8k.py, 200 latents, nets of half its width, 60 epochs.

    python -m experiments.study --name=variance_collapse --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/variance_collapse.py --config.data.dir=DIR \\
        --workdir=results/variance_collapse

What to expect: the larger σ², the lower the rate, down to none at σ² = 10; docs/studies.md has the
numbers.
"""

import ml_collections

from configs import mnist_8k
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = mnist_8k.get_config()
    config.data.binarization = "none"
    config.model.likelihood = "gaussian"
    config.model.latent_dim = 200
    config.model.width = 100
    # An unused latent has to come to rest below a hundredth of a nat. The gradients that take it
    # there are small against an ε of 1e-4, and the noise of a large learning rate keeps it above.
    config.optimizer.eps = 1e-8
    config.optimizer.learning_rate = 3e-3
    config.optimizer.decay_rate = 0.01
    config.train.epochs = 60
    config.eval.iw_samples = 0
    return config


def get_sweep() -> sweep.Sweep:
    variances = sweep.axis("model.sigma", [0.01**0.5, 0.1**0.5, 1.0, 10**0.5])
    return sweep.product(variances, sweep.axis("seed", range(5)))
