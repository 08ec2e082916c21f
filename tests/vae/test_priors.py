"""Every prior: densities against quadrature and explicit mixtures, draws against the densities."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae.building import COMPILE_FAST, parameters
from vae import elbo, model
from vae.hparams import HParams
from vae.priors import PRIORS, Components, mixture_log_prob
from vae.spec import ModelSpec

SPECS = {
    name: ModelSpec(
        (4,), 2, depth=1, width=6, prior=name, prior_components=3, flow_layers=2, flow_width=5
    )
    for name in PRIORS
}
SPECS["hierarchical"] = dataclasses.replace(
    SPECS["hierarchical"],
    posterior="hierarchical",
    activation="tanh",
    stochastic=(1, 1),
    stochastic_width=5,
)
# Where all of each density is: of the widest component of `mixture` and `vamp`, ±8 deviations.
HALF_WIDTH = {
    "standard": 9.0,
    "mixture": 12.0,
    "vamp": 12.0,
    "flow": 30.0,
    "hierarchical": 30.0,
}


def state_of(spec, dtype=np.float64):
    """What the prior needs, of parameters that are N(0, 0.4²)."""
    params, stats = parameters(spec, dtype=dtype)
    return model.prior_state(spec, params, stats, HParams())


@functools.partial(jax.jit, static_argnames="spec", compiler_options=COMPILE_FAST)
def log_probs(spec, state, z):
    """log p(z) of z [N, d]; of layers the sum over dimensions."""
    return jax.vmap(lambda z: jnp.sum(PRIORS[spec.prior].log_prob(spec, state, z)))(z)


@functools.partial(jax.jit, static_argnames=("spec", "n"), compiler_options=COMPILE_FAST)
def draws(spec, state, n):
    sample = functools.partial(PRIORS[spec.prior].sample, spec, state)
    return jax.vmap(sample)(jax.random.split(jax.random.key(1), n))


def grid(name, points=401):
    """(z [points², 2], the area of a cell): a trapezoidal rule, with nothing on the border."""
    axis = np.linspace(-HALF_WIDTH[name], HALF_WIDTH[name], points)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return z, (axis[1] - axis[0]) ** 2


@functools.cache
def density_on_the_grid(name):
    with jax.enable_x64(True):
        z, area = grid(name)
        density = np.exp(np.asarray(log_probs(SPECS[name], state_of(SPECS[name]), jnp.asarray(z))))
    return z, area * density


class TestDensities:
    @pytest.mark.parametrize("name", PRIORS)
    def test_they_integrate_to_one(self, name):
        # The rule is exact to rounding for analytic densities. The flow's have kinks of the second
        # derivative, of ELU, at a step of 0.15: h² of a part of the mass.
        _, mass = density_on_the_grid(name)
        assert mass.sum() == pytest.approx(1, abs=1e-4 if name == "flow" else 1e-9)

    @pytest.mark.parametrize("posterior", ["categorical", "vq"])
    def test_of_discrete_latents_they_sum_to_one(self, posterior):
        spec = ModelSpec((4,), 3, posterior=posterior, codes=4, code_dim=2)
        _, stats = parameters(spec)
        book = stats["posterior"]["codebook"] if posterior == "vq" else jnp.eye(4)
        z = jnp.stack(
            [book[jnp.array(c)].reshape(-1) for c in itertools.product(range(4), repeat=3)]
        )
        assert float(jnp.exp(log_probs(spec, {}, z)).sum()) == pytest.approx(1, rel=1e-5)

    def test_standard_is_the_normal(self, x64):
        z = np.random.default_rng(0).normal(size=(5, 2)) * 3
        expected = scipy.stats.norm.logpdf(z).sum(1)
        actual = log_probs(SPECS["standard"], {}, jnp.asarray(z))
        np.testing.assert_allclose(actual, expected, rtol=1e-12)

    def test_mixture_is_the_sum_of_its_components(self, x64):
        params, _ = parameters(SPECS["mixture"], dtype=np.float64)
        means, logvars, weights = (
            np.asarray(params["prior"]["mixture"][n]) for n in ("means", "logvars", "weights")
        )
        z = np.random.default_rng(0).normal(size=(9, 2)) * 3
        each = scipy.stats.norm.logpdf(z[:, None], means[None], np.exp(0.5 * logvars[None])).sum(2)
        expected = scipy.special.logsumexp(scipy.special.log_softmax(weights) + each, axis=1)
        actual = log_probs(SPECS["mixture"], state_of(SPECS["mixture"]), jnp.asarray(z))
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
        assert np.ptp(weights) > 0.1

    @pytest.mark.parametrize("distance", [0.0, 1e2, 1e4])
    @pytest.mark.parametrize("logvar", [-30.0, 0.0, 30.0])
    def test_a_mixture_far_from_z_is_finite(self, distance, logvar):
        means, logvars = jnp.float32([[0, 1], [-2, 3]]), jnp.full((2, 2), logvar)
        components = Components(means, logvars, jnp.log(jnp.float32([0.3, 0.7])))
        value, grads = jax.value_and_grad(mixture_log_prob, (0, 1))(
            components, jnp.float32([distance, -distance])
        )
        assert np.isfinite(value)
        assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(grads))


class TestDraws:
    @pytest.mark.parametrize("name", PRIORS)
    def test_they_have_the_moments_of_the_density(self, name):
        # Means of z, z², z₁z₂, cos z and of log p: by quadrature, and over 50,000 draws.
        n, spec = 50_000, SPECS[name]

        def statistics(z):
            first, second = z.T
            return np.stack([first, second, first**2, second**2, first * second, np.cos(first)])

        z, mass = density_on_the_grid(name)
        expected = statistics(z) @ mass
        state = state_of(spec, np.float32)
        sampled = draws(spec, state, n)
        values = statistics(np.float64(sampled))
        errors = values.std(1) / math.sqrt(n)
        assert np.all(np.abs(values.mean(1) - expected) < 5 * errors + 1e-4)
        entropy = -scipy.special.xlogy(mass, mass / (z[1, 1] - z[0, 1]) ** 2).sum()
        log_p = np.float64(log_probs(spec, state, sampled))
        assert abs(-log_p.mean() - entropy) < 5 * log_p.std() / math.sqrt(n) + 1e-4

    def test_components_are_drawn_by_their_weights(self):
        spec = SPECS["mixture"]
        means = jnp.float32([[-100, 0], [0, 100], [100, 0]])
        weights = np.array([0.2, 0.5, 0.3])
        mixture = {"means": means, "logvars": jnp.zeros((3, 2)), "weights": jnp.log(weights)}
        z = np.asarray(draws(spec, {"mixture": jax.tree.map(jnp.float32, mixture)}, 20_000))
        nearest = np.abs(z[:, None] - np.asarray(means)[None]).sum(2).argmin(1)
        counts = np.bincount(nearest, minlength=3)
        assert scipy.stats.chisquare(counts, 20_000 * weights).pvalue > 1e-4

    @pytest.mark.parametrize("name", PRIORS)
    def test_the_model_draws_from_its_prior(self, name):
        spec = SPECS[name]
        params, stats = parameters(spec)
        rng = jax.random.key(7)
        z = model.sample_prior(spec, params, stats, HParams(), rng)
        expected = PRIORS[name].sample(spec, state_of(spec, np.float32), rng)
        np.testing.assert_allclose(z, expected, rtol=1e-5, atol=1e-6)


class TestStart:
    def start(self, name, inputs=None):
        init = jax.jit(model.init, static_argnums=0, compiler_options=COMPILE_FAST)
        return init(SPECS[name], HParams(), jax.random.key(0), jnp.zeros(4), inputs)

    def test_the_mixture(self):
        spec = dataclasses.replace(SPECS["mixture"], prior_components=4000)
        params, stats = PRIORS["mixture"].init(spec, jax.random.key(0), None)
        mixture = params["mixture"]
        assert stats == {}
        means = np.float64(mixture["means"])
        assert means.shape == (4000, 2)
        assert np.all(np.abs(means.mean(0)) < 5 / math.sqrt(4000))
        assert np.all(np.abs(means.var(0) - 1) < 5 * math.sqrt(2 / 4000))
        assert np.all(mixture["logvars"] == 0) and np.all(mixture["weights"] == 0)

    def test_the_pseudo_inputs_are_those_given(self):
        inputs = jnp.arange(12, dtype=jnp.float32).reshape(3, 4)
        params, _ = self.start("vamp", inputs)
        np.testing.assert_array_equal(params["prior"]["pseudo_inputs"]["inputs"], inputs)

    def test_the_networks_start_the_same_with_any_prior(self):
        inputs = jnp.zeros((3, 4))
        # Of a hierarchy the decoder reads one layer of z, and so has another shape.
        flat = [name for name in PRIORS if name != "hierarchical"]
        starts = {name: self.start(name, inputs)[0] for name in flat}
        for name, params in starts.items():
            assert ("prior" in params) == (name != "standard")
            for part in ("encoder", "decoder"):
                jax.tree.map(np.testing.assert_array_equal, params[part], starts["standard"][part])


class TestTerms:
    @pytest.mark.parametrize("name", PRIORS)
    def test_the_rate_is_to_this_prior(self, name):
        # BatchNorm between the layers makes of the density of z that of a batch, in training.
        norm = "layer" if name == "hierarchical" else "batch"
        spec = dataclasses.replace(SPECS[name], norm=norm)
        params, stats = parameters(spec)
        rng = np.random.default_rng(0)
        x, noise = jnp.float32(rng.uniform(size=(5, 4))), jnp.float32(rng.normal(size=(5, 3, 2)))
        one = functools.partial(elbo.terms, spec, params, stats, HParams(), train=True)
        batch = jax.vmap(one, axis_name="batch", out_axes=(0, None))
        terms, _ = jax.jit(batch, compiler_options=COMPILE_FAST)(x, noise)
        # Pseudo-inputs are no part of the batch: their posteriors come from running statistics.
        state = model.prior_state(spec, params, stats, HParams())
        expected = log_probs(spec, state, terms.z.reshape(-1, 2)).reshape(5, 3)
        np.testing.assert_allclose(terms.log_pz, expected, rtol=1e-5)
        if name == "standard":
            assert terms.kl.shape == (5, 2)
        else:
            sampled = (terms.log_qz - terms.log_pz).mean(1)
            np.testing.assert_allclose(terms.kl.sum(1), sampled, rtol=1e-5, atol=1e-6)
            assert terms.kl.shape == (5, 2 if name == "hierarchical" else 1)


class TestPseudoInputs:
    """VampPrior with posteriors that are known: an encoder without a hidden layer."""

    SPEC = ModelSpec((4,), 2, depth=0, prior="vamp", prior_components=3)

    @staticmethod
    def explicit(params, inputs, z):
        """log 1/C Σ_c N(z | u_c K + k, exp(u_c S + s)), in jax.numpy, from the weights."""
        mean, scale = params["encoder"]["mean"], params["encoder"]["scale"]
        means = inputs @ mean["kernel"] + mean["bias"][None]
        logvars = inputs @ scale["kernel"] + scale["bias"][None]
        squared = jnp.square(z[None] - means) / jnp.exp(logvars)
        each = -0.5 * jnp.sum(squared + logvars + math.log(2 * math.pi), axis=1)
        return jnp.log(jnp.mean(jnp.exp(each)))

    def test_known_components(self, x64):
        params, stats = parameters(self.SPEC, dtype=np.float64)
        inputs = params["prior"]["pseudo_inputs"]["inputs"]
        state = model.prior_state(self.SPEC, params, stats, HParams())
        z = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2)))
        actual = log_probs(self.SPEC, state, z)
        expected = jax.vmap(lambda z: self.explicit(params, inputs, z))(z)
        np.testing.assert_allclose(actual, expected, rtol=1e-12)
        # By SciPy as well, of one.
        mean, scale = (jax.tree.map(np.asarray, params["encoder"][n]) for n in ("mean", "scale"))
        u = np.asarray(inputs)
        std = np.exp(0.5 * (u @ scale["kernel"] + scale["bias"]))
        each = scipy.stats.norm.logpdf(z[0], u @ mean["kernel"] + mean["bias"], std).sum(1)
        assert float(actual[0]) == pytest.approx(scipy.special.logsumexp(each) - np.log(3))

    def test_gradients_reach_the_inputs_and_the_encoder(self, x64):
        params, stats = parameters(self.SPEC, dtype=np.float64)
        z = jnp.asarray([0.3, -0.8])

        def log_p(params):
            state = model.prior_state(self.SPEC, params, stats, HParams())
            return PRIORS["vamp"].log_prob(self.SPEC, state, z)

        def expected(params):
            return self.explicit(params, params["prior"]["pseudo_inputs"]["inputs"], z)

        ours, theirs = jax.grad(log_p)(params), jax.grad(expected)(params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), ours, theirs
        )
        assert all(np.all(np.abs(a) > 1e-6) for a in jax.tree.leaves(ours["prior"]))
        assert all(np.any(np.abs(a) > 1e-6) for a in jax.tree.leaves(ours["encoder"]))

    @pytest.mark.parametrize("scale", ["logvar", "softplus", "floored"])
    def test_all_examples_as_inputs_are_the_aggregate_posterior(self, scale, x64):
        # p(z) = 1/N Σ_n q(z|x_n), so that E_x KL(q(z|x) || p(z)) is the mutual information of the
        # data and z, which is at most ln N.
        n = 6
        spec = dataclasses.replace(
            self.SPEC, depth=1, width=5, prior_components=n, posterior_scale=scale
        )
        x = jnp.asarray(np.random.default_rng(1).normal(size=(n, 4)))
        params, stats = parameters(spec, dtype=np.float64)
        params["prior"]["pseudo_inputs"]["inputs"] = x
        numbers = HParams(rate_floor=0.3)
        state = model.prior_state(spec, params, stats, numbers)
        z = jnp.asarray(np.random.default_rng(0).normal(size=(9, 2)))
        q, _ = jax.vmap(lambda x: model.encode(spec, params, stats, numbers, x, False))(x)
        each = scipy.stats.norm.logpdf(
            np.asarray(z)[:, None], np.asarray(q.mean), np.exp(0.5 * np.asarray(q.logvar))
        ).sum(2)
        expected = scipy.special.logsumexp(each, axis=1) - np.log(n)
        np.testing.assert_allclose(log_probs(spec, state, z), expected, rtol=1e-12)
        noise = jnp.asarray(np.random.default_rng(2).normal(size=(n, 2000, 2)))
        one = functools.partial(elbo.terms, spec, params, stats, numbers, train=False)
        kl = np.asarray(jax.jit(jax.vmap(lambda x, e: one(x, e)[0].kl))(x, noise))
        error = 3 * np.log(n) / math.sqrt(kl.size * 2000)
        assert -error < kl.mean() < np.log(n) + error
