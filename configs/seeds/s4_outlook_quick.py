"""S4 in minutes: configs/seeds/s4_outlook.py on a part of MNIST.

What it is: the same six rows × 5 seeds on the first 8,000 images of MNIST's test file, tested on
the last 2,000, as configs/mnist_8k.py, for 20 epochs, 200 units in place of 500.

    python -m experiments.study --name=s4_outlook --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/seeds/s4_outlook_quick.py --config.data.dir=DIR \\
        --workdir=results/s4_outlook_quick

What to expect: docs/studies.md has the numbers.
"""

import ml_collections

from configs.seeds import s4_outlook
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = s4_outlook.get_config()
    config.data.train_split = "test[:8000]"
    config.data.test_split = "test[8000:]"
    config.model.width = 200
    config.objective.warmup_steps = 800.0  # half of the training
    config.train.epochs = 20
    config.eval.iw_samples = 64
    return config


def get_sweep() -> sweep.Sweep:
    return s4_outlook.get_sweep()
