import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import context
from vae import objectives
from vae.elbo import Terms
from vae.family import Posterior
from vae.hparams import HParams, stack
from vae.spec import ModelSpec, ObjectiveSpec, Spec

SPEC = Spec(ModelSpec((6,), 4))


def make_terms(batch=6, samples=3, latent_dim=4):
    """Arbitrary terms of a batch, leading axis [batch]."""
    rng = np.random.default_rng(0)
    log_px, log_pz, log_qz = jnp.float32(rng.normal(size=(3, batch, samples)) - 2)
    # Mean KLs of about 0.01, 0.1, 1 and 10 nats.
    kl = jnp.float32(rng.gamma(2, size=(batch, latent_dim)) / 2 * 10.0 ** np.arange(-2, 2))
    mean, logvar = jnp.float32(rng.normal(size=(2, batch, latent_dim)))
    z = jnp.float32(rng.normal(size=(batch, samples, latent_dim)))
    return Terms(log_px, log_pz, log_qz, kl, Posterior(mean, logvar), z)


def hparams(**values):
    """Numbers of one run, as arrays."""
    return jax.tree.map(lambda a: jnp.asarray(a[0]), stack([HParams(**values)]))


def batched(function):
    return jax.vmap(function, axis_name="batch")


@pytest.mark.parametrize("floor", [0.0, 0.05, 0.5, 100.0])
def test_free_bits_is_the_larger_of_floor_and_mean(floor):
    kl = make_terms().kl
    floor = jnp.float32(floor)
    each = batched(lambda kl: objectives.free_bits(kl, floor))(kl)
    expected = np.maximum(np.float64(floor), np.mean(np.float64(kl), axis=0)).sum()
    assert float(jnp.mean(each)) == pytest.approx(expected, rel=1e-6)


def test_free_bits_gate_has_no_gradient_of_its_own():
    kl, floor = make_terms().kl, jnp.float32(0.5)

    def mean(kl):
        return jnp.mean(batched(lambda kl: objectives.free_bits(kl, floor))(kl))

    active = np.mean(np.float64(kl), axis=0) > 0.5
    assert active.tolist() == [False, False, True, True]
    # Under the floor no gradient, above it that of the mean, whatever side one example is on.
    expected = np.broadcast_to(active / len(kl), kl.shape)
    np.testing.assert_allclose(jax.grad(mean)(kl), expected, rtol=1e-6)
    assert np.any(kl[:, 2] < floor) and np.any(kl[:, 1] < floor)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_free_bits_of_groups_of_neighbours(groups):
    kl, floor = make_terms().kl, 0.15
    each = batched(lambda kl: objectives.free_bits(kl, jnp.float32(floor), groups))(kl)
    means = np.float64(kl).mean(0).reshape(groups, -1).sum(1)
    expected = np.maximum(floor, means).sum()
    assert float(jnp.mean(each)) == pytest.approx(expected, rel=1e-6)
    # The floor is over some and under others, so that the grouping matters.
    plain = np.maximum(floor, np.float64(kl).mean(0)).sum()
    assert (abs(expected - plain) > 0.05) == (groups < 4)


def test_free_bits_of_one_number_are_of_one_group():
    # A KL without a closed form is not split, whatever the groups.
    kl = make_terms().kl.sum(1, keepdims=True)
    one, none = (
        batched(lambda kl, g=g: objectives.free_bits(kl, jnp.float32(0.5), g))(kl) for g in (2, 0)
    )
    np.testing.assert_array_equal(one, none)


def test_no_free_bits_hold_no_sampled_rate_below_zero():
    # Log-densities of a few samples, near collapse or with a learned prior.
    kl = jnp.float32([[-0.3], [0.1], [-0.1]])

    def mean(kl):
        return jnp.mean(batched(lambda kl: objectives.free_bits(kl, jnp.float32(0)))(kl))

    np.testing.assert_allclose(mean(kl), -0.1, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(mean)(kl), np.full((3, 1), 1 / 3), rtol=1e-6)


def test_no_free_bits_is_the_plain_sum():
    kl = make_terms().kl
    each = batched(lambda kl: objectives.free_bits(kl, jnp.float32(0)))(kl)
    np.testing.assert_array_equal(each, jnp.sum(kl, axis=1))


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_elbo_loss_weighs_the_reported_terms(beta):
    terms = make_terms()
    run = context(SPEC, hparams(), beta=jnp.float32(beta))
    loss, extra = batched(lambda t: objectives.elbo_loss(t, run))(terms)
    assert not extra
    metrics = batched(objectives.metrics)(terms)
    rate, distortion = np.float64(terms.kl).sum(1), -np.float64(terms.log_px).mean(1)
    np.testing.assert_allclose(metrics["rate"], rate, rtol=1e-6)
    np.testing.assert_allclose(metrics["distortion"], distortion, rtol=1e-6)
    np.testing.assert_allclose(metrics["elbo"], -rate - distortion, rtol=1e-6)
    np.testing.assert_allclose(loss, distortion + beta * rate, rtol=1e-6)


def test_what_is_reported_does_not_depend_on_the_objective():
    terms = make_terms()
    run = context(SPEC, hparams(free_bits=5.0))
    loss, _ = batched(lambda t: objectives.elbo_loss(t, run))(terms)
    metrics = batched(objectives.metrics)(terms)
    assert jnp.mean(loss) > -jnp.mean(metrics["elbo"]) + 1


def test_log_weights():
    terms = make_terms()
    expected = np.float64(terms.log_px) + np.float64(terms.log_pz) - np.float64(terms.log_qz)
    np.testing.assert_allclose(batched(objectives.iw_log_weights)(terms), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("model", "objective", "expected"),
    [
        ({}, {}, True),
        ({}, {"kl": "sampled"}, False),
        ({}, {"estimator": "stl"}, False),
        ({"prior": "mixture"}, {}, False),
        ({"posterior": "coupling"}, {}, False),
        ({"posterior": "full"}, {}, True),
        ({"posterior": "categorical"}, {"kl": "analytic"}, True),
    ],
)
def test_the_rate_in_the_loss_is_analytic_where_it_can_be(model, objective, expected):
    spec = Spec(ModelSpec((6,), 4, **model), ObjectiveSpec(**objective))
    assert objectives.analytic(spec) == expected
    terms = jax.tree.map(lambda a: a[0], make_terms())
    rate = objectives.rate_terms(terms, context(spec, hparams()))
    sampled = [np.mean(np.float64(terms.log_qz) - np.float64(terms.log_pz))]
    np.testing.assert_allclose(rate, terms.kl if expected else sampled, rtol=1e-5)
    loss, _ = batched(lambda t: objectives.elbo_loss(t, context(spec, hparams())))(make_terms())
    total = np.sum(np.float64(terms.kl)) if expected else sampled[0]
    assert float(loss[0]) == pytest.approx(total - np.float64(terms.log_px).mean(), rel=1e-5)
