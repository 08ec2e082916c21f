"""A learned σ against fixed ones, with 100 epochs (Rybkin et al. 2021).

What it is: configs/studies/sigma_vae.py, longer.

    python -m experiments.study --name=sigma_vae --budget=full --data_dir=DIR \\
        --workdir=results/studies

or, for the runs alone, --config=configs/studies/sigma_vae_full.py of experiments.run. What to
expect: as there.
"""

import ml_collections

from configs.studies import sigma_vae
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = sigma_vae.get_config()
    config.train.epochs = 100
    return config


def get_sweep() -> sweep.Sweep:
    return sigma_vae.get_sweep()
