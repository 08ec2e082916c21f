"""A VampPrior makes a better model than N(0, I) (Tomczak and Welling 2018, section 5).

Theirs has 500 pseudo-inputs, nets of gated layers and far longer training, and does better than
N(0, I) on all their data sets. Here all priors have the nets and the number of steps of
configs/mnist_8k.py; what a run takes longer by is in the last column. A mixture of as many
Gaussians and a flow are learned priors too.
"""

from experiments.report import canvas, style
from experiments.studies.cases import Found
from experiments.studies.quantity import Quantity, by_seed, difference, of_seeds

ID = "B+"
CONFIGS = {"quick": "configs/studies/priors.py", "full": "configs/studies/priors_full.py"}
PRIORS = {
    "standard": "N(0, I)",
    "vamp": "VampPrior",
    "mixture": "mixture of Gaussians",
    "flow": "flow",
}


def _of(found: Found, metric: str) -> dict[str, dict[int, float]]:
    of = {prior: by_seed(found.results, metric, model__prior=prior) for prior in PRIORS}
    return {prior: values for prior, values in of.items() if values}


def measure(found: Found) -> list[Quantity]:
    """Test nll by 500 importance samples and ELBO with each prior, and against N(0, I)."""
    nll, elbo = _of(found, "test/nll"), _of(found, "test/elbo")
    rows = [of_seeds(f"nll with {PRIORS[p]}, nats", of.values()) for p, of in nll.items()]
    for prior in [prior for prior in nll if prior != "standard"]:
        name, better = PRIORS[prior], difference(nll["standard"], nll[prior])
        asked = {"expected": 0, "relation": ">="} if prior == "vamp" else {}
        source = "Tomczak and Welling 2018, table 1" if asked else ""
        rows.append(of_seeds(f"nll, N(0, I) − {name}, nats", better, source=source, **asked))
        better = difference(elbo[prior], elbo["standard"])
        rows.append(of_seeds(f"ELBO, {name} − N(0, I), nats", better))
    return rows


def figure(found: Found):
    """Nll and ELBO with each prior, a point for each seed."""
    sheet, panels = canvas.new_figure(1, 2, 6.8, 2.6)
    titles = {"test/nll": "test nll, nats (K = 500)", "test/elbo": "test ELBO, nats"}
    for panel, (metric, title) in zip(panels, titles.items(), strict=True):
        of = _of(found, metric)
        for place, values in enumerate(of.values()):
            color = style.PETROFF[place]
            panel.plot([place] * len(values), list(values.values()), "o", color=color)
        panel.set_xticks(range(len(of)), [PRIORS[prior].replace(" of ", "\nof ") for prior in of])
        panel.set_xlim(-0.6, len(of) - 0.4)
        panel.set_title(title)
    return sheet
