"""δ-VAE (Razavi et al. 2019): a family of posteriors that cannot collapse.

What it is: σ of each dimension is kept so small that its KL to N(0, 1) is at least δ
(model.rate_floor), of 0.1 and ½ nats, × 3 seeds in one program, on the embedded digits. Theirs is a
prior that is correlated in time, and a posterior that is not; here the dimensions are independent,
and what is bounded is σ.

    python -m experiments.run --config=configs/objectives/delta_vae.py --workdir=results/delta_vae

It takes about 15 s. What to expect: a test/rate above 8 δ, 0.8 and 4 nats, and all dimensions
active. In a run on two CPU cores with JAX 0.10.2: δ = 0.1: test/elbo −23.83 ± 0.04, test/rate 4.18
± 0.03, test/nll 23.24 ± 0.01 (K = 100), test/active_units 8.00; δ = ½: test/elbo −24.25 ± 0.06,
test/rate 6.23 ± 0.01, test/nll 23.37 ± 0.03 (K = 100), test/active_units 8.00.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.posterior_scale = "floored"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("model.rate_floor", [0.1, 0.5]),
        sweep.axis("seed", range(3)),
    )
