"""S2 in minutes: configs/seeds/s2_stability.py on a part of MNIST.

What it is: the same two models × 5 seeds on the first 8,000 images of MNIST's test file, tested on
the last 2,000, as configs/mnist_8k.py, for 20 epochs.

    python -m experiments.study --name=s2_stability --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/seeds/s2_stability_quick.py --config.data.dir=DIR \\
        --workdir=results/s2_stability_quick

What to expect: docs/studies.md has the numbers.
"""

import ml_collections

from configs.seeds import s2_stability
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = s2_stability.get_config()
    config.data.train_split = "test[:8000]"
    config.data.test_split = "test[8000:]"
    config.train.epochs = 20
    config.eval.iw_samples = 64
    return config


def get_sweep() -> sweep.Sweep:
    return s2_stability.get_sweep()
