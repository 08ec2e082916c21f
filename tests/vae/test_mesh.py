"""Sharded = unsharded, on eight devices that the CPU plays."""

import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import COMPILE_FAST, examples
from vae import evaluate, mesh, train
from vae.data import Examples
from vae.hparams import HParams, stack
from vae.packing import Packing
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

LAYOUTS = ((8, 1), (4, 2), (2, 4), (1, 8))
DATA = examples(29, 6)
STEPS = 12
SPEC = Spec(
    ModelSpec((6,), 2, depth=1, width=8, activation="tanh", likelihood="gaussian"),
    ObjectiveSpec(samples=2),
    OptimizerSpec(name="adamw", ema=True),
    batch_size=8,
)
# Adam moves an entry whose gradient is of rounding size by a whole step, unless eps is larger.
RUNS = [
    HParams(seed=seed, beta=beta, learning_rate=0.02, eps=1e-4, ema_decay=0.8, clip_norm=5.0)
    for seed, beta in enumerate((0.5, 1.0, 2.0, 4.0, 8.0))
]
COLLECTIVE = re.compile(
    r"= .*? (all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter"
    r"|collective-broadcast)(?:-start)?\("
)


def start(spec, runs, on):
    runs = runs + runs[-1:] * (mesh.padded(len(runs), on) - len(runs))
    if on is None:
        return train.init(spec, stack(runs), np.zeros(6, np.float32))
    hparams = mesh.put(stack(runs), mesh.of_runs(on))
    mean = mesh.put(np.zeros(6, np.float32), mesh.everywhere(on))
    return train.init(spec, hparams, mean, on=on)


def arguments(spec, runs, how, on):
    """What `train_chunk` takes: five runs are filled up to a multiple of the axis."""
    everywhere = mesh.everywhere(on) if on else None
    data = Examples(mesh.put(DATA.raw, everywhere), DATA.transform)
    steps = mesh.put(np.int32(STEPS), everywhere)
    return spec, Packing(how, on), start(spec, runs, on), data, steps


def compiled(spec, runs, how, on):
    return train.train_chunk.lower(*arguments(spec, runs, how, on)).compile(COMPILE_FAST)


def trained(spec, runs, how="vmap", on=None):
    _, _, population, data, steps = arguments(spec, runs, how, on)
    return compiled(spec, runs, how, on)(population, data, steps)


@functools.cache
def unsharded(spec=SPEC):
    return mesh.fetch(trained(spec, RUNS))


