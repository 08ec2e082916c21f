"""Remedies for posterior collapse on the reduced MNIST (as configs/studies/remedies.py).

What it is: the remedies of configs/studies/remedies.py with the data, nets and 50 latents of
configs/mnist_8k.py, 100 epochs, Adam with ε = 1e-8, so that unused latents do collapse; × 5 seeds.

    python -m experiments.study --name=remedies --budget=full --data_dir=DIR \\
        --workdir=results/studies

or, for the runs alone, --config=configs/studies/remedies_full.py of experiments.run. What to
expect: rates of some 20 nats, of which the estimate of the information sees log 2000 at most.
"""

import ml_collections

from configs import mnist_8k
from configs.studies import remedies
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = mnist_8k.get_config()
    config.optimizer.eps = 1e-8
    config.objective.warmup_steps = 4000.0
    config.model.rate_floor = 0.1
    config.eval.iw_samples = 0
    return config


def get_sweep() -> sweep.Sweep:
    return remedies.get_sweep()
