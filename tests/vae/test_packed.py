"""Runs of several latent dimensions and depths as one program: each is the run alone."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import examples, population
from vae import evaluate, gallery, packed, prng, random, train, validity
from vae.data import Examples, Transform
from vae.errors import UserError
from vae.gradients import instruments
from vae.hparams import HParams, stack
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

DATA = examples(29, 6)
SIZES = list(itertools.product((2, 4, 8), (1, 2, 3)))
STEPS = 8

FULL = ModelSpec(
    (6,), 8, depth=3, width=8, activation="tanh", likelihood="gaussian", packed=(2, 4, 8)
)
SPECS = {
    "adam": Spec(FULL, optimizer=OptimizerSpec("adam", ema=True), batch_size=8),
    "bound": Spec(
        # Of another width than there are latents: else the first layer would be residual too.
        dataclasses.replace(FULL, width=7, norm="layer", residual="zero_init", init="he"),
        ObjectiveSpec("iwae", estimator="dreg", samples=3),
        OptimizerSpec("adamw"),
        batch_size=8,
    ),
    "floored": Spec(
        dataclasses.replace(
            FULL,
            width=7,
            posterior_scale="floored",
            residual="plain",
            init="orthogonal",
            norm="layer",
        ),
        ObjectiveSpec(kl="sampled", samples=2),
        OptimizerSpec("sgd"),
        batch_size=8,
    ),
    "mixed": Spec(
        FULL, optimizer=OptimizerSpec("rmsprop"), batch_size=8, accumulate=2, remat="layers"
    ),
}
RUN = HParams(
    learning_rate=3e-3,
    eps=1e-3,
    weight_decay=0.01,
    clip_norm=20.0,
    ema_decay=0.8,
    init_gain=1.2,
    momentum=0.5,
)


def numbers(i, latents, layers):
    return RUN.replace(seed=i % 4, beta=0.5 + 0.1 * i, latents=latents, layers=layers)


def own_spec(spec, latents, layers):
    return dataclasses.replace(spec, model=packed.own(spec.model, latents, layers))


def together(spec):
    return population(spec, [numbers(i, *sizes) for i, sizes in enumerate(SIZES)])


def alone(spec, i):
    return population(own_spec(spec, *SIZES[i]), [numbers(i, *SIZES[i])])


def of_run(tree, i):
    return jax.tree.map(lambda a: a[i], tree)


def assert_close(a, b):
    """As in test_population: a few roundings of 6e-8 in each step, through wider sums."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), a, b)


@pytest.mark.sampled
@pytest.mark.parametrize("name", SPECS)
def test_a_run_starts_as_it_does_alone_to_the_bit(name):
    spec = SPECS[name]
    states = together(spec).states
    for i, (latents, layers) in enumerate(SIZES):
        mine, expected = of_run(states.params, i), of_run(alone(spec, i).states.params, 0)
        like = packed.shapes(own_spec(spec, latents, layers).model)
        jax.tree.map(np.testing.assert_array_equal, packed.cropped(mine, like), expected)
        # And the rest is 0: as many numbers differ from it as the run has.
        total = sum(int(np.count_nonzero(a)) for a in jax.tree.leaves(mine))
        assert total == sum(int(np.count_nonzero(a)) for a in jax.tree.leaves(expected))


@pytest.mark.sampled
@pytest.mark.parametrize("name", SPECS)
def test_a_run_trains_as_it_does_alone(name):
    spec = SPECS[name]
    result = train.train_chunk(spec, "vmap", together(spec), DATA, STEPS)
    assert not np.any(result.states.diverged)
    losses = set()
    for i, (latents, layers) in enumerate(SIZES):
        own = own_spec(spec, latents, layers)
        solo = train.train_chunk(own, "vmap", alone(spec, i), DATA, STEPS)
        like = packed.shapes(own.model)
        mine = of_run(result.states, i)
        for which in ("params", "ema"):
            if getattr(mine, which) is not None:
                tree, expected = getattr(mine, which), of_run(getattr(solo.states, which), 0)
                assert_close(packed.cropped(tree, like), expected)
                # What is not the run's own has never moved.
                count = [
                    sum(int(np.count_nonzero(a)) for a in jax.tree.leaves(t))
                    for t in (tree, expected)
                ]
                assert count[0] == count[1]
        assert_close(of_run(result.interval.means, i), of_run(solo.interval.means, 0))
        losses.add(float(result.interval.means["loss"][i]))
        norms = np.asarray(result.interval.grad_norms[i])
        assert_close(norms[norms > 0], np.asarray(solo.interval.grad_norms[0]))
    assert len(losses) == len(SIZES)


