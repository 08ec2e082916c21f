"""Frey Face as in Kingma and Welling 2014, section 5 and figure 2; for a GPU.

What it is: 2, 5, 10 and 20 latents × 3 seeds, one hidden layer of 200 tanh units in encoder and
decoder, Gaussian outputs with means in (0, 1) by a sigmoid, one sample of z, batches of 100,
Adagrad; 5,650 epochs are their 10^7 images seen. FILE is an .npz of `train` and `test`, uint8
[N, 28, 20], of the 1,965 faces; theirs says nothing of a test split. Not as theirs: a learned
variance for each pixel that does not depend on z, and what configs/studies/latents_full.py says.

    python -m experiments.run --config=configs/studies/latents_frey_face.py \\
        --config.data.source=npz:FILE --workdir=results/frey_face

What to expect: no overfitting with 20 latents. It has not been run to its end.
"""

import ml_collections

from configs.studies import latents
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = latents.get_config()
    config.data.source = "npz:frey_faces.npz"
    config.data.train_split = "train"
    config.data.test_split = "test"
    config.data.binarization = "none"
    config.model.width = 200
    config.model.likelihood = "gaussian_pixel"
    config.model.output = "sigmoid"
    config.train.epochs = 5650
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("model.latent_dim", [2, 5, 10, 20]), sweep.axis("seed", range(3))
    )
