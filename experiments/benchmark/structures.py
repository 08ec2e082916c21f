"""What one more structure costs to compile, and what masked arithmetic costs to run."""

import time
from collections.abc import Iterator

import numpy as np

from configs import quickstart
from experiments import plan as plans
from experiments import programs
from experiments.benchmark.library import Training, population_plan
from experiments.benchmark.measure import Row, Settings, in_turns, spread
from experiments.structures import padding


def structures(settings: Settings) -> Iterator[Row]:
    """The measurements behind `experiments.structures`: COMPILE_SECONDS and FLOPS."""
    runs = [f"seed=0:{settings.pick(16, 2)}", "objective.beta=1.0"]
    seconds = []
    for depth in settings.pick((1, 2, 3), (1,)):
        own = _plan(depth, runs)
        start = time.perf_counter()
        ahead = programs.Programs()
        ahead.prepare(own)
        for name in ("init", "chunk", "changes", "evaluate_test", "evaluate_train", "iw_bounds"):
            ahead.get(name, own)
        ahead.get("gallery", own)
        seconds.append(time.perf_counter() - start)
        ahead.close()
    yield Row(
        "structures",
        "tracing and compiling one structure of the quickstart",
        **spread(seconds),
        unit="s",
        note="structures.COMPILE_SECONDS",
    )
    plans_ = [_plan(depth, runs) for depth in (1, 4)]
    took = in_turns(
        {str(i): Training(own) for i, own in enumerate(plans_)},
        settings.pick(100, 2),
        settings.pick(5, 2),
    )
    flats = [own.runs[0].flat for own in plans_]
    weights = padding(flats)[0] * len(plans_[0].runs)
    more = np.array(took["1"]) - np.array(took["0"])
    rates = 6 * plans_[0].spec.batch_size * weights / np.maximum(more, 1e-9) / 1e9
    yield Row(
        "structures",
        f"weights of three more hidden layers, {len(plans_[0].runs)} runs",
        **spread(rates),
        unit="GFLOP/s",
        note="structures.FLOPS",
    )


def _plan(depth: int, runs: list[str]) -> plans.PopulationPlan:
    return population_plan(
        quickstart,
        {},
        [f"model.depth={depth}", "model.latent_dim=8", *runs],
    )
