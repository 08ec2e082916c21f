"""Generalised DReG (Bauer and Mnih 2021): IWAE's bound with a flow as the prior, both learned by
doubly reparameterised gradients.

What it is: configs/objectives/iwae_dreg.py with the prior of configs/objectives/flow_prior.py. The
estimator gdreg treats the prior's parameters as dreg does the encoder's. 3 seeds, on the embedded
digits; theirs are hierarchies of latents, on MNIST, Omniglot and FashionMNIST.

    python -m experiments.run --config=configs/objectives/iwae_gdreg.py --workdir=results/iwae_gdreg

"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.name = "iwae"
    config.objective.estimator = "gdreg"
    config.objective.samples = 8
    config.model.prior = "flow"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
