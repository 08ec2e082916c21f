"""InfoVAE (Zhao et al. 2019, eq. 6): the MMD of q(z) and p(z) in place of the rate.

What it is: their α = 1 (objective.beta = 1 − α = 0): the rate is free, and λ MMD²
(objective.penalty = α + λ − 1) holds q(z) to the prior, with λ of 0 and 100 × 3 seeds in one
program. An unbiased estimate with a Gaussian kernel from batches of 128 of the embedded digits.

    python -m experiments.run --config=configs/objectives/info_vae.py --workdir=results/info_vae

It takes about 10 s. What to expect: the MMD goes to 0, the rate stays above the VAE's, and the
ELBO, which is not what is maximised, below. In a run on two CPU cores with JAX 0.10.2: λ = 0:
test/elbo −121.48 ± 1.48, test/rate 107.50 ± 1.46, test/distortion 13.97 ± 0.02, test/nll 118.48 ±
1.49 (K = 100), train/mmd 0.404 ± 0.002; λ = 100: test/elbo −32.49 ± 0.73, test/rate 13.12 ± 1.12,
test/distortion 19.38 ± 0.49, test/nll 30.52 ± 0.68 (K = 100), train/mmd 0.003 ± 0.001.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "mmd"
    config.objective.kernel = "rbf"
    config.objective.beta = 0.0  # 1 − α
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.penalty", [0.0, 100.0]),
        sweep.axis("seed", range(3)),
    )
