"""The denoising autoencoder (Vincent et al. 2008): the code of a corrupted image.

What it is: a share of the pixels (objective.corruption_level) of 0, which is the autoencoder, and ¼
is set to 0 before the encoder sees them, and the loss asks for all of them, × 3 seeds in one
program, on the embedded digits. Gaussian noise: --config.objective.corruption=gaussian. Theirs has
one wide layer, as a start for a classifier.

    python -m experiments.run --config=configs/objectives/denoising_autoencoder.py \\
        --workdir=results/denoising_autoencoder

It takes about 10 s. What to expect: on images that are not corrupted, as in test/distortion, a
higher distortion than the autoencoder's; no rate, ELBO or nll. In a run on two CPU cores with JAX
0.10.2: a share of 0: test/distortion 13.96 ± 0.04, train/distortion 13.58 ± 0.13; a share of ¼:
test/distortion 15.07 ± 0.07, train/distortion 16.92 ± 0.13.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.posterior = "point"
    config.objective.name = "autoencoder"
    config.objective.corruption = "mask"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.corruption_level", [0.0, 0.25]),
        sweep.axis("seed", range(3)),
    )
