"""S3 in minutes: configs/seeds/s3_training.py on a part of MNIST.

What it is: the same three objectives × 3 seeds on the first 8,000 images of MNIST's test file,
tested on the last 2,000, as configs/mnist_8k.py, for 6 epochs.

    python -m experiments.study --name=s3_training --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/seeds/s3_training_quick.py --config.data.dir=DIR \\
        --workdir=results/s3_training_quick

What to expect: docs/studies.md has the numbers.
"""

import ml_collections

from configs.seeds import s3_training
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = s3_training.get_config()
    config.data.train_split = "test[:8000]"
    config.data.test_split = "test[8000:]"
    config.train.epochs = 6
    config.eval.iw_samples = 64
    return config


def get_sweep() -> sweep.Sweep:
    return s3_training.get_sweep()
