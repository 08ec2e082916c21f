"""A reduced MNIST: the nets of Burda et al. 2016 on 8,000 images, for studies in minutes.

What it is: MNIST's test file as all the data there is, the first 8,000 images to train on and the
last 2,000 to test on, dynamically binarised; two hidden layers of 200 tanh units, 50 latents, the
output's bias at the mean image, as in their code (at zero this short training leaves the nll five
nats worse); batches of 100, Adam with ε = 1e-4 and a learning rate that falls from 1e-3 to 1e-4 by
a cosine, 100 epochs. Burda et al. train on 60,000 images for 3,280 epochs, hours on a CPU. The
numbers do not compare with those of the whole MNIST: so few images overfit.

    python -m experiments.run --config=configs/mnist_8k.py --config.data.dir=DIR \\
        --workdir=results/mnist_8k

What to expect: a VAE with test/nll (K = 500) near 100 nats and 28 of 50 active units, as in
docs/studies.md, which configs/studies are the configs of.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:mnist"
    config.data.train_split = "test[:8000]"
    config.data.test_split = "test[8000:]"
    config.model.latent_dim = 50
    config.model.width = 200
    config.model.activation = "tanh"
    config.model.output_bias = "data_mean"
    config.optimizer.eps = 1e-4
    config.optimizer.schedule = "cosine"
    config.train.epochs = 100
    config.train.batch_size = 100
    config.eval.iw_samples = 500
    return config