def assert_close(sharded, plain):
    """Equal but for the order of sums: some roundings of 6e-8 in each of a dozen steps."""
    for a, b in zip(jax.tree.leaves(sharded), jax.tree.leaves(plain), strict=True):
        a = a[: len(b)] if np.ndim(b) else a  # without the inert runs
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.sampled
@pytest.mark.parametrize("how", ["vmap", "map"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sharded_population_is_the_unsharded_one(layout, how):
    on = mesh.make(*layout)
    population = trained(SPEC, RUNS, how, on)
    assert_close(mesh.fetch(population), unsharded())
    # It lies as it lay: the next chunk takes it as it is.
    for leaf in jax.tree.leaves(population.states):
        assert leaf.sharding.is_equivalent_to(mesh.of_runs(on), leaf.ndim)


COUPLED = {
    "batch_norm": ({"norm": "batch"}, {}),
    "total_correlation": ({}, {"name": "tcvae", "num_examples": 29}),
    "free_bits": ({}, {"free_bits_groups": 1}),
    "optimal_variance": ({"likelihood": "gaussian_optimal"}, {}),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", COUPLED)
def test_what_couples_a_batch_couples_it_over_devices(name):
    model, objective = COUPLED[name]
    shape = {"depth": 1, "width": 8, "activation": "tanh", "likelihood": "gaussian"}
    spec = Spec(
        ModelSpec((6,), 2, **{**shape, **model}),
        ObjectiveSpec(**objective),
        OptimizerSpec(name="sgd"),
        batch_size=8,
    )
    runs = [HParams(seed=s, learning_rate=1e-3, free_bits=0.2) for s in (0, 1)]
    sharded = trained(spec, runs, on=mesh.make(2, 4))
    assert_close(mesh.fetch(sharded), mesh.fetch(trained(spec, runs)))


def collectives(program):
    return Counter(COLLECTIVE.findall(program.as_text()))


@pytest.mark.sampled
@pytest.mark.parametrize("how", ["vmap", "map"])
@pytest.mark.parametrize("devices", [2, 8])
def test_runs_exchange_nothing(devices, how):
    on = mesh.make(devices, 1)
    assert not collectives(compiled(SPEC, RUNS, how, on))
    runs = stack(RUNS + RUNS[-1:] * (mesh.padded(len(RUNS), on) - len(RUNS)))
    lowered = train.init.lower(
        SPEC,
        mesh.put(runs, mesh.of_runs(on)),
        mesh.put(np.zeros(6, np.float32), mesh.everywhere(on)),
        on=on,
    )
    assert not collectives(lowered.compile(COMPILE_FAST))


def test_devices_of_one_batch_sum_their_gradients_and_no_more():
    found = collectives(compiled(SPEC, RUNS[:1], "vmap", mesh.make(1, 8)))
    # The gradients and the means of the metrics, which XLA combines into a few sums.
    assert set(found) == {"all-reduce"}
    assert 1 <= found["all-reduce"] <= 4


def test_a_batch_lies_on_the_devices_that_share_it():
    on = mesh.make(2, 4)

    def local(shared, x):
        return jnp.sum(mesh.spread(shared), axis=-1)[None] + x

    def program(shared, x):
        return mesh.over_runs(local, on, shared, x)

    batch = mesh.put(np.ones((8, 64), np.float32), mesh.everywhere(on))
    x = mesh.put(np.zeros((2, 8), np.float32), mesh.of_runs(on))
    text = jax.jit(program).lower(batch, x).compile().as_text()
    assert "f32[2,64]" in text  # a quarter of the eight examples on each device


def test_outside_a_mesh_and_of_uneven_batches_nothing_is_spread():
    x = jnp.ones((8, 2))
    assert mesh.spread(x) is x
    on = mesh.make(1, 8)
    seven = mesh.put(np.ones((7, 2), np.float32), mesh.everywhere(on))

    def local(shared, x):
        assert mesh.spread(shared) is shared
        return x

    one = mesh.put(np.zeros(1, np.float32), mesh.of_runs(on))
    jax.jit(lambda shared, x: mesh.over_runs(local, on, shared, x)).lower(seven, one)


@pytest.mark.parametrize("layout", [(4, 2), (1, 8)])
def test_evaluations_are_those_of_one_device(layout):
    on = mesh.make(*layout)
    plain, sharded = start(SPEC, RUNS, None), start(SPEC, RUNS, on)
    data = Examples(mesh.put(DATA.raw, mesh.everywhere(on)), DATA.transform)
    split = mesh.put(np.int32(0), mesh.everywhere(on))
    for function in (evaluate.evaluate, evaluate.iw_bound):
        one = function(SPEC.model, "vmap", 2, 8, plain, DATA, jnp.int32(0))
        several = function(SPEC.model, Packing("vmap", on), 2, 8, sharded, data, split)
        assert_close(mesh.fetch(several), mesh.fetch(one))


def test_arrays_go_to_the_devices_and_back():
    on = mesh.make(4, 2)
    tree = {"a": np.arange(8.0, dtype=np.float32).reshape(4, 2), "b": np.arange(4)}
    there = mesh.put(tree, mesh.of_runs(on))
    assert {s.data.shape for s in there["a"].addressable_shards} == {(1, 2)}
    back = mesh.fetch(there)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), back, tree))
    assert mesh.put(tree, None)["a"].devices() == {jax.devices()[0]}


def test_the_axis_of_runs_is_filled_up():
    on = mesh.make(4, 2)
    assert [mesh.padded(n, on) for n in (1, 4, 5, 8)] == [4, 4, 8, 8]
    assert mesh.padded(5, None) == 5


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(ValueError, match="16 x 1 devices of 8"):
        mesh.make(16, 1)
