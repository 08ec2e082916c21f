import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import examples, hand_made, parameters
from vae import gallery, model
from vae.likelihoods import LIKELIHOODS
from vae.spec import ModelSpec, Spec


def make(spec, num_examples=20):
    params, stats = parameters(spec)
    pop = hand_made(Spec(spec), params, stats, seed=3)
    kl = jnp.arange(spec.latent_dim, dtype=jnp.float32)[None]  # the last dimension leads
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


def test_what_is_in_the_pictures():
    spec = ModelSpec((6,), 3, depth=1, width=4, activation="tanh")
    pictures, params, stats, data = make(spec)

    def decode(z):
        output, _, _ = model.decode(spec, params, stats, z, jnp.ones(()), train=False)
        return LIKELIHOODS[spec.likelihood].mean(output)

    means = jax.vmap(lambda x: model.encode(spec, params, stats, x, False)[0].mean)(data.raw)
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
