"""Fashion-MNIST: the model of configs/mnist.py on images of clothes.

What it is: 784-500-20, Bernoulli likelihood, dynamic binarisation, batches of 128, Adam with
learning rate 1e-3, 20 epochs; nll with 5,000 importance samples per test image. The images are grey
rather than black and white, so the binarised pixels carry much noise that no model can explain.

The data is read through TensorFlow Datasets; say where it lies with ``--config.data.dir``:

    python -m experiments.run --config=configs/fashion_mnist.py --config.data.dir=DIR \\
        --workdir=results/fashion_mnist

What to expect: an ELBO far lower than MNIST's, for the reason above.
"""

import ml_collections

from configs import mnist


def get_config() -> ml_collections.ConfigDict:
    config = mnist.get_config()
    config.data.source = "tfds:fashion_mnist"
    return config
