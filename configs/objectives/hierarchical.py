"""Two stochastic layers, inferred from the bottom up (Burda et al. 2016, section 5 and table 1).

What it is: 8 latents, which the decoder reads, and 4 above them, with tanh networks of 2 × 64 units
between the two; IWAE with K = 1, which is the VAE, on the embedded digits, 3 seeds. The KL is
sampled, and told apart by layer. Theirs: 100 and 50 latents on MNIST, configs/studies/.

    python -m experiments.run --config=configs/objectives/hierarchical.py \\
        --workdir=results/hierarchical

It takes about 26 s. What to expect: z_1 carries the most. In a run on two CPU cores with JAX
0.10.2: test/elbo −23.94 ± 0.02, test/rate 3.61 ± 0.01, test/nll 23.33 ± 0.02 (K = 100); all 8
latents of z_1 in use, and 3 or 4 of those of z_2.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.posterior = "hierarchical"
    config.model.prior = "hierarchical"
    config.model.latent_dim = (8, 4)
    config.model.activation = "tanh"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
