"""Layers computed anew on the way back: the same numbers in less memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import programs
from tests.vae.building import COMPILE_FAST, examples, population
from vae import train
from vae.hparams import HParams
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

DEEP = Spec(
    ModelSpec((64,), 4, depth=6, width=64, activation="gelu", norm="layer", residual="plain"),
    batch_size=512,
)
SPECS = {
    "mlp": Spec(ModelSpec((6,), 2, depth=3, width=8, activation="tanh", norm="layer")),
    "batch norm": Spec(ModelSpec((6,), 2, depth=2, width=8, norm="batch", residual="scaled")),
    "conv": Spec(ModelSpec((4, 4, 1), 2, net="conv", depth=2, width=3, norm="batch")),
    "ladder": Spec(
        ModelSpec(
            (6,), 4, depth=1, width=8, posterior="ladder", prior="hierarchical", stochastic=(2, 2)
        )
    ),
    "samples": Spec(
        ModelSpec((6,), 2, depth=2, width=8),
        ObjectiveSpec("iwae", estimator="dreg", samples=3),
    ),
    "discriminator": Spec(
        ModelSpec((6,), 2, depth=1, width=8), ObjectiveSpec("vaegan", num_examples=29)
    ),
}


def compiled(spec, runs, data):
    lowered = train.train_chunk.lower(spec, "vmap", population(spec, runs), data, jnp.int32(1))
    return lowered.compile(COMPILE_FAST | programs.options_of(spec))


@pytest.mark.sampled
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="levels of compilation are the CPU's")
@pytest.mark.parametrize("name", SPECS)
def test_the_numbers_are_the_same(name):
    plain = dataclasses.replace(SPECS[name], optimizer=OptimizerSpec("sgd"), batch_size=8)
    runs = [HParams(seed=seed, learning_rate=1e-3) for seed in (0, 1)]
    data = examples(29, *plain.model.example_shape, scale=0.3)
    if len(plain.model.example_shape) == 1:
        data = data.replace(raw=jax.nn.sigmoid(data.raw))
    ends = []
    for spec in (plain, dataclasses.replace(plain, remat="layers")):
        program = compiled(spec, runs, data)
        ends.append(program(population(spec, runs), data, jnp.int32(5)))
    # The same operations; fused in another order, they may be rounded in another order. A bias
    # before a normalisation has gradient zero: what is there is the rounding of a sum of 8 × 16
    # terms of order one, 128 × 6e-8.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=8e-6),
        (ends[0].states, ends[0].interval),
        (ends[1].states, ends[1].interval),
    )


@pytest.mark.thorough
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="levels of compilation are the CPU's")
def test_a_deep_net_takes_less_memory():
    data = examples(600, 64)
    temporary = [
        compiled(dataclasses.replace(DEEP, remat=remat), [HParams()], data)
        .memory_analysis()
        .temp_size_in_bytes
        for remat in ("none", "layers")
    ]
    # Of each of the 12 layers one array of a batch is kept, and not the four at least that
    # normalisation, activation and residual sum make.
    layer = 512 * 64 * 4
    assert temporary[1] < temporary[0] - 2 * 12 * layer
    assert temporary[1] < temporary[0] / 2
