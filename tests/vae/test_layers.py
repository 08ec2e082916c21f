import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vae.building import parameters
from vae.layers import layer_names, layer_norms
from vae.spec import ModelSpec


def test_eleven_layers_are_in_order_of_depth_not_of_spelling():
    params, _ = parameters(ModelSpec((4,), 2, depth=12, width=3, likelihood="gaussian_shared"))
    assert layer_names(params) == [
        *(f"encoder/layer_{i}" for i in range(12)),
        "encoder/mean",
        "encoder/scale",
        *(f"decoder/layer_{i}" for i in range(12)),
        "decoder/output",
        "likelihood/logvar",
    ]


def test_parts_are_in_the_order_of_computation():
    spec = ModelSpec(
        (4,),
        3,
        depth=1,
        width=3,
        posterior="coupling",
        prior="mixture",
        likelihood="gaussian_pixel",
        flow_layers=11,
        flow_width=2,
    )
    params, _ = parameters(spec)
    params["discriminator"] = {"output": params["decoder"]["output"], "layer_0": {}}
    assert layer_names(params) == [
        *(f"encoder/{name}" for name in ("layer_0", "mean", "scale", "context")),
        *(f"posterior/layer_{i}" for i in range(11)),
        "prior/mixture",
        *(f"decoder/{name}" for name in ("layer_0", "output", "variance")),
        "discriminator/layer_0",
        "discriminator/output",
    ]


def test_stochastic_layers_go_up_where_z_is_inferred_and_down_where_it_is_made():
    # Of eleven layers: tests/vae/test_hierarchy.py.
    spec = ModelSpec((4,), 3, depth=1, posterior="hierarchical", prior="hierarchical")
    params, _ = parameters(dataclasses.replace(spec, stochastic=(1, 1, 1)))
    assert layer_names(params) == [
        *("encoder/layer_0", "encoder/mean", "encoder/scale"),
        *("posterior/z_2", "posterior/z_3", "prior/z_2", "prior/z_1"),
        *("decoder/layer_0", "decoder/output"),
    ]
    params, _ = parameters(
        dataclasses.replace(spec, posterior="ladder", stochastic=(2, 1), stochastic_depth=1)
    )
    assert layer_names(params) == [
        *(f"encoder/{n}" for n in ("layer_0", "layer_1", "mean", "scale", "mean_2", "scale_2")),
        *("prior/z_1", "decoder/layer_0", "decoder/output"),
    ]


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec((4,), 2, depth=2, width=3, norm="batch", likelihood="gaussian_shared"),
        ModelSpec((4, 4, 1), 2, "conv", 1, 3, norm="layer", likelihood="gaussian_pixel"),
        ModelSpec((4,), 2, depth=1, width=3, posterior="iaf", prior="vamp", flow_layers=2),
        ModelSpec((4,), 2, depth=1, width=3, posterior="full", prior="flow", flow_layers=2),
    ],
)
def test_norms_are_over_all_leaves_of_a_layer(spec):
    params, _ = parameters(spec)
    norms = layer_norms(params)
    names = layer_names(params)
    assert norms.shape == (len(names),) and norms.dtype == jnp.float32
    for name, norm in zip(names, norms, strict=True):
        part, layer = name.split("/")
        flat = np.concatenate([np.ravel(a) for a in jax.tree.leaves(params[part][layer])])
        assert float(norm) == pytest.approx(np.linalg.norm(np.float64(flat)), rel=1e-6)
    # Nothing is left out, nothing twice.
    total = sum(np.sum(np.square(np.float64(a))) for a in jax.tree.leaves(params))
    assert np.sum(np.square(np.float64(norms))) == pytest.approx(total, rel=1e-6)
