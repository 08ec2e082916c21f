"""Learned priors against N(0, I) with 500 components, as Tomczak and Welling 2018.

What it is: configs/studies/priors.py with 500 pseudo-inputs and 500 Gaussians; 12 minutes on two
cores.

    python -m experiments.study --name=priors --budget=full --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/priors_full.py --config.data.dir=DIR \\
        --workdir=results/priors_full

What to expect: the VampPrior's nll is 3 nats better than that of N(0, I); docs/studies.md.
"""

import ml_collections

from configs.studies import priors
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = priors.get_config()
    config.model.prior_components = 500
    return config


def get_sweep() -> sweep.Sweep:
    return priors.get_sweep()
