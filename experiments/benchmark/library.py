"""Benchmarks of compiled programs, compiled as the launcher compiles them."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import default, mnist
from experiments import config as configs
from experiments import memory, programs
from experiments import plan as plans
from experiments import sweep as sweeps
from experiments.benchmark import products
from experiments.benchmark.measure import Row, Settings, in_turns, ratio, spread
from experiments.plan import PopulationPlan
from vae import mesh, train
from vae.data import Examples
from vae.evaluate import SPLITS

EPOCH = 468  # steps of MNIST at batch 128
WIDTHS, RUNS = (32, 128, 512), (4, 16)
MIB = 2**20


@functools.cache
def synthetic_mnist() -> dict[str, np.ndarray]:
    """Images of MNIST's shape, number and share of black pixels (0.81): speed needs no digits."""
    rng = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        grey = rng.integers(0, 256, (count, 28, 28, 1), np.uint8)
        return grey * (rng.random(grey.shape, np.float32) > 0.81)

    return {"train": images(60_000), "test": images(10_000)}


def population_plan(
    module: Any, overrides: dict[str, str], sweep: Sequence[str] = (), pack: str = "auto"
) -> PopulationPlan:
    """The one population of a shipped config with overrides, as the launcher plans it.

    On one device, unless the overrides say something else.
    """
    overrides = {"mesh.runs": "1", "mesh.data": "1", **overrides}
    base, runs = configs.from_args(module.__file__, list(overrides.items()), sweep)
    (population,) = plans.make(base, runs, sweeps.axes(runs), pack=pack).populations
    return population


def mnist_overrides(settings: Settings) -> tuple[dict[str, str], str]:
    """Overrides of configs/mnist.py, and which data they read."""
    if settings.quick:  # the same path on the small embedded images
        return {"data.source": "digits", "model.width": "8", "model.latent_dim": "2"}, "digits"
    if settings.data_dir:
        return {"data.dir": settings.data_dir}, "MNIST"
    source = f"call:{synthetic_mnist.__module__}:{synthetic_mnist.__name__}"
    return {"data.source": source}, "synthetic images of MNIST's shape"


class Training:
    """A population in memory; calling it with n makes n more steps in one dispatch."""

    def __init__(self, plan: PopulationPlan) -> None:
        pool = programs.Programs()
        self.program = pool.get("chunk", plan)
        self.population = programs.first_population(plan, pool.get("init", plan))
        self._everywhere = mesh.everywhere(plan.mesh)
        self.examples = self._read(plan)
        pool.close()

    def _read(self, plan: PopulationPlan) -> Any:
        """What the batches are taken from: all examples, on each device."""
        raw = mesh.put(plan.dataset.train, self._everywhere)
        return Examples(raw, plan.dataset.transform)

    def __call__(self, num_steps: int) -> None:
        steps = mesh.put(np.int32(num_steps), self._everywhere)
        self.population = self.program(self.population, self.examples, steps)
        jax.block_until_ready(self.population)


def step(settings: Settings) -> list[Row]:
    """One run, 784-500-20: a training step against its own matrix products."""
    overrides, source = mnist_overrides(settings)
    plain = overrides | {"data.binarization": "none"}
    variants = {
        "Adam, dynamic binarisation": overrides,
        "Adam, no binarisation": plain,
        "SGD, no binarisation": plain | {"optimizer.name": "sgd"},
    }
    if settings.quick:
        variants = {"Adam, dynamic binarisation": overrides}
    plan = population_plan(mnist, overrides)
    functions: dict[str, Callable[[int], Any]] = {"products": products_of(plan)}
    for name, fields in variants.items():
        functions[name] = Training(population_plan(mnist, fields))
    # An epoch in one dispatch, about as the launcher does it.
    seconds = in_turns(functions, settings.pick(EPOCH, 2), settings.pick(9, 2))
    model = plan.spec.model
    sizes = (plan.spec.batch_size, model.num_values, model.widths, model.latent_dim)
    speed = products.flops(*sizes) / seconds["products"] / 1e9
    rows = [
        Row("step", "matrix products alone", **spread(1e3 * seconds["products"]), unit="ms"),
        Row("step", "their speed", **spread(speed), unit="GFLOP/s"),
    ]
    for name in variants:
        rows.append(Row("step", name, **spread(1e3 * seconds[name]), unit="ms", note=source))
    for name in variants:
        rows.append(
            Row(
                "step",
                f"{name}: step / products",
                **ratio(seconds[name], seconds["products"]),
                unit="ratio",
                target=("<=", 1.3) if name == next(iter(variants)) else None,
            )
        )
    return rows


