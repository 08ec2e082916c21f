"""S1 in minutes: configs/seeds/s1_samples.py on a part of MNIST.

What it is: the same two losses × 5 seeds on the first 8,000 images of MNIST's test file, tested on
the last 2,000, as configs/mnist_8k.py, for 30 epochs.

    python -m experiments.study --name=s1_samples --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/seeds/s1_samples_quick.py --config.data.dir=DIR \\
        --workdir=results/s1_samples_quick

What to expect: docs/studies.md has the numbers.
"""

import ml_collections

from configs.seeds import s1_samples
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = s1_samples.get_config()
    config.data.train_split = "test[:8000]"
    config.data.test_split = "test[8000:]"
    config.train.epochs = 30
    config.eval.iw_samples = 64
    return config


def get_sweep() -> sweep.Sweep:
    return s1_samples.get_sweep()
