"""VIMCO (Mnih and Rezende 2016): IWAE's bound by the score function.

What it is: no gradient goes through z; each sample's score is weighed by the bound less what it
would be with the mean of the other log-weights in this sample's place. K = 8, 3 seeds, on the
embedded digits. Theirs are binary latents, for which it was made, up to 50 samples; here z is
Gaussian, so that it can be compared with configs/objectives/iwae.py.

    python -m experiments.run --config=configs/objectives/vimco.py --workdir=results/vimco

It takes about 10 s. What to expect: the bound of IWAE without a gradient through z. In a run on two
CPU cores with JAX 0.10.2: test/elbo −24.28 ± 0.14, test/rate 3.54 ± 0.07, test/nll 22.81 ± 0.04 (K
= 100), train/bound −22.83 ± 0.08; by reparameterisation test/nll is 22.91 ± 0.02 and train/bound
−22.95 ± 0.05.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "iwae"
    config.objective.estimator = "score"
    config.objective.samples = 8
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
