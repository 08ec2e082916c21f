"""A mixture of Gaussians as the prior (Dilokthanakul et al. 2016; Jiang et al. 2017).

What it is: p(z) = Σ π_c N(m_c, diag s_c²) with ten components, all learned with the rest, and the
KL sampled. 3 seeds, 200 epochs, on the embedded digits. In theirs the component is a latent
variable, with a posterior of its own; here it is summed out.

    python -m experiments.run --config=configs/objectives/mixture_prior.py \\
        --workdir=results/mixture_prior

It takes about 20 s. What to expect: an ELBO at or a little above that with N(0, I). In a run on two
CPU cores with JAX 0.10.2: test/elbo −22.96 ± 0.03, test/rate 3.91 ± 0.03, test/nll 22.51 ± 0.04 (K
= 100); N(0, I) (--config.model.prior=standard) has test/elbo −23.09 ± 0.03, test/rate 4.04 ± 0.13,
test/nll 22.67 ± 0.01.
"""

import ml_collections

from configs import default
from experiments import sweep


def get_config() -> ml_collections.ConfigDict:
    config = default.get_config()
    config.model.prior = "mixture"
    config.model.prior_components = 10
    config.optimizer.learning_rate = 3e-3
    config.train.epochs = 200
    return config


def get_sweep() -> sweep.Sweep:
    return sweep.axis("seed", range(3))
