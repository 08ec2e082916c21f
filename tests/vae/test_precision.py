"""Mixed precision: what is rounded to bfloat16, what never is, and what that does to a training."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import COMPILE_FAST, examples, parameters, population
from tests.vae.test_every_objective import CASES, HPARAMS, images, parameters_of, spec_of
from vae import data, evaluate, layers, train
from vae.data import Transform
from vae.hparams import HParams, stack
from vae.loss import Batch, batch_gradient
from vae.spec import ModelSpec, OptimizerSpec, Spec

# Rounding to nearest with 8 binary digits: |fl(a) − a| ≤ 2^-8 |a|.
UNIT = 2.0**-8


def gradients(spec, params, stats, raw, index):
    """Gradients of batches [N, B, *x], compiled quickly."""
    numbers = jax.tree.map(lambda a: jnp.asarray(a[0]), stack([HPARAMS]))

    def gradient(raw, index):
        batch = Batch(raw, index)
        return batch_gradient(spec, Transform(), params, stats, numbers, jnp.int32(4), batch)[0]

    return jax.jit(jax.vmap(gradient), compiler_options=COMPILE_FAST)(raw, index)


NETS = {
    "mlp": ModelSpec((6,), 3, depth=2, width=16, activation="tanh", likelihood="gaussian"),
    "layer norm": ModelSpec(
        (6,), 3, depth=3, width=16, activation="gelu", norm="layer", residual="zero_init"
    ),
    "conv": ModelSpec((8, 8, 1), 3, net="conv", depth=2, width=4, activation="tanh"),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", NETS)
def test_the_gradient_is_that_of_float32_but_for_roundings(name):
    spec = Spec(NETS[name], batch_size=16)
    narrow = dataclasses.replace(spec, precision="bfloat16")
    params, stats = parameters(spec.model)
    x = jax.nn.sigmoid(examples(16, *spec.model.example_shape).raw)
    index = jnp.arange(16, dtype=jnp.int32)
    exact, found = (
        jax.tree.map(lambda a: a[0], gradients(s, params, stats, x[None], index[None]))
        for s in (spec, narrow)
    )
    # The gradient of a mean errs by no more than the mean of its examples' errors. In each, a
    # layer's gradient has passed all the layers there and those after it back again; a layer rounds
    # its input, its weights, its sum and its activation, and on the way back as many. All roundings
    # are independent: their squares add up, and a uniform one is UNIT/√3 at most.
    each = gradients(spec, params, stats, x[:, None], index[:, None])
    scale = np.mean(jax.vmap(layers.layer_norms)(each), axis=0)
    roundings = 2 * 4 * (2 * spec.model.depth + 3)
    bound = UNIT * np.sqrt(roundings / 3)
    error = layers.layer_norms(jax.tree.map(jnp.subtract, found, exact)) / scale
    assert np.all(error < bound), (error, bound)
    # bfloat16 has been at work: in float32 it is a ten thousandth of that.
    assert np.median(error) > UNIT / 20
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


# One case for each posterior and objective; flows and codebooks are not networks of ours.
CHOSEN = [
    case
    for i, case in enumerate(CASES)
    if not any(case[0] == other[0] for other in CASES[:i]) or case[1] in ("ladder", "hierarchical")
]


def hlo(spec):
    params, stats = parameters_of(spec)
    numbers = jax.tree.map(lambda a: jnp.asarray(a[0]), stack([HPARAMS]))
    batch = Batch(images(), jnp.arange(8, dtype=jnp.int32))

    def step(params):
        return batch_gradient(spec, Transform(), params, stats, numbers, jnp.int32(4), batch)

    shapes = jax.eval_shape(step, params)
    return jax.jit(step).lower(params).as_text(), shapes


@pytest.mark.sampled
@pytest.mark.parametrize("case", CHOSEN, ids="-".join)
def test_sums_are_float32(case):
    """In the whole step nothing is summed, and no product made, into a bfloat16."""
    text, (grads, (metrics, stats)) = hlo(dataclasses.replace(spec_of(*case), precision="bfloat16"))
    assert "bf16" in text
    for leaf in jax.tree.leaves((grads, metrics, stats)):
        assert leaf.dtype in (jnp.float32, jnp.int32)
    sums = [line for line in text.splitlines() if "stablehlo.reduce" in line]
    assert sums and not any("bf16" in line.split(":")[-1] for line in sums)
    results = [line.split("->")[1] for line in text.splitlines() if "dot_general" in line]
    assert results and not any("bf16" in result for result in results)


def test_products_of_the_networks_are_of_bfloat16():
    spec = Spec(ModelSpec((6,), 2, depth=2, width=8), batch_size=8, precision="bfloat16")
    text, _ = hlo(dataclasses.replace(spec_of("elbo"), precision="bfloat16", model=spec.model))
    products = [line for line in text.splitlines() if "dot_general" in line]
    # Forward 3 + 2 + 3 products of dense layers, and for each the two of its derivatives, but that
    # in the images, which nobody asks for.
    assert len(products) == 3 * (2 * 2 + 3) - 1
    for line in products:
        factors, result = re.search(r": \((.*)\) -> (.*)", line).groups()
        assert factors.count("bf16") == 2 and "xf32" in result, line


def test_float32_is_what_it_was():
    """No bfloat16 anywhere, by default and in what an evaluation computes."""
    text, _ = hlo(spec_of("elbo"))
    assert "bf16" not in text
    spec = Spec(ModelSpec((6,), 2, depth=1, width=8), batch_size=8, precision="bfloat16")
    runs = population(spec, [HParams()])
    test = data.Examples(images(), Transform())
    lowered = evaluate.evaluate.lower(spec.model, "vmap", 1, 8, runs, test, jnp.int32(0))
    assert "bf16" not in lowered.as_text()


def test_the_state_stays_float32():
    spec = Spec(
        ModelSpec((6,), 2, depth=1, width=8, norm="batch", likelihood="gaussian_optimal"),
        optimizer=OptimizerSpec(ema=True),
        batch_size=8,
        precision="bfloat16",
    )
    before = population(spec, [HParams(), HParams(seed=1)])
    dtypes = jax.tree.map(lambda a: a.dtype, before)
    after = train.train_chunk(spec, "vmap", before, examples(29, 6), 3)
    assert jax.tree.map(lambda a: a.dtype, after) == dtypes
    assert jnp.bfloat16 not in jax.tree.leaves(dtypes)
    assert np.all(np.isfinite(after.interval.means["loss"]))


@pytest.mark.thorough
def test_a_short_training_comes_as_far():
    """Digits, four seeds: bfloat16 is to the ELBO what another seed is, and less."""
    digits = data.load("digits", binarization="static")
    exact = Spec(ModelSpec(digits.example_shape, 8, depth=1, width=32), batch_size=64)
    test = data.Examples(*digits.evaluation("test"))

    def elbos(spec, steps=250):
        runs = stack([HParams(seed=seed, learning_rate=3e-3) for seed in range(4)])
        states = train.init(spec, runs, digits.train_mean)
        if steps:
            seen = data.Examples(jnp.asarray(digits.train), digits.transform)
            states = train.train_chunk(spec, "vmap", states, seen, steps)
        found = evaluate.evaluate(spec.model, "vmap", 1, 359, states, test, jnp.int32(0))
        return np.asarray(found["elbo"])

    start, float32 = elbos(exact, 0), elbos(exact)
    bfloat16 = elbos(dataclasses.replace(exact, precision="bfloat16"))
    assert np.all(bfloat16 > start + 8)  # it has learned: 8 nats of 44
    # Each seed has its own data order, noise and start in common with its twin: rounding, of 0.4%
    # a number and independent from step to step, moves a run by less than another seed does. The
    # spread of four seeds is known to a factor of two or so.
    assert np.max(np.abs(bfloat16 - float32)) < 2 * np.std(float32, ddof=1)
    assert np.any(bfloat16 != float32)
