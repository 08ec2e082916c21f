"""Latents that the data do not need do not make a VAE overfit (Kingma and Welling 2014).

Theirs (section 5, figure 2): on MNIST with 3, 5, 10, 20 and 200 latents, and on Frey Face with 2 to
20, the bound of test images does not fall behind for latents that are superfluous, which they put
down to the bound's regularisation: a latent without use costs no KL. They give curves, no numbers.

Here: their nets and optimiser on the reduced MNIST of configs/studies/latents.py; on all of it at
full budget. Of step sizes 0.01, 0.02 and 0.1 the one with the best bound after two epochs.

Asked: the ELBO of test images grows up to 20 latents, and falls by no more than a nat from 20 to
200, and so does the gap between training and test images grow. A nat is what they say of curves
that lie on one another in their figure's height of some 50.
"""

import dataclasses

import numpy as np

from experiments.report import canvas, style
from experiments.report.aggregate import estimate
from experiments.studies.cases import Found
from experiments.studies.quantity import REPRODUCED, Quantity, by_seed, difference, of_seeds

ID = "B3"
CONFIGS = {"quick": "configs/studies/latents.py", "full": "configs/studies/latents_full.py"}
DIMENSIONS = (3, 5, 10, 20, 200)
NEEDED, MANY = DIMENSIONS[-2:]
NAT = 1.0
_SOURCE = "Kingma and Welling 2014, section 5 and figure 2"


def _of(found: Found, metric: str) -> dict[int, dict[int, float]]:
    return {d: by_seed(found.results, metric, model__latent_dim=d) for d in DIMENSIONS}


def measure(found: Found) -> list[Quantity]:
    """ELBOs and active units by the number of latents; what more of them gain, and cost."""
    elbo, gap, units = (
        _of(found, metric) for metric in ("test/elbo", "gap/elbo", "test/active_units")
    )
    rows = [of_seeds(f"test ELBO with {d} latents, nats", elbo[d].values()) for d in DIMENSIONS]
    rows += [of_seeds(f"active units of {d}", units[d].values()) for d in DIMENSIONS]
    asked = {"relation": ">=", "source": _SOURCE}
    for fewer, more in zip(DIMENSIONS[:-2], DIMENSIONS[1:-1], strict=True):
        gain = difference(elbo[more], elbo[fewer])
        rows.append(of_seeds(f"test ELBO, {more} − {fewer} latents, nats", gain, 0, **asked))
    gain = difference(elbo[MANY], elbo[NEEDED])
    row = of_seeds(f"test ELBO, {MANY} − {NEEDED} latents, nats", gain, -NAT, **asked)
    note = "" if row.verdict == REPRODUCED else _underfitted(found)
    rows.append(dataclasses.replace(row, note=note))
    wider = difference(gap[MANY], gap[NEEDED])
    name = f"ELBO of training images less that of test images, {MANY} − {NEEDED} latents, nats"
    rows.append(of_seeds(name, wider, NAT, relation="<=", source=_SOURCE))
    return rows


def _underfitted(found: Found) -> str:
    """What training images lose by the latents too many: that is no overfitting."""
    elbo = _of(found, "train_eval/elbo")
    lost = -float(np.mean(difference(elbo[MANY], elbo[NEEDED])))
    steps = max(run.number("steps") for run in found.results.runs)
    if lost <= NAT:
        return ""
    return (
        f"training images lose {lost:.1f} nats too: it is no overfitting, but latents that have "
        f"not come to rest in {steps:,.0f} steps"
    )


def figure(found: Found):
    """ELBOs over training as their figure 2, and at the end over the number of latents."""
    sheet, (curves, ends) = canvas.new_figure(1, 2, 6.8, 2.7)
    for dimension, color in zip(DIMENSIONS, style.PETROFF, strict=False):
        runs = [r for r in found.results.runs if r.setting("model.latent_dim") == dimension]
        for metric, line in (("test/elbo", "-"), ("train/elbo", ":")):
            means: dict[int, list[float]] = {}
            for run in runs:
                for step, value in zip(run.step, run.curves.get(metric, ()), strict=False):
                    means.setdefault(int(step), []).append(value)
            values = [estimate(of).mean for of in means.values()]
            label = f"{dimension} latents" if metric == "test/elbo" else None
            curves.plot(list(means), values, line, color=color, lw=1, label=label)
    curves.set_xlabel("step (line: test, dots: training batches)")
    curves.set_ylabel("ELBO, nats")
    curves.legend(loc="lower right")
    for metric, name, color in (
        ("test/elbo", "test", style.PETROFF[0]),
        ("train_eval/elbo", "training", style.PETROFF[1]),
    ):
        for place, values in enumerate(_of(found, metric).values()):
            label = name if place == 0 else None
            ends.plot([place] * len(values), list(values.values()), "o", color=color, label=label)
    ends.set_xticks(range(len(DIMENSIONS)), [str(d) for d in DIMENSIONS])
    ends.set_xlabel("latents")
    ends.legend(loc="lower right")
    return sheet