def products_of(plan: PopulationPlan) -> Callable[[int], Any]:
    """The matrix products of a plan's step, compiled with the options of its training."""
    model = plan.spec.model
    loop = functools.partial(products.loop, samples=plan.spec.objective.samples)
    weights = products.weights(model.num_values, model.widths, model.latent_dim)
    x = np.random.default_rng(1).random((plan.spec.batch_size, model.num_values)) < 0.13
    arguments = (weights, jnp.asarray(x, jnp.float32))
    program = programs.compiled(jax.jit(loop), (*arguments, jnp.int32(0)), programs.MUCH)
    return lambda n: jax.block_until_ready(program(*arguments, jnp.int32(n)))


def dispatch(settings: Settings) -> list[Row]:
    """Many steps in one dispatch against one dispatch per step."""
    plan = population_plan(mnist, mnist_overrides(settings)[0])
    chunk, single = Training(plan), Training(plan)

    def one_by_one(num_steps: int) -> None:
        for _ in range(num_steps):
            single.population = single.program(single.population, single.examples, jnp.int32(1))
        jax.block_until_ready(single.population)

    functions = {"chunk": chunk, "chunks of one": one_by_one, "train_step": _single_steps(plan)}
    seconds = in_turns(functions, settings.pick(100, 2), settings.pick(7, 2))
    notes = {
        "chunks of one": "train_chunk, num_steps=1",
        "train_step": "jit(train_step), state donated",
    }
    return [
        Row(
            "dispatch",
            f"{name} / chunk",
            **ratio(seconds[name], seconds["chunk"]),
            unit="ratio",
            target=(">=", 1.0),
            note=note,
        )
        for name, note in notes.items()
    ]


def _single_steps(plan: PopulationPlan) -> Callable[[int], None]:
    """What one would write without a scan: a jitted step in a Python loop."""
    examples = Examples(jnp.asarray(plan.dataset.train), plan.dataset.transform)
    population = train.init(plan.spec, *plan.start())

    def step(state, examples):
        batch = train.batch_at(plan.spec, examples, state.hparams.seed, state.step)
        return train.train_step(plan.spec, examples.transform, state, batch)[0]

    states = [jax.tree.map(lambda a: a[0], population.states)]
    program = programs.compiled(
        jax.jit(step, donate_argnums=0), (states[0], examples), programs.MUCH
    )

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            states[0] = program(states[0], examples)
        jax.block_until_ready(states[0])

    return run


def packing(settings: Settings) -> Iterator[Row]:
    """Runs together (vmap) against runs in turn (map): the measurement behind MAP_FROM_PARAMS."""
    nets = {"mlp": {}, "conv": {"model.net": "conv"}} if not settings.quick else {"mlp": {}}
    widths = settings.pick({"mlp": WIDTHS, "conv": (16,)}, {"mlp": (4,)})
    for runs in settings.pick(RUNS, (2,)):
        for net, overrides in nets.items():
            points = []
            for width in widths[net]:
                fields = {**overrides, "model.width": str(width)}
                timed = {}
                for pack in ("vmap", "map"):
                    plan = population_plan(default, fields, [f"seed=0:{runs}"], pack)
                    timed[pack] = Training(plan)
                seconds = in_turns(timed, settings.pick(20, 2), settings.pick(7, 2))
                found = ratio(seconds["vmap"], seconds["map"])
                points.append((plan.num_params, found["value"]))
                each = {pack: f"{1e6 * np.median(s) / runs:.0f}" for pack, s in seconds.items()}
                yield Row(
                    "packing",
                    f"{net} of width {width}, {runs} runs: vmap / map",
                    **found,
                    unit="ratio",
                    note=f"{plan.num_params:,} parameters; {each['vmap']} and {each['map']} µs "
                    "a run and step",
                )
            if net == "mlp" and (crossing := _crossing(points)) is not None:
                what = f"{net}, {runs} runs: parameters where map overtakes vmap"
                note = "linear in the logarithms between widths; packs.MAP_FROM_PARAMS"
                yield Row("packing", what, crossing, unit="", note=note)


def _crossing(points: Sequence[tuple[int, float]]) -> float | None:
    """The size at which the ratio last rises through 1, interpolated in the logarithms."""
    for (size, value), (size_next, value_next) in reversed(
        list(zip(points[:-1], points[1:], strict=True))
    ):
        if value <= 1 < value_next:
            share = math.log(value) / (math.log(value) - math.log(value_next))
            return size * (size_next / size) ** share
    return None


