"""IWAE makes a better model than the VAE and uses more latents (Burda et al. 2016, table 1).

Their numbers for one stochastic layer on the whole of MNIST after 3,280 epochs: VAE 86.76 nats with
19 active units, IWAE with K = 5 85.54 with 22. On a reduced MNIST (configs/mnist_8k.py) an
independent program had 100.79 and 100.81 nats with 23 active units for the VAE, and 98.85 and 98.94
with 40 and 38 for IWAE. DReG (Tucker et al. 2019) estimates the same bound's gradient with less
noise: its model must be at least as good as IWAE's.
"""

from experiments.report.results import Results
from experiments.studies.quantity import Quantity, by_seed, difference, mean

CONFIG = "configs/studies/bounds.py"


def measure(results: Results) -> list[Quantity]:
    """Test nll by 500 importance samples, and active units, of each and between them."""

    def of(metric, name, estimator):
        return by_seed(results, metric, objective__name=name, objective__estimator=estimator)

    rows = {
        "VAE": ("elbo", "reparameterization"),
        "IWAE-5": ("iwae", "reparameterization"),
        "IWAE-5 by DReG": ("iwae", "dreg"),
    }
    nll, units = (
        {name: of(metric, *row) for name, row in rows.items()}
        for metric in ("test/nll", "test/active_units")
    )
    elsewhere = {"VAE": ("100.8", "23"), "IWAE-5": ("98.9", "39")}
    found = []
    for name in rows:
        nats, active = elsewhere.get(name, ("", ""))
        found.append(Quantity(f"nll of {name}, nats", mean(nll[name]), nats))
        found.append(Quantity(f"active units of {name}", mean(units[name]), active))
    vae, iwae, dreg = rows
    return [
        *found,
        Quantity("nll, VAE − IWAE-5, nats", difference(nll[vae], nll[iwae]), "1.9", 1.3),
        Quantity("active units, IWAE-5 − VAE", difference(units[iwae], units[vae]), "16", 10),
        Quantity("nll, IWAE-5 − IWAE-5 by DReG, nats", difference(nll[iwae], nll[dreg]), "", 0),
    ]
