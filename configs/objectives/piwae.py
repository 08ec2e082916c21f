"""PIWAE (Rainforth et al. 2018, section 5.3): MIWAE's encoder with IWAE's decoder.

What it is: the decoder maximises the bound of all M K = 16 samples, the encoder the mean of M = 4
bounds of K = 4, whose gradient has less noise. 3 seeds, on the embedded digits. Theirs: MNIST, M K
= 64.

    python -m experiments.run --config=configs/objectives/piwae.py --workdir=results/piwae

It takes about 20 s. What to expect: a test/nll at or better than MIWAE's; train/bound is the
decoder's. In a run on two CPU cores with JAX 0.10.2: test/elbo −24.23 ± 0.08, test/rate 3.92 ±
0.04, test/nll 22.73 ± 0.02 (K = 100), train/bound −22.64 ± 0.08; MIWAE has test/nll 22.90 ± 0.03.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "piwae"
    config.objective.groups = 4
    config.objective.samples = 4
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
