import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import examples, hand_made, parameters
from vae import gallery, model
from vae.hparams import HParams
from vae.likelihoods import LIKELIHOODS
from vae.spec import ModelSpec, Spec


def make(spec, num_examples=20, rate=None):
    """Pictures where the rate is `rate` [n]; by default, the last dimension leads."""
    params, stats = parameters(spec)
    pop = hand_made(Spec(spec), params, stats, seed=3)
    kl = jnp.asarray(range(spec.latent_dim) if rate is None else rate, jnp.float32)[None]
    data = examples(num_examples, *spec.example_shape)
    pictures = gallery.gallery(spec, "vmap", pop, data, kl)
    return jax.tree.map(lambda a: np.asarray(a[0]), pictures), params, stats, data


@pytest.mark.parametrize(
    ("spec", "num_examples"),
    [
        (ModelSpec((6,), 1, depth=1, width=4), 3),  # fewer than are shown
        (ModelSpec((6,), 10, depth=1, width=4, likelihood="gaussian_pixel", norm="batch"), 20),
        (ModelSpec((4, 6, 1), 2, "conv", 1, 3, likelihood="gaussian_optimal"), 20),
    ],
)
def test_shapes(spec, num_examples):
    pictures, *_ = make(spec, num_examples)
    x, d = spec.example_shape, spec.latent_dim
    shown, traversed = min(8, num_examples), min(8, d)
    assert {name: a.shape for name, a in pictures.items()} == {
        "originals": (shown, *x),
        "reconstructions": (shown, *x),
        "samples": (32, *x),
        "traversals": (traversed, 7, *x),
        "traversal_dims": (traversed,),
        "latents": (num_examples, 2),
        "latent_dims": (2,),
    }
    assert all(np.all(np.isfinite(a)) for a in pictures.values())
    order = list(range(d))[::-1]
    assert pictures["traversal_dims"].tolist() == order[:8]
    assert pictures["latent_dims"].tolist() == (order[:2] if d > 1 else [0, 0])


@pytest.mark.sampled
@pytest.mark.parametrize("posterior", ["categorical", "vq"])
def test_discrete_latents_are_traversed_by_their_codes(posterior):
    # Each variable takes seven codes spread over all that there are; the others stay as they are in
    # the first example.
    spec = ModelSpec((6,), 3, depth=1, width=4, posterior=posterior, codes=13, code_dim=2)
    pictures, params, stats, data = make(spec)
    assert pictures["traversals"].shape == (3, 7, 6)
    assert pictures["traversal_dims"].tolist() == [2, 1, 0]

    def encoded(x):
        return model.encode(spec, params, stats, HParams(), x, False)[0].mean

    means = np.asarray(jax.vmap(encoded)(data.raw)).reshape(20, 3, -1)
    book = np.asarray(stats["posterior"]["codebook"]) if posterior == "vq" else np.eye(13)
    z = np.repeat(means[:1], 7, axis=0)
    z[:, 1] = book[[0, 2, 4, 6, 8, 10, 12]]
    decoded, _ = model.decode(
        spec, params, stats, HParams(), jnp.float32(z).reshape(7, -1), train=False
    )
    expected = decoded.each(LIKELIHOODS[spec.likelihood].mean)
    np.testing.assert_allclose(pictures["traversals"][1], expected, rtol=1e-5)
    assert pictures["traversal_codes"].tolist() == [0, 2, 4, 6, 8, 10, 12]
    # How many examples have each code, or have it as the most probable one.
    codes = np.square(means[:, :, None] - book[None, None]).sum(-1).argmin(-1)
    if posterior == "categorical":
        codes = means.argmax(-1)
    expected = [np.bincount(codes[:, j], minlength=13) for j in range(3)]
    np.testing.assert_array_equal(pictures["code_counts"], expected)
    assert "latents" not in pictures
    assert len(np.unique(pictures["samples"][:, 0])) > 16


def test_no_code_is_traversed_twice():
    spec = ModelSpec((6,), 2, depth=1, width=4, posterior="categorical", codes=4)
    pictures, *_ = make(spec)
    assert pictures["traversals"].shape == (2, 4, 6)
    assert pictures["traversal_codes"].tolist() == [0, 1, 2, 3]


def test_a_flow_is_shown_where_its_mean_flows_and_by_how_much_it_varies():
    spec = ModelSpec((6,), 3, depth=1, width=4, posterior="coupling", prior="mixture", flow_width=4)
    params, stats = parameters(spec)
    pop, data = hand_made(Spec(spec), params, stats, seed=3), examples(20, 6)
    pictures = gallery.gallery(spec, "vmap", pop, data, jnp.ones((1, 1)))  # a rate of one number
    locations = jax.vmap(
        lambda x: model.location(
            spec, params, model.encode(spec, params, stats, HParams(), x, False)[0]
        )
    )(data.raw)
    order = np.argsort(-np.var(np.float64(locations), axis=0))
    assert pictures["traversal_dims"][0].tolist() == order.tolist()
    np.testing.assert_allclose(pictures["latents"][0], locations[:, order[:2]], rtol=1e-5)
    decoded, _ = model.decode(spec, params, stats, HParams(), locations[:8], train=False)
    expected = decoded.each(LIKELIHOODS[spec.likelihood].mean)
    np.testing.assert_allclose(pictures["reconstructions"][0], expected, rtol=1e-5)


