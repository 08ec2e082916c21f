"""VampPrior (Tomczak and Welling 2018, eq. 9): a mixture of posteriors at pseudo-inputs.

What it is: 50 learned pseudo-inputs, which start as training images, where theirs are 500 and start
at random; one layer of latents. 3 seeds, 200 epochs, on the embedded digits.

    python -m experiments.run --config=configs/objectives/vamp_prior.py --workdir=results/vamp_prior

It takes about 15 s. What to expect: a better ELBO than with N(0, I), by a few tenths of a nat. In a
run on two CPU cores with JAX 0.10.2: test/elbo −22.77 ± 0.04, test/rate 4.00 ± 0.04, test/nll 22.38
± 0.03 (K = 100); N(0, I) (--config.model.prior=standard) has test/elbo −23.09 ± 0.03, test/rate
4.04 ± 0.13, test/nll 22.67 ± 0.01.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.prior = "vamp"
    config.optimizer.learning_rate = 3e-3
    config.train.epochs = 200
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
