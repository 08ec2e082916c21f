"""FactorVAE (Kim and Mnih 2018, eq. 2): the total correlation by a discriminator.

What it is: a weight (objective.penalty) of 0, which is the VAE with a discriminator that looks on,
and 10, × 3 seeds in one program, on the embedded digits, made binary at ½. The discriminator has 3
layers of 256 units and the VAE's learning rate, where theirs has 6 of 1,000. It is trained in the
same step on the same batch.

    python -m experiments.run --config=configs/objectives/factor_vae.py --workdir=results/factor_vae

It takes about 20 s. What to expect: the total correlation falls, and the discriminator's accuracy
goes to one half: it cannot tell q(z) from the product of its marginals. In a run on two CPU cores
with JAX 0.10.2: weight 0: test/elbo −18.96 ± 0.10, test/rate 4.71 ± 0.09, test/nll 18.05 ± 0.03 (K
= 100), train/total_correlation 0.25 ± 0.01, train/discriminator_accuracy 0.64; weight 10: test/elbo
−20.17 ± 0.12, test/rate 3.31 ± 0.07, test/nll 19.46 ± 0.07 (K = 100), train/total_correlation 0.01,
train/discriminator_accuracy 0.52 ± 0.01. With every training example in q(z), the total correlation
is 0.58 and 0.21: a small discriminator sees a part of it.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.binarization = "threshold"  # binary images, as dSprites
    config.objective.name = "factor"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.penalty", [0.0, 10.0]),
        sweep.axis("seed", range(3)),
    )
