"""σ-VAE (Rybkin et al. 2021, eq. 4): the decoder's σ is the optimum of each batch.

What it is: a Gaussian likelihood of which σ² is the mean squared error of the batch, in evaluation
its running mean. 3 seeds, on the grey embedded digits. Theirs: images of up to 64 × 64 and
convolutional nets.

    python -m experiments.run --config=configs/objectives/sigma_vae.py --workdir=results/sigma_vae

It takes about 10 s. What to expect: no weight has to be tuned for a sharp reconstruction. As
densities of 64 values in [0, 1], the numbers can have either sign. In a run on two CPU cores with
JAX 0.10.2: test/elbo 28.16 ± 0.10, test/rate 13.89 ± 0.19, test/distortion −42.05 ± 0.21, test/nll
−32.04 ± 0.12 (K = 100).
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.binarization = "none"
    config.model.likelihood = "gaussian_optimal"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
