"""What it costs to read the batches of a training from the host's memory, not the device's."""

from typing import Any

import jax
import numpy as np

from configs import mnist
from experiments.benchmark.library import EPOCH, Training, mnist_overrides, population_plan
from experiments.benchmark.measure import Row, Settings, in_turns, ratio
from experiments.plan import PopulationPlan
from vae import mesh

RUNS = (1, 4)


class Streamed(Training):
    """As `Training`, its batches gathered some steps ahead, as the launcher does it."""

    def _read(self, plan: PopulationPlan) -> Any:
        return plan.stream()

    def __call__(self, num_steps: int) -> None:
        step = int(self.population.step)
        end = step + num_steps
        while step < end:
            window, there = self.examples.at(step)
            steps = min(there, end - step)
            count = mesh.put(np.int32(steps), self._everywhere)
            self.population = jax.block_until_ready(self.program(self.population, window, count))
            step += steps


def placement(settings: Settings) -> list[Row]:
    """Steps with data.placement=host against device; 784-500-20, each run with its own batches."""
    overrides, source = mnist_overrides(settings)
    rows = []
    for runs in settings.pick(RUNS, RUNS[:1]):
        plans = {
            where: population_plan(mnist, overrides | {"data.placement": where}, [f"seed=0:{runs}"])
            for where in ("device", "host")
        }
        functions = {"device": Training(plans["device"]), "host": Streamed(plans["host"])}
        seconds = in_turns(functions, settings.pick(EPOCH // runs, 2), settings.pick(7, 2))
        mib = runs * plans["host"].spec.batch_size * plans["host"].dataset.train[:1].nbytes / 2**20
        rate = mib / float(np.median(seconds["host"]))
        rows.append(
            Row(
                "placement",
                f"{runs} run{'s' if runs > 1 else ''}: host / device",
                **ratio(seconds["host"], seconds["device"]),
                unit="ratio",
                note=f"{rate:,.0f} MiB of examples in a second; {source}",
            )
        )
    return rows
