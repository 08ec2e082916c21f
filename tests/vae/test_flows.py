"""Flows: change of variables against numeric Jacobians, and the formulas against NumPy."""

import functools
import itertools
import math
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae import flows, random
from vae.flows import FlowSpec

SPECS = [
    FlowSpec("iaf", 5, context_dim=3, layers=2, width=16),
    FlowSpec("iaf", 4, layers=2, width=8),
    FlowSpec("iaf", 1, context_dim=3, layers=2, width=8),
    FlowSpec("coupling", 5, context_dim=3, layers=2, width=16),
    FlowSpec("coupling", 2, layers=3, width=8),
]


def name_of(spec):
    return f"{spec.kind}-{spec.dim}-{spec.context_dim}"


@functools.cache
def compiled(function, spec):
    return jax.jit(lambda params, z, context: function(spec, params, z, context))


SEEDS = 3


@functools.cache
def population(spec):
    seeds = jnp.arange(SEEDS, dtype=jnp.uint32)
    return jax.jit(jax.vmap(lambda seed: flows.init(spec, random.key(seed))))(seeds)


def initial(spec, seed=0):
    return jax.tree.map(lambda a: a[seed], population(spec))


def trained(spec, seed=0):
    """Parameters far from the identity, float64; zeros of the masks are kept."""
    rng = np.random.default_rng(seed)
    params = jax.tree.map(np.float64, initial(spec, seed))
    for layer in params.values():
        for leaf in layer["dense_1"]:
            layer["dense_1"][leaf] *= 1.5 / flows.LAST_LAYER_SCALE
        for dense in layer.values():
            for leaf in dense:
                dense[leaf] *= rng.uniform(0.5, 2.0, dense[leaf].shape)
    return params


