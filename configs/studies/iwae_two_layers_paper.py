"""Table 1 of Burda et al. 2016, two stochastic layers, by the recipe of their paper; for a GPU.

What it is: configs/studies/iwae_paper.py with 100 latents, which the decoder reads through 200-200
units, and 50 above them, with networks of 100-100 tanh units in between, up and down; inferred from
the bottom up, q(z_1|x) q(z_2|z_1).

    python -m experiments.run --config=configs/studies/iwae_two_layers_paper.py \\
        --config.data.dir=DIR --workdir=results/iwae_two_layers_paper

What to expect, test/nll with K = 5000 and test/active_units_z1 + _z2, from their table: VAE 85.33
(16 + 5), 85.01 (17 + 5), 84.78 (17 + 5) for K = 1, 5, 50; IWAE 83.89 (21 + 5), 82.90 (26 + 7). It
has not been run. A unit of the second layer counts by the mean that the mean of the first leads to;
the paper's is a mean over samples of the first.
"""

import ml_collections

from configs.studies import iwae_paper
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = iwae_paper.get_config()
    config.model.posterior = "hierarchical"
    config.model.prior = "hierarchical"
    config.model.latent_dim = (100, 50)
    config.model.stochastic_width = 100
    return config


def get_sweep() -> sweep.Sweep:
    return iwae_paper.get_sweep()
