"""β-VAE (Higgins et al. 2017, eq. 4): β times the rate in the ELBO.

What it is: β of 1 (the VAE), 2 and 4 × 3 seeds in one program, on the embedded digits, made binary
at ½ as their dSprites are binary. Theirs are images of 64 × 64, with β = 4 for dSprites: a β weighs
the rate against a sum over pixels, of which there are 64 times fewer here.

    python -m experiments.run --config=configs/objectives/beta_vae.py --workdir=results/beta_vae

It takes about 15 s. What to expect: the rate falls and the distortion rises with β. In a run on two
CPU cores with JAX 0.10.2: β = 1, 2, 4: test/rate 4.71 ± 0.09, 1.85 ± 0.16, 0.00; test/distortion
14.25 ± 0.17, 19.26 ± 0.37, 24.79 ± 0.02; test/elbo −18.96 ± 0.10, −21.11 ± 0.21, −24.79 ± 0.02;
test/nll (K = 100) 18.05 ± 0.03, 20.24 ± 0.27, 24.74 ± 0.01.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.binarization = "threshold"  # binary images, as dSprites
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.beta", [1.0, 2.0, 4.0]),
        sweep.axis("seed", range(3)),
    )
