"""A learned σ against fixed ones, Gaussian likelihood (Rybkin et al. 2021).

What it is: 5 fixed σ in steps of 2^¼ in one program, and two ways to learn it: one shared log σ²
by gradient (gaussian_shared) and each batch's optimum (gaussian_optimal); × 5 seeds, on the grey
images of configs/mnist_8k.py. Half its width, 20 latents, and 20 epochs at a learning rate that
takes the learned log σ² to its place.

    python -m experiments.study --name=sigma_vae --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/sigma_vae.py --config.data.dir=DIR \\
        --workdir=results/sigma_vae

What to expect: the learned ones have the test/elbo of the best fixed one; docs/studies.md has the
numbers.
"""

import ml_collections

from configs import mnist_8k
from experiments import sweep

SIGMAS = [0.1 * 2 ** (k / 4) for k in range(5)]


def get_config() -> ml_collections.ConfigDict:
    config = mnist_8k.get_config()
    config.data.binarization = "none"
    config.model.likelihood = "gaussian"
    # Where a shared σ starts: the standard deviation of MNIST's pixels.
    config.model.sigma = 0.31
    config.model.latent_dim = 20
    config.model.width = 100
    config.optimizer.learning_rate = 3e-3
    config.train.epochs = 20
    config.eval.iw_samples = 0
    return config


def get_sweep() -> sweep.Sweep:
    fixed = sweep.product(
        sweep.axis("model.likelihood", ["gaussian"]), sweep.axis("model.sigma", SIGMAS)
    )
    learned = sweep.axis("model.likelihood", ["gaussian_shared", "gaussian_optimal"])
    return sweep.product(sweep.chain(fixed, learned), sweep.axis("seed", range(5)))
