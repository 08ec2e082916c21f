"""Several stochastic layers, against NumPy, linear-Gaussian hierarchies and the plain VAE."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.test_util import check_grads

from tests.vae.building import COMPILE_FAST, examples, hand_made, parameters, population
from tests.vae.estimating import SIGMA, X, estimates, model_spec, standard_errors, standard_noise
from vae import elbo, evaluate, gallery, hierarchy, layers, model, objectives, train
from vae.hparams import HParams
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

POSTERIOR = ("hierarchical", "ladder")
DIMS = (3, 2, 2)


def spec_of(posterior, dims=DIMS, **changes):
    """Layers of z with networks of one layer of 5 and 4 tanh units between them."""
    shape = {"depth": 1, "width": 6, "activation": "tanh", "likelihood": "gaussian"}
    shape |= {"stochastic_depth": 1, "stochastic_width": (5, 4, 4)[: len(dims) - 1]}
    fields = {**shape, "posterior": posterior, "prior": "hierarchical", **changes}
    return ModelSpec((4,), sum(dims), stochastic=dims, **fields)


def data_of(spec, batch=5, samples=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, 4)), rng.normal(size=(batch, samples, spec.latent_dim))


@functools.partial(jax.jit, static_argnames=("spec", "train"), compiler_options=COMPILE_FAST)
def terms_of(spec, params, stats, x, noise, train=False):
    """(terms, new statistics) of a batch x [B, *x] with noise [B, K, d]."""
    one = functools.partial(elbo.terms, spec, params, stats, HParams(sigma=SIGMA), train=train)
    return jax.vmap(one, axis_name="batch", out_axes=(0, None))(x, noise)


@functools.partial(jax.jit, static_argnums=0, compiler_options=COMPILE_FAST)
def start(spec, gain=1.0):
    """(params, stats) as training starts from them."""
    return model.init(spec, HParams(init_gain=gain), jax.random.key(0), jnp.zeros(4))


# The same in NumPy.


def dense(layer, h):
    return h @ layer["kernel"] + layer["bias"]


def hidden(layer, h):
    """tanh(norm(Wh + b)); BatchNorm over all axes but the last, ε = 1e-5."""
    u = dense(layer["dense"], h)
    if "norm" in layer:
        axes = tuple(range(u.ndim - 1))
        u = (u - u.mean(axes)) / np.sqrt(u.var(axes) + 1e-5)
        u = u * layer["norm"]["batch"]["scale"] + layer["norm"]["batch"]["bias"]
    return np.tanh(u)


def conditional(net, z):
    h = hidden(net["layer_0"], z)
    return dense(net["mean"], h), dense(net["scale"], h)


def reference(spec, params, x, noise):
    """(z, log q, log p) of each dimension, all [B, K, d]; scales are log σ²."""
    params = jax.tree.map(np.float64, params)
    ends = np.cumsum(spec.latent_dims)
    noise = np.split(noise, ends[:-1], axis=-1)
    top = len(spec.latent_dims)
    h = hidden(params["encoder"]["layer_0"], x)[:, None]
    z, q = {}, {}
    if spec.posterior == "hierarchical":
        for layer in range(1, top + 1):
            if layer == 1:
                q[1] = tuple(dense(params["encoder"][name], h) for name in ("mean", "scale"))
            else:
                q[layer] = conditional(params["posterior"][f"z_{layer}"], z[layer - 1])
            z[layer] = q[layer][0] + np.exp(q[layer][1] / 2) * noise[layer - 1]
    else:
        seen = {}
        for layer in range(1, top + 1):
            if layer > 1:
                h = hidden(params["encoder"][f"layer_{layer - 1}"], h[:, 0])[:, None]
            end = f"_{layer}" if layer > 1 else ""
            seen[layer] = tuple(dense(params["encoder"][n + end], h) for n in ("mean", "scale"))
        for layer in range(top, 0, -1):
            q[layer] = seen[layer]
            if layer < top:
                mean, logvar = conditional(params["prior"][f"z_{layer}"], z[layer + 1])
                a, b = np.exp(-seen[layer][1]), np.exp(-logvar)
                q[layer] = (seen[layer][0] * a + mean * b) / (a + b), -np.log(a + b)
            z[layer] = q[layer][0] + np.exp(q[layer][1] / 2) * noise[layer - 1]
    p = {top: (np.zeros_like(z[top]), np.zeros_like(z[top]))}
    p |= {i: conditional(params["prior"][f"z_{i}"], z[i + 1]) for i in range(1, top)}

    def densities(of):
        each = [scipy.stats.norm.logpdf(z[i], of[i][0], np.exp(of[i][1] / 2)) for i in sorted(of)]
        return np.concatenate(each, axis=-1)

    return np.concatenate([z[i] for i in sorted(z)], axis=-1), densities(q), densities(p)


class TestFormulas:
    @pytest.mark.parametrize("norm", ["none", "batch"])
    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_the_terms_are_those_of_numpy(self, posterior, norm):
        # Flax's BatchNorm is float32, and takes the square of a mean from a mean of squares: a
        # digit or two are lost of seven.
        dtype, tolerance = (np.float32, 2e-5) if norm == "batch" else (np.float64, 1e-10)
        with jax.enable_x64(dtype == np.float64):
            spec = spec_of(posterior, norm=norm)
            params, stats = parameters(spec, dtype=dtype)
            x, noise = data_of(spec)
            terms, _ = terms_of(spec, params, stats, dtype(x), dtype(noise), train=True)
            rate = jax.vmap(objectives.metrics)(terms)["rate"]
        z, log_q, log_p = reference(spec, params, x, noise)
        close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
        close(terms.z, z)
        close(terms.log_qz, log_q.sum(-1))
        close(terms.log_pz, log_p.sum(-1))
        close(terms.kl, (log_q - log_p).mean(1))
        # Of each layer and of each dimension, it adds up to the rate.
        close(rate, (log_q - log_p).sum(-1).mean(1))
        parts = [part.sum(1) for part in np.split(np.asarray(terms.kl), (3, 5), axis=1)]
        close(rate, sum(parts))
        assert all(np.std(part) > 0.01 for part in parts)
        # The decoder reads z_1.
        decoder = jax.tree.map(np.float64, params["decoder"])
        decoded = dense(decoder["output"], hidden(decoder["layer_0"], z[..., :3]))
        close(terms.log_px, scipy.stats.norm.logpdf(x[:, None], decoded, SIGMA).sum(-1))

    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_eleven_layers_are_in_order_of_depth_not_of_spelling(self, posterior, x64):
        spec = spec_of(posterior, dims=(1,) * 11, stochastic_width=3)
        params, stats = parameters(spec, dtype=np.float64)
        x, noise = data_of(spec)
        terms, _ = terms_of(spec, params, stats, x, noise)
        z, log_q, log_p = reference(spec, params, x, noise)
        np.testing.assert_allclose(terms.z, z, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(terms.kl, (log_q - log_p).mean(1), rtol=1e-9, atol=1e-10)
        names = layers.layer_names(params)
        down = [f"prior/z_{i}" for i in range(10, 0, -1)]
        assert [name for name in names if name.startswith("prior")] == down
        if posterior == "hierarchical":
            up = [f"posterior/z_{i}" for i in range(2, 12)]
            assert [name for name in names if name.startswith("posterior")] == up
        else:
            rungs = [f"encoder/{n}_{i}" for i in range(2, 12) for n in ("mean", "scale")]
            trunk = [f"encoder/layer_{i}" for i in range(11)]
            own = [name for name in names if name.startswith("encoder")]
            assert own == [*trunk, "encoder/mean", "encoder/scale", *rungs]

    def test_precisions_add_up(self):
        wide, narrow = (hierarchy.Gaussian(jnp.ones(1), jnp.array([v])) for v in (80.0, -80.0))
        # e^80 is all that float32 has room for: of two far apart the narrow one is left.
        both = hierarchy.combined(wide, narrow)
        np.testing.assert_allclose(both.logvar, [-80.0])
        np.testing.assert_allclose(both.mean, [1.0])
        equal = hierarchy.combined(wide, wide)
        np.testing.assert_allclose(equal.logvar, [80 - np.log(2)], rtol=1e-6)

    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_one_layer_is_the_gaussian(self, posterior, x64):
        spec = spec_of(posterior, dims=(3,))
        plain = dataclasses.replace(spec, posterior="gaussian", prior="standard", stochastic=())
        params, stats = parameters(spec, dtype=np.float64)
        assert jax.tree.structure(params) == jax.tree.structure(parameters(plain)[0])
        x, noise = data_of(spec)
        terms, _ = terms_of(spec, params, stats, x, noise)
        expected, _ = terms_of(plain, params, stats, x, noise)
        for name in ("log_px", "log_pz", "log_qz", "z"):
            same = getattr(terms, name), getattr(expected, name)
            np.testing.assert_allclose(*same, rtol=1e-13, err_msg=name)
        # They start alike too.
        jax.tree.map(np.testing.assert_array_equal, start(spec)[0], start(plain)[0])


class TestLinear:
    """z_2 ~ N(0, I), z_1 ~ N(Az_2 + a, S), x ~ N(Wz_1 + w, σ²I): log p(x) is known."""

    @staticmethod
    def spec(posterior):
        return spec_of(posterior, dims=(2, 2), depth=0, stochastic_depth=0, stochastic_width=1)

    def params(self, posterior, diagonal):
        """Arbitrary, with constant variances; or with q(z|x) the exact posterior, W'W diagonal."""
        spec = self.spec(posterior)
        params = jax.tree.map(np.array, parameters(spec, dtype=np.float64)[0])
        for net in (params["encoder"], *(params.get("posterior", {}).values())):
            for name in [n for n in net if n.startswith("scale")]:
                net[name]["kernel"][...] = 0
        down, output = params["prior"]["z_1"], params["decoder"]["output"]
        down["scale"]["kernel"][...] = 0
        if not diagonal:
            return params
        rng = np.random.default_rng(3)
        a, s = np.array([0.9, -1.4]), np.array([0.5, 1.2])
        length = np.array([1.3, 0.6])
        w = np.linalg.qr(rng.normal(size=(4, 2)))[0] * length  # orthogonal columns
        down["mean"]["kernel"][...] = np.diag(a)
        down["scale"]["bias"][...] = np.log(s)
        output["kernel"][...] = w.T
        shift, offset = down["mean"]["bias"], output["bias"]
        # What x says of z_1: N(z_1; W'(x − w)/|W_j|², σ²/|W_j|²).
        says, width = w / length**2, SIGMA**2 / length**2
        encoder = params["encoder"]

        def linear(head, matrix, bias):
            head["kernel"][...] = matrix
            head["bias"][...] = bias

        prior = a**2 + s  # of z_1
        if posterior == "hierarchical":
            variance = 1 / (1 / prior + 1 / width)
            gain = variance / width
            linear(encoder["mean"], says * gain, -offset @ says * gain + shift * (variance / prior))
            encoder["scale"]["bias"][...] = np.log(variance)
            up = params["posterior"]["z_2"]
            linear(up["mean"], np.diag(a / prior), -shift * a / prior)
            up["scale"]["bias"][...] = np.log(s / prior)
        else:
            linear(encoder["mean"], says, -offset @ says)
            encoder["scale"]["bias"][...] = np.log(width)
            gain = a / (prior + width)
            linear(encoder["mean_2"], says * gain, -(offset @ says + shift) * gain)
            encoder["scale_2"]["bias"][...] = np.log((s + width) / (prior + width))
        return params

    def marginal(self, params, x):
        """log p(x), [B]; and the joint posterior of (z_1, z_2): (means [B, 4], covariance)."""
        down, output = params["prior"]["z_1"], params["decoder"]["output"]
        a, s = down["mean"]["kernel"].T, np.diag(np.exp(down["scale"]["bias"]))
        w, shift, offset = output["kernel"].T, down["mean"]["bias"], output["bias"]
        first = a @ a.T + s
        joint = np.block([[first, a], [a.T, np.eye(2)]])
        read = np.hstack([w, np.zeros((4, 2))])
        covariance = read @ joint @ read.T + SIGMA**2 * np.eye(4)
        residual = x - (w @ shift + offset)
        log_p = scipy.stats.multivariate_normal(np.zeros(4), covariance).logpdf(residual)
        gain = joint @ read.T @ np.linalg.inv(covariance)
        mean = np.append(shift, np.zeros(2)) + residual @ gain.T
        return log_p, mean, joint - gain @ read @ joint

    def log_weights(self, posterior, params, x, noise):
        spec = self.spec(posterior)
        params = jax.tree.map(jnp.asarray, params)
        noise = np.broadcast_to(noise, (len(x), *noise.shape))
        terms, _ = terms_of(spec, params, {}, jnp.asarray(x), jnp.asarray(noise))
        return terms, np.asarray(terms.log_px + terms.log_pz - terms.log_qz)

    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_with_the_exact_posterior_every_weight_is_the_evidence(self, posterior, x64):
        params, (x, _) = self.params(posterior, True), data_of(self.spec(posterior))
        log_p, mean, covariance = self.marginal(params, x)
        terms, log_w = self.log_weights(
            posterior, params, x, np.random.default_rng(1).normal(size=(50, 4))
        )
        np.testing.assert_allclose(log_w, np.repeat(log_p[:, None], 50, 1), rtol=1e-10)
        # Its samples have the posterior's moments: linear in the noise, so by sums of squares.
        still, _ = self.log_weights(posterior, params, x, np.zeros((1, 4)))
        moved, _ = self.log_weights(posterior, params, x, np.eye(4))
        np.testing.assert_allclose(still.z[:, 0], mean, rtol=1e-9)
        root = np.asarray(moved.z - still.z)[0]
        np.testing.assert_allclose(root.T @ root, covariance, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_the_bound_is_below_the_evidence_and_tends_to_it(self, posterior, x64):
        params, (x, _) = self.params(posterior, False), data_of(self.spec(posterior))
        log_p, mean, covariance = self.marginal(params, x)
        # The ELBO by quadrature exact for quadratics: log w is one in the noise, as all variances
        # are constants. ELBO = log p(x) − KL(q || posterior), both Gaussians.
        root = 2 * np.concatenate([np.eye(4), -np.eye(4)])
        terms, log_w = self.log_weights(posterior, params, x, root)
        bound = log_w.mean(1)
        still, _ = self.log_weights(posterior, params, x, np.zeros((1, 4)))
        factor = (np.asarray(terms.z) - np.asarray(still.z))[0] / 2
        own = factor[:4].T @ factor[:4]
        gap = np.asarray(still.z)[:, 0] - mean
        inverse = np.linalg.inv(covariance)
        logs = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(own)[1]
        kl = 0.5 * (
            np.trace(inverse @ own) - 4 + logs + np.einsum("bi,ij,bj->b", gap, inverse, gap)
        )
        np.testing.assert_allclose(bound, log_p - kl, rtol=1e-9)
        assert np.all(kl > 0.01)
        # L_K from 20,000 weights in blocks of K: it rises, and the mean weight is p(x).
        noise = np.random.default_rng(5).normal(size=(20_000, 4))
        _, log_w = self.log_weights(posterior, params, x, noise)
        bounds = [
            np.mean(scipy.special.logsumexp(log_w.reshape(5, -1, k), axis=2) - np.log(k), axis=1)
            for k in (1, 10, 100, 20_000)
        ]
        assert np.all(np.diff(bounds, axis=0) > 0)
        weights = np.exp(log_w - log_p[:, None])
        error = weights.std(1) / np.sqrt(weights.shape[1])
        assert np.all(np.abs(weights.mean(1) - 1) < 5 * error) and np.all(error < 0.2)


class TestGradients:
    @pytest.mark.sampled
    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_values_agree_and_gradients_add_up(self, posterior, x64):
        # d log q(z(φ); φ) = ∂_z log q · dz/dφ + ∂_φ log q, φ the prior's too where q is made of it.
        spec = spec_of(posterior)
        params, stats = parameters(spec, dtype=np.float64)
        x, noise = (jnp.asarray(a[0]) for a in data_of(spec, batch=1))

        @functools.partial(jax.jit, static_argnums=0, compiler_options=COMPILE_FAST)
        def of(mode, params):
            def value(params):
                terms, _ = elbo.terms(
                    spec, params, stats, HParams(), x, noise, False, path=elbo.Path(mode)
                )
                return terms.log_qz[0]

            return jax.value_and_grad(value)(params)

        found = {mode: of(mode, params) for mode in ("total", "path", "score")}
        values = [value for value, _ in found.values()]
        np.testing.assert_allclose(values, values[0], rtol=1e-10)
        total, path, score = (grads for _, grads in found.values())
        jax.tree.map(
            lambda t, p, s: np.testing.assert_allclose(t, p + s, rtol=1e-8, atol=1e-10),
            total,
            path,
            score,
        )
        part = POSTERIORS[posterior].nets
        for grads in (total, path, score):
            assert max(np.abs(a).max() for a in jax.tree.leaves(grads[part])) > 0.05

    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_they_are_those_of_finite_differences(self, posterior, x64):
        spec = spec_of(posterior, dims=(2, 1), posterior_scale="softplus")
        params, stats = parameters(spec, dtype=np.float64)
        x, noise = (jnp.asarray(a[0]) for a in data_of(spec, batch=1))

        @jax.jit
        def bound(params):
            terms, _ = elbo.terms(spec, params, stats, HParams(), x, noise, False)
            return objectives.metrics(terms)["elbo"]

        check_grads(bound, (params,), order=1, modes=["rev"], rtol=1e-6)


@functools.cache
def of_bound(name, posterior, estimators):
    spec = model_spec(posterior, prior="hierarchical")
    return estimates(name, standard_noise(spec), spec=spec, estimators=estimators)


class TestEstimators:
    """As in tests/vae/test_estimators.py: unbiased, by the same noise."""

    @pytest.mark.sampled
    @pytest.mark.parametrize("name", ["iwae", "elbo"])
    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_unbiased(self, name, posterior, x64):
        everything = ("reparameterization", "stl", "dreg", "gdreg", "score")
        found = of_bound(name, posterior, everything)
        plain = found["reparameterization"]
        for estimator in everything[1:]:
            np.testing.assert_allclose(found[estimator].loss, plain.loss, rtol=1e-10)
            for part in ("encoder", "prior"):
                difference = getattr(found[estimator], part) - getattr(plain, part)
                # Of the decoder's half of a flat posterior none is moved; of a ladder's all are.
                moves = difference.std(axis=0) > 1e-12
                errors = standard_errors(difference[:, moves]) if moves.any() else np.zeros(1)
                if estimator == "stl" and name == "iwae" and part == "encoder":
                    assert np.max(np.abs(errors)) > 6
                elif estimator != "stl" or name == "elbo":
                    # Of some 200 normal numbers the largest passes 4.5 with a probability of 0.1%.
                    assert np.max(np.abs(errors)) < 4.5, (estimator, part)
            np.testing.assert_allclose(found[estimator].decoder, plain.decoder, atol=1e-9)
        # There are gradients, and gdreg has the prior's by another way.
        for part in ("encoder", "prior"):
            values = getattr(plain, part)
            assert np.max(np.abs(standard_errors(values[:, values.std(axis=0) > 1e-12]))) > 30
        if name == "iwae":
            moved = found["gdreg"].prior - found["dreg"].prior
            assert moved.std() > 0.05 * plain.prior.std()

    @pytest.mark.sampled
    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_the_value_is_the_bound(self, posterior, x64):
        spec = model_spec(posterior, prior="hierarchical")
        params = parameters(spec, dtype=np.float64)[0]
        noise = standard_noise(spec)[:50]
        terms, _ = terms_of(spec, params, {}, np.repeat(X[None], 50, 0), noise)
        log_w = np.asarray(terms.log_px + terms.log_pz - terms.log_qz)
        expected = scipy.special.logsumexp(log_w, axis=1) - np.log(log_w.shape[1])
        found = of_bound("iwae", posterior, ("reparameterization", "stl", "dreg", "gdreg", "score"))
        np.testing.assert_allclose(-found["score"].loss[:50], expected, rtol=1e-10)


class TestBatchNorm:
    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_running_statistics_are_those_of_what_the_networks_read(self, posterior):
        spec = spec_of(posterior, norm="batch")
        params, stats = parameters(spec)
        x, noise = (np.float32(a) for a in data_of(spec))
        terms, new = terms_of(spec, params, stats, x, noise, train=True)
        assert jax.tree.structure(new) == jax.tree.structure(stats)
        assert ("posterior" in stats) == (posterior == "hierarchical")
        z = np.split(np.asarray(terms.z), (3, 5), axis=-1)
        sources = {("prior", "z_1"): z[1], ("prior", "z_2"): z[2]}
        if posterior == "hierarchical":
            sources |= {("posterior", "z_2"): z[0], ("posterior", "z_3"): z[1]}
        for (part, name), source in sources.items():
            u = dense(jax.tree.map(np.float64, params[part][name]["layer_0"]["dense"]), source)
            found = new[part][name]["layer_0"]["norm"]["batch"]
            np.testing.assert_allclose(found["mean"], 0.1 * u.mean((0, 1)), rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found["var"], 0.9 + 0.1 * u.var((0, 1)), rtol=1e-5)
        # In evaluation they stand still, and no example sees another.
        first, same = terms_of(spec, params, new, x, noise)
        jax.tree.map(np.testing.assert_array_equal, same, new)
        alone, _ = terms_of(spec, params, new, x[:1], noise[:1])
        np.testing.assert_allclose(first.log_qz[:1], alone.log_qz, rtol=1e-5)


class TestStart:
    def test_shapes_and_gain(self):
        spec = spec_of("hierarchical", stochastic_depth=2, norm="batch")
        params, stats = start(spec)
        kernels = {
            (part, name): [layer["dense"]["kernel"].shape for layer in (n["layer_0"], n["layer_1"])]
            + [n["mean"]["kernel"].shape, n["scale"]["kernel"].shape]
            for part in ("posterior", "prior")
            for name, n in params[part].items()
        }
        assert kernels == {
            ("posterior", "z_2"): [(3, 5), (5, 5), (5, 2), (5, 2)],
            ("posterior", "z_3"): [(2, 4), (4, 4), (4, 2), (4, 2)],
            ("prior", "z_1"): [(2, 5), (5, 5), (5, 3), (5, 3)],
            ("prior", "z_2"): [(2, 4), (4, 4), (4, 2), (4, 2)],
        }
        assert set(stats["prior"]) == {"z_1", "z_2"}
        doubled, _ = start(spec, 2.0)
        for part in ("posterior", "prior", "encoder", "decoder"):
            leaves = zip(
                jax.tree_util.tree_leaves_with_path(doubled[part]),
                jax.tree.leaves(params[part]),
                strict=True,
            )
            for (path, new), old in leaves:
                np.testing.assert_array_equal(new, (2 if path[-1].key == "kernel" else 1) * old)

    def test_networks_of_one_shape_start_apart(self):
        spec = spec_of("hierarchical", dims=(2, 2, 2, 2), stochastic_width=3)
        params, _ = start(spec)
        nets = [*params["posterior"].values(), *params["prior"].values()]
        kernels = np.stack([net["mean"]["kernel"] for net in nets])
        assert len(np.unique(kernels)) == kernels.size == 36

    def test_a_spec_whose_layers_do_not_add_up(self):
        with pytest.raises(ValueError, match="stochastic"):
            ModelSpec((4,), 5, stochastic=(3, 1))


@pytest.mark.parametrize("posterior", POSTERIOR)
def test_the_prior_is_drawn_from_the_top_down(posterior, x64):
    spec = spec_of(posterior)
    params, stats = parameters(spec, dtype=np.float64)
    nets = model.prior_state(spec, params, stats, HParams())
    noise = np.random.default_rng(2).normal(size=7)
    z = np.asarray(hierarchy.descend(spec, nets, jnp.asarray(noise)))
    own, net = jax.tree.map(np.float64, params["prior"]), {}
    net[3] = noise[5:]
    for layer, at in ((2, slice(3, 5)), (1, slice(0, 3))):
        mean, logvar = conditional(own[f"z_{layer}"], net[layer + 1])
        net[layer] = mean + np.exp(logvar / 2) * noise[at]
    np.testing.assert_allclose(z, np.concatenate([net[1], net[2], net[3]]), rtol=1e-10)
    # What gives z a gradient in the prior's parameters leaves it as it is.
    np.testing.assert_allclose(hierarchy.moved_prior(spec, nets, jnp.asarray(z)), z, rtol=1e-10)


class TestEvaluation:
    @pytest.mark.parametrize("posterior", POSTERIOR)
    def test_the_parts_of_the_layers_add_up(self, posterior):
        spec = spec_of(posterior)
        params, stats = parameters(spec)
        pop, data = hand_made(Spec(spec), params, stats), examples(40, 4)
        test = jnp.int32(evaluate.SPLITS["test"])
        found = evaluate.evaluate(spec, "vmap", 4, 16, pop, data, test)
        names = [f"z{i}" for i in (1, 2, 3)]
        assert {n for n in found if "_z" in n} == {
            f"{kind}_{name}" for kind in ("rate", "active_units") for name in names
        }
        kl = np.asarray(found["kl_per_dim"][0])
        assert kl.shape == (7,)
        for name, part in zip(names, np.split(kl, (3, 5)), strict=True):
            assert float(found[f"rate_{name}"][0]) == pytest.approx(part.sum(), rel=1e-5)
        parts = sum(float(found[f"rate_{name}"][0]) for name in names)
        assert float(found["rate"][0]) == pytest.approx(parts, rel=1e-5)
        # Active units: of the z without noise, by the layers that they are in.
        zero = np.zeros((40, 1, 7), np.float32)
        z, *_ = reference(spec, params, np.float64(data.raw), zero)
        active = z[:, 0].var(0) > 0.01
        expected = [int(part.sum()) for part in np.split(active, (3, 5))]
        assert [int(found[f"active_units_{name}"][0]) for name in names] == expected
        assert int(found["active_units"][0]) == sum(expected)

    def test_a_traversal_goes_from_the_top_down(self):
        spec = spec_of("ladder")
        params, stats = parameters(spec)
        pop, data = hand_made(Spec(spec), params, stats, seed=3), examples(20, 4)
        kl = jnp.arange(7, dtype=jnp.float32)[None]
        pictures = gallery.gallery(spec, "vmap", pop, data, kl)
        pictures = jax.tree.map(lambda a: np.asarray(a[0]), pictures)
        assert pictures["traversal_dims"].tolist() == [6, 5, 4, 3, 2, 1, 0]
        # Each dimension, of the top layer too, changes the picture.
        assert np.all(np.ptp(pictures["traversals"], axis=1).max(axis=1) > 1e-3)
        nets = model.prior_state(spec, params, stats, HParams())
        noise = np.zeros(7, np.float32)
        noise[6] = 3
        z = hierarchy.descend(spec, nets, jnp.asarray(noise))
        decoder = jax.tree.map(np.float64, params["decoder"])
        expected = dense(decoder["output"], hidden(decoder["layer_0"], np.float64(z[:3])))
        np.testing.assert_allclose(pictures["traversals"][0, -1], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("posterior", POSTERIOR)
def test_a_run_of_a_population_is_as_alone(posterior):
    spec = Spec(
        spec_of(posterior, dims=(2, 1), norm="batch"),
        ObjectiveSpec("elbo", beta_schedule="linear", samples=2, num_examples=29),
        OptimizerSpec("sgd"),
        batch_size=8,
    )
    runs = [
        HParams(seed=seed, learning_rate=1e-3, beta_warmup_steps=5.0, free_bits=bits)
        for seed, bits in ((0, 0.0), (5, 0.1))
    ]
    data = examples(29, 4)
    together = train.train_chunk(spec, "vmap", population(spec, runs), data, jnp.int32(5))
    assert not np.any(together.states.diverged)
    alone = [
        train.train_chunk(spec, "vmap", population(spec, [run]), data, jnp.int32(5)) for run in runs
    ]
    for i, one in enumerate(alone):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b[0], rtol=2e-4, atol=2e-6),
            (together.states.params, together.states.stats),
            (one.states.params, one.states.stats),
        )
    first, second = (jax.tree.leaves(one.states.params) for one in alone)
    assert any(np.any(a != b) for a, b in zip(first, second, strict=True))