def memory_(settings: Settings) -> list[Row]:
    """The planner's estimate of a population against the most that it takes, by XLA's count."""
    runs = settings.pick(16, 2)
    small = {"eval.iw_samples": "100"}
    cases = {
        "digits": (default, small),
        "conv": (default, small | {"model.net": "conv"}),
        "MNIST": (mnist, mnist_overrides(settings)[0]),
    }
    packs = ("vmap", "map")
    if settings.quick:
        cases, packs = {"digits": (default, small | {"model.width": "4"})}, ("vmap",)
    rows = []
    for name, (module, overrides) in cases.items():
        for pack in packs:
            plan = population_plan(module, overrides, [f"seed=0:{runs}"], pack)
            largest, peak = peak_bytes(plan)
            rows.append(
                Row(
                    "memory",
                    f"{name}, {runs} runs, {pack}: estimate / measured",
                    plan.estimate.total / peak,
                    "ratio",
                    target=("within", 0.2),
                    note=f"{memory.gib(plan.estimate.total)} and {memory.gib(peak)} ({largest}); "
                    f"estimate: {plan.estimate.describe()}",
                )
            )
    return rows


def peak_bytes(plan: PopulationPlan) -> tuple[str, int]:
    """The program at which most is on the device, and how much.

    Of each program that is XLA's count: its results and buffers, less what results take the place
    of. Beside it are the examples of all splits; the population, whether the program reads all of
    it or not, but for `init`, which makes it; and, in a reading's step, the parameters before it.
    A checkpoint's copy is the host's memory and not counted; nor is what the device holds of
    compiled code.
    """
    shapes = programs.population_shapes(plan)
    pool, peaks = programs.Programs(), {}
    names = ["init", "chunk", "changes", "evaluate_test", "evaluate_train", "gallery"]
    for name in names + ["iw_bounds"] * bool(plan.evaluation.iw_samples):
        seen = pool.get(name, plan).memory_analysis()
        own = seen.temp_size_in_bytes + seen.output_size_in_bytes - seen.alias_size_in_bytes
        before = tree_bytes(shapes.states.params) if name in ("chunk", "changes") else 0
        peaks[name] = own + before + (tree_bytes(shapes) if name != "init" else 0)
    pool.close()
    largest = max(peaks, key=peaks.get)
    dataset, evaluated = plan.dataset, plan.evaluation.train_limit
    each = math.prod(dataset.example_shape) * dataset.train.dtype.itemsize
    examples = each * (dataset.num_train + dataset.num_test + evaluated)
    return largest, peaks[largest] + examples


def tree_bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def nll(settings: Settings) -> list[Row]:
    """The importance-sampled nll of the MNIST model: time per image, memory whatever K is."""
    overrides, source = mnist_overrides(settings)
    many = settings.pick(5000, 128)
    plan = population_plan(mnist, overrides | {"eval.iw_samples": str(many)})
    fewer = population_plan(mnist, overrides | {"eval.iw_samples": str(many // 10)})
    training = Training(plan)
    raw, transform = plan.dataset.evaluation("test", None)
    examples = Examples(jnp.asarray(raw), transform)
    pool = programs.Programs()
    program, smaller = pool.get("iw_bounds", plan), pool.get("iw_bounds", fewer)
    pool.close()
    index = jnp.arange(programs.iw_block(plan), dtype=jnp.int32)

    def run(count: int) -> None:
        for _ in range(count):
            jax.block_until_ready(
                program(training.population, examples, jnp.int32(SPLITS["test"]), index)
            )

    seconds = in_turns({"nll": run}, 1, settings.pick(5, 2))["nll"] / len(index)
    buffers = [p.memory_analysis().temp_size_in_bytes for p in (program, smaller)]
    total = float(np.median(seconds)) * plan.dataset.num_test
    note = f"K = {many}; {source}; {plan.dataset.num_test:,} images take {total:.0f} s"
    return [
        Row("nll", "time per image", **spread(1e3 * seconds), unit="ms", note=note),
        Row("nll", "buffers", buffers[0] / MIB, "MiB"),
        Row(
            "nll",
            f"buffers for K = {many} / K = {many // 10}",
            buffers[0] / buffers[1],
            "ratio",
            target=("<=", 1.05),
            note="memory does not grow with K",
        ),
    ]
