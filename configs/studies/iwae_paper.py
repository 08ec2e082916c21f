"""Table 1 of Burda et al. 2016 by the recipe in their paper, one stochastic layer; for a GPU.

What it is: the VAE with K = 1, 5 and 50 samples and IWAE with K = 5 and 50 on the whole of MNIST,
dynamically binarised; 50 latents, two hidden layers of 200 tanh units, weights as Glorot and
Bengio's; batches of 20; Adam with β1 = 0.9, β2 = 0.999, ε = 1e-4; 3^i epochs at a learning rate of
1e-3 · 10^(−i/7), i = 0 ... 7: 3,280 epochs or 9.84 million steps a run. Their code does otherwise:
configs/studies/iwae_code.py. configs/studies/iwae_two_layers_paper.py has two layers.

    python -m experiments.study --name=bounds --budget=full --data_dir=DIR --workdir=results/studies

or, for the runs alone,

    python -m experiments.run --config=configs/studies/iwae_paper.py --config.data.dir=DIR \\
        --workdir=results/iwae_paper

Not as theirs: ε acts on the gradient of the mean over a batch here; the paper does not say on what
it does. Active units are counted on the test images.

What to expect, test/nll with K = 5000 and test/active_units, from their table: VAE 86.76 (19),
86.47 (20), 86.35 (20); IWAE 85.54 (22), 84.78 (25). It has not been run: 3.5, 10 and 87 hours of a
CPU for K = 1, 5 and 50.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.source = "tfds:mnist"
    config.model.latent_dim = 50
    config.model.width = 200
    config.model.activation = "tanh"
    config.model.output_bias = "data_mean"
    config.optimizer.eps = 1e-4
    config.optimizer.schedule = "stages"
    config.train.epochs = sum(3**i for i in range(8))
    config.train.batch_size = 20
    config.eval.iw_samples = 5000
    return config


def get_sweep() -> sweep.Sweep:
    vae = sweep.axis("objective.name", ["elbo"])
    iwae = sweep.axis("objective.name", ["iwae"])
    return sweep.chain(
        sweep.product(vae, sweep.axis("objective.samples", [1, 5, 50])),
        sweep.product(iwae, sweep.axis("objective.samples", [5, 50])),
    )
