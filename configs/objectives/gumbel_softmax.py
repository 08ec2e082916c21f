"""Gumbel-softmax VAE (Jang et al. 2017, eq. 2; Maddison et al. 2017): categorical latents.

What it is: 8 variables of 8 classes, relaxed in training at a temperature that falls from 1 to ½
over the first half of it, drawn hard in evaluation. 3 seeds, on the embedded digits. Theirs: MNIST,
and a temperature that falls by a factor e in 10,000 steps or more.

    python -m experiments.run --config=configs/objectives/gumbel_softmax.py \\
        --workdir=results/gumbel_softmax

It takes about 10 s. What to expect: a test/distortion above train/distortion, which is that of the
relaxed samples. In a run on two CPU cores with JAX 0.10.2: test/elbo −24.97 ± 0.07, test/rate 2.32
± 0.06, test/distortion 22.66 ± 0.03, test/nll 23.74 ± 0.04 (K = 100), train/distortion 21.35 ±
0.08; Gaussian latents, in configs/objectives/free_bits.py, have test/elbo −23.88 ± 0.02.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.posterior = "categorical"
    config.model.codes = 8
    config.model.temperature_steps = 400.0
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