def test_one_trace_for_all_sizes():
    spec = SPECS["adam"]
    result = train.train_chunk(spec, "vmap", together(spec), DATA, 2)
    others = population(spec, [numbers(i + 1, *sizes) for i, sizes in enumerate(SIZES[::-1])])
    with jax.no_tracing():
        train.train_chunk(spec, "vmap", others, DATA, 3)
    assert result.step == 2


def test_in_turn_is_together():
    spec = SPECS["bound"]
    ends = [train.train_chunk(spec, pack, together(spec), DATA, 4) for pack in ("vmap", "map")]
    assert_close(ends[0].states.params, ends[1].states.params)


@pytest.mark.sampled
@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_evaluations_and_pictures_are_those_of_the_run_alone(likelihood):
    model = dataclasses.replace(FULL, likelihood=likelihood, packed=(1, 2, 4, 8))
    spec = dataclasses.replace(SPECS["adam"], model=model)
    sizes = [(1, 2), *SIZES]
    runs = [numbers(i, *size) for i, size in enumerate(sizes)]
    both = population(spec, runs)
    test = Examples(jax.nn.sigmoid(DATA.raw), Transform())
    index = jnp.arange(29, dtype=jnp.int32)

    def seen(model, states):
        found = evaluate.evaluate(model, "vmap", 3, 10, states, test, jnp.int32(0))
        bounds = evaluate.iw_bounds(model, "vmap", 70, 10, states, test, jnp.int32(0), index)
        return found, bounds, gallery.gallery(model, "vmap", states, test, found["kl_per_dim"])

    found, bounds, pictures = seen(spec.model, both)
    for i, (latents, layers) in enumerate(sizes):
        own = packed.own(spec.model, latents, layers)
        solo = population(dataclasses.replace(spec, model=own), [runs[i]])
        expected, iw, shown = seen(own, solo)
        mine = of_run(found, i)
        assert not np.any(mine["kl_per_dim"][latents:])
        mine["kl_per_dim"] = mine["kl_per_dim"][:latents]
        assert_close(mine, of_run(expected, 0))
        assert_close(bounds[i], iw[0])
        own_pictures = of_run(pictures, i)
        for name in ("traversals", "traversal_dims"):
            own_pictures[name] = own_pictures[name][: shown[name].shape[1]]
        assert_close(own_pictures, of_run(shown, 0))


@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8), (5, 7)])
def test_columns_are_the_draw_of_a_narrower_array(shape):
    rng = random.stream(jnp.uint32(7), 3)
    draw = jax.jit(lambda d: jax.random.normal(prng.columns(rng, d), shape))
    for number in range(1, shape[-1] + 1):
        narrow = jax.random.normal(rng, (*shape[:-1], number))
        np.testing.assert_array_equal(draw(jnp.float32(number))[..., :number], narrow)
    with pytest.raises(NotImplementedError):
        jax.random.split(prng.columns(rng, jnp.float32(2)))


def test_a_spec_without_packing_ignores_its_numbers():
    spec = dataclasses.replace(SPECS["adam"], model=dataclasses.replace(FULL, packed=()))
    ends = [
        train.train_chunk(spec, "vmap", population(spec, [run]), DATA, 2).states.params
        for run in (RUN, RUN.replace(latents=2.0, layers=1.0))
    ]
    jax.tree.map(np.testing.assert_array_equal, *ends)
    assert stack([RUN]).latents.tolist() == [0.0]


@pytest.mark.parametrize(
    "field, value",
    [
        ("net", "conv"),
        ("posterior", "full"),
        ("prior", "mixture"),
        ("norm", "batch"),
        ("residual", "scaled"),
        ("latent_skip", "concat"),
    ],
)
def test_what_there_are_no_masks_for_is_refused(field, value):
    spec = SPECS["adam"]
    validity.check(spec)
    other = dataclasses.replace(spec.model, **{field: value})
    with pytest.raises(
        UserError, match=rf"^model\.{field}: {value}, for which .*Set model\.{field}"
    ):
        validity.check(dataclasses.replace(spec, model=other))
    validity.check(
        dataclasses.replace(spec, model=dataclasses.replace(other, packed=()), batch_size=8)
    )


def test_penalties_on_latents_and_instruments_are_refused():
    spec = dataclasses.replace(SPECS["adam"], objective=ObjectiveSpec("dip_ii"))
    with pytest.raises(UserError, match=r"^objective\.name: dip_ii reads latents"):
        validity.check(spec)
    with pytest.raises(UserError, match=r"^probe\.instruments: "):
        instruments.check(SPECS["adam"], ("terms",))
