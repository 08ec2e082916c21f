"""S1, VAEs for random samples and interpretation: the loss as printed, and corrected.

What it is: 784-128(relu)-20, decoder 20-128-784, on all of MNIST, grey in [0, 1]; batches of 256,
Adam 1e-3, 100 epochs. Two losses × 5 seeds.

    python -m experiments.run --config=configs/seeds/s1_samples.py --config.data.dir=DIR \\
        --workdir=results/s1_samples

configs/seeds/s1_samples_quick.py is the same in a minute, which
`python -m experiments.study --name=s1_samples` trains.

The losses, with D = 784 pixels and d = 20 latents. A Gaussian decoder has the distortion
|x − x̂|²/(2σ²) and a constant, so that a squared error's weight w is a σ² of 1/(2w).

  as printed  (1/D)|x − x̂|² + (1/d)·KL, means over pixels and over latents

              1/D = 1/(2σ²): σ² = D/2 = 392, and β = 1/d = 1/20. In units of σ² = 1 the hidden
              β is D/(2d) = 19.6; in those of the sums |x − x̂|² + β·KL, σ² = ½, it is D/d = 39.2.

  corrected   |x − x̂|² + KL, both sums: σ² = ½, β = 1, an ELBO.

Generation is written as z + ε: what is decoded, z ~ N(0, I) and another ε ~ N(0, I), has twice the
prior's variance. The study looks at both.

What to expect: a linear VAE keeps a principal component of variance λ where λ > βσ² (Lucas et al.
2019), and the largest of MNIST has λ = 5.1: as printed, with 19.6, nothing is kept, every
reconstruction is the mean image, and samples are too. docs/studies.md has the numbers.
"""

import ml_collections

from configs import default
from experiments import sweep

AS_PRINTED = {"model.sigma": (784 / 2) ** 0.5, "objective.beta": 1 / 20}
CORRECTED = {"model.sigma": 0.5**0.5, "objective.beta": 1.0}


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:mnist"
    config.data.binarization = "none"
    config.model.latent_dim = 20
    config.model.depth = 1
    config.model.likelihood = "gaussian"
    config.train.epochs = 100
    config.train.batch_size = 256
    config.probe.instruments = "terms"
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product([AS_PRINTED, CORRECTED], sweep.axis("seed", range(5)))
