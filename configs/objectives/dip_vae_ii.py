"""DIP-VAE-II (Kumar et al. 2018, eq. 7): the covariance of q(z) near I.

What it is: λ_od (objective.penalty) of 0, which is the VAE, and 10, with λ_d
(objective.penalty_diagonal) the same, × 3 seeds in one program, on the embedded digits, made binary
at ½. Theirs are convolutional nets on dSprites, CelebA and chairs.

    python -m experiments.run --config=configs/objectives/dip_vae_ii.py --workdir=results/dip_vae_ii

It takes about 10 s. What to expect: samples of variance near 1 and uncorrelated, which an unused
dimension, N(0, 1), is too: train/penalty, both terms with their weights, is small, and there are
fewer active units. In a run on two CPU cores with JAX 0.10.2: λ_od = 0: test/elbo −18.96 ± 0.10,
test/rate 4.71 ± 0.09, test/nll 18.05 ± 0.03 (K = 100), test/active_units 8.00, train/penalty 0.00;
λ_od = 10: test/elbo −20.26 ± 0.19, test/rate 2.97 ± 0.14, test/nll 19.36 ± 0.22 (K = 100),
test/active_units 4.00 ± 0.58, train/penalty 1.01 ± 0.07.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.binarization = "threshold"  # binary images, as dSprites
    config.objective.name = "dip_ii"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.zip_(
            sweep.axis("objective.penalty", [0.0, 10.0]),
            sweep.axis("objective.penalty_diagonal", [0.0, 10.0]),
        ),
        sweep.axis("seed", range(3)),
    )
