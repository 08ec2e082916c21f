"""S0, vanishing gradients in VAEs: the write-up's code as printed, its text, and corrected.

What it is: 784-128(relu)-2-128(relu)-784(sigmoid) on all of MNIST, grey in [0, 1]; Adam 1e-3, 100
epochs; batches of 128 (it names none). Three losses × 3 seeds.

    python -m experiments.run --config=configs/seeds/s0_vanishing.py --config.data.dir=DIR \\
        --workdir=results/s0_vanishing

configs/seeds/s0_vanishing_quick.py is the same in a minute, which
`python -m experiments.study --name=s0_vanishing` trains.

The losses, with D = 784 pixels, d = 2 latents, β = 1. A Gaussian decoder has the distortion
|x − x̂|²/(2σ²) and a constant, so that a squared error's weight w is a σ² of 1/(2w).

  as printed  (1/D)|x − x̂|² + (β/d) Σ_j [log softmax(z)_j − log softmax(m)_j], z = sigmoid(m)

              1/D = 1/(2σ²): σ² = D/2 = 392. No noise, no variance head, and no KL: the objective
              `log_softmax` with β/d = ½; the derivation of its gradient is in vae/printed.py. The
              listing's means over pixels and latents are taken here as written; which of the two
              log-softmaxes is subtracted it leaves open.

  in words    (1/D)|x − x̂|² + β·(KL − H[q]), the entropy of q being added a second time

              KL − H[q] = ½ Σ (m² + s² − 2 ln s²) + const = 2·KL(N(m, s²) || N(0, 2)) + const, and
              z = √2·z′ makes that prior N(0, I): a β-VAE with σ² = D/2 = 392 and β_eff = 2β = 2.
              In units of σ² = 1 that is β = 784.

  corrected   |x − x̂|² + KL, both sums: σ² = ½, β = 1, an ELBO.

What to expect: a linear VAE keeps a principal component of variance λ where λ > β_eff σ² (Lucas et
al. 2019), and the largest of MNIST has λ = 5.1. 784 in words leaves none: the rate is 0, whatever
the depth. docs/studies.md has the numbers.
"""

import ml_collections

from configs import default
from experiments import sweep

PIXEL_MEAN = (784 / 2) ** 0.5  # σ
AS_PRINTED = {
    "objective.name": "log_softmax",
    "model.posterior": "squashed",
    "model.sigma": PIXEL_MEAN,
    "objective.beta": 0.5,
}
GAUSSIAN = {"objective.name": "elbo", "model.posterior": "gaussian"}
IN_WORDS = GAUSSIAN | {"model.sigma": PIXEL_MEAN, "objective.beta": 2.0}
CORRECTED = GAUSSIAN | {"model.sigma": 0.5**0.5, "objective.beta": 1.0}


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:mnist"
    config.data.binarization = "none"
    config.model.latent_dim = 2
    config.model.depth = 1
    config.model.likelihood = "gaussian"
    config.model.output = "sigmoid"
    config.train.epochs = 100
    config.probe.instruments = "terms"
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product([AS_PRINTED, IN_WORDS, CORRECTED], sweep.axis("seed", range(3)))
