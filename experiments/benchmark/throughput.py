"""What a population saves: N runs together, one after another, and as N processes."""

import math
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import default, mnist
from experiments import devices, programs
from experiments.benchmark.commands import Launch, launch
from experiments.benchmark.library import Training, mnist_overrides, population_plan
from experiments.benchmark.measure import Row, Settings, in_turns, ratio
from experiments.plan import PopulationPlan
from vae.data import Examples

RUNS, RUNS_ACCELERATOR = (1, 4, 16, 64), (1, 4, 16, 64, 128, 256)
# An H100 is to train 64 runs of MNIST ten times as fast together as one at a time.
GOAL = ("784-500-20", 64, 10.0)


class OneByOne:
    """N populations of one run, and one program, which each of them runs through in its turn."""

    def __init__(self, plans: Sequence[PopulationPlan]) -> None:
        pool = programs.Programs()
        self._program = pool.get("chunk", plans[0])
        self._populations = [pool.get("init", plan)(*plan.start()) for plan in plans]
        dataset = plans[0].dataset
        self._examples = Examples(jnp.asarray(dataset.train), dataset.transform)
        pool.close()

    def __call__(self, num_steps: int) -> None:
        steps = jnp.int32(num_steps)
        self._populations = [
            self._program(population, self._examples, steps) for population in self._populations
        ]
        jax.block_until_ready(self._populations)


def throughput(settings: Settings) -> Iterator[Row]:
    """Steps of N runs in one population against one after another; commands against processes."""
    wide, source = mnist_overrides(settings)
    models: dict[str, tuple[Any, dict[str, str]]] = {"digits": (default, {})}
    if settings.quick:
        models = {"digits": (default, {"model.width": "4"})}
    else:
        models["784-500-20"] = (mnist, wide)
    accelerator = jax.default_backend() != "cpu"
    counts = settings.pick(RUNS_ACCELERATOR if accelerator else RUNS, (1, 3))
    for name, (module, overrides) in models.items():
        gains = []
        for runs in counts:
            yield from _together(settings, name, module, overrides, runs, gains)
        yield _crossover(f"{name}: runs from which a population is faster", gains)
    yield from _commands(settings, counts)


def _together(
    settings: Settings,
    name: str,
    module: Any,
    overrides: dict[str, str],
    runs: int,
    gains: list[tuple[int, float]],
) -> Iterator[Row]:
    """Rows of N runs; their gain is added to `gains`."""
    # Long trainings are spread over a CPU's cores; these stand for them, short as they are.
    here = devices.here()
    spread = {"mesh.runs": str(min(runs, here.count) if here.cores else 1)}
    together = population_plan(module, {**overrides, **spread}, [f"seed=0:{runs}"])
    alone = [
        population_plan(module, {**overrides, "seed": str(seed)}, pack="vmap")
        for seed in range(runs)
    ]
    functions: dict[str, Callable[[int], Any]] = {
        "together": Training(together),
        "one by one": OneByOne(alone),
    }
    # Enough for a turn of about a second on two CPU cores, and for a dispatch not to count.
    each = 2 * together.spec.batch_size * together.num_params * 3 * runs
    steps = settings.pick(min(500, max(10, int(1e11 / each))), 2)
    seconds = in_turns(functions, steps, settings.pick(5, 2))
    gain = ratio(seconds["one by one"], seconds["together"])
    gains.append((runs, gain["value"]))
    speed = runs / float(np.median(seconds["together"]))
    accelerator = jax.default_backend() != "cpu"
    target = (">=", GOAL[2]) if accelerator and (name, runs) == GOAL[:2] else None
    what = f"{name}, {runs} run{'s' if runs > 1 else ''}"
    yield Row(
        "throughput",
        f"{what}: one after another / one population",
        **gain,
        unit="ratio",
        target=target,
        note=f"{together.pack.how}, devices: {spread['mesh.runs']}, "
        f"{speed:,.0f} steps of a run in a second",
    )
    efficiency = {key: value / runs for key, value in gain.items()}
    note = "1: N runs take the time of one"
    yield Row("throughput", f"{what}: parallel efficiency", **efficiency, unit="ratio", note=note)


def crossing(gains: Sequence[tuple[int, float]]) -> float | None:
    """The number of runs from which on the gain is above 1, between the measured ones by a line in
    the logarithms; None where the largest measured number does not gain.

    Args:
      gains: (number of runs, gain), in ascending order.
    """
    if gains[-1][1] <= 1:
        return None
    for (few, low), (many, high) in reversed(list(zip(gains[:-1], gains[1:], strict=True))):
        if low <= 1 < high:
            share = -math.log(low) / (math.log(high) - math.log(low))
            return few * (many / few) ** share
    return float(gains[0][0])


def _crossover(what: str, gains: Sequence[tuple[int, float]]) -> Row:
    found = crossing(gains)
    if found is None:
        return Row("throughput", what, None, "runs", note=f"not up to {gains[-1][0]}")
    note = "the least that was measured" if found == gains[0][0] else "between those measured"
    return Row("throughput", what, found, "runs", note=note)


def _commands(settings: Settings, counts: Sequence[int]) -> Iterator[Row]:
    """Whole commands with warm caches: N runs by one, against N of one run, on all cores."""
    arguments = [f"--config={default.__file__}", "--noreport"]
    if settings.quick:
        arguments += ["--config.train.epochs=null", "--config.train.steps=2"]
        arguments += ["--config.eval.iw_samples=0", "--config.model.width=4"]
    side_by_side = devices.cores()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)

        def one(number: int) -> Launch:
            own = [f"--config.seed={number}", f"--workdir={root / f'one-{number}'}"]
            return launch([*arguments, *own], root / "cache")

        one(0)  # fills the cache
        alone = one(1).seconds
        # As many at a time as there are cores: all N would take minutes, and their memory.
        with ThreadPoolExecutor(side_by_side) as pool:
            done = list(pool.map(one, range(2, 2 + 2 * side_by_side)))
        beside = float(np.mean([launched.seconds for launched in done]))
        gains = []
        for runs in counts:
            sweep = f"--sweep=seed=0:{runs}"
            # Two epochs compile what the full length runs.
            first = [] if settings.quick else ["--config.train.epochs=2"]
            launch(
                [*arguments, sweep, *first, f"--workdir={root / f'{runs}-first'}"], root / "cache"
            )
            workdir = f"--workdir={root / f'{runs}'}"
            together = launch([*arguments, sweep, workdir], root / "cache").seconds
            full, rest = divmod(runs, side_by_side)
            apart = full * beside + (alone if rest else 0)
            gain = apart / together
            gains.append((runs, gain))
            yield Row(
                "throughput",
                f"digits, {runs} run{'s' if runs > 1 else ''}: N processes / one command",
                gain,
                "ratio",
                note=f"{apart:.1f} s, {side_by_side} at a time, as {len(done)} that were run; "
                f"{together:.1f} s; all programs in the cache",
            )
        yield _crossover("digits: runs from which one command is faster", gains)
