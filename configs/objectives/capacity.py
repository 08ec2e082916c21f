"""Annealed capacity (Burgess et al. 2018, eq. 8): D + γ |rate − C|, with C rising from 0.

What it is: C (objective.capacity) of 2, 4 and 8 nats at half of the training, where their rise from
0 to 25 nats takes 100,000 steps, × 3 seeds in one program, on the embedded digits. γ
(objective.beta) is 2 where theirs is 1000: with 1000 the rate is at C after these 550 steps too,
but the distortion, of which the gradient then has a thousandth part, is still 26.8, that of an
image without a code.

    python -m experiments.run --config=configs/objectives/capacity.py --workdir=results/capacity

It takes about 15 s. What to expect: a test/rate within a few tenths of a nat of C, and a distortion
that falls with C. In a run on two CPU cores with JAX 0.10.2: C = 2, 4, 8: test/rate 2.10 ± 0.14,
4.01 ± 0.14, 7.86 ± 0.06; test/distortion 22.21 ± 0.28, 20.00 ± 0.08, 17.97 ± 0.14; test/elbo −24.31
± 0.14, −24.01 ± 0.07, −25.83 ± 0.20; test/nll (K = 100) 23.77 ± 0.01, 23.41 ± 0.01, 24.15 ± 0.19.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "capacity"
    config.objective.beta = 2.0  # the paper's γ
    config.objective.capacity_steps = 275.0  # half of the training
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.capacity", [2.0, 4.0, 8.0]),
        sweep.axis("seed", range(3)),
    )
