"""A flow as the prior (Chen et al. 2017, section 3.2).

What it is: four affine coupling layers of 64 units from N(0, I) to z, learned with the rest, and
the KL sampled. Theirs are autoregressive. 3 seeds, 200 epochs, on the embedded digits.

    python -m experiments.run --config=configs/objectives/flow_prior.py --workdir=results/flow_prior

It takes about 20 s. What to expect: an ELBO at or a little above that with N(0, I). In a run on two
CPU cores with JAX 0.10.2: test/elbo −23.09 ± 0.02, test/rate 3.92 ± 0.03, test/nll 22.60 ± 0.02 (K
= 100); N(0, I) (--config.model.prior=standard) has test/elbo −23.09 ± 0.03, test/rate 4.04 ± 0.13,
test/nll 22.67 ± 0.01.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.prior = "flow"
    config.optimizer.learning_rate = 3e-3
    config.train.epochs = 200
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
