"""MNIST as in Kingma and Welling 2014, section 5 and figure 2; for a GPU.

What it is: 3, 5, 10, 20 and 200 latents × 3 seeds, one hidden layer of 500 tanh units in encoder
and decoder, one sample of z, batches of 100, Adagrad; 1,667 epochs are their 10^8 images seen. The
step size is theirs to choose of 0.01, 0.02 and 0.1 by the first iterations: 0.01 here, as
configs/studies/latents.py. Not as theirs: weights start as Glorot's and not from N(0, 0.01), and no
weak prior on the weights is added.

    python -m experiments.study --name=latents --budget=full --data_dir=DIR \\
        --workdir=results/studies

or, for the runs alone, --config=configs/studies/latents_full.py of experiments.run. What to expect:
no overfitting with 200 latents. It has not been run.
"""

import ml_collections

from configs.studies import latents
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = latents.get_config()
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.train.epochs = 1667
    return config


def get_sweep() -> sweep.Sweep:
    return latents.get_sweep()
