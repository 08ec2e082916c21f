"""MNIST: the standard small VAE, 784-500-20, dynamically binarised.

What it is: one hidden layer of 500 units in the encoder and in the decoder, 20 latent dimensions,
Bernoulli likelihood, batches of 128, Adam with learning rate 1e-3, 20 epochs; the architecture of
Kingma & Welling (2014) with ReLU. The negative log-likelihood is estimated with 5,000 importance
samples per test image.

The data is read through TensorFlow Datasets; say where it lies with ``--config.data.dir``:

    python -m experiments.run --config=configs/mnist.py --config.data.dir=DIR \\
        --workdir=results/mnist

What to expect: a test ELBO near -100 nats (an independent script with these settings reached
-100.3), and a test/nll below minus that ELBO, because the importance-weighted bound is tighter.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:mnist"
    config.model.depth = 1
    config.model.width = 500
    config.model.latent_dim = 20
    config.train.epochs = 20
    config.eval.iw_samples = 5000
    return config
