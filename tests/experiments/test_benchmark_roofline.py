"""That operations and bytes are read as XLA counts them: of programs whose cost is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from experiments.benchmark import __main__ as main
from experiments.benchmark import products, roofline
from experiments.benchmark.library import population_plan
from experiments.benchmark.measure import Settings

SIDE = 64
TINY = {"model.width": "32", "model.latent_dim": "4", "data.binarization": "none"}


def test_a_loop_counts_its_body_once():
    x = y = jnp.ones((SIDE, SIDE), jnp.float32)

    def loop(count, x, y):
        return jax.lax.fori_loop(0, count, lambda i, h: h @ y, x)

    once = roofline.cost(jax.jit(lambda x, y: x @ y).lower(x, y).compile())
    dynamic = roofline.cost(jax.jit(loop).lower(jnp.int32(0), x, y).compile())
    # Beside it the loop counts its steps: scalars.
    assert dynamic.flops == pytest.approx(once.flops, abs=10) == 2 * SIDE**3
    assert once.bytes == 3 * 4 * SIDE**2  # two operands, one result
    # It copies what it starts from and what it carries.
    assert once.bytes <= dynamic.bytes < 4 * once.bytes


@pytest.mark.thorough
def test_a_step_counts_its_products_and_adams_passes():
    plans = [population_plan(default, TINY, [f"seed=0:{n}"], "vmap") for n in (1, 4)]
    one, four = map(roofline.step_cost, plans)
    floor = products.flops(128, 64, (32, 32), 4)
    # The rest is linear in what the products make: activations and parameters.
    assert floor < one.flops < 2 * floor
    assert one.bytes > roofline.ADAM_PASSES * 4 * plans[0].num_params
    assert four.flops == pytest.approx(4 * one.flops, rel=0.1)


def test_runs_in_turn_are_refused():
    plan = population_plan(default, TINY, ["seed=0:2"], "map")
    with pytest.raises(ValueError, match="one run"):
        roofline.step_cost(plan)


def test_roofline_runs_and_has_its_goal_on_an_accelerator_alone():
    rows = list(main.BENCHMARKS["roofline"](Settings(quick=True)))
    assert all(np.isfinite(row.value) and row.value > 0 for row in rows)
    targets = {row.what for row in rows if row.target}
    goal = {"784-500-20, 2 runs: of its memory's bandwidth"}
    assert targets == (set() if jax.default_backend() == "cpu" else goal)
