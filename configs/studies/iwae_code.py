"""Table 1 of Burda et al. 2016 by the recipe of their published code, one layer; for a GPU.

What it is: configs/studies/iwae_paper.py with what differs in github.com/yburda/iwae: the first
59,600 training images; Adam with β1 = 0.99; the gradient is that of a sum over the batch of 20, so
that their ε = 1e-4 acts as 1e-4/20 does on the mean; the VAE's KL is sampled too.

    python -m experiments.run --config=configs/studies/iwae_code.py --config.data.dir=DIR \\
        --workdir=results/iwae_code

What no field says: their second moments start at 1, and a step uses the moments of the step before;
ε is added before the correction of the second moment's start; all weight matrices are drawn from
one seed; batches come in the order of the file, in every epoch; the scale head is log σ, here log
σ²; learning rates are rounded to 10, 7.2, 5.2, 3.7, 2.7, 1.9, 1.4 and 1.0 ×1e-4; active units are
counted on the first 500 training images, and in a second layer from one sample of the first.

What to expect: as configs/studies/iwae_paper.py. It has not been run.
"""

import ml_collections

from configs.studies import iwae_paper
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = iwae_paper.get_config()
    config.data.train_split = "train[:59600]"
    config.objective.kl = "sampled"
    config.optimizer.b1 = 0.99
    config.optimizer.eps = 1e-4 / config.train.batch_size
    return config


def get_sweep() -> sweep.Sweep:
    return iwae_paper.get_sweep()
