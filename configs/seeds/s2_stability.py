"""S2, training stability: the listing as printed, and corrected.

What it is: 784-128-64-32, decoder 32-64-128-784 (relu), on all of MNIST, grey in [0, 1]; batches of
128, Adam 1e-3, 100 epochs. Two models × 5 seeds.

    python -m experiments.run --config=configs/seeds/s2_stability.py --config.data.dir=DIR \\
        --workdir=results/s2_stability

configs/seeds/s2_stability_quick.py is the same in a minute, which
`python -m experiments.study --name=s2_stability` trains.

The losses, with D = 784 pixels and d = 32 latents. A Gaussian decoder has the distortion
|x − x̂|²/(2σ²) and a constant, so that a squared error's weight w is a σ² of 1/(2w).

  as printed  (1/D)|x − x̂|² + [(1/D)|x − x̂|² + (1/d)·½ Σ_j (h_j² + e^{h_j} − 1 − h_j)]

              One dense layer, h, is mean and log-variance, and x̂ = decode(BatchNorm(h)): the
              posterior and the objective `tied`, see vae/printed.py. Each error has 1/D = 1/(2σ²):
              σ² = D/2 = 392, and as it is counted twice, σ²_eff = D/4 = 196. The weight of what
              stands for the KL is β = 1/d = 1/32, which comes to β_eff σ²_eff = 6.1; but its
              price is none: h can shrink to where it is zero, and BatchNorm undoes that. It is
              an autoencoder, whose rate is not a number. That the KL is wrong is all that is known
              of the listing's: this is the textbook's formula with mean and log-variance tied.

  corrected   |x − x̂|² + KL, both sums, with two heads and z ~ N(m, s²): σ² = ½, β = 1, an ELBO.

What to expect: as printed, the head's "KL" falls to nothing while the error goes on falling;
docs/studies.md has the numbers.
"""

import ml_collections

from configs import default
from experiments import sweep

AS_PRINTED = {
    "objective.name": "tied",
    "model.posterior": "tied",
    "model.sigma": (784 / 2) ** 0.5,
    "objective.beta": 1 / 32,
}
CORRECTED = {
    "objective.name": "elbo",
    "model.posterior": "gaussian",
    "model.sigma": 0.5**0.5,
    "objective.beta": 1.0,
}


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:mnist"
    config.data.binarization = "none"
    config.model.latent_dim = 32
    config.model.width = (128, 64)
    config.model.likelihood = "gaussian"
    config.train.epochs = 100
    config.probe.instruments = "terms"
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product([AS_PRINTED, CORRECTED], sweep.axis("seed", range(5)))
