"""Rényi's variational bound (Li and Turner 2016, eq. 7), of order α.

What it is: α of 0, which is IWAE's bound, ½ and 1, which is the ELBO, × 3 seeds in one program, K =
8, on the embedded digits. Theirs: also Frey Faces, OMNIGLOT and α < 0, K = 5 and 50.

    python -m experiments.run --config=configs/objectives/renyi.py --workdir=results/renyi

It takes about 25 s. What to expect: as with CIWAE, the smaller α, the tighter the bound: a better
test/nll, and a worse test/elbo near 0. In a run on two CPU cores with JAX 0.10.2: α = 0: test/elbo
−24.62 ± 0.16, test/rate 2.97 ± 0.07, test/nll 22.92 ± 0.03 (K = 100); α = ½: test/elbo −23.72 ±
0.06, test/rate 3.61 ± 0.02, test/nll 23.00 (K = 100); α = 1: test/elbo −23.69 ± 0.04, test/rate
3.29 ± 0.05, test/nll 23.30 ± 0.02 (K = 100).
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "renyi"
    config.objective.samples = 8
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.renyi_alpha", [0.0, 0.5, 1.0]),
        sweep.axis("seed", range(3)),
    )
