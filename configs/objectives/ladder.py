"""The Ladder VAE (Sønderby et al. 2016): inference from the top down, joined with the prior.

What it is: 8, 4 and 2 latents, the 8 read by the decoder; networks of 2 × 64 units between the
layers, BatchNorm, and a warm-up of β over half of the training, on the embedded digits, 3 seeds.
Theirs: five layers on MNIST, configs/studies/ladder_full.py.

    python -m experiments.run --config=configs/objectives/ladder.py --workdir=results/ladder

It takes about 25 s. What to expect: z_1 carries the most. In a run on two CPU cores with JAX
0.10.2: test/elbo −23.34 ± 0.05, test/rate 4.46 ± 0.15, of which z_1 has 3.8 nats, test/nll 22.68 ±
0.01 (K = 100); all 8 latents of z_1 in use, all 4 of z_2 and 1 or 2 of z_3.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.posterior = "ladder"
    config.model.prior = "hierarchical"
    config.model.latent_dim = (8, 4, 2)
    config.model.activation = "leaky_relu"
    config.model.norm = "batch"
    config.objective.beta_schedule = "linear"
    config.objective.warmup_steps = 275.0
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
