"""Learned priors against N(0, I) at equal budget (Tomczak and Welling 2018, section 5).

What it is: N(0, I), the VampPrior with 50 pseudo-inputs, which start as training images, a mixture
of 50 Gaussians and a flow × 3 seeds on the reduced MNIST of configs/mnist_8k.py: the same nets but
for the prior, the same batches and the same number of steps. configs/studies/priors_full.py has 500
pseudo-inputs, as theirs.

    python -m experiments.study --name=priors --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/priors.py --config.data.dir=DIR \\
        --workdir=results/priors

What to expect: docs/studies.md has the numbers.
"""

import ml_collections

from configs import mnist_8k
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = mnist_8k.get_config()
    config.model.prior_components = 50
    return config


def get_sweep() -> sweep.Sweep:
    prior = sweep.axis("model.prior", ["standard", "vamp", "mixture", "flow"])
    return sweep.product(prior, sweep.axis("seed", range(3)))
