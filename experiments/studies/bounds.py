"""IWAE makes a better model than the VAE and uses more latents (Burda et al. 2016, table 1).

Their numbers for one stochastic layer on the whole of MNIST after 3,280 epochs: VAE 86.76 nats with
19 active units, IWAE with K = 5 85.54 with 22. On a reduced MNIST (configs/mnist_8k.py) an
independent program had 100.79 and 100.81 nats with 23 active units for the VAE, and 98.85 and 98.94
with 40 and 38 for IWAE.

At full budget it is their recipe (configs/studies/iwae_paper.py), one seed a row as in their table,
each within half a nat and three active units of it, and in its order.
configs/studies/iwae_code.py and iwae_two_layers_{paper,code}.py are launched by themselves.
"""

from experiments.report import canvas, style
from experiments.studies.cases import Found
from experiments.studies.quantity import Quantity, by_seed, difference, of_seeds

ID = "B1"
CONFIGS = {"quick": "configs/studies/bounds.py", "full": "configs/studies/iwae_paper.py"}
ROWS = {"VAE": "elbo", "IWAE-5": "iwae"}
# Of the full budget: (objective, samples), and their nll with active units.
PAPER = {
    "VAE, K = 1": ("elbo", 1, 86.76, 19),
    "VAE, K = 5": ("elbo", 5, 86.47, 20),
    "VAE, K = 50": ("elbo", 50, 86.35, 20),
    "IWAE, K = 5": ("iwae", 5, 85.54, 22),
    "IWAE, K = 50": ("iwae", 50, 84.78, 25),
}
_TABLE = "Burda et al. 2016, table 1"
_PROGRAM = "an independent program, two thirds of what it saw"


def _of(found: Found, metric: str) -> dict[str, dict[int, float]]:
    if found.budget == "full":
        return {
            label: by_seed(found.results, metric, objective__name=name, objective__samples=count)
            for label, (name, count, *_) in PAPER.items()
        }
    return {
        label: by_seed(found.results, metric, objective__name=name) for label, name in ROWS.items()
    }


def _table(found: Found) -> list[Quantity]:
    """The full budget beside their table."""
    nll, units = _of(found, "test/nll"), _of(found, "test/active_units")
    rows = []
    for label, (_, _, nats, active) in PAPER.items():
        rows.append(of_seeds(f"nll of {label}", nll[label].values(), nats, 0.5, source=_TABLE))
        name = f"active units of {label}"
        rows.append(of_seeds(name, units[label].values(), active, 3, source=_TABLE))
    for worse, better in zip(list(PAPER)[:-1], list(PAPER)[1:], strict=True):
        gain = difference(nll[worse], nll[better])
        name = f"nll, {worse} less {better}, nats"
        rows.append(of_seeds(name, gain, 0, relation=">=", source=_TABLE))
    return rows


def measure(found: Found) -> list[Quantity]:
    """Test nll by importance samples, and active units, of each and between them."""
    if found.budget == "full":
        return _table(found)
    nll, units = _of(found, "test/nll"), _of(found, "test/active_units")
    rows = []
    for name, nats, active in (("VAE", 100.8, 23), ("IWAE-5", 98.9, 39)):
        seen = f"an independent program: {nats}"
        rows.append(of_seeds(f"nll of {name}, nats", nll[name].values(), source=seen))
        seen = f"an independent program: {active}"
        rows.append(of_seeds(f"active units of {name}", units[name].values(), source=seen))
    vae, iwae = ROWS

    def asked(name, values, least, source):
        return of_seeds(name, values, least, relation=">=", source=source)

    better, more = difference(nll[vae], nll[iwae]), difference(units[iwae], units[vae])
    return [
        *rows,
        asked("nll, VAE − IWAE-5, nats: the sign", better, 0, _TABLE),
        asked("nll, VAE − IWAE-5, nats", better, 1.3, _PROGRAM),
        asked("active units, IWAE-5 − VAE: the sign", more, 0, _TABLE),
        asked("active units, IWAE-5 − VAE", more, 10, _PROGRAM),
    ]


def figure(found: Found):
    """Nll and active units of each, a point for each seed."""
    sheet, panels = canvas.new_figure(1, 2, 6.4, 2.6)
    titles = {"test/nll": "test nll, nats", "test/active_units": "active units"}
    for panel, (metric, title) in zip(panels, titles.items(), strict=True):
        of = _of(found, metric)
        for place, values in enumerate(of.values()):
            color = style.PETROFF[place]
            panel.plot([place] * len(values), list(values.values()), "o", color=color)
        labels = [label.replace(", ", "\n") for label in of]
        panel.set_xticks(range(len(of)), labels)
        panel.set_xlim(-0.6, len(of) - 0.4)
        panel.set_title(title)
    return sheet
