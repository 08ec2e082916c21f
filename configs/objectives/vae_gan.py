"""VAE-GAN (Larsen et al. 2016, algorithm 1): the error in a discriminator's features.

What it is: the decoder is trained to have the features of x in a discriminator that is trained in
the same step, and to pass it for real. 3 seeds, on the grey embedded digits; the rate's weight is
0.1 and the discriminator's learning rate 0.3 of the others': at equal rates and weight 1 it came to
tell real from decoded in 98% of cases, and at most one latent dimension was active. Theirs: faces
of 64 × 64, convolutional nets with BatchNorm, RMSProp.

    python -m experiments.run --config=configs/objectives/vae_gan.py --workdir=results/vae_gan

It takes about 15 s. What to expect: neither side wins: the discriminator's accuracy stays well
below 1. The distortion is that of the analytic σ (gaussian_optimal), and is only looked at: no term
of the loss is a likelihood. In a run on two CPU cores with JAX 0.10.2: test/elbo 13.14 ± 0.43,
test/rate 11.07 ± 0.15, test/distortion −24.21 ± 0.30, test/nll −17.86 ± 0.46 (K = 100),
train/feature_error 1.70 ± 0.05, train/discriminator_accuracy 0.63 ± 0.01;
configs/objectives/sigma_vae.py, which maximises the ELBO of this model, has test/elbo 28.16 ± 0.10.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.binarization = "none"
    config.model.likelihood = "gaussian_optimal"
    config.objective.name = "vaegan"
    config.objective.beta = 0.1
    config.objective.penalty = 1.0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.discriminator_lr_factor = 0.3
    config.train.epochs = 100
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
