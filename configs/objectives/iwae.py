"""IWAE (Burda et al. 2016, eq. 8): a bound by K importance-weighted samples, K = 8.

What it is: log 1/K Σ w_k in place of the ELBO, 3 seeds, on the embedded digits. Theirs: K = 5 and
50, MNIST and OMNIGLOT, 200 units of tanh, batches of 20.

    python -m experiments.run --config=configs/objectives/iwae.py --workdir=results/iwae

It takes about 10 s. What to expect: a better test/nll than the ELBO's, and a worse test/elbo, for
which q(z|x) is no longer trained; train/bound is the bound that is maximised. In a run on two CPU
cores with JAX 0.10.2: test/elbo −24.66 ± 0.02, test/rate 3.00, test/nll 22.91 ± 0.02 (K = 100),
train/bound −22.95 ± 0.05; the VAE (configs/objectives/free_bits.py with none) has test/elbo −23.88
± 0.02, test/rate 3.10 ± 0.04 and test/nll 23.49 ± 0.01.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "iwae"
    config.objective.samples = 8
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
