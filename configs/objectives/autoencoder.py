"""The plain autoencoder: distortion alone, of a code without noise.

What it is: the baseline without a rate (Hinton and Salakhutdinov 2006, there pretrained layer by
layer, with cross-entropy as here), 3 seeds, on the embedded digits, whose bits are drawn at random
at each step.

    python -m experiments.run --config=configs/objectives/autoencoder.py \\
        --workdir=results/autoencoder

It takes about 10 s. What to expect: a distortion far below a VAE's, because nothing limits the
code; rate, ELBO and nll do not exist. In a run on two CPU cores with JAX 0.10.2: test/distortion
13.97 ± 0.04; the VAE (configs/objectives/free_bits.py with none) has 20.78 ± 0.06 at a rate of 3.10
± 0.04.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.posterior = "point"
    config.objective.name = "autoencoder"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
