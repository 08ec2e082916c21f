import functools
import itertools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.vae.building import COMPILE_FAST, parameters
from vae import model, nets
from vae.hparams import HParams
from vae.layers import layer_names
from vae.spec import ModelSpec

NORMS = ("none", "layer", "batch")
RESIDUALS = ("none", "plain", "scaled", "zero_init")

# Written with NumPy alone.
ACTIVATIONS = {
    "relu": lambda h: np.maximum(h, 0),
    "tanh": np.tanh,
    "sigmoid": scipy.special.expit,
    "gelu": lambda h: 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))),
    "silu": lambda h: h * scipy.special.expit(h),
    "leaky_relu": lambda h: np.where(h > 0, h, 0.01 * h),
    "elu": lambda h: np.where(h > 0, h, np.expm1(h)),
    "identity": lambda h: h,
}


def encoder(spec):
    """The encoder of a diagonal Gaussian."""
    return nets.Encoder(spec, (("mean", spec.latent_dim), ("scale", spec.latent_dim)))


def shapes(spec):
    """Parameters and statistics as shapes alone."""
    return jax.eval_shape(
        lambda: model.init(spec, HParams(), jax.random.key(0), jnp.zeros(spec.example_shape))
    )


@functools.partial(jax.jit, static_argnames=("spec", "train"))
def posterior_and_output(spec, params, stats, x, z, train=False):
    """Encoder and decoder on a batch: x [B, *x], z [B, K, d]."""

    def one(x, z):
        posterior, encoder_stats = model.encode(spec, params, stats, HParams(), x, train)
        decoded, decoder_stats = model.decode(spec, params, stats, HParams(), z, train)
        output, logvar = decoded.heads["output"], decoded.heads.get("logvar")
        return (posterior, output, logvar), {"encoder": encoder_stats, "decoder": decoder_stats}

    return jax.vmap(one, axis_name="batch", out_axes=(0, None))(x, z)


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_shapes_of_every_combination(net, norm, residual):
    shape = (4, 3, 2) if net == "conv" else (7,)
    # Two activations each, in turn, so that every norm meets all eight: tracing all 192 networks
    # would take a minute.
    row = NORMS.index(norm) + RESIDUALS.index(residual)
    for activation in list(ACTIVATIONS)[2 * (row % 4) :][:2]:
        spec = ModelSpec(
            shape, 3, net, 2, (4, 4), activation, norm, "glorot", residual, "gaussian_pixel"
        )

        def initialize_and_apply(spec=spec):
            start = model.init(spec, HParams(), jax.random.key(0), jnp.zeros(shape))
            x, z = jnp.zeros((5, *shape)), jnp.zeros((5, 6, 3))
            return start, posterior_and_output(spec, *start, x, z, train=True)

        (params, stats), ((posterior, output, logvar), new_stats) = jax.eval_shape(
            initialize_and_apply
        )
        assert posterior.mean.shape == posterior.logvar.shape == (5, 3)
        assert output.shape == logvar.shape == (5, 6, *shape)
        assert all(a.dtype == jnp.float32 for a in jax.tree.leaves((params, posterior, output)))
        # What training carries from step to step keeps its structure.
        assert jax.tree.structure(new_stats) == jax.tree.structure(stats)
        assert bool(jax.tree.leaves(stats)) == (norm == "batch")
        # Of the mlp's layers 7-4-4 and 3-4-4, those that keep the width have a gate.
        names = [path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        assert names.count("gate") == (2 if net == "mlp" and residual == "zero_init" else 0)


def test_the_activations_are_those_of_the_config():
    assert set(nets.ACTIVATIONS) == set(ACTIVATIONS)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_the_formula(activation):
    h = np.linspace(-6, 6, 101)
    value = nets.ACTIVATIONS[activation](jnp.float32(h))
    np.testing.assert_allclose(value, ACTIVATIONS[activation](h), rtol=1e-5, atol=1e-6)


def numpy_layer(spec, params, h):
    """One hidden layer of an mlp in float64, for `none` and `layer`."""
    params = jax.tree.map(np.float64, params)
    f = h @ params["dense"]["kernel"] + params["dense"]["bias"]
    if spec.norm == "layer":
        f = (f - f.mean()) / np.sqrt(f.var() + 1e-6)
        f = f * params["norm"]["layer"]["scale"] + params["norm"]["layer"]["bias"]
    f = ACTIVATIONS[spec.activation](f)
    if h.shape != f.shape:
        return f
    factor = {"none": None, "plain": 1, "scaled": 1 / math.sqrt(spec.depth)}.get(spec.residual)
    if spec.residual == "zero_init":
        factor = params["gate"]
    return f if factor is None else h + factor * f


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_mlp_is_the_formula(norm, residual):
    spec = ModelSpec((6,), 2, "mlp", 3, (5, 5, 4), "tanh", norm, residual=residual)
    params, stats = parameters(spec)
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=6), rng.normal(size=2)
    (posterior, output, _), _ = posterior_and_output(
        spec, params, stats, jnp.float32(x)[None], jnp.float32(z)[None, None]
    )

    def head(params, h):
        return h @ np.float64(params["kernel"]) + np.float64(params["bias"])

    h = x
    for i in range(3):
        h = numpy_layer(spec, params["encoder"][f"layer_{i}"], h)
    for name, value in zip(("mean", "scale"), posterior[:2], strict=True):
        np.testing.assert_allclose(value[0], head(params["encoder"][name], h), rtol=1e-4, atol=1e-5)
    h = z
    for i in range(3):
        h = numpy_layer(spec, params["decoder"][f"layer_{i}"], h)
    expected = head(params["decoder"]["output"], h)
    np.testing.assert_allclose(output[0, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_latent_skip_puts_z_beside_every_later_input(depth):
    widths = (5, 5, 4)[:depth]
    spec = ModelSpec((6,), 2, "mlp", depth, widths, "tanh", latent_skip="concat")
    params, stats = parameters(spec)
    x, z = np.zeros(6), np.random.default_rng(0).normal(size=2)
    (_, output, _), _ = posterior_and_output(
        spec, params, stats, jnp.float32(x)[None], jnp.float32(z)[None, None]
    )
    h = z
    for i in range(depth):
        h = np.concatenate([numpy_layer(spec, params["decoder"][f"layer_{i}"], h), z])
    head = jax.tree.map(np.float64, params["decoder"]["output"])
    expected = h @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(output[0, 0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "variance"),
    [
        ("glorot", lambda n, m: 2 / (n + m)),
        ("he", lambda n, m: 2 / n),
        ("lecun", lambda n, m: 1 / n),
        ("uniform", lambda n, m: 1 / (3 * n)),
        ("orthogonal", lambda n, m: 1 / max(n, m)),
    ],
)
def test_initial_variance(name, variance):
    n, m = 400, 300
    kernel = np.float64(nets.INITIALIZERS[name](jax.random.key(0), (n, m)))
    # The variance of N independent draws has relative error √((κ − 1)/N) with the kurtosis κ ≤ 3.
    # (Orthogonal: exact, for the columns have norm 1.)
    assert kernel.var() == pytest.approx(variance(n, m), rel=5 * math.sqrt(2 / (n * m)))
    if name == "uniform":
        assert 0.99 < np.abs(kernel).max() * math.sqrt(n) <= 1
    if name == "orthogonal":
        np.testing.assert_allclose(kernel.T @ kernel, np.eye(m), atol=1e-5)


def test_initial_variance_of_a_convolution():
    # The fan-in of a 4 × 4 kernel on 8 channels is 128.
    shape = (4, 4, 8, 50)
    for name, variance in (("he", 2 / 128), ("lecun", 1 / 128), ("uniform", 1 / (3 * 128))):
        kernel = np.float64(nets.INITIALIZERS[name](jax.random.key(0), shape))
        assert kernel.var() == pytest.approx(variance, rel=5 * math.sqrt(2 / kernel.size))


@pytest.mark.parametrize("name", nets.INITIALIZERS)
@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_every_kernel_has_the_initialization_and_the_gain(net, name, monkeypatch):
    monkeypatch.setitem(nets.INITIALIZERS, name, nn.initializers.constant(0.5))
    spec = ModelSpec((4, 4, 1), 2, net, 2, 6, init=name, residual="zero_init", norm="layer")
    start = jax.jit(lambda key, mean: model.init(spec, HParams(init_gain=3.0), key, mean))
    params, _ = start(jax.random.key(0), jnp.zeros(spec.example_shape))
    values = {"kernel": 1.5, "scale": 1.0, "bias": 0.0, "gate": 0.0}
    names = [path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert names.count("kernel") == (8 if net == "conv" else 7)
    for name, leaf in zip(names, jax.tree.leaves(params), strict=True):
        assert np.all(leaf == values[name])


def test_layers_and_networks_start_differently():
    spec = ModelSpec((6,), 6, depth=2, width=6)
    start = jax.jit(model.init, static_argnums=0, compiler_options=COMPILE_FAST)
    params, _ = start(spec, HParams(), jax.random.key(0), jnp.zeros(6))
    kernels = [a for a in jax.tree.leaves(params) if a.ndim == 2]
    assert len(kernels) == 7
    for a, b in itertools.combinations(kernels, 2):
        assert a.shape == b.shape and not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("residual", "growth"),
    [
        ("plain", lambda depth: 2.0**depth),
        ("scaled", lambda depth: (1 + 1 / depth) ** depth),
        ("zero_init", lambda depth: 1.0),
    ],
)
def test_residual_growth(residual, growth):
    # Oracle 17: E‖h_L‖²/‖x‖² for branches that keep the variance (1/n weights, identity), read
    # through a mean head that keeps it too. The mean of many nets, within five standard errors.
    n, depth, num_nets = 64, 10, 200
    spec = ModelSpec(
        (n,), n, depth=depth, width=n, activation="identity", init="lecun", residual=residual
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        # Kernels N(0, 1/n); biases and gates 0, as every initialisation has them.
        lambda a: jnp.float32(
            rng.normal(size=(num_nets, *a.shape)) / math.sqrt(n) * (len(a.shape) == 2)
        ),
        shapes(spec)[0]["encoder"],
    )
    heads = jax.jit(jax.vmap(lambda p: encoder(spec).apply({"params": p}, jnp.ones(n), False)))(
        params
    )
    ratios = np.sum(np.square(np.float64(heads["mean"])), axis=1) / n
    error = ratios.std() / math.sqrt(num_nets)
    assert error < 0.05 * growth(depth)
    assert abs(ratios.mean() - growth(depth)) < 5 * error


def test_zero_init_starts_as_the_identity_and_can_leave_it():
    spec = ModelSpec((5,), 5, depth=1, width=5, residual="zero_init")
    layer = nets.DenseLayer(spec, 5, ("batch",))
    h = jnp.linspace(0.5, 2.0, 5)
    variables = layer.init(jax.random.key(0), h, True)
    np.testing.assert_array_equal(layer.apply(variables, h, True), h)
    slope = jax.grad(lambda v: layer.apply(v, h, True).sum())(variables)["params"]["gate"]
    assert abs(slope) > 0.01


def test_a_list_of_widths_is_mirrored():
    params, _ = shapes(ModelSpec((6,), 2, depth=3, width=(5, 4, 3)))
    kernels = {
        (part, name): (layer.get("dense") or layer)["kernel"].shape
        for part in params
        for name, layer in params[part].items()
    }
    assert kernels == {
        ("encoder", "layer_0"): (6, 5),
        ("encoder", "layer_1"): (5, 4),
        ("encoder", "layer_2"): (4, 3),
        ("encoder", "mean"): (3, 2),
        ("encoder", "scale"): (3, 2),
        ("decoder", "layer_0"): (2, 3),
        ("decoder", "layer_1"): (3, 4),
        ("decoder", "layer_2"): (4, 5),
        ("decoder", "output"): (5, 6),
    }


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((28, 28, 1), [(28, 28), (14, 14), (7, 7), (4, 4)]),
        ((8, 8, 1), [(8, 8), (4, 4), (2, 2), (1, 1)]),
        ((5, 7, 3), [(5, 7), (3, 4), (2, 2), (1, 1)]),
    ],
)
def test_convolutions_halve_and_double(shape, sizes):
    spec = ModelSpec(shape, 2, "conv", 3, (4, 5, 6))
    assert nets.conv_sizes(spec) == sizes
    seen = {}

    def layers(x, z):
        def apply(net, value):
            _, state = net.init_with_output(
                jax.random.key(0), value, False, capture_intermediates=True, mutable=True
            )
            return state["intermediates"]

        return apply(encoder(spec), x), apply(nets.Decoder(spec, (("output", shape[2]),)), z)

    down, up = jax.eval_shape(layers, jnp.zeros(shape), jnp.zeros(2))
    for i in range(3):
        seen[i] = down[f"layer_{i}"]["__call__"][0].shape
        assert seen[i] == (*sizes[i + 1], (4, 5, 6)[i])
        assert up[f"layer_{i}"]["__call__"][0].shape == (*sizes[2 - i], (5, 4, 4)[i])
    assert up["project"]["__call__"][0].shape == (math.prod(sizes[3]) * 6,)
    assert up["output"]["__call__"][0].shape == shape
    known, known_up = nets.NETS["conv"].layers(spec)
    assert [layer.values for layer in known] == [math.prod(s) for s in seen.values()]
    outputs = [
        up[name]["__call__"][0].size for name in ("project", *(f"layer_{i}" for i in range(3)))
    ]
    assert [layer.values for layer in known_up] == [*outputs, 0]


