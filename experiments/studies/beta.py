"""β trades rate for distortion and takes latents out of use (Higgins 2017; Alemi et al. 2018).

As β grows the rate falls, the distortion rises, and no latent comes back into use. An independent
program on this reduced MNIST (configs/mnist_8k.py) had, for β of ¼, ½, 1, 2, 4, 8: rates of 51.2,
35.6, 24.2, 13.7, 7.8, 3.7 nats, distortions of 67.6, 75.0, 81.8, 101.8, 121.2, 148.4 nats, and 48,
41, 23, 23, 16, 5 active units; but 100 epochs at β = 1.
"""

from experiments.report.results import Results
from experiments.studies.quantity import Quantity, by_seed, difference, mean

CONFIG = "configs/studies/beta.py"
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


def measure(results: Results) -> list[Quantity]:
    """The three at each β, and the smallest step of each from one β to the next."""
    betas = sorted({run.setting("objective.beta") for run in results.runs})
    found, steps = [], []
    for i, (metric, (unit, sign, how)) in enumerate(METRICS.items()):
        name = metric.replace("_", " ")
        values = {b: by_seed(results, f"test/{metric}", objective__beta=b) for b in betas}
        for beta, of in values.items():
            elsewhere = f"{ELSEWHERE[beta][i]:g}" if beta in ELSEWHERE else ""
            label = ", ".join([f"{name} at β = {beta:g}", *([unit] if unit else [])])
            found.append(Quantity(label, mean(of), elsewhere))
        changes = [
            difference(values[b], values[a]) if sign > 0 else difference(values[a], values[b])
            for a, b in zip(betas[:-1], betas[1:], strict=True)
        ]
        if changes:
            smallest = min(changes, key=lambda change: change.mean)
            steps.append(Quantity(f"{name} {how}: its smallest step", smallest, "", 0))
    return found + steps
