"""DIP-VAE-I (Kumar et al. 2018, eq. 6): the covariance of the posterior means near I.

What it is: λ_od (objective.penalty) of 0, which is the VAE, and 10, with λ_d
(objective.penalty_diagonal) ten times that, × 3 seeds in one program, on the embedded digits, made
binary at ½. Theirs are convolutional nets on dSprites, CelebA and chairs.

    python -m experiments.run --config=configs/objectives/dip_vae_i.py --workdir=results/dip_vae_i

It takes about 10 s. What to expect: means of variance near 1 and uncorrelated; train/penalty is
both terms with their weights. All dimensions are then in use, so the rate is higher than the VAE's.
In a run on two CPU cores with JAX 0.10.2: λ_od = 0: test/elbo −18.96 ± 0.10, test/rate 4.71 ± 0.09,
test/nll 18.05 ± 0.03 (K = 100), train/penalty 0.00; λ_od = 10: test/elbo −20.53 ± 0.12, test/rate
5.92 ± 0.17, test/nll 18.50 ± 0.03 (K = 100), train/penalty 17.94 ± 1.42. At the first reading,
after 27 steps, train/penalty was 204.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.binarization = "threshold"  # binary images, as dSprites
    config.objective.name = "dip_i"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.zip_(
            sweep.axis("objective.penalty", [0.0, 10.0]),
            sweep.axis("objective.penalty_diagonal", [0.0, 100.0]),
        ),
        sweep.axis("seed", range(3)),
    )
