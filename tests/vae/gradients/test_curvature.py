import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from tests.vae.building import examples, hand_made, parameters
from vae import bounds, elbo, loss, objectives, random
from vae.data import Transform
from vae.errors import UserError
from vae.gradients import curvature
from vae.loss import TERMS, Batch, batch_loss
from vae.spec import ModelSpec, ObjectiveSpec, Spec

MODEL = ModelSpec((3,), 2, depth=1, width=3, activation="tanh", likelihood="gaussian")
KEY = jax.random.key(7)
BATCH = Batch(examples(6, 3).raw, jnp.arange(6, dtype=jnp.int32))
SIGMA, BETA = 0.8, 0.5


def spec_of(objective=None, **model_fields):
    return Spec(dataclasses.replace(MODEL, **model_fields), ObjectiveSpec(**(objective or {})), 6)


@functools.cache
def state_of(spec, seed=0):
    params, stats = parameters(spec.model, seed)
    numbers = {"sigma": SIGMA, "beta": BETA, "penalty": 2.0}
    population = hand_made(spec, params, stats, **numbers)
    return jax.tree.map(lambda a: jnp.asarray(a[0]), population.states)


def all_values(spec, state, params):
    """The loss and its terms, each as `batch_loss` reports it."""
    total, (metrics, _) = batch_loss(
        spec, Transform(), params, state.stats, state.hparams, state.step, BATCH, rng=KEY
    )
    names = ("distortion", "rate", *(("penalty",) if "penalty" in metrics else ()))
    return {"loss": total, **{name: metrics[name] for name in names}}


def matrix(spec, state, gates=None, part=""):
    matvec, like = curvature.hessian(spec, Transform(), state, BATCH, KEY, gates=gates, part=part)
    flat, unravel = ravel_pytree(like)
    columns = jax.vmap(lambda v: ravel_pytree(matvec(unravel(v)))[0])(jnp.eye(flat.size))
    return columns.T


@functools.cache
def matrices(spec):
    """(by `jax.hessian`, by the instrument): Hessians of the loss and its terms, float64."""

    @jax.jit
    def both(state):
        flat, unravel = ravel_pytree(state.params)
        explicit = jax.hessian(lambda v: all_values(spec, state, unravel(v)))(flat)
        gates = dict(zip(TERMS, jnp.eye(len(TERMS)), strict=True))
        found = jax.vmap(functools.partial(matrix, spec, state))(gates)
        found = dict(zip(TERMS, found, strict=True))
        return explicit, {"loss": matrix(spec, state), **found}

    return jax.tree.map(np.float64, both(state_of(spec)))


def assert_close(found, expected):
    # Sums of a few hundred float32 products: some 1e-6 of the largest entry.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


SPECS = {
    "elbo": spec_of(norm="batch"),  # whose examples are coupled
    "dip_ii": spec_of({"name": "dip_ii"}),
    # Whose terms are coupled: each is the symmetric part of what arrives through it.
    "iwae": spec_of({"name": "iwae", "samples": 3}),
}


@pytest.mark.sampled
@pytest.mark.parametrize("name", SPECS)
def test_terms_are_symmetric_and_add_up_to_the_hessian(name):
    explicit, found = matrices(SPECS[name])
    assert_close(found["loss"], explicit["loss"])
    assert_close(sum(found[term] for term in TERMS), explicit["loss"])
    for term in TERMS:
        scale = np.abs(explicit["loss"]).max()
        np.testing.assert_allclose(found[term], found[term].T, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "iwae"])
def test_each_term_is_the_hessian_of_its_term(name):
    explicit, found = matrices(SPECS[name])
    assert_close(found["distortion"], explicit["distortion"])
    assert_close(found["rate"], BETA * explicit["rate"])
    if name == "dip_ii":
        assert_close(found["penalty"], explicit["penalty"])
    else:
        assert not np.any(found["penalty"])


@pytest.mark.parametrize(("objective", "estimator"), [("elbo", "stl"), ("iwae", "dreg")])
def test_the_estimator_does_not_matter(objective, estimator):
    """The Hessian of minus the bound itself, written out from the terms of each example."""
    spec = spec_of({"name": objective, "estimator": estimator, "samples": 2})

    def minus_bound(state, params):
        def one(raw, rng):
            drawn = loss.draw(spec, Transform(), state.hparams, raw, rng)
            terms, _ = elbo.terms(
                spec.model, params, state.stats, state.hparams, drawn.x, drawn.noise, True
            )
            log_w = terms.log_px + BETA * (terms.log_pz - terms.log_qz)
            return -bounds.BOUNDS[objective].value(log_w[None], state.hparams)

        rngs = random.example_rngs(KEY, BATCH.index)
        return jnp.mean(jax.vmap(one, axis_name="batch")(BATCH.raw, rngs))

    @jax.jit
    def both(state):
        flat, unravel = ravel_pytree(state.params)
        return jax.hessian(lambda v: minus_bound(state, unravel(v)))(flat), matrix(spec, state)

    exact, found = both(state_of(spec))
    assert_close(found, exact)


