"""MIWAE (Rainforth et al. 2018, eq. 14): the mean of M bounds of K samples each.

What it is: M = 4 groups (objective.groups) of K = 4 samples (objective.samples), 3 seeds, on the
embedded digits. Theirs: MNIST, M K = 64.

    python -m experiments.run --config=configs/objectives/miwae.py --workdir=results/miwae

It takes about 20 s. What to expect: between the ELBO (K = 1) and IWAE (M = 1). In a run on two CPU
cores with JAX 0.10.2: test/elbo −24.00 ± 0.05, test/rate 3.56 ± 0.12, test/nll 22.90 ± 0.03 (K =
100), train/bound −22.95 ± 0.08; the VAE (configs/objectives/free_bits.py with none) has test/elbo
−23.88 ± 0.02, test/rate 3.10 ± 0.04 and test/nll 23.49 ± 0.01.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "miwae"
    config.objective.groups = 4
    config.objective.samples = 4
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
