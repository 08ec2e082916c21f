"""Runs side by side against runs in turn, measured: a few steps of both, kept on disk.

What is measured is the training program itself, on the data it is for. The program that wins is
then in the cache of compiled programs, so that a trial costs the other one and some steps.
"""

import hashlib
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from experiments import programs
from experiments.packs import Choice
from experiments.plan import PopulationPlan
from vae import mesh, writers
from vae.data import Examples
from vae.data.cache import cache_dir

# Training that lasts less than this, in seconds, is over before a trial has paid for itself.
WORTH_SECONDS = 30.0

# A dispatch that is timed lasts about this long, or one step. Of each way the fastest of
# ROUNDS × DISPATCHES counts: what else the machine does only ever adds.
DISPATCH_SECONDS, ROUNDS, DISPATCHES = 0.1, 2, 2

# What the other way must save before it is taken: less is noise.
MARGIN = 0.05


def fastest(plans: Mapping[str, PopulationPlan], expected: str) -> Choice:
    """The faster of the two ways, from disk if it was measured before.

    Processes that work together take `expected`, what the rule says: all need the same program,
    and clocks would differ.

    Args:
      plans: by way, the population to train that way.
    """
    if jax.process_count() > 1:
        return Choice(expected, "by rule")
    file = _file(plans)
    known = _read(file)
    if set(known) != set(plans):
        print("Measuring whether runs go faster together or in turn ...", flush=True)
        ways = {expected: _Way(plans[expected])}
        known = {expected: ways[expected].seconds()}
        plan = plans[expected]
        if known[expected] * len(plan.runs) * plan.num_steps < WORTH_SECONDS:
            return Choice(expected, "by rule: short")
        ways |= {pack: _Way(plan) for pack, plan in plans.items() if pack != expected}
        for _ in range(ROUNDS):
            for pack, way in ways.items():
                known[pack] = min(known.get(pack, float("inf")), way.seconds())
        _write(file, known)
    best = min(known, key=known.__getitem__)
    if known[best] > (1 - MARGIN) * known[expected]:
        best = expected
    (other,) = set(known) - {best}
    return Choice(best, f"measured, {known[other] / known[best]:.2g} x as fast")


class _Way:
    """The training of one population, one way."""

    def __init__(self, plan: PopulationPlan) -> None:
        self._plan = plan
        self._init = programs.compile_now("init", plan)
        self._chunk = programs.compile_now("chunk", plan)

    def seconds(self) -> float:
        """Of one step and run. It starts anew each time, and leaves nothing on the device."""
        dataset, on = self._plan.dataset, self._plan.mesh
        everywhere = mesh.everywhere(on)
        examples = Examples(mesh.put(dataset.train, everywhere), dataset.transform)
        steps, best = 1, float("inf")
        population = programs.first_population(self._plan, self._init)
        population = self._chunk(population, examples, mesh.put(np.int32(0), everywhere))
        timed = 0
        while timed < DISPATCHES:
            before = time.perf_counter()
            population = self._chunk(population, examples, mesh.put(np.int32(steps), everywhere))
            jax.block_until_ready(population)
            seconds = time.perf_counter() - before
            best = min(best, seconds / steps)
            if seconds < 0.5 * DISPATCH_SECONDS:
                steps = int(min(8 * steps, steps * DISPATCH_SECONDS / max(seconds, 1e-6))) + 1
            else:
                timed += 1
        return best / len(self._plan.runs)


def _file(plans: Mapping[str, PopulationPlan]) -> pathlib.Path:
    """Named after all that the time hangs on."""
    plan = next(iter(plans.values()))
    device = jax.devices()[0]
    what: dict[str, Any] = {
        "spec": repr(plan.spec),
        "runs": {pack: len(plan.runs) for pack, plan in sorted(plans.items())},
        "data": [plan.dataset.train.shape, str(plan.dataset.train.dtype)],
        "transform": repr(plan.dataset.transform),
        "mesh": dict(plan.mesh.shape) if plan.mesh else {},
        "device": [device.platform, device.device_kind, programs.processor()],
        "jax": jax.__version__,
    }
    name = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]
    return cache_dir() / "packs" / f"{name}.json"


def _read(file: pathlib.Path) -> dict[str, float]:
    """Seconds of a step and run, by way; empty where there is nothing, or nothing of use."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        known = {pack: float(found[pack]) for pack in ("vmap", "map")}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return known if min(known.values()) > 0 else {}


def _write(file: pathlib.Path, known: dict[str, float]) -> None:
    try:
        writers.write_json(file, known)
    except OSError as error:
        logging.warning("%s: not kept (%s); the next command measures again.", file, error)
