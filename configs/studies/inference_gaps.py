"""VAEs of which the gaps of inference are measured (Cremer et al. 2018).

What it is: 5 seeds in one program on the reduced MNIST of configs/mnist_8k.py, 25 epochs.

    python -m experiments.study --name=inference_gaps --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/inference_gaps.py --config.data.dir=DIR \\
        --workdir=results/inference_gaps

What to expect: models of some 110 nats; docs/studies.md has the gaps.
"""

import ml_collections

from configs import mnist_8k
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = mnist_8k.get_config()
    config.train.epochs = 25
    config.eval.iw_samples = 0
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(5))
