"""KL warm-up (Bowman et al. 2016, section 3.1; Sønderby et al. 2016): β from 0 to 1.

What it is: the rate's weight rises in a line over objective.warmup_steps of 0, which is the VAE,
and 275, half of the training, × 3 seeds in one program, on the embedded digits. Other shapes:
--config.objective.beta_schedule=sigmoid with the same number; cyclical (Fu et al. 2019), which
takes --config.objective.cycles=4 --config.objective.ramp=0.5 and pays no heed to warmup_steps.
Theirs are an LSTM for text and a ladder of five layers.

    python -m experiments.run --config=configs/objectives/kl_warmup.py --workdir=results/kl_warmup

It takes about 10 s. What to expect: more active units and a higher rate than without. In a run on
two CPU cores with JAX 0.10.2: without: test/elbo −23.88 ± 0.02, test/rate 3.10 ± 0.04, test/nll
23.49 ± 0.01 (K = 100), test/active_units 5.67 ± 0.67; with: test/elbo −23.65 ± 0.07, test/rate 4.35
± 0.12, test/nll 23.04 ± 0.03 (K = 100), test/active_units 8.00.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.objective.beta_schedule = "linear"
    config.optimizer.learning_rate = 3e-3
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.product(
        sweep.axis("objective.warmup_steps", [0.0, 275.0]),
        sweep.axis("seed", range(3)),
    )
