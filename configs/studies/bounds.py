"""The VAE and IWAE with K = 5: table 1 of Burda et al. 2016, reduced.

What it is: 2 objectives × 5 seeds on the reduced MNIST of configs/mnist_8k.py.

    python -m experiments.study --name=bounds --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/bounds.py --config.data.dir=DIR \\
        --workdir=results/bounds

What to expect: IWAE has the better test/nll and more active units; docs/studies.md has the numbers.
"""

import ml_collections

from configs import mnist_8k
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    return mnist_8k.get_config()


def get_sweep() -> sweep.Sweep:
    iwae = sweep.product(
        sweep.axis("objective.name", ["iwae"]), sweep.axis("objective.samples", [5])
    )
    objectives = sweep.chain(sweep.axis("objective.name", ["elbo"]), iwae)
    return sweep.product(objectives, sweep.axis("seed", range(5)))
