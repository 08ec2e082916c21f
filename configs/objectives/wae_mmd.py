"""WAE-MMD (Tolstikhin et al. 2018, algorithm 2): an autoencoder whose codes follow p(z).

What it is: squared error plus λ MMD² (objective.penalty) of the codes, λ of 0, which is an
autoencoder, and 10, theirs, × 3 seeds in one program, the kernel of their code (imq), 8 latents, on
the grey embedded digits. The encoder has no noise, so there is a distortion, and neither a rate nor
an ELBO. Theirs: MNIST and CelebA by convolutional nets; their error is a sum over 784 pixels, this
one over 64.

    python -m experiments.run --config=configs/objectives/wae_mmd.py --workdir=results/wae_mmd

It takes about 10 s. What to expect: codes that follow the prior at little cost in the error.
test/distortion is |x − x̂|² + 32 ln π, 36.63, so that a perfect reconstruction has 36.63. In a run
on two CPU cores with JAX 0.10.2: λ = 0: test/distortion 37.51 ± 0.02, train/mmd 0.761 ± 0.111 (of
at most 14); λ = 10: test/distortion 37.69 ± 0.03, train/mmd 0.019 ± 0.001 (of at most 14).
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.binarization = "none"
    config.model.likelihood = "gaussian"
    config.model.sigma = 0.5**0.5  # −log p(x|z) is then |x − x̂|² and a constant
    config.model.posterior = "point"
    config.objective.name = "mmd"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.penalty", [0.0, 10.0]),
        sweep.axis("seed", range(3)),
    )
