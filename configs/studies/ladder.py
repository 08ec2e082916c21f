"""Top layers of a deep VAE die; BatchNorm and warm-up revive them: Sønderby et al. 2016, reduced.

What it is: three stochastic layers of 32, 16 and 8 latents, inferred from the bottom up or as a
ladder × BatchNorm or none × KL warm-up over the first third of the training or none × 5 seeds, on
the reduced MNIST of configs/mnist_8k.py, 60 epochs. Networks of two leaky ReLU layers of 100, 50
and 25 units, a fifth of theirs; softplus scales. configs/studies/ladder_full.py has their recipe.

    python -m experiments.study --name=ladder --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/ladder.py --config.data.dir=DIR \\
        --workdir=results/ladder

What to expect: docs/studies.md has the numbers.
"""

import ml_collections

from configs import mnist_8k
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = mnist_8k.get_config()
    config.model.prior = "hierarchical"
    config.model.latent_dim = (32, 16, 8)
    config.model.width = 100
    config.model.stochastic_width = (50, 25)
    config.model.activation = "leaky_relu"
    config.model.posterior_scale = "softplus"
    config.objective.beta_schedule = "linear"
    config.train.epochs = 60
    config.eval.samples = 4
    config.eval.iw_samples = 100
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("model.posterior", ["hierarchical", "ladder"]),
        sweep.axis("model.norm", ["none", "batch"]),
        # 20 epochs of 80 steps.
        sweep.axis("objective.warmup_steps", [0.0, 1600.0]),
        sweep.axis("seed", range(5)),
    )
