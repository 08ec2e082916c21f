"""Windows of batches from the host hold the batches of the resident path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae import divergence, loss, mesh, random, train
from vae.data import Examples, Stream, Transform, stream
from vae.hparams import HParams, stack
from vae.packing import Packing
from vae.spec import ModelSpec, Spec

N, BATCH, STEPS = 29, 8, 11  # 3 steps an epoch, and 5 examples left over
RAW = np.random.default_rng(0).integers(0, 256, (N, 6), np.uint8)
BITS = Transform(1 / 255, binarization="dynamic")
SPEC = Spec(ModelSpec((6,), 2, depth=1, width=8), batch_size=BATCH)
SEEDS = (3, 5, 3, 2**32 - 1)

batch_at = jax.jit(loss.batch_at, static_argnums=0)


@pytest.fixture
def small(monkeypatch):
    """Windows of two steps of the three distinct seeds."""
    monkeypatch.setattr(stream, "WINDOW_BYTES", 2 * 3 * BATCH * 6)


def test_a_batch_is_a_part_of_the_epochs_order():
    steps = map(jnp.int32, range(6))
    every = [np.asarray(random.batch(jnp.uint32(7), step, BATCH, N)) for step in steps]
    for epoch in (every[:3], every[3:]):
        assert len(set(np.concatenate(epoch))) == 3 * BATCH  # none twice
    assert not np.array_equal(every[0], every[3])  # another order


def test_the_windows_have_the_batches_of_the_resident_path(small):
    reader = Stream(RAW, BITS, SEEDS, BATCH, STEPS)
    assert reader.shapes().raw.shape == (3, 2, BATCH, 6)
    resident = Examples(jnp.asarray(RAW), BITS)
    for step in range(STEPS):
        window, there = reader.at(step)
        assert there == 2 - step % 2
        for seed in map(jnp.uint32, SEEDS):
            found = batch_at(SPEC, window, seed, jnp.int32(step))
            expected = batch_at(SPEC, resident, seed, jnp.int32(step))
            assert np.array_equal(found.raw, expected.raw) and found.raw.dtype == np.uint8
            assert np.array_equal(found.index, expected.index)


def test_any_step_can_be_the_first(small):
    reader = Stream(RAW, BITS, SEEDS, BATCH, STEPS)
    for step in (7, 2, 3, 10):
        window, _ = reader.at(step)
        expected = Stream(RAW, BITS, SEEDS, BATCH, STEPS).at(step)[0]
        assert np.array_equal(window.raw, expected.raw) and window.first == expected.first


def population(spec=SPEC):
    runs = [HParams(seed=seed, beta=beta) for seed, beta in zip(SEEDS, (1, 2, 3, 4), strict=True)]
    return train.init(spec, stack(runs), jnp.full(6, 0.5))


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.sampled
@pytest.mark.parametrize("pack", ["vmap", "map"])
@pytest.mark.parametrize("transform", [BITS, Transform(1 / 255)], ids=["dynamic", "grey"])
def test_training_is_the_same_bit_for_bit(pack, transform, small):
    resident = Examples(jnp.asarray(RAW), transform)
    expected = train.train_chunk(SPEC, pack, population(), resident, jnp.int32(STEPS))
    found, step = population(), 0
    reader = Stream(RAW, transform, SEEDS, BATCH, STEPS)
    while step < STEPS:
        window, there = reader.at(step)
        steps = min(there, STEPS - step)
        found = train.train_chunk(SPEC, pack, found, window, jnp.int32(steps))
        step += steps
    assert_same(found, expected)


def test_a_mapped_file_reads_as_memory(tmp_path, small):
    np.save(tmp_path / "raw.npy", RAW)
    mapped = np.load(tmp_path / "raw.npy", mmap_mode="r")
    for step in (0, 5):
        window = Stream(mapped, BITS, SEEDS, BATCH, STEPS).at(step)[0]
        assert_same(window, Stream(RAW, BITS, SEEDS, BATCH, STEPS).at(step)[0])


def test_the_seeds_of_each_part_are_filled_up():
    assert stream.distinct([1, 1, 2, 3], 1).tolist() == [1, 2, 3]
    assert stream.distinct([1, 1, 2, 3], 2).tolist() == [1, 1, 2, 3]
    assert stream.distinct([1, 1, 2, 2], 2).tolist() == [1, 2]
    assert stream.distinct([2**32 - 1], 1).dtype == np.uint32


def test_windows_have_at_least_a_step_and_no_more_than_the_training():
    assert stream.window_steps(RAW, BATCH, 3, STEPS) == STEPS
    huge = np.broadcast_to(np.uint8(0), (2, 2**20))
    assert stream.window_steps(huge, 128, 64, STEPS) == 1
    assert stream.held_bytes(huge, 128, 64, STEPS) == stream.WINDOWS * 128 * 64 * 2**20


@pytest.mark.sampled
@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("shape", [(4, 1), (2, 4)])
def test_on_a_mesh_each_device_has_the_batches_of_its_runs(shape, small):
    on = mesh.make(*shape)
    reader = Stream(RAW, BITS, SEEDS, BATCH, STEPS, on)
    resident = Examples(jnp.asarray(RAW), BITS)
    size = len(SEEDS) // shape[0]
    for step in (0, 3):
        window, _ = reader.at(step)
        parts = len(window.seeds) // shape[0]
        for shard in window.raw.addressable_shards:
            slots, _, rows, _ = shard.index
            part = (slots.start or 0) // parts
            assert set(np.asarray(window.seeds)[slots]) == set(SEEDS[part * size :][:size])
            for seed, values in zip(np.asarray(window.seeds)[slots], shard.data, strict=True):
                batch = batch_at(SPEC, resident, jnp.uint32(seed), jnp.int32(step))
                np.testing.assert_array_equal(values[step % reader._steps], batch.raw[rows])
    # The program takes it so, and computes what it computes of examples that each device has whole.
    pack = Packing("vmap", on)
    place = functools.partial(mesh.put, sharding=mesh.everywhere(on))
    start = train.init(SPEC, stack([HParams(seed=s) for s in SEEDS]), jnp.full(6, 0.5), None, on)
    copy = jax.tree.map(jnp.copy, start)
    window, there = reader.at(0)
    steps = place(np.int32(there))
    expected = train.train_chunk(SPEC, pack, start, place(resident), steps)
    found = train.train_chunk(SPEC, pack, copy, window, steps)
    assert_same(found, expected)


def test_a_diverged_step_is_explained_by_its_batch_alone():
    spec = SPEC
    runs = stack([HParams(seed=3, learning_rate=1e6, beta=1e30)])
    state = train.init(spec, runs, jnp.full(6, 0.5))
    resident = Examples(jnp.asarray(RAW), BITS)
    state = train.train_chunk(spec, "vmap", state, resident, jnp.int32(50)).states
    run = jax.tree.map(lambda leaf: leaf[0], state)
    assert run.diverged
    window = Stream(RAW, BITS, [3], BATCH, 50).one(3, int(run.diverged_step))
    assert divergence.diagnose(spec, window, run) == divergence.diagnose(spec, resident, run)
