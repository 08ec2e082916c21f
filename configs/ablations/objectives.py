"""TODO

python -m experiments.run --config=configs/ablations/objectives.py --workdir=results/objectives
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    def row(name: str, **fields: object) -> sweep.Sweep:
        """One run of an objective: its name and the fields of its own."""
        own = [sweep.axis(f"objective.{field}", [value]) for field, value in fields.items()]
        return sweep.product(sweep.axis("objective.name", [name]), *own)

    objectives = sweep.chain(
        row("elbo"),
        row("elbo", beta=2.0),
        row("elbo", estimator="stl"),
        row("elbo", beta_schedule="linear", warmup_steps=275.0),
        row("elbo", free_bits=0.5),
        row("iwae", samples=8),
        row("iwae", samples=8, estimator="dreg"),
        row("iwae", samples=8, estimator="score"),
        row("miwae", groups=2, samples=4),
        row("piwae", groups=2, samples=4),
        row("ciwae", samples=8, ciwae_beta=0.5),
        row("renyi", samples=8, renyi_alpha=0.5),
        row("capacity", capacity=4.0, beta=2.0, capacity_steps=275.0),
        row("tcvae", penalty=6.0),
        row("factor", penalty=10.0),
        row("dip_i", penalty=10.0, penalty_diagonal=100.0),
        row("dip_ii", penalty=10.0, penalty_diagonal=10.0),
        row("mmd", penalty=10.0),
    )
    return sweep.product(objectives, sweep.axis("seed", range(3)))
