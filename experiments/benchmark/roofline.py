"""How near a training step comes to what the machine can do: arithmetic, and traffic of memory.

Roofline model: Williams et al. 2009. A step of F operations and M bytes takes at least F/rate and
M/bandwidth, whichever is longer; both speeds are measured here, by a large product of matrices and
by a pass over a large array.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from configs import default, mnist
from experiments import programs
from experiments.benchmark.library import Training, mnist_overrides, population_plan
from experiments.benchmark.measure import Row, Settings, in_turns, spread
from experiments.plan import PopulationPlan
from vae import train
from vae.data import Examples

# Of parameters, gradient and two moments: all read, and all but the gradient written.
ADAM_PASSES = 7

# Of the product, [n, n] @ [n, n], and of the pass, in floats: far beyond any cache.
PRODUCT, PASS = {"cpu": 2048}, {"cpu": 2**26}
PRODUCT_ACCELERATOR, PASS_ACCELERATOR = 8192, 2**28


class Cost(NamedTuple):
    """Of one execution: floating-point operations, and bytes read and written."""

    flops: float
    bytes: float


def cost(program: Any) -> Cost:
    """What XLA counts in a compiled program.

    The body of a loop counts once, however often it runs: of the loop over steps, one step. Every
    operation (after fusion) counts all that it reads and writes, whether in a cache or not; what
    gathers rows of an array counts the whole array.
    """
    found = program.cost_analysis()
    return Cost(found["flops"], found["bytes accessed"])


def step_cost(plan: PopulationPlan) -> Cost:
    """Of one step of a population whose runs go together (`vmap`)."""
    if plan.pack.how != "vmap":
        raise ValueError("A loop over runs counts one run.")
    population = jax.eval_shape(lambda *a: train.init(plan.spec, *a), *plan.start())
    # Of the examples one batch is read: the data has no more rows, so that no more are counted.
    dataset = plan.dataset
    raw = jax.ShapeDtypeStruct((plan.spec.batch_size, *dataset.example_shape), dataset.train.dtype)
    arguments = (plan.spec, plan.pack, population, Examples(raw, dataset.transform))
    step = jax.ShapeDtypeStruct((), np.int32)
    return cost(programs.compiled(train.train_chunk, (*arguments, step), programs.MUCH))


class Machine(NamedTuple):
    """Measured speeds, best of several: operations and bytes in a second."""

    rate: float
    bandwidth: float


def machine(settings: Settings) -> Machine:
    """Of one large product in float32, and of x ↦ x + 1 in place, which reads and writes."""
    cpu = jax.default_backend() == "cpu"
    side = settings.pick(PRODUCT["cpu"] if cpu else PRODUCT_ACCELERATOR, 64)
    size = settings.pick(PASS["cpu"] if cpu else PASS_ACCELERATOR, 2**12)
    matrix = jnp.ones((side, side), jnp.float32)
    product = programs.compiled(jax.jit(jnp.matmul), (matrix, matrix), programs.MUCH)
    vector = [jnp.ones(size, jnp.float32)]
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    one_pass = programs.compiled(add, (vector[0],), programs.MUCH)

    def multiply(count: int) -> None:
        for _ in range(count):
            found = product(matrix, matrix)
        jax.block_until_ready(found)

    def move(count: int) -> None:
        for _ in range(count):
            vector[0] = one_pass(vector[0])
        jax.block_until_ready(vector[0])

    seconds = in_turns({"product": multiply, "pass": move}, 5, settings.pick(7, 2))
    best = {name: float(np.min(values)) for name, values in seconds.items()}
    return Machine(2 * side**3 / best["product"], 2 * 4 * size / best["pass"])


def roofline(settings: Settings) -> Iterator[Row]:
    """Steps of one run and of populations against the machine's two speeds."""
    found = machine(settings)
    accelerator = jax.default_backend() != "cpu"
    yield Row("roofline", "matrix products in float32", found.rate / 1e9, "GFLOP/s")
    yield Row("roofline", "reading and writing memory", found.bandwidth / 1e9, "GB/s")
    wide, source = mnist_overrides(settings)
    goal = ("784-500-20", settings.pick(64, 2))
    cases = [(mnist, wide, *goal)]
    if not settings.quick:
        cases.insert(0, (mnist, wide, "784-500-20", 1))
        cases += [(default, {}, "digits", runs) for runs in (1, 64)]
    for module, overrides, name, runs in cases:
        plan = population_plan(module, overrides, [f"seed=0:{runs}"], "vmap")
        counted = step_cost(plan)
        # About a second on two CPU cores.
        steps = settings.pick(max(5, int(1e11 / counted.flops)), 2)
        seconds = in_turns({"step": Training(plan)}, steps, settings.pick(5, 2))["step"]
        adam = ADAM_PASSES * 4 * plan.num_params * runs
        what = f"{name}, {runs} run{'s' if runs > 1 else ''}"
        note = f"{counted.flops / 1e9:.3g} GFLOP, {counted.bytes / 1e6:.3g} MB by XLA's count"
        memory_goal = (">=", 0.5) if accelerator and (name, runs) == goal else None
        yield from (
            Row("roofline", f"{what}: step", **spread(1e3 * seconds), unit="ms", note=note),
            Row(
                "roofline",
                f"{what}: of the machine's arithmetic",
                **spread(counted.flops / found.rate / seconds),
                unit="ratio",
            ),
            Row(
                "roofline",
                f"{what}: of its memory's bandwidth",
                **spread(counted.bytes / found.bandwidth / seconds),
                unit="ratio",
                target=memory_goal,
                note="above 1 where caches serve",
            ),
            Row(
                "roofline",
                f"{what}: Adam's {ADAM_PASSES} passes at that bandwidth / step",
                **spread(adam / found.bandwidth / seconds),
                unit="ratio",
                note=f"{adam / 1e6:.3g} MB; {source if module is mnist else 'digits'}",
            ),
        )
