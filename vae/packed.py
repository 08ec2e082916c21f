"""Runs of several latent dimensions and depths as one program: masks.

A spec whose model has `packed` is the largest of them in both. A run's own numbers,
`hparams.latents` and `hparams.layers`, say how much of it is the run's. The latents beyond are 0,
with a KL of 0, and the hidden layers beyond pass on what they get, so that what is left is the
run's own smaller model; the parameters beyond are 0, and as their gradients are exactly 0 every
optimiser leaves them so. The noise of z is that of the smaller model, value by value. A run of
such a population is the run alone, but for the order of sums.

For MLPs with a Gaussian posterior and a standard prior; what else it takes is in
`experiments.structures`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from vae import model
from vae.hparams import HParams
from vae.spec import ModelSpec


def own(spec: ModelSpec, latents: int, layers: int) -> ModelSpec:
    """The model of one run by itself."""
    return dataclasses.replace(spec, latent_dim=latents, depth=layers, packed=())


def init(
    spec: ModelSpec,
    hparams: HParams,
    rng: jax.Array,
    data_mean: jax.Array,
    pseudo_inputs: jax.Array | None = None,
) -> tuple[model.Params, model.Stats]:
    """Parameters and statistics of one run, as `model.init` of its own model, bit for bit.

    With the fan-in of its own layers: those that touch z are drawn for each number of latents in
    `spec.packed`, and the run's is taken. The others are the same for all: a layer's key is of its
    name.
    """
    if not spec.packed:
        return model.init(spec, hparams, rng, data_mean, pseudo_inputs)
    candidates = []
    for latents in spec.packed:
        small = own(spec, latents, spec.depth)
        params, stats = model.init(small, hparams, rng, data_mean, pseudo_inputs)
        candidates.append(params)

    def chosen(*leaves):
        if len({leaf.shape for leaf in leaves}) == 1:
            return leaves[0]
        shape = [max(sizes) for sizes in zip(*(leaf.shape for leaf in leaves), strict=True)]
        padded = [
            jnp.pad(a, [(0, n - m) for n, m in zip(shape, a.shape, strict=True)]) for a in leaves
        ]
        return jnp.select([hparams.latents == latents for latents in spec.packed], padded)

    def live(path, leaf):
        word, _, number = path[1].key.rpartition("_")
        return jnp.where(int(number) < hparams.layers, leaf, 0) if word == "layer" else leaf

    params = jax.tree.map(chosen, *candidates)
    return jax.tree_util.tree_map_with_path(live, params), stats


@functools.cache
def shapes(spec: ModelSpec) -> model.Params:
    """Those of the parameters of a model."""

    def start():
        zero = jnp.zeros(spec.example_shape)
        inputs = jnp.zeros((spec.prior_components, *spec.example_shape))
        return model.init(spec, HParams(), jax.random.key(0), zero, inputs)[0]

    return jax.eval_shape(start)


def cropped(tree: Any, like: Any) -> Any:
    """What of a tree like the parameters is a run's own, by the shapes of its own model."""
    if not isinstance(like, dict):
        return tree[tuple(slice(n) for n in like.shape)]
    return {name: cropped(tree[name], part) for name, part in like.items()}
