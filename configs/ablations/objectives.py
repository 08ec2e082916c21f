"""Ablation over the objective: what each does to one VAE at the same budget.

What it is: 18 objectives × 3 seeds = 54 runs in 16 compiled programs, on the embedded digits. The
same nets, 8 latent dimensions, batches and 550 steps for all, and each objective with numbers like
those of its config in configs/objectives/, where its paper is named. (Alemi et al. 2018: the plane
of rate and distortion.) Bounds of several samples have 8 for each example; their steps cost
more.

    python -m experiments.run --config=configs/ablations/objectives.py --workdir=results/objectives

It takes about 2 minutes. What to look at: no objective is the best in every column. Rate and
distortion are traded for each other; a tighter bound gives a better nll and a worse ELBO, for which
its encoder is not trained; what fights collapse (warm-up, free bits) helps both, because these
trainings are short; and what shapes q(z) costs some of both. In a run on two CPU cores with JAX
0.10.2, in nats, test/*, means over the seeds and their standard errors, nll with K = 100:

                             rate      distortion           elbo            nll
    ELBO (the VAE)    3.10 ± 0.04    20.78 ± 0.06  −23.88 ± 0.02   23.49 ± 0.01
    β = 2             0.57 ± 0.10    25.45 ± 0.28  −26.03 ± 0.18   25.71 ± 0.25
    STL               3.39 ± 0.03    20.34 ± 0.03  −23.73 ± 0.03   23.40 ± 0.04
    KL warm-up        4.32 ± 0.12    19.33 ± 0.15  −23.65 ± 0.07   23.03 ± 0.03
    free bits ½       4.74 ± 0.13    19.10 ± 0.10  −23.83 ± 0.03   23.19 ± 0.03
    IWAE              3.00 ± 0.00    21.67 ± 0.02  −24.66 ± 0.02   22.91 ± 0.02
    DReG              3.74 ± 0.09    20.39 ± 0.21  −24.14 ± 0.12   22.75 ± 0.03
    VIMCO             3.54 ± 0.07    20.75 ± 0.22  −24.28 ± 0.14   22.81 ± 0.04
    MIWAE 2 × 4       3.43 ± 0.10    20.62 ± 0.13  −24.05 ± 0.09   22.96 ± 0.02
    PIWAE 2 × 4       3.55 ± 0.06    20.74 ± 0.08  −24.29 ± 0.03   22.86 ± 0.03
    CIWAE ½           3.66 ± 0.09    19.98 ± 0.14  −23.65 ± 0.07   23.07 ± 0.01
    Rényi ½           3.56 ± 0.01    20.15 ± 0.05  −23.72 ± 0.06   23.01 ± 0.00
    capacity 4        3.86 ± 0.01    20.03 ± 0.02  −23.89 ± 0.03   23.38 ± 0.02
    β-TCVAE 6         3.79 ± 0.09    20.90 ± 0.20  −24.69 ± 0.12   23.95 ± 0.13
    FactorVAE 10      1.56 ± 0.25    23.79 ± 0.58  −25.35 ± 0.34   24.93 ± 0.29
    DIP-VAE-I         5.15 ± 0.13    20.57 ± 0.20  −25.72 ± 0.13   24.02 ± 0.06
    DIP-VAE-II        1.73 ± 0.14    23.00 ± 0.22  −24.74 ± 0.08   24.42 ± 0.10
    InfoVAE 10        1.88 ± 0.50    23.03 ± 0.98  −24.91 ± 0.49   24.66 ± 0.56
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.optimizer.learning_rate = 3e-3
    return config


def _row(name: str, **own: float | str) -> sweep.Sweep:
    """One run of an objective, with the fields of its own."""
    axes = [sweep.axis(f"objective.{field}", [value]) for field, value in own.items()]
    return sweep.product(sweep.axis("objective.name", [name]), *axes)


def get_sweep() -> sweep.Sweep:
    objectives = sweep.chain(
        _row("elbo"),
        _row("elbo", beta=2.0),
        _row("elbo", estimator="stl"),
        _row("elbo", beta_schedule="linear", warmup_steps=275.0),
        _row("elbo", free_bits=0.5),
        _row("iwae", samples=8),
        _row("iwae", samples=8, estimator="dreg"),
        _row("iwae", samples=8, estimator="score"),
        _row("miwae", groups=2, samples=4),
        _row("piwae", groups=2, samples=4),
        _row("ciwae", samples=8, ciwae_beta=0.5),
        _row("renyi", samples=8, renyi_alpha=0.5),
        _row("capacity", capacity=4.0, beta=2.0, capacity_steps=275.0),
        _row("tcvae", penalty=6.0),
        _row("factor", penalty=10.0),
        _row("dip_i", penalty=10.0, penalty_diagonal=100.0),
        _row("dip_ii", penalty=10.0, penalty_diagonal=10.0),
        _row("mmd", penalty=10.0),
    )
    return sweep.product(objectives, sweep.axis("seed", range(3)))
