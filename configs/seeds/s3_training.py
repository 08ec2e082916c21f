"""S3, the training procedure, parameter by parameter: the loss as printed, corrected, and a game.

What it is: 784-128-64-20 (relu) and its mirror image on all of MNIST, grey in [0, 1]; batches of
32, Adam 1e-3, 100 epochs. Three objectives × 3 seeds.

    python -m experiments.run --config=configs/seeds/s3_training.py --config.data.dir=DIR \\
        --workdir=results/s3_training

configs/seeds/s3_training_quick.py is the same in minutes, which
`python -m experiments.study --name=s3_training` trains.

The losses, of N images. A Gaussian decoder has the distortion |x − x̂|²/(2σ²) and a constant.

  as printed  1/(2N) Σ_n |x_n − x̂_n|²

              1/2 = 1/(2σ²): σ² = 1, and β = 0, for there is no KL: an autoencoder, whose
              log-variance nothing defines. (Were N to count the pixels of all images, σ² = 784;
              without a rate that scales all gradients alike, which Adam divides out.)

  corrected   the same plus the KL: σ² = 1, β = 1, an ELBO with z ~ N(m, s²).

  as a game   VAE-GAN (Larsen et al. 2016): the error in a discriminator's features, and the game,
              with the weights of configs/objectives/vae_gan.py. The likelihood is only looked at.

What to expect: with βσ² = 1 the rate pays for principal components of variance above 1, of which
MNIST has twelve; the autoencoder keeps what it can; docs/studies.md has the numbers.
"""

import ml_collections

from configs import default
from experiments import sweep

AS_PRINTED = {"objective.name": "autoencoder", "model.posterior": "point"}
CORRECTED = {"objective.name": "elbo", "model.posterior": "gaussian"}
AS_A_GAME = {"objective.name": "vaegan", "model.posterior": "gaussian", "objective.beta": 0.1}


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:mnist"
    config.data.binarization = "none"
    config.model.latent_dim = 20
    config.model.width = (128, 64)
    config.model.likelihood = "gaussian"
    config.objective.penalty = 1.0
    config.optimizer.discriminator_lr_factor = 0.3
    config.train.epochs = 100
    config.train.batch_size = 32
    config.probe.instruments = "terms"
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product([AS_PRINTED, CORRECTED, AS_A_GAME], sweep.axis("seed", range(3)))
