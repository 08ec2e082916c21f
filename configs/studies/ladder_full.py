"""The Ladder VAE's recipe (Sønderby et al. 2016, section 3): five stochastic layers, 2000 epochs.

What it is: latents 64-32-16-8-4, networks of two leaky ReLU layers of 512, 256, 128, 64 and 32
units, softplus scales, batches of 256, Adam with learning rate 2e-4, dynamic binarisation; inferred
from the bottom up (their VAE) or as a ladder × BatchNorm or none × warm-up over 200 epochs or none
× 3 seeds: 468,000 steps a run, for a GPU. Not as theirs: no fine-tuning with a lower learning rate,
and K = 1 alone.

    python -m experiments.study --name=ladder --budget=full --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/ladder_full.py --config.data.dir=DIR \\
        --workdir=results/ladder_full

What to expect: the ladder's test/nll near 82 nats. It has not been run.
"""

import ml_collections

from configs import default
from experiments import sweep

STEPS_PER_EPOCH = 60_000 // 256


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:mnist"
    config.model.prior = "hierarchical"
    config.model.latent_dim = (64, 32, 16, 8, 4)
    config.model.width = 512
    config.model.stochastic_width = (256, 128, 64, 32)
    config.model.activation = "leaky_relu"
    config.model.posterior_scale = "softplus"
    config.objective.beta_schedule = "linear"
    config.optimizer.learning_rate = 2e-4
    config.train.epochs = 2000
    config.train.batch_size = 256
    config.eval.iw_samples = 5000
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("model.posterior", ["hierarchical", "ladder"]),
        sweep.axis("model.norm", ["none", "batch"]),
        sweep.axis("objective.warmup_steps", [0.0, 200.0 * STEPS_PER_EPOCH]),
        sweep.axis("seed", range(3)),
    )
