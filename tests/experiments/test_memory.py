"""The estimate of memory against what compiled programs ask for, and what a host has."""

import jax
import numpy as np
import pytest

from configs import default
from experiments import config as configs
from experiments import memory, programs
from experiments import plan as plans
from vae.nets import NETS
from vae.spec import ModelSpec

MIB = 2**20
GIB = 2**30

# Activations are most of what it holds.
DEEP = {"model_depth": 5, "model_width": 64, "train_batch_size": 1024}
NORMED = DEEP | {"model_norm": "layer", "model_activation": "gelu"}
MNIST = {"data_source": (28, 28, 1), "model_latent_dim": 20}
WIDE = {"model_latent_dim": 32, "model_depth": 1, "train_batch_size": 512}


def population(runs=1, pack="vmap", **changes):
    base = configs.flatten(default.get_config().to_dict())
    names = {name.replace(".", "_"): name for name in base}
    # The tests have several devices; an estimate is of one.
    base |= {"mesh.runs": 1, "mesh.data": 1} | {names[k]: v for k, v in changes.items()}
    overrides = [{"seed": seed} for seed in range(runs)]
    axes = {"seed": list(range(runs))}
    return plans.make(
        configs.unflatten(base), overrides, axes, budget=2**40, pack=pack
    ).populations[0]


def on_device(plan, *names):
    """The most that there is on the device at once, by XLA's count: see `peak_bytes`, a benchmark
    of the same, of all programs at their own levels."""
    shapes = programs.population_shapes(plan)
    state, params = (memory._bytes(tree) for tree in (shapes, shapes.states.params))
    seen = []
    for name in names:
        function, arguments, _ = programs._signature(name, plan)
        # Buffers do not depend on the level; level 0 compiles fastest.
        options = {"xla_backend_optimization_level": 0} | programs.options_of(plan.spec)
        arguments = jax.tree.map(programs._shape, arguments)
        sizes = function.lower(*arguments).compile(options).memory_analysis()
        own = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        # A reading's step has the parameters before it besides.
        seen.append(own + (params if name == "chunk" else 0))
    return plan.estimate.data + state + max(seen)


ALL = ("chunk", "evaluate_test", "iw_bounds", "gallery")
only_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="options are the CPU's")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """shape -> the source of a few examples of that shape."""

    def source(shape):
        file = tmp_path_factory.mktemp("images") / "images.npz"
        rng = np.random.default_rng(0)
        parts = {"train": 640, "test": 320}
        np.savez(file, **{k: rng.integers(0, 256, (n, *shape), np.uint8) for k, n in parts.items()})
        return f"npz:{file}"

    return source


def given(images, changes):
    source = changes.get("data_source", "digits")
    return changes | {"data_source": source if source == "digits" else images(source)}


@pytest.mark.sampled
@only_cpu
@pytest.mark.parametrize(
    "runs, pack, names, changes",
    [
        (16, "vmap", ALL, {}),
        (4, "map", ALL, {}),
        (1, "vmap", ALL, {"model_width": 64, "eval_iw_samples": 64}),
        (4, "vmap", ("chunk", "gallery"), MNIST | {"model_width": 500, "model_depth": 1}),
        (4, "map", ("chunk",), MNIST | {"model_width": 500, "model_depth": 1}),
        (2, "vmap", ("chunk",), MNIST | {"model_width": 512, "model_depth": 4}),
        (
            2,
            "map",
            ("chunk", "iw_bounds"),
            {"data_source": (32, 32, 3), "model_net": "conv", "model_width": 32, "model_depth": 3},
        ),
    ],
    ids=["digits", "in turn", "quickstart", "MNIST", "MNIST in turn", "deep MNIST", "conv"],
)
def test_the_estimate_is_what_the_compiler_says(images, runs, pack, names, changes):
    plan = population(runs, pack, **given(images, changes))
    assert plan.estimate.total == pytest.approx(on_device(plan, *names), rel=0.2)


@pytest.mark.sampled
@only_cpu
@pytest.mark.parametrize(
    "runs, changes",
    [
        (4, DEEP),
        (4, NORMED),
        (1, NORMED),
        (1, NORMED | {"train_remat": "layers"}),
        (2, DEEP | {"model_activation": "tanh", "train_accumulate": 8}),
        (1, DEEP | {"model_norm": "batch", "model_activation": "tanh"}),
        (2, {"model_net": "conv", "model_width": 16, "train_accumulate": 4}),
        (2, WIDE | {"model_prior": "vamp", "model_likelihood": "gaussian_pixel"}),
        (
            1,
            WIDE
            | {"model_latent_dim": [32, 16]}
            | {"model_posterior": "ladder", "model_prior": "hierarchical"},
        ),
        (4, WIDE | {"objective_name": "tcvae"}),
        (2, {"objective_name": "iwae", "objective_samples": 50}),
    ],
    ids=[
        *("deep", "normed", "normed solo", "remat", "parts", "batch norm", "conv in parts"),
        *("components", "ladder", "pairs", "samples"),
    ],
)
def test_no_step_takes_much_more_than_its_estimate(runs, changes):
    plan = population(runs, **changes)
    estimate = plan.estimate
    # XLA fuses, and orders what it computes, by rules that no closed form has. What is too small
    # ends in a process that is out of memory, what is too large in one more population.
    ratio = (estimate.data + estimate.state + estimate.training) / on_device(plan, "chunk")
    assert 0.9 < ratio < 1.5


