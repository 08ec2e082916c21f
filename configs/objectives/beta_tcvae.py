"""β-TCVAE (Chen et al. 2018, eq. 4): a weight on the total correlation of q(z).

What it is: a weight (objective.penalty) of 1, which is the VAE, and of 6, that of their dSprites, ×
3 seeds in one program, on the embedded digits, made binary at ½. Density ratios are estimated from
the batch by stratified sampling (theirs: --config.objective.tc_estimator=weighted), of 128 examples
where theirs are 2,048.

    python -m experiments.run --config=configs/objectives/beta_tcvae.py --workdir=results/beta_tcvae

It takes about 15 s. What to expect: the total correlation falls at a small price in distortion. Its
estimate, in metrics.jsonl, is too low by a few tenths of a nat, and goes below zero: the logarithm
of a density from few examples is too low, for all dimensions together more than for one. In a run
on two CPU cores with JAX 0.10.2: weight 1: test/elbo −18.98 ± 0.10, test/rate 4.71 ± 0.10, test/nll
18.05 ± 0.03 (K = 100), train/total_correlation 0.25 ± 0.01; weight 6: test/elbo −20.12 ± 0.19,
test/rate 4.51 ± 0.16, test/nll 19.03 ± 0.15 (K = 100), train/total_correlation −0.22 ± 0.03. With
every training example in q(z), it is 0.58 at weight 1 and 0.13 at weight 6.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.data.binarization = "threshold"  # binary images, as dSprites
    config.objective.name = "tcvae"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.penalty", [1.0, 6.0]),
        sweep.axis("seed", range(3)),
    )
