"""Gradients of single examples: against NumPy and `jax.grad` by hand; and what couples examples."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import COMPILE_FAST, hand_made, population
from tests.vae.test_every_objective import HPARAMS, STEP, images, parameters_of, spec_of
from vae.data import Transform
from vae.errors import UserError
from vae.gradients.per_example import per_example, uncoupled
from vae.hparams import HParams
from vae.layers import layer_names, layer_norms
from vae.loss import Batch, batch_loss
from vae.objectives import OBJECTIVES, mmd_loss
from vae.spec import ModelSpec, ObjectiveSpec, Spec

BITS = Transform(binarization="dynamic")
RNG, DATA_RNG = jax.random.key(1), jax.random.key(2)


def batch_of(size=8):
    """Examples from anywhere in the dataset: their keys are by index, not by position."""
    index = jnp.array([7, 0, 3, 26, 11, 4, 2, 9], jnp.int32)
    return Batch(images()[:size], index[:size])


def state_of(spec, **hparams):
    params, stats = parameters_of(spec)
    numbers = dataclasses.asdict(HPARAMS) | {"free_bits": 0.0} | hparams
    states = hand_made(spec, params, stats, **numbers).states
    return jax.tree.map(lambda a: jnp.asarray(a[0]), states).replace(step=jnp.int32(STEP))


def gradient(spec, transform, state, batch):
    """By hand: of the mean loss of a batch."""

    def loss(params):
        args = params, state.stats, state.hparams, state.step, batch
        return batch_loss(spec, transform, *args, rng=RNG, data_rng=DATA_RNG)[0]

    return jax.grad(loss)(state.params)


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=COMPILE_FAST)
def by_hand(spec, transform, state, batch):
    """(the batch gradient, gradients of batches of one with an axis [B])."""
    ones = jax.tree.map(lambda a: a[:, None], batch)
    each = jax.vmap(lambda one: gradient(spec, transform, state, one))(ones)
    return gradient(spec, transform, state, batch), each


@functools.partial(jax.jit, static_argnums=(0, 1), static_argnames="chunk")
def found_of(spec, transform, state, batch, chunk=16):
    return per_example(spec, transform, state, batch, RNG, data_rng=DATA_RNG, chunk=chunk)


class TestNorms:
    @pytest.mark.parametrize("chunk", [1, 3, 16])
    def test_of_a_linear_autoencoder(self, chunk):
        # ½|x − x̂|²/σ², x̂ = Wz + c, z = Vx + b, and all by the chain rule; in chunks that divide
        # the eight examples, do not, or are larger.
        model = ModelSpec((6,), 2, depth=0, posterior="point", likelihood="gaussian")
        spec, batch = Spec(model, ObjectiveSpec("autoencoder")), batch_of()
        state = state_of(spec)
        found = found_of(spec, Transform(), state, batch, chunk=chunk)
        mean, output = (
            {name: np.float64(a) for name, a in layer.items()}
            for layer in (state.params["encoder"]["mean"], state.params["decoder"]["output"])
        )
        x = np.float64(batch.raw)
        z = x @ mean["kernel"] + mean["bias"]
        of_output = (z @ output["kernel"] + output["bias"] - x) / HPARAMS.sigma**2
        of_z = of_output @ output["kernel"].T

        def layer(inputs, of_outputs):  # [B, |kernel| + |bias|]
            kernels = np.einsum("bi,bo->bio", inputs, of_outputs)
            return np.concatenate([kernels.reshape(len(x), -1), of_outputs], axis=1)

        layers = layer(x, of_z), layer(z, of_output)
        norms = np.stack([np.linalg.norm(g, axis=1) for g in layers], axis=1)
        assert layer_names(state.params) == ["encoder/mean", "decoder/output"]
        # float32: a dozen roundings of 6e-8 in each number.
        np.testing.assert_allclose(found.norms, norms, rtol=2e-6)
        np.testing.assert_allclose(found.whole, np.linalg.norm(norms, axis=1), rtol=2e-6)
        means = [np.linalg.norm(g.mean(axis=0)) for g in layers]
        np.testing.assert_allclose(found.mean_norms, means, rtol=2e-6)

    def test_by_hand(self):
        spec, batch = spec_of("vaegan"), batch_of(7)
        state = state_of(spec)
        found = found_of(spec, BITS, state, batch, chunk=3)
        batch_gradient, each = by_hand(spec, BITS, state, batch)
        norms = np.asarray(jax.vmap(layer_norms)(each))
        np.testing.assert_allclose(found.norms, norms, rtol=1e-5)
        # All but the discriminator's, whose layers come last.
        names = layer_names(state.params)
        of_vae = sum(not name.startswith("discriminator") for name in names)
        assert 0 < of_vae < len(names) and found.norms.shape == (7, len(names))
        whole = np.linalg.norm(norms[:, :of_vae], axis=1)
        np.testing.assert_allclose(found.whole, whole, rtol=1e-5)
        np.testing.assert_allclose(found.mean_norms, layer_norms(batch_gradient), rtol=1e-5)


def with_model(spec, **changes):
    return dataclasses.replace(spec, model=dataclasses.replace(spec.model, **changes))


def with_objective(spec, **changes):
    return dataclasses.replace(spec, objective=dataclasses.replace(spec.objective, **changes))


# Name: the spec. Of the bounds one for each way to a gradient: they share all but a formula. A σ²
# of the batch is no part of the loss of `vaegan`.
UNCOUPLED = {
    "elbo": spec_of("elbo"),
    "score": with_objective(spec_of("elbo"), samples=3, estimator="score"),
    "relaxed": spec_of("elbo", "categorical", "standard", "gaussian_shared"),
    "layer": with_model(spec_of("elbo"), norm="layer"),
    "corrupted": with_objective(spec_of("elbo"), corruption="mask"),
    "dreg": with_objective(spec_of("iwae", "full", "mixture", "gaussian_pixel"), estimator="dreg"),
    "piwae": spec_of("piwae", "gaussian", "vamp", "gaussian"),
    "autoencoder": spec_of("autoencoder", "point"),
    "vaegan": spec_of("vaegan", likelihood="gaussian_optimal"),
    "vq": spec_of("vq", "vq", "standard", "gaussian"),
    "log_softmax": spec_of("log_softmax", "squashed", "standard", "gaussian"),
}
# Name: the spec; how the reason starts, if the spec tells it; numbers by which the coupling shows:
# the examples' rates are 0.36 to 0.95 nats, their mean 0.59.
COUPLED = {
    "batch": (with_model(spec_of("elbo"), norm="batch"), "model.norm: batch", {}),
    "capacity": (
        spec_of("capacity"),
        "objective.name: capacity",
        {"capacity": 0.4, "capacity_steps": 1.0},
    ),
    "tcvae": (spec_of("tcvae"), "objective.name: tcvae", {}),
    "factor": (spec_of("factor"), "objective.name: factor", {}),
    "tied": (spec_of("tied", "tied", "standard", "gaussian"), "model.posterior: tied", {}),
    "dip_i": (spec_of("dip_i"), "objective.name: dip_i", {}),
    "dip_ii": (spec_of("dip_ii"), "objective.name: dip_ii", {}),
    "σ²": (
        spec_of("elbo", likelihood="gaussian_optimal"),
        "model.likelihood: gaussian_optimal",
        {},
    ),
    "free bits": (
        with_objective(spec_of("vaegan"), free_bits_groups=1),
        "",
        {"free_bits": 0.45},
    ),
}


def test_every_objective_is_decided():
    specs = [*UNCOUPLED.values(), *(spec for spec, _, _ in COUPLED.values())]
    decided = {OBJECTIVES[spec.objective.name].loss for spec in specs} | {mmd_loss}
    assert decided == {row.loss for row in OBJECTIVES.values()}


@pytest.mark.sampled
@pytest.mark.parametrize("name", UNCOUPLED)
def test_the_mean_is_the_batch_gradient(name):
    spec, batch = UNCOUPLED[name], batch_of()
    assert uncoupled(spec) == ""
    transform = BITS if spec.model.likelihood == "bernoulli" else Transform()
    found, expected = both(spec, transform, state_of(spec, corruption_level=0.3), batch)
    assert np.all(np.isfinite(found.norms)) and np.min(expected) > 0.1
    # Oracle 22: in float32, to the roundings of the sum of eight gradients, 6e-8 of the largest
    # each, and of the products that they are made of.
    error = np.abs(found.mean_norms - expected)
    np.testing.assert_array_less(error, 1e-6 * np.max(found.norms, axis=0))


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=COMPILE_FAST)
def both(spec, transform, state, batch):
    """(`per_example` in one chunk, norms of the batch gradient by hand)."""
    found = per_example(spec, transform, state, batch, RNG, data_rng=DATA_RNG)
    return found, layer_norms(gradient(spec, transform, state, batch))


@pytest.mark.sampled
@pytest.mark.parametrize("name", COUPLED)
def test_the_mean_is_not_the_batch_gradient(name):
    # So that each reason is one: by hand, because the instrument does not give it away.
    spec, reason, hparams = COUPLED[name]
    state, batch = state_of(spec, **hparams), batch_of()
    batch_gradient, each = by_hand(spec, Transform(), state, batch)
    expected = layer_norms(batch_gradient)
    mean = layer_norms(jax.tree.map(lambda a: jnp.mean(a, axis=0), each))
    # A thousand times the rounding errors of the test above.
    assert np.max(np.abs(mean - expected) / expected) > 1e-3
    if reason:
        assert uncoupled(spec).startswith(reason)
        with pytest.raises(UserError, match=reason):
            per_example(spec, Transform(), state, batch, RNG)
    else:
        assert uncoupled(spec) == ""
        assert uncoupled(spec, hparams["free_bits"]).startswith("objective.free_bits: 0.45")
        found = found_of(spec, Transform(), state, batch)
        assert all(np.all(np.isnan(values)) for values in found)


def test_pairs_of_one_example():
    # There are none, for `mmd` and for the stratified estimator of `tcvae`.
    assert uncoupled(spec_of("mmd")).startswith("objective.name: mmd")
    for spec in (spec_of("mmd"), spec_of("tcvae", "gaussian", "mixture")):
        with pytest.raises(ValueError, match="at least 2 examples"):
            by_hand(spec, Transform(), state_of(spec), batch_of())


def test_of_a_discriminator_that_compares_examples():
    # What is coupled in `factor` is the discriminator's gradient alone: the reason says so.
    spec, _, hparams = COUPLED["factor"]
    state, batch = state_of(spec, **hparams), batch_of()
    batch_gradient, each = by_hand(spec, Transform(), state, batch)
    expected = layer_norms(batch_gradient)
    mean = layer_norms(jax.tree.map(lambda a: jnp.mean(a, axis=0), each))
    of_vae = np.array([not n.startswith("discriminator") for n in layer_names(state.params)])
    np.testing.assert_allclose(mean[of_vae], expected[of_vae], rtol=1e-5)
    assert "discriminator" in uncoupled(spec)


@pytest.mark.thorough
def test_in_a_population_as_alone():
    # A run with free bits has no numbers, and the others have theirs.
    spec, batch = spec_of("elbo"), batch_of(5)
    runs = [HParams(seed=1), HParams(seed=2, free_bits=0.1), HParams(seed=3, beta=4.0)]
    states = population(spec, runs).states
    together = jax.jit(
        jax.vmap(lambda state: per_example(spec, BITS, state, batch, RNG, chunk=2)),
        compiler_options=COMPILE_FAST,
    )(states)
    alone = jax.jit(
        lambda state: per_example(spec, BITS, state, batch, RNG, chunk=2),
        compiler_options=COMPILE_FAST,
    )
    for run in range(3):
        expected = alone(jax.tree.map(lambda a, run=run: a[run], states))
        for values, of_run in zip(together, expected, strict=True):
            # Sums of a batched product are of another order: a few roundings.
            np.testing.assert_allclose(values[run], of_run, rtol=1e-5)
            assert np.all(np.isnan(of_run)) == (run == 1)


def test_memory_does_not_grow_with_the_batch():
    spec = Spec(ModelSpec((64,), 4, depth=1, width=2048, likelihood="gaussian"))
    state = jax.tree.map(lambda a: a[0], population(spec, [HParams()]).states)
    size = 4 * sum(a.size for a in jax.tree.leaves(state.params))

    def program(examples):
        batch = Batch(jnp.zeros((examples, 64)), jnp.arange(examples, dtype=jnp.int32))
        compiled = jax.jit(
            lambda state, batch: per_example(spec, Transform(), state, batch, RNG, chunk=2),
            compiler_options=COMPILE_FAST,
        ).lower(state, batch)
        return compiled.compile().memory_analysis().temp_size_in_bytes

    few, many = program(4), program(64)
    # Less than one gradient for sixty examples more.
    assert many - few < size and few < 12 * size
