"""Numbers of latents that the data do not need (Kingma and Welling 2014, section 5), reduced.

What it is: 3, 5, 10, 20 and 200 latents × 3 seeds of their net, one hidden layer of 500 tanh units,
with Adagrad in batches of 100, on the 8,000 + 2,000 images of configs/mnist_8k.py, 40 epochs.
configs/studies/latents_full.py and latents_frey_face.py have all of their images.

    python -m experiments.study --name=latents --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/latents.py --config.data.dir=DIR \\
        --workdir=results/latents

What to expect: a test/elbo that rises up to 20 latents and falls little beyond; docs/studies.md has
the numbers.
"""

import ml_collections

from configs import mnist_8k
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = mnist_8k.get_config()
    config.model.depth = 1
    config.model.width = 500
    config.model.output_bias = "zero"
    config.optimizer.name = "adagrad"
    config.optimizer.learning_rate = 0.01
    config.optimizer.schedule = "constant"
    config.optimizer.eps = 1e-8
    config.train.epochs = 40
    config.eval.iw_samples = 0
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("model.latent_dim", [3, 5, 10, 20, 200]), sweep.axis("seed", range(3))
    )
