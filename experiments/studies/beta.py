"""β trades rate for distortion and takes latents out of use (Higgins 2017; Alemi et al. 2018).

As β grows the rate falls, the distortion rises, and no latent comes back into use. An independent
program on this reduced MNIST (configs/mnist_8k.py) had, for β of ¼, ½, 1, 2, 4, 8: rates of 51.2,
35.6, 24.2, 13.7, 7.8, 3.7 nats, distortions of 67.6, 75.0, 81.8, 101.8, 121.2, 148.4 nats, and 48,
41, 23, 23, 16, 5 active units; but 100 epochs at β = 1.
"""

from experiments.report import canvas, style
from experiments.studies.cases import Found
from experiments.studies.quantity import Quantity, by_seed, difference, of_seeds

ID = "B2"
CONFIGS = {"quick": "configs/studies/beta.py", "full": "configs/studies/beta.py"}
ELSEWHERE = {
    0.25: (51.2, 67.6, 48),
    0.5: (35.6, 75.0, 41),
    1.0: (24.2, 81.8, 23),
    2.0: (13.7, 101.8, 23),
    4.0: (7.8, 121.2, 16),
    8.0: (3.7, 148.4, 5),
}
# Each with the sign of its change as β grows, and the least change that is asked.
METRICS = {
    "rate": ("nats", -1, "falls"),
    "distortion": ("nats", 1, "rises"),
    "active_units": ("", -1, "falls, or stays"),
}


def _betas(found: Found) -> list[float]:
    return sorted({run.setting("objective.beta") for run in found.results.runs})


def _of(found: Found, metric: str) -> dict[float, dict[int, float]]:
    return {b: by_seed(found.results, f"test/{metric}", objective__beta=b) for b in _betas(found)}


def measure(found: Found) -> list[Quantity]:
    """The three at each β, and the smallest step of each from one β to the next."""
    rows, steps = [], []
    for i, (metric, (unit, sign, how)) in enumerate(METRICS.items()):
        name = metric.replace("_", " ")
        values = _of(found, metric)
        for beta, of in values.items():
            seen = f"an independent program: {ELSEWHERE[beta][i]:g}" if beta in ELSEWHERE else ""
            label = ", ".join([f"{name} at β = {beta:g}", *([unit] if unit else [])])
            rows.append(of_seeds(label, of.values(), source=seen))
        betas = list(values)
        changes = [
            of_seeds(
                "",
                difference(values[b], values[a]) if sign > 0 else difference(values[a], values[b]),
            )
            for a, b in zip(betas[:-1], betas[1:], strict=True)
        ]
        if changes:
            smallest = min(changes, key=lambda change: change.measured)
            steps.append(
                of_seeds(
                    f"{name} {how}: its smallest step",
                    smallest.values,
                    0,
                    relation=">=",
                    source="Higgins et al. 2017; Alemi et al. 2018, section 2",
                )
            )
    return rows + steps


def figure(found: Found):
    """The rate–distortion plane, as in figure 1 of Alemi et al. 2018; active units over β."""
    sheet, (plane, units) = canvas.new_figure(1, 2, 6.8, 2.8)
    rate, distortion, active = (_of(found, metric) for metric in METRICS)
    betas = _betas(found)
    for beta, color in zip(betas, style.viridis(len(betas)), strict=True):
        plane.plot(
            list(rate[beta].values()),
            list(distortion[beta].values()),
            "o",
            color=color,
            label=f"β = {beta:g}",
        )
        units.plot([beta] * len(active[beta]), list(active[beta].values()), "o", color=color)
    plane.set_xlabel("rate, nats")
    plane.set_ylabel("distortion, nats")
    plane.legend()
    units.set_xscale("log", base=2)
    units.set_xlabel("β")
    units.set_ylabel("active units")
    return sheet
