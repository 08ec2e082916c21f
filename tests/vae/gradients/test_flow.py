"""Gradients split by term: they sum to the gradient of the loss, and each is its term's own."""

import dataclasses
import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae import building
from tests.vae.test_every_objective import BATCH, CASES, HPARAMS, SHAPE, spec_of
from vae import loss, train
from vae.data import Transform
from vae.errors import UserError
from vae.gradients import flow
from vae.layers import layer_names, layer_norms
from vae.loss import TERMS, Batch
from vae.posteriors import POINTS
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

TRANSFORM = Transform()


def start(spec, **hparams):
    """One run's first state, leaves without the axis of runs."""
    one = HPARAMS.replace(**hparams)
    return jax.tree.map(lambda a: a[0], building.population(spec, [one]).states)


def batch_of(shape=SHAPE, size=BATCH, seed=0):
    rng = np.random.default_rng(seed)
    values = jnp.asarray(rng.integers(0, 256, (size, *shape)) / 255, jnp.float32)
    return Batch(values, jnp.arange(size, dtype=jnp.int32))


def loss_of(spec, state, batch, pick=lambda value, metrics: value):
    def function(params):
        value, (metrics, _) = loss.batch_loss(
            spec, TRANSFORM, params, state.stats, state.hparams, state.step, batch
        )
        return pick(value, metrics)

    return function


def close(a, b, rtol=2e-5):
    """Leaf by leaf, to the rounding of sums of float32 in another order, of the largest value."""
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        scale = max(float(jnp.max(jnp.abs(other))), 1e-3)
        np.testing.assert_allclose(one, other, rtol=rtol, atol=rtol * scale)


@pytest.mark.sampled
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_terms_sum_to_the_gradient_of_every_objective(case):
    spec = spec_of(*case)
    state, batch = start(spec), batch_of()
    split = jax.jit(flow.term_gradients, static_argnums=(0, 1))(spec, TRANSFORM, state, batch)
    total = jax.tree.map(lambda *g: sum(g), *split.values())
    close(total, jax.jit(jax.grad(loss_of(spec, state, batch)))(state.params))
    norms = {term: float(jnp.linalg.norm(layer_norms(g))) for term, g in split.items()}
    assert norms["distortion"] > 0 or case[0] == "vaegan"
    penalised = ("tcvae", "factor", "dip_i", "dip_ii", "mmd", "vaegan", "vq", "log_softmax", "tied")
    assert (norms["penalty"] > 0) == (case[0] in penalised)
    assert (norms["rate"] > 0) == (case[1] not in (*POINTS, "vq"))


@pytest.mark.sampled
@pytest.mark.parametrize("estimator", ["stl", "dreg"])
def test_terms_sum_under_other_estimators(estimator):
    spec = spec_of("iwae")
    spec = dataclasses.replace(spec, objective=ObjectiveSpec("iwae", estimator, samples=3))
    state, batch = start(spec), batch_of()
    split = flow.term_gradients(spec, TRANSFORM, state, batch)
    total = jax.tree.map(lambda *g: sum(g), *split.values())
    close(total, jax.grad(loss_of(spec, state, batch))(state.params))


def test_each_term_of_the_elbo_is_the_gradient_of_that_term():
    spec = spec_of("elbo")
    state, batch = start(spec, free_bits=0.0), batch_of()
    split = flow.term_gradients(spec, TRANSFORM, state, batch)
    of = {
        "distortion": lambda value, metrics: metrics["distortion"],
        "rate": lambda value, metrics: metrics["beta"] * metrics["rate"],
        "penalty": lambda value, metrics: 0 * value,
    }
    for term in TERMS:
        close(split[term], jax.grad(loss_of(spec, state, batch, of[term]))(state.params))
    # The KL is of the encoder alone.
    assert not np.any(layer_norms({"decoder": split["rate"]["decoder"]}))


