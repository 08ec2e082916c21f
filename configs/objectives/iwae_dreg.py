"""DReG (Tucker et al. 2019, eq. 7): IWAE's bound by doubly reparameterised gradients.

What it is: configs/objectives/iwae.py with another estimator of the encoder's gradient, unbiased
and with a signal-to-noise ratio that grows with K. 3 seeds, on the embedded digits; theirs is MNIST
with K = 64 and 50 latents.

    python -m experiments.run --config=configs/objectives/iwae_dreg.py --workdir=results/iwae_dreg

It takes about 10 s. What to expect: a test/nll at or better than that of plain IWAE. In a run on
two CPU cores with JAX 0.10.2: test/elbo −24.14 ± 0.12, test/rate 3.74 ± 0.09, test/nll 22.75 ± 0.03
(K = 100), train/bound −22.73 ± 0.07; plain IWAE has test/nll 22.91 ± 0.02.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "iwae"
    config.objective.estimator = "dreg"
    config.objective.samples = 8
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
