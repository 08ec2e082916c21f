"""A training step of the same model, data and batch: here, and by others."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from configs import default, mnist
from experiments.benchmark import flax_loop, products, pytorch
from experiments.benchmark.library import (
    Training,
    mnist_overrides,
    population_plan,
    products_of,
)
from experiments.benchmark.measure import Row, Settings, in_turns, ratio, spread
from experiments.devices import cores
from experiments.plan import PopulationPlan
from vae import train

# Of a grey value p the cross-entropy, which all of them can minimise: nobody draws bits.
PLAIN = {"data.binarization": "none", "eval.iw_samples": "0"}
PACKAGES = ("torch", "pythae")
TARGETS = {"PyTorch": (">=", 1.5), "pythae": (">=", 2.0)}


class Size(NamedTuple):
    """A model to compare.

    Attributes:
      module, overrides: its config. steps: in one turn, about half a second on two CPU cores.
      targets: of the peers' times over the time here.
    """

    module: Any
    overrides: Mapping[str, str]
    steps: int
    targets: Mapping[str, tuple[str, float]] = {}


@functools.cache
def synthetic_32() -> dict[str, np.ndarray]:
    """Colour images of 32 × 32: speed needs no photographs."""
    rng = np.random.default_rng(0)
    return {
        "train": rng.integers(0, 256, (8192, 32, 32, 3), np.uint8),
        "test": rng.integers(0, 256, (512, 32, 32, 3), np.uint8),
    }


def sizes(settings: Settings) -> dict[str, Size]:
    """By name: what is compared."""
    wide, _ = mnist_overrides(settings)
    images = f"call:{synthetic_32.__module__}:{synthetic_32.__name__}"
    deep = {"model.depth": "4", "model.width": "512", "model.latent_dim": "64"}
    conv = {"model.net": "conv", "model.depth": "3", "model.width": "32", "model.latent_dim": "32"}
    if settings.quick:
        return {"784-500-20": Size(mnist, wide, 2, TARGETS)}
    return {
        "digits": Size(default, {}, 400),
        "784-500-20": Size(mnist, wide, 150, TARGETS),
        "784-512×4-64": Size(mnist, {**wide, **deep}, 40),
        "conv, 32 px": Size(default, {"data.source": images, **conv}, 6),
    }


def peers(settings: Settings) -> Iterator[Row]:
    """Steps of one run by each contender in turn, and of its matrix products alone."""
    for name, size in sizes(settings).items():
        yield from _compare(name, size, settings)


def _compare(name: str, size: Size, settings: Settings) -> list[Row]:
    plan = population_plan(size.module, {**size.overrides, **PLAIN})
    loops, missing = contenders(plan)
    if plan.spec.model.net == "mlp":
        loops["products"] = products_of(plan)
        if "PyTorch" in loops:
            loops[THEIRS] = pytorch.products_alone(plan.spec.model, plan.spec.batch_size)
    seconds = in_turns(loops, size.steps, settings.pick(5, 2))
    where = f"batch {plan.spec.batch_size}, float32, {cores()} threads each"
    if jax.default_backend() != "cpu":
        where = f"batch {plan.spec.batch_size}, float32"
    rows = [
        Row("peers", f"{name}: {loop}", **spread(1e3 * seconds[loop]), unit="ms", note=where)
        for loop in seconds
    ]
    for peer, note in missing.items():
        rows.append(Row("peers", f"{name}: {peer}", None, "ms", note=f"absent: {note}"))
    for peer in (*OTHERS, *OPTIONAL):
        target, what = size.targets.get(peer), f"{name}: {peer} / here"
        if peer in missing:
            rows.append(Row("peers", what, None, "ratio", target=target, note="absent"))
        else:
            found = ratio(seconds[peer], seconds["here"])
            rows.append(Row("peers", what, **found, unit="ratio", target=target))
    if "products" in seconds:
        model = plan.spec.model
        count = (plan.spec.batch_size, model.num_values, model.widths, model.latent_dim)
        speed = products.flops(*count) / float(np.median(seconds["products"])) / 1e9
        for loop in seconds:
            if loop != "products":
                what = f"{name}: {loop} / matrix products"
                found = ratio(seconds[loop], seconds["products"])
                note = f"the floor; products at {speed:.0f} GFLOP/s" if loop != THEIRS else ""
                rows.append(Row("peers", what, **found, unit="ratio", note=note))
    return rows


# The same products by the library that PyTorch takes: how much of a ratio is the two libraries'.
THEIRS = "PyTorch's products"


# By the name in the table; those of the extra [bench] with the package that must be there.
OTHERS = {"Flax tutorial's loop": flax_loop.loop}
OPTIONAL = {"PyTorch": ("torch", pytorch.plain_loop), "pythae": ("pythae", pytorch.Pythae)}


def contenders(plan: PopulationPlan) -> tuple[dict[str, Callable[[int], Any]], dict[str, str]]:
    """({name: makes n steps}, {name: why it is absent}), from the same parameters and data."""
    loops: dict[str, Callable[[int], Any]] = {"here": Training(plan)}
    missing = {}
    arguments = (plan.spec.model, first_params(plan), grey(plan), plan.spec.batch_size)
    learning_rate = float(plan.start()[0].learning_rate[0])
    for name, make in OTHERS.items():
        loops[name] = make(*arguments, learning_rate)
    for name, (package, make) in OPTIONAL.items():
        if reason := pytorch.absent(package):
            missing[name] = reason
            continue
        pytorch.use_threads(cores())
        loops[name] = make(*arguments, learning_rate)
    return loops, missing


def first_params(plan: PopulationPlan) -> Any:
    """The parameters that the plan's first run starts from."""
    states = train.init(plan.spec, *plan.start()).states
    return jax.tree.map(lambda leaf: np.asarray(leaf[0]), states.params)


def grey(plan: PopulationPlan) -> np.ndarray:
    """The training examples as the peers hold them: [N, H, W, C], float32 in [0, 1]."""
    return np.asarray(plan.dataset.train, np.float32) * np.float32(plan.dataset.transform.scale)