@pytest.mark.sampled
@only_cpu
@pytest.mark.parametrize(
    "changes",
    [
        {"model_depth": 12},
        {"model_norm": "layer", "model_activation": "gelu"},
        {"model_likelihood": "gaussian_pixel", "data_binarization": "none"},
        {"model_net": "conv", "model_width": 64, "eval_iw_samples": 64},
    ],
    ids=["deep", "normed", "two heads", "conv"],
)
def test_an_evaluation_takes_no_more_than_its_estimate(changes):
    plan = population(**changes)
    estimate = plan.estimate
    most = estimate.data + estimate.state + estimate.evaluation
    assert most > 0.9 * on_device(plan, "evaluate_test", "iw_bounds", "gallery")
    assert estimate.evaluation < 1.1 * memory.EVAL_BYTES["cpu"]


def test_what_grows_with_the_runs_and_what_does_not():
    one, eight = population(1).estimate, population(8).estimate
    in_turn = population(8, pack="map").estimate
    assert eight.data == one.data == in_turn.data
    assert eight.state == 8 * one.state == in_turn.state
    assert eight.training == 8 * one.training
    assert population(8, **NORMED).estimate.training > 8 * population(**NORMED).estimate.training
    # In turn: one run's step, but a second state of each, one in between, and what was before.
    params = 4 * population(1).num_params
    assert in_turn.training == one.training + 9 * one.state + 7 * params
    # Side by side, the first layer's weights are turned.
    assert one.evaluation < eight.evaluation <= 8 * (one.evaluation + 4 * 64 * 128)


def test_what_saves_memory_is_counted(monkeypatch):
    plain = population(2, **NORMED).estimate
    parts, remat = (
        population(2, **NORMED, **own).estimate
        for own in ({"train_accumulate": 8}, {"train_remat": "layers"})
    )
    params = 2 * 4 * population(2, **NORMED).num_params
    # The sum of the parts' gradients comes in, beside the copy from before the step.
    assert parts.training - 2 * params == pytest.approx((plain.training - params) / 8, rel=1e-3)
    assert remat.training < plain.training / 2
    assert parts.evaluation == plain.evaluation and remat.state == parts.state == plain.state
    # The CPU's bfloat16 is float32 in memory.
    own = {"train_precision": "bfloat16"}
    assert population(2, **NORMED, **own).estimate == plain
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "gpu")
    plain, half = (population(2, pack="vmap", **NORMED, **o).estimate for o in ({}, own))
    assert plain.training / 2 < half.training < 0.7 * plain.training
    assert half.evaluation == plain.evaluation  # which is in float32


def test_the_patches_of_convolutions_are_counted():
    # 8 × 8 images through 4, 5 and 6 channels and back, by hand. Down: places × 4 blocks of 4 ×
    # channels read. Up: places of the small image, one more a side, × 4 pixels × channels read. To
    # the output: 5 × 5 blocks × 4 products × 4 pixels.
    spec = ModelSpec((8, 8, 1), net="conv", depth=3, width=(4, 5, 6))
    down = [16 * 16 * 1, 4 * 16 * 4, 1 * 16 * 5]
    up = [0, 4 * 4 * 6, 9 * 4 * 5, 25 * 4 * 4, 25 * 4 * 4]
    found = NETS["conv"].layers(spec)
    # Of those images pixels at an edge are cut off; the sums' products are not kept either.
    terms = [[0, 0, 0], [0, 3 * 4 * 5, 5 * 4 * 4, 9 * 4 * 4, 400]]
    patches = [down, [*up[:-1], 0]]
    assert [[a.terms for a in part] for part in found] == terms
    assert [[a.patches for a in part] for part in found] == patches
    mlp = ModelSpec((8, 8, 1), depth=2, width=(4, 5))
    assert NETS["mlp"].layers(mlp) == ([(4, 0, 0, 0), (5, 0, 0, 0)], [(5, 0, 0, 0), (4, 0, 0, 0)])


def test_the_data_is_counted_once():
    # 1,438 training images, 359 of the test and as many of train_eval, 64 bytes each.
    assert population().estimate.data == (1438 + 359 + 359) * 64


def test_max_runs_is_the_largest_number_that_fits():
    def of(runs):  # grows by steps, as with an evaluation that is shared at first
        return memory.Estimate(100, 7 * runs, 3 * runs, max(40, 5 * runs))

    for budget in range(of(1).total, of(20).total + 10):
        best = max(runs for runs in range(1, 21) if of(runs).total <= budget)
        assert memory.max_runs(of, budget, 20) == best
    assert memory.max_runs(of, of(1).total, 1) == 1
    assert memory.max_runs(of, 0, 20) == 1


def test_evaluation_batches_shrink_as_rows_and_images_grow(monkeypatch):
    small = ModelSpec((8, 8, 1), width=16)
    large = ModelSpec((28, 28, 1), net="conv", width=32)
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "cpu")
    assert memory.eval_batch(small, 1, 1) == 512
    assert memory.eval_batch(small, 64, 1) == 4096 // 64
    assert memory.eval_batch(small, 64, 16) == 4
    assert memory.eval_batch(small, 5000, 100) == 1
    # A 28 × 28 × 32 image holds 9 times as many numbers in patches, twice: less than 64 × 64.
    assert 1 <= memory.eval_batch(large, 64, 1) < 64
    monkeypatch.setattr(memory.jax, "default_backend", lambda: "gpu")
    assert memory.eval_batch(small, 64, 16) == 64


@pytest.mark.parametrize(
    "size, text",
    [(1, "1 MiB"), (312 * MIB, "312 MiB"), (GIB, "1.0 GiB"), (1.55 * GIB, "1.6 GiB")],
)
def test_sizes_for_people(size, text):
    assert memory.gib(size) == text