def test_a_convolution_sees_the_image_in_place():
    # A change of one corner pixel reaches the corner of the layer's output and no other place.
    spec = ModelSpec((8, 8, 1), 2, "conv", 1, 4, activation="identity")
    for size, corner in ((None, (0, 0)), ((16, 16), (0, 0))):
        layer = nets.ConvLayer(spec, 4, ("batch",), size)
        variables = layer.init(jax.random.key(0), jnp.zeros((8, 8, 1)), True)
        change = layer.apply(variables, jnp.zeros((8, 8, 1)).at[0, 0].set(1.0), True)
        changed = np.argwhere(np.abs(np.asarray(change)).sum(-1) > 0)
        assert tuple(changed.min(0)) == corner and changed.max() <= 2


def test_batch_norm_uses_and_keeps_the_moments_of_the_batch():
    spec = ModelSpec((6,), 2, depth=1, width=5, norm="batch", activation="identity")
    params, stats = parameters(spec)
    rng = np.random.default_rng(0)
    x, z = rng.normal(1, 2, size=(64, 6)), rng.normal(-1, 0.5, size=(64, 3, 2))
    (_, output, _), new = posterior_and_output(
        spec, params, stats, jnp.float32(x), jnp.float32(z), train=True
    )
    # Running moments start at 0 and 1 and take a tenth of each batch's; the decoder's are over
    # examples and samples together.
    for part, values in (("encoder", x), ("decoder", z.reshape(-1, 2))):
        dense = params[part]["layer_0"]["dense"]
        h = values @ np.float64(dense["kernel"]) + np.float64(dense["bias"])
        kept = new[part]["layer_0"]["norm"]["batch"]
        np.testing.assert_allclose(kept["mean"], 0.1 * h.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(kept["var"], 0.9 + 0.1 * h.var(0), rtol=1e-4)

    def expected(mean, var):
        decoder = jax.tree.map(np.float64, params["decoder"])
        norm, head = decoder["layer_0"]["norm"]["batch"], decoder["output"]
        normalized = (h - mean) / np.sqrt(var + 1e-5) * norm["scale"] + norm["bias"]
        return (normalized @ head["kernel"] + head["bias"]).reshape(64, 3, 6)

    # The variance is E[h²] − E[h]² in float32, which costs a digit.
    np.testing.assert_allclose(output, expected(h.mean(0), h.var(0)), rtol=1e-3, atol=1e-4)

    # Evaluation uses the running ones: an example is then alone in its result.
    (_, output, _), same = posterior_and_output(spec, params, new, jnp.float32(x), jnp.float32(z))
    kept = jax.tree.map(np.float64, new["decoder"]["layer_0"]["norm"]["batch"])
    np.testing.assert_allclose(output, expected(**kept), rtol=1e-4, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same, new)


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_heads_have_numbers_for_each_pixel(net):
    # As many as a pixel has values: the shape of x. Otherwise the pixels, and so many numbers.
    spec = ModelSpec((4, 3, 2), 2, net, 1, 3)
    heads = (("output", 2), ("mixture", 5))
    out, _ = jax.eval_shape(
        lambda z: nets.Decoder(spec, heads).init_with_output(jax.random.key(0), z, True),
        jnp.zeros(2),
    )
    assert {name: a.shape for name, a in out.items()} == {
        "output": (4, 3, 2),
        "mixture": (4, 3, 5),
    }
    # Of a vector each value is a pixel.
    out, _ = jax.eval_shape(
        lambda z: nets.Decoder(ModelSpec((6,), 2), (("output", 1), ("logits", 5))).init_with_output(
            jax.random.key(0), z, True
        ),
        jnp.zeros(2),
    )
    assert {name: a.shape for name, a in out.items()} == {"output": (6,), "logits": (6, 5)}


@pytest.mark.parametrize("net", ["mlp", "conv"])
def test_a_discriminator_reads_the_features_of_its_trunk(net):
    spec = ModelSpec((4, 4, 1), 2, net, 2, (3, 5), activation="leaky_relu", init="he")
    rng, x = np.random.default_rng(0), jax.random.normal(jax.random.key(1), (4, 4, 1))
    shapes = jax.eval_shape(nets.Discriminator(spec).init, jax.random.key(0), x)
    variables = jax.tree.map(lambda a: jnp.float32(rng.normal(size=a.shape)), shapes)
    logit, features = nets.Discriminator(spec).apply(variables, x)
    # The trunk is the encoder's, layer by layer.
    trunk = {name: a for name, a in variables["params"].items() if name != "output"}
    head = {"kernel": jnp.eye(len(features)), "bias": jnp.zeros(len(features))}
    same = nets.Encoder(spec, (("mean", len(features)),)).apply(
        {"params": {**trunk, "mean": head}}, x, True
    )
    np.testing.assert_allclose(features, same["mean"], rtol=1e-6)
    output = jax.tree.map(np.float64, variables["params"]["output"])
    expected = np.float64(features) @ output["kernel"][:, 0] + output["bias"][0]
    assert logit.shape == () and float(logit) == pytest.approx(expected, rel=1e-5)


def test_names_of_the_layers():
    mlp = shapes(ModelSpec((4,), 2, depth=1, width=3))[0]
    assert layer_names(mlp) == [
        "encoder/layer_0",
        "encoder/mean",
        "encoder/scale",
        "decoder/layer_0",
        "decoder/output",
    ]
    conv = ModelSpec((4, 4, 1), 2, "conv", 1, 3, likelihood="gaussian_pixel")
    assert layer_names(shapes(conv)[0]) == [
        "encoder/layer_0",
        "encoder/mean",
        "encoder/scale",
        "decoder/project",
        "decoder/layer_0",
        "decoder/output",
        "decoder/variance",
    ]