def points(spec, n=3, seed=1):
    """z [n, dim] and contexts [n, context_dim], or n times None."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(n, spec.dim))
    return z, rng.normal(size=(n, spec.context_dim)) if spec.context_dim else [None] * n


@pytest.mark.usefixtures("x64")
class TestChangeOfVariables:
    @pytest.mark.sampled
    @pytest.mark.parametrize("spec", SPECS, ids=name_of)
    def test_log_det_is_that_of_the_jacobian(self, spec):
        params = trained(spec)
        jacobian = jax.jit(jax.jacfwd(functools.partial(flows.forward, spec), 1, has_aux=True))
        for z, context in zip(*points(spec), strict=True):
            matrix, log_det = jacobian(params, z, context)
            sign, expected = np.linalg.slogdet(matrix)
            assert sign == 1 and abs(expected) > 1e-3
            # Sums of ~10 terms of order 1, rounded at 1e-16; a Jacobian of condition ~1e3.
            assert log_det == pytest.approx(expected, abs=1e-9)

    @pytest.mark.parametrize("spec", SPECS, ids=name_of)
    def test_inverse_undoes_forward(self, spec):
        params = trained(spec)
        for z, context in zip(*points(spec), strict=True):
            out, log_det = compiled(flows.forward, spec)(params, z, context)
            back, inverse_log_det = compiled(flows.inverse, spec)(params, out, context)
            assert np.abs(np.asarray(out) - z).max() > 0.01
            np.testing.assert_allclose(back, z, rtol=1e-9, atol=1e-9)
            assert inverse_log_det == pytest.approx(-float(log_det), abs=1e-9)

    @pytest.mark.parametrize("kind", flows.KINDS)
    def test_density_integrates_to_one(self, kind):
        spec = FlowSpec(kind, 2, context_dim=1, layers=2, width=8)
        params, context = trained(spec), jnp.array([0.7])
        axis = np.linspace(-16, 16, 481)
        grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

        def density(point):
            z, log_det = flows.inverse(spec, params, point, context)
            return jnp.exp(log_det - 0.5 * jnp.sum(z**2) - math.log(2 * math.pi))

        values = np.asarray(jax.jit(jax.vmap(density))(jnp.asarray(grid)))
        edge = values.reshape(481, 481)[[0, -1]].max() + values.reshape(481, 481)[:, [0, -1]].max()
        assert edge < 1e-9
        # The second derivative jumps where an ELU does: the error is O(h³) and not exponential.
        step = axis[1] - axis[0]
        assert values.sum() * step**2 == pytest.approx(1, abs=step**3)


def network(params, inputs):
    """The conditioner in NumPy: [outputs, 2], of m and s."""
    h = params["dense_0"]["weight"] @ inputs + params["dense_0"]["bias"]
    h = np.where(h > 0, h, np.expm1(h))
    return (params["dense_1"]["weight"] @ h + params["dense_1"]["bias"]).reshape(-1, 2).T


@pytest.mark.usefixtures("x64")
class TestFormulas:
    def test_iaf_is_the_published_gate(self):
        spec = SPECS[0]
        params = trained(spec)
        z, context = (a[0] for a in points(spec))
        expected, log_det = z, 0.0
        for i in range(spec.layers):
            expected = expected[::-1] if i % 2 else expected
            m, s = network(params[f"layer_{i}"], np.concatenate([expected, context]))
            sigma = 1 / (1 + np.exp(-s - 1))
            expected = (sigma * expected + (1 - sigma) * m) * (1 + np.exp(-1))
            expected = expected[::-1] if i % 2 else expected
            log_det += np.log(sigma * (1 + np.exp(-1))).sum()
        out, change = compiled(flows.forward, spec)(params, z, context)
        np.testing.assert_allclose(out, expected, rtol=1e-11)
        assert change == pytest.approx(log_det, rel=1e-11)

    def test_coupling_is_an_affine_map_of_bounded_scale(self):
        spec = SPECS[3]
        params = trained(spec)
        z, context = (a[0] for a in points(spec))
        expected, log_det = z, 0.0
        for i in range(spec.layers):
            expected = expected[::-1] if i % 2 else expected
            kept, moved = expected[:2], expected[2:]
            m, s = network(params[f"layer_{i}"], np.concatenate([kept, context]))
            expected = np.concatenate([kept, np.exp(2 * np.tanh(s / 2)) * moved + m])
            expected = expected[::-1] if i % 2 else expected
            log_det += 2 * np.tanh(s / 2).sum()
        out, change = compiled(flows.forward, spec)(params, z, context)
        np.testing.assert_allclose(out, expected, rtol=1e-11)
        assert change == pytest.approx(log_det, rel=1e-11)


@pytest.mark.usefixtures("x64")
class TestOrder:
    """One layer at a time: the others have parameters of 0 and are exactly the identity."""

    @staticmethod
    def jacobian(spec, layer, seed):
        params = {
            name: value if name == f"layer_{layer}" else jax.tree.map(np.zeros_like, value)
            for name, value in trained(spec, seed).items()
        }
        jacobian = jax.jacfwd(compiled(flows.forward, spec), argnums=1)
        return np.asarray(jacobian(params, *(jnp.asarray(a[0]) for a in points(spec)))[0])

    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("layer", [0, 1])
    def test_iaf_is_autoregressive_and_turns_around(self, layer, seed):
        matrix = self.jacobian(SPECS[0], layer, seed)
        if layer % 2:
            matrix = matrix[::-1, ::-1]
        np.testing.assert_array_equal(np.triu(matrix, 1), 0)
        assert np.all(matrix[np.tril_indices(5)] != 0) and np.all(np.diag(matrix) > 0)

    @pytest.mark.parametrize("seed", [0, 1])
    @pytest.mark.parametrize("layer", [0, 1])
    def test_coupling_keeps_one_half_and_turns_around(self, layer, seed):
        matrix = self.jacobian(SPECS[3], layer, seed)
        if layer % 2:
            matrix = matrix[::-1, ::-1]
        np.testing.assert_array_equal(matrix[:2], np.eye(5)[:2])
        np.testing.assert_array_equal(matrix[2:, 2:], np.diag(np.diag(matrix)[2:]))
        assert np.all(matrix[2:, :2] != 0) and np.all(np.diag(matrix)[2:] != 1)


class TestParameters:
    @pytest.mark.parametrize("spec", SPECS, ids=name_of)
    def test_they_are_plain_dicts_of_float32_arrays(self, spec):
        params = initial(spec)
        assert list(params) == [f"layer_{i}" for i in range(spec.layers)]
        moved = spec.dim if spec.kind == "iaf" else spec.dim - spec.dim // 2
        read = (spec.dim if spec.kind == "iaf" else spec.dim // 2) + spec.context_dim
        for layer in params.values():
            assert type(layer) is dict and list(layer) == ["dense_0", "dense_1"]
            assert jax.tree.map(jnp.shape, layer) == {
                "dense_0": {"weight": (spec.width, read), "bias": (spec.width,)},
                "dense_1": {"weight": (2 * moved, spec.width), "bias": (2 * moved,)},
            }
            assert all(type(dense) is dict for dense in layer.values())
        assert all(type(leaf) is type(jnp.zeros(1)) for leaf in jax.tree.leaves(params))
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}

    @pytest.mark.usefixtures("x64")
    def test_they_are_float32_with_64_bits_enabled(self):
        params = jax.eval_shape(lambda: flows.init(SPECS[1], random.key(jnp.uint32(0))))
        leaves = jax.tree.leaves(params)
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}

    @pytest.mark.parametrize("spec", SPECS, ids=name_of)
    def test_seeds_and_layers_differ(self, spec):
        first, other = initial(spec, 0), initial(spec, 1)
        for pair in ((first, other), (first["layer_0"], first["layer_1"])):
            assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.any(a != b)), *pair))

    @pytest.mark.parametrize("kind", flows.KINDS)
    def test_starts_near_the_identity(self, kind):
        spec = FlowSpec(kind, 8, context_dim=16, layers=4, width=64)
        z, context = (np.float32(a) for a in points(spec, 64))
        forward = functools.partial(flows.forward, spec)
        each = jax.vmap(jax.vmap(forward, in_axes=(None, 0, 0)), in_axes=(0, None, None))
        out, log_det = jax.jit(each)(population(spec), z, context)
        # A network's last layer has weights within 0.01/√64; 64 hidden units of order 1 give
        # m and s a deviation of about 0.01/√3, which 4 layers double.
        assert np.abs(np.asarray(out) - z[None]).max() < 0.2
        assert np.abs(log_det).max() < 8 * 4 * 0.01
        assert np.abs(log_det).min() > 0

    def test_masked_weights_are_zero_without_gradient(self):
        spec = SPECS[0]
        params, (z, context) = initial(spec), points(spec, 1)

        def loss(params):
            out, log_det = flows.forward(spec, params, jnp.float32(z[0]), jnp.float32(context[0]))
            return jnp.sum(out**2) - log_det

        grads = jax.jit(jax.grad(loss))(params)
        for dense in ("dense_0", "dense_1"):
            weight = np.asarray(params["layer_0"][dense]["weight"])
            grad, masked = np.asarray(grads["layer_0"][dense]["weight"]), weight == 0
            np.testing.assert_array_equal(grad[masked], 0)
            assert np.all(grad[~masked] != 0)
            assert 0 < masked.mean() < 0.5


class TestContext:
    @pytest.mark.parametrize("spec", [SPECS[0], SPECS[2], SPECS[3]], ids=name_of)
    def test_it_matters_and_gets_a_gradient(self, spec):
        z, contexts = (jnp.float32(a) for a in points(spec, 2))

        def total(params, context):
            out, log_det = flows.forward(spec, params, z[0], context)
            return jnp.sum(out) + log_det

        # Also where training starts: all layers learn from the first step on.
        for params in (initial(spec), jax.tree.map(jnp.float32, trained(spec))):
            value = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
            first, (grads, grad) = value(params, contexts[0])
            assert first != value(params, contexts[1])[0]
            assert np.all(np.asarray(grad) != 0)
            assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(grads))

    def test_without_it_there_is_an_error(self):
        with pytest.raises(ValueError, match="condition"):
            compiled(flows.forward, SPECS[3])(initial(SPECS[3]), jnp.zeros(5), None)


class TestExtremes:
    @pytest.mark.parametrize("spec", SPECS, ids=name_of)
    def test_value_and_gradient_are_finite(self, spec):
        starts = [initial(spec), jax.tree.map(jnp.float32, trained(spec))]
        functions = [flows.forward] + [flows.inverse] * (spec.kind == "coupling")
        for function in functions:

            def total(params, z, context, function=function):
                out, log_det = function(spec, params, z, context)
                return jnp.sum(out) + log_det, (out, log_det)

            grad = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
            for params in starts:
                for z, scale in itertools.product((-1e4, 1e4), (0.0, -1e4, 1e4)):
                    context = jnp.full(spec.context_dim, scale) if spec.context_dim else None
                    result = grad(params, jnp.full(spec.dim, z), context)
                    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(result))

    def test_a_coupling_layer_has_bounded_scales(self):
        spec = FlowSpec("coupling", 4, layers=1, width=8)
        params = jax.tree.map(lambda a: jnp.float32(1e3 * a), trained(spec))
        z = jnp.float32(points(spec, 50)[0])
        _, log_det = jax.jit(jax.vmap(functools.partial(flows.forward, spec, params)))(z)
        assert 3.9 < np.abs(log_det).max() <= 4 + 1e-6


class TestPopulation:
    @pytest.mark.sampled
    @pytest.mark.parametrize(
        ("spec", "function"),
        [(SPECS[0], flows.forward), (SPECS[4], flows.inverse)],
        ids=["posterior", "prior"],
    )
    def test_trained_together_as_alone(self, spec, function):
        z, context = points(spec, 16)
        z, context = jnp.float32(z), jnp.float32(context) if spec.context_dim else None

        def loss(params):
            each = functools.partial(function, spec, params)
            out, log_det = jax.vmap(each, axis_name="batch")(z, context)
            return jnp.mean(0.5 * jnp.sum(jnp.square(out - 1), axis=1) - log_det)

        def step(_, params):
            return jax.tree.map(lambda p, g: p - 0.05 * g, params, jax.grad(loss)(params))

        def train(seed):
            params = flows.init(spec, random.key(seed))
            last = jax.lax.fori_loop(0, 20, step, params)
            return loss(params), loss(last), last

        seeds = jnp.arange(SEEDS, dtype=jnp.uint32)
        together, alone = jax.jit(jax.vmap(train))(seeds), jax.jit(train)
        assert np.all(together[1] < together[0] - 0.1)
        assert len(set(together[1].tolist())) == SEEDS
        for i, seed in enumerate(seeds):
            # 20 steps, each with sums of a few dozen terms in another order: 1e-7 each.
            for a, b in zip(*map(jax.tree.leaves, (together, alone(seed))), strict=True):
                np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5)

    @pytest.mark.sampled
    @pytest.mark.parametrize("kind", flows.KINDS)
    def test_no_random_number_is_left_in_the_program(self, kind):
        spec = FlowSpec(kind, 3, layers=2, width=8)
        forward = jax.jit(functools.partial(flows.forward, spec))
        # With no tracer kept from one trace to another either.
        with jax.checking_leaks():
            program = forward.lower(initial(spec), jnp.zeros(3)).as_text()
        assert "dot_general" in program
        assert not any(word in program for word in ("threefry", "xor", "rng", "callback"))


class TestFlowSpec:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"kind": "planar"}, "kind: 'planar' is not one of iaf, coupling"),
            ({"dim": 1}, "dim: 'coupling' .* needs 2 or more, not 1"),
            ({"dim": 1, "context_dim": 3}, "dim: 'coupling' .* needs 2 or more, not 1"),
            ({"kind": "iaf", "dim": 1}, "dim: 'iaf' .* needs 2 or more, not 1"),
            ({"kind": "iaf", "dim": 0, "context_dim": 3}, "needs 1 or more, not 0"),
            ({"kind": "iaf", "dim": 65}, "width: 64 hidden units cannot connect 65"),
            ({"layers": 0}, "layers"),
            ({"width": 0}, "width"),
            ({"context_dim": -1}, "context_dim"),
        ],
    )
    def test_impossible_flows_are_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            FlowSpec(**({"kind": "coupling", "dim": 4} | arguments))


def test_importing_it_does_not_import_flowjax():
    code = """
import sys, vae.flows
vae.flows.FlowSpec("iaf", 4)
print([name for name in ("flowjax", "equinox", "paramax") if name in sys.modules])
"""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
