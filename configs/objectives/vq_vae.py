"""VQ-VAE (van den Oord et al. 2017, eq. 3): codes from a learned codebook.

What it is: 4 codes of 16 entries for each image, the codebook by moving averages (their appendix
A.1), commitment ¼, 3 seeds, on the embedded digits. Theirs: 32 × 32 codes of 512 entries for
ImageNet.

    python -m experiments.run --config=configs/objectives/vq_vae.py --workdir=results/vq_vae

It takes about 10 s. What to expect: most of the codebook in use: train/perplexity is from 1 to 16,
for the images of a batch. The rate is 4 ln 16 whatever is learned, since the prior is uniform, and
nll is −elbo, since the code has no noise. In a run on two CPU cores with JAX 0.10.2: test/elbo
−27.84 ± 0.20, test/rate 11.09, test/distortion 16.75 ± 0.20, test/nll 27.84 ± 0.20 (K = 100),
train/perplexity 11.61 ± 0.56, train/code_usage 0.79 ± 0.02.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.posterior = "vq"
    config.model.latent_dim = 4
    config.objective.name = "vq"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
