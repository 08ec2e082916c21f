"""The decoder's variance and posterior collapse, with 300 epochs (Lucas et al. 2019).

What it is: configs/studies/variance_collapse.py, longer.

    python -m experiments.study --name=variance_collapse --budget=full --data_dir=DIR \\
        --workdir=results/studies

or, for the runs alone, --config=configs/studies/variance_collapse_full.py of experiments.run. What
to expect: as there.
"""

import ml_collections

from configs.studies import variance_collapse
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = variance_collapse.get_config()
    config.train.epochs = 300
    return config


def get_sweep() -> sweep.Sweep:
    return variance_collapse.get_sweep()
