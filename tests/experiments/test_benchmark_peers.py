"""That the peers of `experiments.benchmark` train the same model: losses and gradients agree."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import default
from experiments.benchmark import __main__ as main
from experiments.benchmark import flax_loop, peers, products, pytorch
from experiments.benchmark.library import population_plan
from experiments.benchmark.measure import Settings, table
from vae import data, elbo

BATCH = 16
MODELS = {
    "mlp": {"model.depth": "2", "model.width": "[24,16]", "model.latent_dim": "5"},
    "conv": {"model.net": "conv", "model.width": "[6,10]", "model.latent_dim": "3"},
}


def installed(package):
    if reason := pytorch.absent(package):
        pytest.skip(reason)


@functools.cache
def case(name):
    """(spec, a run's parameters, grey examples [B, H, W, C], noise [B, d], loss, its gradient).

    Of the library's own terms, at moved parameters: biases that are not zero.
    """
    plan = population_plan(default, MODELS[name] | peers.PLAIN)
    spec, hparams = plan.spec.model, jax.tree.map(lambda a: jnp.asarray(a[0]), plan.start()[0])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(a + 0.1 * rng.normal(size=a.shape), jnp.float32),
        peers.first_params(plan),
    )
    noise = jnp.asarray(rng.normal(size=(BATCH, spec.latent_dim)), jnp.float32)
    raw = plan.dataset.train[:BATCH]
    x = jax.vmap(lambda row: data.prepare(plan.dataset.transform, row, None))(raw)
    np.testing.assert_array_equal(x, peers.grey(plan)[:BATCH])  # the peers' examples are ours

    def loss(params):
        def one(x, noise):
            terms, _ = elbo.terms(spec, params, {}, hparams, x, noise[None], True)
            return -terms.log_px[0] + jnp.sum(terms.kl)

        return jnp.mean(jax.vmap(one, axis_name="batch")(x, noise))

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    return spec, params, np.asarray(x), noise, float(value), gradient


# float32 sums of a few thousand terms in another order: each loses at most some 10 ulps of the
# sum of their sizes, 1e-6 of it; gradients are differences, and measured by their own largest.
CLOSE = {"rtol": 2e-6}


def assert_same_gradient(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.sampled
@pytest.mark.parametrize("name", MODELS)
def test_flax_loop_minimises_the_same(name):
    spec, params, x, noise, expected, gradient = case(name)
    value, found = jax.value_and_grad(functools.partial(flax_loop.loss, spec))(
        flax_loop.renamed(params), x, noise
    )
    np.testing.assert_allclose(value, expected, **CLOSE)
    renamed = flax_loop.renamed(gradient)
    assert jax.tree.structure(found) == jax.tree.structure(renamed)
    assert_same_gradient(jax.tree.leaves(found), jax.tree.leaves(renamed))


@pytest.mark.parametrize("name", MODELS)
def test_pytorch_minimises_the_same(name):
    installed("torch")
    import torch

    spec, params, x, noise, expected, gradient = case(name)
    nets = pytorch.nets(spec, params)
    loss = pytorch.loss(nets, pytorch.images(spec, x), torch.tensor(np.asarray(noise)))
    np.testing.assert_allclose(loss.item(), expected, **CLOSE)
    loss.backward()
    # Its gradient, where ours is put as the parameters are.
    ours = pytorch.nets(spec, gradient).parameters()
    found = [p.grad.numpy() for p in nets.parameters()]
    assert_same_gradient(found, [p.detach().numpy() for p in ours])


@pytest.mark.parametrize("name", MODELS)
def test_pythae_minimises_the_same(name, monkeypatch):
    installed("pythae")
    import torch

    spec, params, x, noise, expected, _ = case(name)
    built = pytorch.pythae_model(spec, params)
    noise = torch.tensor(np.asarray(noise))
    monkeypatch.setattr(built, "_sample_gauss", lambda mean, std: (mean + noise * std, noise))
    loss = built({"data": pytorch.images(spec, x)}).loss
    # It takes logarithms of rounded probabilities.
    np.testing.assert_allclose(loss.item(), expected, rtol=1e-5)


def test_the_products_alone_are_the_same_by_pytorch():
    installed("torch")
    import torch

    weights = products.weights(12, (7, 6), 3)
    x = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    found = products.once(
        jax.tree.map(lambda w: torch.tensor(np.asarray(w)), weights), torch.tensor(x)
    )
    expected = products.once(weights, x)
    # Sums of up to 12 terms of float32, of values from 1e-10 on.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * np.abs(b).max()),
        jax.tree.map(np.asarray, found),
        jax.tree.map(np.asarray, expected),
    )


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    there = {"torch"}
    monkeypatch.setattr(pytorch.importlib.util, "find_spec", lambda name: name in there or None)
    assert pytorch.absent("pythae").startswith("pythae is not installed")
    there.clear()
    assert pytorch.absent("pythae").startswith("torch is not installed")


@pytest.mark.thorough
def test_peers_run_and_those_absent_have_their_rows():
    with jax.numpy_dtype_promotion("standard"):  # as users have it, and as optax's Adam needs it
        rows = list(main.BENCHMARKS["peers"](Settings(quick=True)))
    by_name = {row.what: row for row in rows}
    for peer, (package, _) in peers.OPTIONAL.items():
        row = by_name[f"784-500-20: {peer} / here"]
        assert row.target == peers.TARGETS[peer]
        if pytorch.absent(package):
            assert row.value is None and row.met is None
            assert "not installed" in by_name[f"784-500-20: {peer}"].note
        else:
            assert row.value > 0
    assert all(row.value > 0 for row in rows if row.value is not None)
    assert by_name["784-500-20: here / matrix products"].value > 0
    assert "absent" in table(rows) or all(row.value for row in rows)
