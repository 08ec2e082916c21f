"""A batch in parts, one after the other: the gradient of the whole, or a refusal."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import COMPILE_FAST, examples, population
from tests.vae.test_every_objective import (
    BATCH,
    CASES,
    HPARAMS,
    STEP,
    images,
    parameters_of,
    spec_of,
)
from vae import mesh as meshes
from vae import train, validity
from vae.data import Transform
from vae.errors import UserError
from vae.hparams import HParams, stack
from vae.loss import Batch, batch_gradient
from vae.packing import Packing
from vae.spec import ModelSpec, OptimizerSpec, Spec

PLAIN = HPARAMS.replace(free_bits=0.0)


def gradient(spec, hparams=PLAIN):
    """(gradient, metrics, statistics) of one batch, of indices that are no 0, 1, 2, ..."""
    params, stats = parameters_of(spec)
    numbers = jax.tree.map(lambda a: jnp.asarray(a[0]), stack([hparams]))
    index = jnp.asarray(np.random.default_rng(0).permutation(29)[:BATCH], jnp.int32)

    def of(params, x):
        grads, (metrics, stats_) = batch_gradient(
            spec, Transform(), params, stats, numbers, jnp.int32(STEP), Batch(x, index)
        )
        return grads, metrics, stats_

    return jax.jit(of, compiler_options=COMPILE_FAST)(params, images())


def largest_difference(one, other):
    """The largest |a − b| of two trees, in units of the largest number in the same leaf."""
    differences = jax.tree.map(
        lambda a, b: float(jnp.max(jnp.abs(a - b)) / (jnp.max(jnp.abs(a)) + 1e-6)), one, other
    )
    return max(jax.tree.leaves(differences))


def refused(spec):
    try:
        validity.check(spec)
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.sampled
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_it_is_the_gradient_of_the_whole_batch_or_is_refused(case):
    spec, hparams = spec_of(*case), PLAIN
    parts = dataclasses.replace(spec, accumulate=4)
    if case[0] == "capacity":  # the mean rate, a little above that of some parts
        rate = float(gradient(spec)[1]["rate"])
        hparams = PLAIN.replace(capacity=0.999 * rate * PLAIN.capacity_steps / STEP)
    (grads, metrics, _), (found, means, _) = (gradient(s, hparams) for s in (spec, parts))
    same = largest_difference(grads, found)
    metrics, means = (
        {k: v for k, v in m.items() if np.isfinite(v)} for m in (metrics, means)
    )  # points have no rate
    reported = largest_difference(metrics, means)
    said = refused(parts)
    if not said:
        # Sums of eight terms in another order, each rounded to 6e-8 of the largest.
        assert same < 1e-5 and reported < 1e-5, (same, reported)
        assert jax.tree.leaves(grads) and metrics.keys() == means.keys()
        return
    # No rule is there for nothing: the parts are another gradient, or other statistics.
    assert said.startswith("train.accumulate: 4 parts of a batch, but ") and "Set" in said
    assert max(same, reported) > 1e-3 or spec.model.posterior == "vq"


@pytest.mark.parametrize(
    "model, why",
    [
        ({"norm": "batch"}, "model.norm batch normalises"),
        ({"likelihood": "gaussian_optimal"}, "the variance of model.likelihood gaussian_optimal"),
    ],
    ids=["norm", "variance"],
)
def test_statistics_of_the_batch_are_refused(model, why):
    spec = dataclasses.replace(spec_of("elbo"), accumulate=2)
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, **model))
    assert why in refused(spec)
    whole = dataclasses.replace(spec, accumulate=1)
    assert largest_difference(gradient(whole)[0], gradient(spec)[0]) > 1e-3


def test_free_bits_are_of_the_whole_batch():
    """Their number is traced, so that the launcher refuses them (tests/experiments/test_rules)."""
    spec = spec_of("elbo")
    parts = dataclasses.replace(spec, accumulate=4)
    # A floor that the mean rate is above, and that of some parts is under.
    held = PLAIN.replace(free_bits=float(gradient(spec)[1]["rate"]) / 2 * 0.9)
    assert largest_difference(gradient(spec, held)[0], gradient(parts, held)[0]) > 1e-3


def test_a_number_of_parts_that_does_not_divide():
    spec = dataclasses.replace(spec_of("elbo"), accumulate=3)
    assert refused(spec).startswith("train.accumulate: 3 does not divide train.batch_size (8)")


@pytest.mark.sampled
@pytest.mark.parametrize("encoder_steps", [1, 3])
def test_a_training_in_parts_is_the_training(encoder_steps):
    spec = Spec(
        ModelSpec((6,), 2, depth=1, width=8, activation="tanh", likelihood="gaussian"),
        optimizer=OptimizerSpec("sgd", encoder_steps=encoder_steps),
        batch_size=8,
    )
    runs = [HParams(seed=s, learning_rate=3e-3, beta=b) for s, b in ((0, 1.0), (1, 0.5))]
    ends = []
    for count in (1, 4):
        own = dataclasses.replace(spec, accumulate=count)
        ends.append(train.train_chunk(own, "vmap", population(own, runs), examples(29, 6), 6))
    # As in test_population: six steps of roundings of 6e-8.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        *((end.states, end.interval) for end in ends),
    )


@pytest.mark.thorough
def test_the_memory_of_activations_is_divided():
    spec = Spec(ModelSpec((64,), 4, depth=6, width=64, activation="gelu"), batch_size=512)

    def temporary(count):
        own = dataclasses.replace(spec, accumulate=count)
        lowered = train.train_chunk.lower(
            own, "vmap", population(own, [HParams()]), examples(600, 64), jnp.int32(1)
        )
        return lowered.compile(COMPILE_FAST).memory_analysis().temp_size_in_bytes

    whole, parts = temporary(1), temporary(8)
    # What does not shrink are the gradients, and beside them their sum: twice the parameters.
    params = population(spec, [HParams()]).states.params
    held = 2 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert parts < whole / 8 + held + 512 * 64 * 4


@pytest.mark.thorough
@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_devices_that_share_a_batch_share_each_part():
    """No example goes to another device, and the training is that of one device."""
    spec = Spec(
        ModelSpec((6,), 2, depth=1, width=8, activation="tanh", likelihood="gaussian"),
        optimizer=OptimizerSpec("sgd"),
        batch_size=16,
        accumulate=4,
    )
    runs, mean, data = stack([HParams(learning_rate=3e-3)]), jnp.zeros(6), examples(40, 6)
    mesh = meshes.make(1, 2)
    shared = train.init(spec, runs, mean, None, mesh)
    steps = jnp.int32(3)
    program = train.train_chunk.lower(spec, Packing("vmap", mesh), shared, data, steps).compile()
    text = program.as_text()
    assert "all-reduce" in text
    for moves in ("all-gather", "all-to-all", "collective-permute"):
        assert moves not in text
    alone = train.train_chunk(spec, "vmap", train.init(spec, runs, mean), data, steps)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.device_get(program(shared, data, steps).states.params),
        jax.device_get(alone.states.params),
    )
