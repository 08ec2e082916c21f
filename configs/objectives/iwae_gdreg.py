"""Generalised DReG (Bauer and Mnih 2021): IWAE's bound with a flow prior, both by DReG.

What it is: configs/objectives/iwae_dreg.py with the prior of configs/objectives/flow_prior.py,
whose gradient the estimator gdreg reparameterises doubly as dreg does the encoder's. 3 seeds, on
the embedded digits; theirs are hierarchies of latents.

    python -m experiments.run --config=configs/objectives/iwae_gdreg.py --workdir=results/iwae_gdreg

It takes about 25 s. What to expect: on these images the same model as by dreg. In a run on two CPU
cores with JAX 0.10.2: test/elbo −23.77 ± 0.10, test/rate 4.12 ± 0.02, test/nll 22.63 ± 0.03 (K =
100), train/bound −22.55 ± 0.06; with this prior dreg (--config.objective.estimator=dreg) has
test/nll 22.63 ± 0.02 and the plain estimator 22.77 ± 0.02; with N(0, I) dreg has 22.75 ± 0.03.
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
