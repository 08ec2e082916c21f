"""Remedies for posterior collapse, each against the plain VAE.

What it is: β warmed up over half of the training (Bowman et al. 2016, Sønderby et al. 2016), 4
cycles of it (Fu et al. 2019), free bits of ½ nat (Kingma et al. 2016), a floor of .1 nats under the
rate of each dimension (δ-VAE: Razavi et al. 2019), z in the input of all of the decoder's layers
(Dieng et al. 2019), and none of them, × 5 seeds, on the embedded digits.

    python -m experiments.study --name=remedies --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/remedies.py --workdir=results/remedies

What to expect: a higher rate and more active units than without, at about the same ELBO;
docs/studies.md has the numbers.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.optimizer.learning_rate = 3e-3
    config.objective.warmup_steps = 275.0
    config.model.rate_floor = 0.1
    config.eval.iw_samples = 0
    return config


def get_sweep() -> sweep.Sweep:
    remedies = sweep.chain(
        sweep.axis("objective.free_bits", [0.0, 0.5]),
        sweep.axis("objective.beta_schedule", ["linear", "cyclical"]),
        sweep.axis("model.posterior_scale", ["floored"]),
        sweep.axis("model.latent_skip", ["concat"]),
    )
    return sweep.product(remedies, sweep.axis("seed", range(5)))
