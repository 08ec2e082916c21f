"""Free bits (Kingma et al. 2016, eq. 15): a floor under each dimension's rate in the loss.

What it is: λ (objective.free_bits) of 0, which is the VAE, and ½ nat for each of the 8 latent
dimensions, × 3 seeds in one program, on the embedded digits. Dimensions share a floor with
--config.objective.free_bits_groups=G. Theirs is a ResNet VAE of CIFAR-10.

    python -m experiments.run --config=configs/objectives/free_bits.py --workdir=results/free_bits

It takes about 10 s. What to expect: a rate of at least 8 λ = 4 nats, and all dimensions active. In
a run on two CPU cores with JAX 0.10.2: λ = 0: test/elbo −23.88 ± 0.02, test/rate 3.10 ± 0.04,
test/nll 23.49 ± 0.01 (K = 100), test/active_units 5.67 ± 0.67; λ = ½: test/elbo −23.83 ± 0.03,
test/rate 4.74 ± 0.13, test/nll 23.19 ± 0.03 (K = 100), test/active_units 8.00.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.free_bits", [0.0, 0.5]),
        sweep.axis("seed", range(3)),
    )
