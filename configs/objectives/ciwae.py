"""CIWAE (Rainforth et al. 2018, eq. 15): β ELBO + (1 − β) IWAE.

What it is: β (objective.ciwae_beta) of 0, which is IWAE, ½ and 1, which is the ELBO, × 3 seeds in
one program, K = 8, on the embedded digits. Theirs: MNIST, K = 64.

    python -m experiments.run --config=configs/objectives/ciwae.py --workdir=results/ciwae

It takes about 20 s. What to expect: with β the test/elbo gets better and the test/nll worse. In a
run on two CPU cores with JAX 0.10.2: β = 0: test/elbo −24.70 ± 0.13, test/rate 2.96 ± 0.08,
test/nll 22.91 ± 0.02 (K = 100); β = ½: test/elbo −23.67 ± 0.07, test/rate 3.64 ± 0.08, test/nll
23.07 ± 0.01 (K = 100); β = 1: test/elbo −23.69 ± 0.04, test/rate 3.29 ± 0.05, test/nll 23.30 ± 0.02
(K = 100).
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "ciwae"
    config.objective.samples = 8
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.ciwae_beta", [0.0, 0.5, 1.0]),
        sweep.axis("seed", range(3)),
    )