def test_sharpness_is_the_end_of_the_spectrum():
    spec = SPECS["elbo"]
    _, exact = matrices(spec)
    program = jax.jit(
        lambda state: {
            **curvature.sharpness_by_term(spec, Transform(), state, BATCH, KEY, num=3),
            "loss": curvature.sharpness(spec, Transform(), state, BATCH, KEY, num=3),
        }
    )
    sharp = program(state_of(spec))
    assert set(sharp) == {*TERMS, "loss"}
    for name, found in sharp.items():
        values = np.linalg.eigvalsh(exact[name])
        # The matrix is symmetric, and its eigenvalues right, to 1e-5; see `assert_close`.
        rounding = 1e-5 * np.abs(exact["loss"]).max()
        # 30 products of 61 dimensions: the first ones are there, the others as near as they say.
        np.testing.assert_allclose(found.largest[0], values[-1], rtol=0, atol=rounding)
        np.testing.assert_allclose(found.smallest[0], values[0], rtol=0, atol=rounding)
        for side in ("largest", "smallest"):
            gaps = np.abs(values[None] - np.asarray(getattr(found, side))[:, None]).min(axis=1)
            assert np.all(gaps <= getattr(found, f"{side}_error") + rounding)
    assert sharp["loss"].smallest[0] < 0 < sharp["loss"].largest[0]


def test_a_part_is_its_block():
    spec = SPECS["elbo"]
    state = state_of(spec)
    whole = matrices(spec)[1]["loss"]
    # Flattened in the order of the parts' names.
    size = ravel_pytree(state.params["decoder"])[0].size
    blocks = {"decoder": whole[:size, :size], "encoder": whole[size:, size:]}
    for part, block in blocks.items():
        found = jax.jit(functools.partial(matrix, spec, part=part))(state)
        assert_close(found, block)


def test_of_a_linear_decoder_it_is_the_second_moment_of_z():
    # Distortion ½‖x − zW − b‖²/σ²: in (W, b) the Hessian is E[(z, 1)(z, 1)ᵀ]/σ² for each pixel.
    spec = spec_of(depth=0)
    state = state_of(spec)
    params = jax.tree.map(np.float64, state.params["encoder"])
    noise = np.stack(
        [
            loss.draw(spec, Transform(), state.hparams, raw, rng).noise[0]
            for raw, rng in zip(BATCH.raw, random.example_rngs(KEY, BATCH.index), strict=True)
        ]
    )
    x = np.float64(BATCH.raw)
    mean, logvar = (x @ params[head]["kernel"] + params[head]["bias"] for head in ("mean", "scale"))
    z = np.concatenate([mean + np.exp(0.5 * logvar) * noise, np.ones((6, 1))], axis=1)
    exact = np.linalg.eigvalsh(z.T @ z / 6 / SIGMA**2)
    found = jax.jit(
        lambda state: curvature.sharpness(
            spec, Transform(), state, BATCH, KEY, part="decoder", num=9, iterations=9
        )
    )(state)
    np.testing.assert_allclose(found.smallest, np.repeat(exact, 3), rtol=1e-4)


def test_a_run_in_a_population_is_the_run_alone():
    spec = SPECS["elbo"]
    alone = [state_of(spec, seed) for seed in range(3)]

    def one(state):
        return curvature.sharpness(spec, Transform(), state, BATCH, KEY, iterations=40)

    together = jax.jit(jax.vmap(one))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *alone))
    program = jax.jit(one)
    for i, state in enumerate(alone):
        found = program(state)
        for name in ("largest", "smallest"):
            np.testing.assert_allclose(
                getattr(together, name)[i], getattr(found, name), atol=1e-4 * found.largest[0]
            )


def test_what_has_no_hessian():
    game = [name for name, row in objectives.OBJECTIVES.items() if row.adversary]
    assert game
    for name in game:
        with pytest.raises(UserError, match=f"objective.name: {name}"):
            curvature.sharpness(
                spec_of({"name": name}), Transform(), state_of(SPECS["elbo"]), BATCH, KEY
            )
    with pytest.raises(ValueError, match="neither encoder nor decoder"):
        curvature.sharpness(
            spec_of(), Transform(), state_of(SPECS["elbo"]), BATCH, KEY, part="prior"
        )
