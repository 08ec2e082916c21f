"""A VampPrior makes a better model than N(0, I) (Tomczak and Welling 2018, section 5).

Theirs has 500 pseudo-inputs, nets of gated layers and far longer training, and does better than
N(0, I) on all their data sets. Here all priors have the nets and the number of steps of
configs/mnist_8k.py; what a run takes longer by is in the last column. A mixture of as many
Gaussians and a flow are learned priors too.
"""

from experiments.report.results import Results
from experiments.studies.quantity import Quantity, by_seed, difference, mean

CONFIG = "configs/studies/priors.py"
PRIORS = {
    "standard": "N(0, I)",
    "vamp": "VampPrior",
    "mixture": "mixture of Gaussians",
    "flow": "flow",
}


def measure(results: Results) -> list[Quantity]:
    """Test nll by 500 importance samples and ELBO with each prior, and against N(0, I)."""
    nll, elbo = (
        {prior: by_seed(results, metric, model__prior=prior) for prior in PRIORS}
        for metric in ("test/nll", "test/elbo")
    )
    found = [Quantity(f"nll with {name}, nats", mean(nll[p])) for p, name in PRIORS.items()]
    for prior, name in list(PRIORS.items())[1:]:
        better = difference(nll["standard"], nll[prior])
        asked = 0 if prior == "vamp" else None
        found.append(Quantity(f"nll, N(0, I) − {name}, nats", better, "", asked))
        better = difference(elbo[prior], elbo["standard"])
        found.append(Quantity(f"ELBO, {name} − N(0, I), nats", better))
    return found