def test_the_penalty_of_the_tcvae_is_what_its_weight_multiplies():
    """d loss / d λ is the total correlation: the penalty's gradient is (λ − 1) times its own."""
    spec = spec_of("tcvae")
    batch = batch_of()
    at_3, at_5 = (
        flow.term_gradients(spec, TRANSFORM, start(spec, penalty=p), batch)["penalty"]
        for p in (3.0, 5.0)
    )
    close(jax.tree.map(lambda g: 2 * g, at_3), at_5)
    assert float(jnp.linalg.norm(layer_norms(at_3))) > 1e-3


def test_norms_and_cosines_by_hand():
    spec = spec_of("elbo")
    state, batch = start(spec), batch_of()
    seen = flow.flow(spec, TRANSFORM, state, batch)
    split = flow.term_gradients(spec, TRANSFORM, state, batch)
    names = layer_names(state.params)
    for i, name in enumerate(names):
        part, layer = name.split("/")
        flat = {
            term: np.concatenate([np.ravel(a) for a in jax.tree.leaves(g[part][layer])]).astype(
                np.float64
            )
            for term, g in split.items()
        }
        whole = sum(flat.values())
        assert float(seen.gradient[i]) == pytest.approx(np.linalg.norm(whole), rel=1e-5)
        for term, g in flat.items():
            assert float(seen.terms[term][i]) == pytest.approx(np.linalg.norm(g), rel=1e-5)
        d, r = flat["distortion"], flat["rate"]
        if part == "encoder":
            cosine = d @ r / np.linalg.norm(d) / np.linalg.norm(r)
            assert float(seen.cosines["distortion_rate"][i]) == pytest.approx(cosine, abs=1e-5)
        else:  # no rate, no angle
            assert float(seen.cosines["distortion_rate"][i]) == 0


@pytest.mark.thorough
def test_probes_inside_a_population_are_those_of_the_solo_run():
    spec = spec_of("elbo")
    runs = [HPARAMS.replace(seed=s, beta=b) for s, b in ((0, 0.5), (1, 2.0))]
    states = building.population(spec, runs).states
    batch = batch_of()
    together = jax.vmap(lambda s: flow.flow(spec, TRANSFORM, s, batch))(states)
    for i in range(2):
        run = functools.partial(jax.tree.map, operator.itemgetter(i))
        close(run(together), flow.flow(spec, TRANSFORM, run(states), batch))


def test_the_score_function_has_no_terms():
    spec = Spec(ModelSpec(SHAPE, 2, depth=1, width=4), ObjectiveSpec(estimator="score", samples=2))
    with pytest.raises(UserError, match=r"objective.estimator: score .* no gradients of terms"):
        flow.term_gradients(spec, TRANSFORM, start(spec), batch_of())


@pytest.mark.thorough
def test_the_change_is_that_of_the_next_step():
    spec = Spec(
        ModelSpec(SHAPE, 2, depth=1, width=4), optimizer=OptimizerSpec("sgd"), batch_size=BATCH
    )
    state, batch = start(spec, learning_rate=0.1, momentum=0.0), batch_of()
    seen = flow.change(spec, TRANSFORM, state, batch)
    # Plain descent: the update is −rate × gradient.
    gradient = flow.flow(spec, TRANSFORM, state, batch).gradient
    np.testing.assert_allclose(seen.update, 0.1 * gradient, rtol=1e-4)
    np.testing.assert_allclose(seen.parameter, layer_norms(state.params), rtol=1e-6)
    np.testing.assert_allclose(seen.ratio, seen.update / seen.parameter, rtol=1e-6)
    new, _ = train.train_step(spec, TRANSFORM, state, batch)
    assert int(new.step) == int(state.step) + 1


@pytest.mark.thorough
def test_looking_does_not_change_the_loss():
    """With gates the loss is the same to the bit, and with all of them open its gradient too."""
    spec = spec_of("iwae", "full", "mixture", "gaussian_pixel")
    state, batch = start(spec), batch_of()

    @jax.jit
    def value(gates):
        lens = loss.Lens(gates=None if gates is None else dict.fromkeys(TERMS, gates))
        return loss.batch_loss(
            spec, TRANSFORM, state.params, state.stats, state.hparams, state.step, batch, lens=lens
        )[0]

    assert float(value(None)) == float(value(jnp.ones(()))) == float(value(jnp.zeros(())))