def test_what_is_in_the_pictures():
    spec = ModelSpec((6,), 3, depth=1, width=4, activation="tanh")
    pictures, params, stats, data = make(spec)

    def decode(z):
        decoded, _ = model.decode(spec, params, stats, HParams(), z, train=False)
        return decoded.each(LIKELIHOODS[spec.likelihood].mean)

    means = jax.vmap(lambda x: model.encode(spec, params, stats, HParams(), x, False)[0].mean)(
        data.raw
    )
    np.testing.assert_array_equal(pictures["originals"], data.raw[:8])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5)
    close(pictures["reconstructions"], decode(means[:8]))
    close(pictures["latents"], means[:, jnp.array([2, 1])])
    # Rows: dimensions 2, 1, 0; columns: −3 to 3, all else 0.
    z = jnp.zeros((1, 3)).at[0, 1].set(-2.0)
    close(pictures["traversals"][1, 1], decode(z)[0])
    for row in pictures["traversals"]:
        close(row[3], decode(jnp.zeros((1, 3)))[0])
    # Samples are means: between 0 and 1, and each is another.
    assert np.all((pictures["samples"] > 0) & (pictures["samples"] < 1))
    assert len(np.unique(pictures["samples"][:, 0])) == 32


def test_samples_belong_to_the_seed():
    spec = ModelSpec((6,), 3, depth=0)
    params, stats = parameters(spec)
    data, kl = examples(4, 6), jnp.zeros((1, 3))

    def samples(seed):
        pop = hand_made(Spec(spec), params, stats, seed=seed)
        return np.asarray(gallery.gallery(spec, "vmap", pop, data, kl)["samples"])

    np.testing.assert_array_equal(samples(1), samples(1))
    assert not np.array_equal(samples(1), samples(2))


def test_the_average_is_shown_where_there_is_one():
    spec = ModelSpec((6,), 3, depth=0)
    params, stats = parameters(spec)
    other, _ = parameters(spec, seed=1)
    data, kl = examples(4, 6), jnp.zeros((1, 3))
    pop = hand_made(Spec(spec), params, stats)
    average = jax.tree.map(lambda a: a[None], other)
    averaged = pop.replace(states=dataclasses.replace(pop.states, ema=average))
    expected = hand_made(Spec(spec), other, stats)
    first, second, third = (
        np.asarray(gallery.gallery(spec, "vmap", p, data, kl)["reconstructions"])
        for p in (averaged, expected, pop)
    )
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert not np.allclose(first, third)


@pytest.mark.parametrize("posterior, rate", [("point", [np.nan] * 3), ("coupling", [1.0])])
def test_without_a_rate_by_dimension_what_varies_most_comes_first(posterior, rate):
    spec = ModelSpec((6,), 3, depth=1, width=4, posterior=posterior, flow_width=5, flow_layers=1)
    pictures, params, stats, data = make(spec, rate=rate)

    def location(x):
        q, _ = model.encode(spec, params, stats, HParams(), x, False)
        return model.location(spec, params, q)

    places = np.asarray(jax.vmap(location)(data.raw))
    order = np.argsort(-places.var(axis=0))
    assert pictures["traversal_dims"].tolist() == order.tolist()
    np.testing.assert_allclose(pictures["latents"], places[:, order[:2]], rtol=1e-5)


@pytest.mark.sampled
@pytest.mark.parametrize("posterior", ["categorical", "vq"])
@pytest.mark.parametrize("codes", [2, 16])
def test_discrete_latents_are_traversed_and_counted_by_code(posterior, codes):
    spec = ModelSpec((6,), 3, depth=1, width=4, posterior=posterior, codes=codes, code_dim=2)
    pictures, params, stats, data = make(spec, rate=[0.1, 0.3, 0.2])
    assert "latents" not in pictures
    moved = pictures["traversal_codes"]
    assert len(set(moved.tolist())) == len(moved) == min(7, codes)
    assert moved[0] == 0 and moved[-1] == codes - 1

    def encode(x):
        return model.encode(spec, params, stats, HParams(), x, False)[0]

    # Each example has one code in each variable: the nearest, or the most probable.
    seen = [encode(x) for x in data.raw]
    own = np.array(
        [
            q.rest["codes"] if posterior == "vq" else np.argmax(q.rest["logits"], axis=1)
            for q in seen
        ]
    )
    expected = [np.bincount(own[:, j], minlength=codes) for j in range(3)]
    np.testing.assert_array_equal(pictures["code_counts"], expected)

    # The first row moves variable 1, of the largest rate, and leaves the first example's others.
    book = stats["posterior"]["codebook"] if posterior == "vq" else np.eye(codes, dtype=np.float32)
    z = np.array(seen[0].mean).reshape(3, -1)
    z[1] = book[moved[-1]]
    decoded, _ = model.decode(spec, params, stats, HParams(), jnp.asarray(z.reshape(1, -1)), False)
    picture = decoded.each(LIKELIHOODS[spec.likelihood].mean)[0]
    assert pictures["traversal_dims"].tolist() == [1, 2, 0]
    np.testing.assert_allclose(pictures["traversals"][0, -1], picture, rtol=1e-5)
