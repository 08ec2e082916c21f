"""Estimators of gradients: of linear-Gaussian VAEs, where every density is known.

In float64, and each sample with the same noise for every estimator, so that they differ by what the
estimators are and by nothing else.
"""

import functools
import itertools
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae.building import parameters
from vae import model, objectives, train
from vae.data import Transform
from vae.hparams import HParams, stack
from vae.loss import batch_loss, hold
from vae.model import Path
from vae.posteriors import POSTERIORS
from vae.spec import ModelSpec, ObjectiveSpec, Spec

BOUNDS = ("elbo", "iwae", "miwae", "ciwae", "renyi", "piwae")
ESTIMATORS = ("reparameterization", "stl", "dreg", "score")
UNBIASED = ("reparameterization", "dreg", "score")
FAMILIES = ("gaussian", "full", "low_rank", "coupling")
X = np.array([0.8, -1.3, 0.4])
ALPHA, CIWAE_BETA, SIGMA = 0.3, 0.4, 0.9
# Of every test that can: one program for each bound is compiled, and run with other numbers.
DRAWS, SAMPLES = 30_000, 4


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        yield


def model_spec(posterior="gaussian", values=3, latents=2):
    return ModelSpec(
        (values,),
        latents,
        depth=0,
        likelihood="gaussian",
        posterior=posterior,
        posterior_rank=1,
        flow_layers=2,
        flow_width=3,
    )


def hand_params(spec, seed=0):
    return parameters(spec, seed, np.float64)[0]


@functools.cache
def standard_noise(spec, draws=DRAWS, samples=SAMPLES):
    size = POSTERIORS[spec.posterior].noise_size(spec)
    return np.random.default_rng(samples).normal(size=(draws, samples, size))


def groups_of(name):
    return 2 if name in ("miwae", "piwae") else 1


@functools.cache
def program(spec, name, samples, estimators):
    """(params, hparams, beta, x, noise [n, K, size]) -> {estimator: (loss, metrics, gradients)}."""
    groups, rng = groups_of(name), jax.random.key(0)

    def one(estimator, params, hparams, beta, x, noise):
        objective = ObjectiveSpec(
            name, estimator, samples=samples // groups, groups=groups, kl="sampled"
        )

        def loss(params):
            context = objectives.Context(
                spec=Spec(spec, objective),
                hparams=hparams,
                beta=beta,
                step=jnp.int32(0),
                x=x,
                rng=rng,
                step_rng=rng,
                params=params,
                stats={},
                decode=lambda z: z,
            )

            def terms_of(path, held):
                kept, stats = hold(params, held), {"encoder": {}, "decoder": {}}
                return model.terms(spec, kept, stats, hparams, x, noise, True, path=path)

            value, metrics, *_ = objectives.example_loss(context, terms_of)
            return value, metrics

        (value, metrics), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return value, metrics, gradient

    def each(estimator, *args):
        axes = (None, None, None, None, 0)
        return jax.vmap(functools.partial(one, estimator), axes, axis_name="batch")(*args)

    return jax.jit(lambda *args: {estimator: each(estimator, *args) for estimator in estimators})


class Found(NamedTuple):
    """losses [n], metrics, and gradients of the loss, [n, P]: a flow is part of the encoder."""

    loss: np.ndarray
    metrics: dict
    encoder: np.ndarray
    decoder: np.ndarray


def estimates(
    name, noise, *, params=None, spec=None, x=X, beta=1.0, estimators=ESTIMATORS, **hparams
):
    """{estimator: Found} for every draw of the noise [n, K, size], the K of all groups together."""
    spec = model_spec() if spec is None else spec
    params = hand_params(spec) if params is None else params
    values = {"renyi_alpha": ALPHA, "ciwae_beta": CIWAE_BETA, "sigma": SIGMA} | hparams
    args = jax.tree.map(
        lambda a: jnp.asarray(a, jnp.float64), (params, HParams(**values), beta, x, noise)
    )

    def flat(tree, *parts):
        leaves = jax.tree.leaves([tree[part] for part in parts if part in tree])
        return np.concatenate([np.reshape(leaf, (len(noise), -1)) for leaf in leaves], axis=1)

    found = program(spec, name, noise.shape[1], estimators)(*args)
    return {
        estimator: Found(
            np.asarray(loss), metrics, flat(tree, "encoder", "posterior"), flat(tree, "decoder")
        )
        for estimator, (loss, metrics, tree) in found.items()
    }


@functools.cache
def of_bound(name, beta=1.0, posterior="gaussian"):
    """The estimates at arbitrary parameters."""
    spec = model_spec(posterior)
    wanted = ESTIMATORS if posterior in ("gaussian", "full") else UNBIASED
    return estimates(name, standard_noise(spec), spec=spec, beta=beta, estimators=wanted)


def standard_errors(difference):
    """The mean of [n, P] in its own standard errors, [P]."""
    error = difference.std(axis=0) / np.sqrt(len(difference))
    return difference.mean(axis=0) / error


def log_weights(params, x, noise, beta=1.0, sigma=SIGMA):
    """log w of a diagonal Gaussian q, [n, K], by NumPy."""
    encoder, output = params["encoder"], params["decoder"]["output"]
    mean, logvar = (
        x @ np.float64(encoder[h]["kernel"]) + np.float64(encoder[h]["bias"])
        for h in ("mean", "scale")
    )
    z = mean + np.exp(0.5 * logvar) * noise
    decoded = z @ np.float64(output["kernel"]) + np.float64(output["bias"])
    log_px = scipy.stats.norm(decoded, sigma).logpdf(x).sum(-1)
    log_pz = scipy.stats.norm.logpdf(z).sum(-1)
    log_qz = scipy.stats.norm(mean, np.exp(0.5 * logvar)).logpdf(z).sum(-1)
    return log_px + beta * (log_pz - log_qz)


def numpy_bound(name, log_w, groups):
    """[n] of log-weights [n, M·K]."""

    def iwae(log_w):
        return scipy.special.logsumexp(log_w, axis=1) - np.log(log_w.shape[1])

    grouped = log_w.reshape(len(log_w), groups, -1)
    return {
        "elbo": lambda: log_w.mean(1),
        "iwae": lambda: iwae(log_w),
        "miwae": lambda: np.mean([iwae(grouped[:, m]) for m in range(groups)], axis=0),
        "piwae": lambda: iwae(log_w),
        "ciwae": lambda: CIWAE_BETA * log_w.mean(1) + (1 - CIWAE_BETA) * iwae(log_w),
        "renyi": lambda: iwae((1 - ALPHA) * log_w) / (1 - ALPHA),
    }[name]()


class TestValue:
    @pytest.mark.parametrize("beta", [1.0, 0.7])
    @pytest.mark.parametrize("name", BOUNDS)
    def test_the_loss_is_the_bound_whatever_gives_its_gradient(self, name, beta):
        params, noise, groups = (
            hand_params(model_spec()),
            standard_noise(model_spec()),
            groups_of(name),
        )
        expected = numpy_bound(name, log_weights(params, X, noise, beta), groups)
        reported = numpy_bound(name, log_weights(params, X, noise), groups)
        assert np.ptp(expected) > 0.1
        for estimator, found in of_bound(name, beta).items():
            np.testing.assert_allclose(-found.loss, expected, rtol=1e-11, err_msg=estimator)
            if name != "elbo":  # what is reported has no β
                np.testing.assert_allclose(found.metrics["bound"], reported, rtol=1e-11)

    def test_in_a_batch(self):
        # In float32 and by the training step's own path; the noise depends on (seed, step, index).
        with jax.enable_x64(False):
            x = jnp.float32(np.random.default_rng(5).normal(size=(6, 3)))
            batch = train.Batch(x, jnp.arange(6, dtype=jnp.int32))
            params, stats = parameters(model_spec())
            hparams = jax.tree.map(lambda a: jnp.asarray(a[0]), stack([HParams(beta=0.7)]))

            def metrics(spec):
                step = jnp.int32(3)
                return batch_loss(spec, Transform(), params, stats, hparams, step, batch)[1][0]

            specs = [
                Spec(model_spec(), ObjectiveSpec("iwae", estimator, samples=4))
                for estimator in ESTIMATORS
            ]
            each = jax.jit(lambda: [metrics(spec) for spec in specs])()
        found = [(float(values["loss"]), float(values["bound"])) for values in each]
        assert abs(sum(found[0])) > 0.01  # β ≠ 1
        for values in found:
            assert values == pytest.approx(found[0], rel=1e-6)


class TestExpectation:
    """The mean gradient is that of reparameterisation, by the same noise.

    For each draw the estimators differ in the encoder alone, and their difference has mean 0: it
    is measured in its own standard errors. Of about 500 normal numbers in this class the largest
    passes 4 with a probability of 3%; the noise is the same in every run.
    """

    @pytest.mark.parametrize("beta", [1.0, 0.7])
    @pytest.mark.parametrize("name", BOUNDS)
    def test_dreg_and_score_are_unbiased_and_stl_is_not(self, name, beta):
        found = of_bound(name, beta)
        plain = found["reparameterization"]
        assert np.max(np.abs(standard_errors(plain.encoder))) > 30  # there is a gradient
        for estimator in ("stl", "dreg", "score"):
            # The decoder's gradient has no score in it, and is that of each draw.
            np.testing.assert_allclose(found[estimator].decoder, plain.decoder, atol=1e-11)
            errors = standard_errors(found[estimator].encoder - plain.encoder)
            # Oracle 12: E STL ≠ ∇L_K. Of the ELBO the scores' mean is 0.
            if estimator == "stl" and name != "elbo":
                assert np.max(np.abs(errors)) > 6
            else:
                assert np.max(np.abs(errors)) < 4, estimator

    @pytest.mark.parametrize("posterior", FAMILIES[1:])
    def test_with_other_posteriors(self, posterior):
        found = of_bound("iwae", posterior=posterior)
        plain = found["reparameterization"]
        for estimator in ("dreg", "score"):
            np.testing.assert_allclose(found[estimator].decoder, plain.decoder, atol=1e-9)
            difference = found[estimator].encoder - plain.encoder
            # A flow's first network sees no context that it could use: some have no gradient.
            errors = standard_errors(difference[:, difference.std(axis=0) > 1e-12])
            assert len(errors) >= 12
            assert np.max(np.abs(errors)) < 4, estimator

    def test_the_order_of_their_variances(self):
        variance = {e: found.encoder.var(axis=0).sum() for e, found in of_bound("iwae").items()}
        # To 2% each.
        assert 1.2 * variance["dreg"] < variance["reparameterization"]
        assert 1.2 * variance["reparameterization"] < variance["score"]


class TestForEveryDraw:
    def test_of_one_sample_dreg_is_stl(self):
        # Oracle 12; of the other bounds by the share, see tests/vae/test_bounds.py.
        noise = standard_noise(model_spec(), 100, 1)
        found = estimates("iwae", noise, estimators=("stl", "dreg"))
        for part in ("encoder", "decoder"):
            stl, dreg = (getattr(found[e], part) for e in ("stl", "dreg"))
            np.testing.assert_allclose(dreg, stl, rtol=1e-11, atol=1e-13)
        assert np.abs(stl).max() > 0.1

    @pytest.mark.parametrize("beta", [1.0, 0.7])
    def test_of_the_elbo_dreg_is_stl(self, beta):
        found = of_bound("elbo", beta)
        for part in ("encoder", "decoder"):
            stl, dreg = (getattr(found[e], part) for e in ("stl", "dreg"))
            np.testing.assert_allclose(dreg, stl, rtol=1e-11, atol=1e-11)

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_piwae_is_iwae_for_the_decoder_and_miwae_for_the_encoder(self, estimator):
        # Equal but for the rounding of three programs.
        piwae, iwae, miwae = (of_bound(name)[estimator] for name in ("piwae", "iwae", "miwae"))
        np.testing.assert_allclose(piwae.decoder, iwae.decoder, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(piwae.encoder, miwae.encoder, rtol=1e-11, atol=1e-11)
        assert np.abs(iwae.decoder - miwae.decoder).max() > 0.1
        assert np.abs(iwae.encoder - miwae.encoder).max() > 0.1

    def test_dreg_alpha(self):
        # Tucker et al. 2019, section 6: factors of the paths of the samples by themselves.
        spec, stats, hparams = model_spec(), {"encoder": {}, "decoder": {}}, HParams(sigma=SIGMA)
        params, noise, stl = hand_params(spec), standard_noise(spec), of_bound("iwae")["stl"]

        def log_w(encoder, noise):
            terms, _ = model.terms(
                spec,
                params | {"encoder": encoder},
                stats,
                hparams,
                jnp.asarray(X),
                noise,
                True,
                path=Path("path"),
            )
            return objectives.iw_log_weights(terms)

        few = noise[:100]
        paths = jax.jit(jax.vmap(jax.jacobian(log_w), (None, 0)))(
            params["encoder"], jnp.asarray(few)
        )
        paths = np.concatenate(
            [np.reshape(a, (*few.shape[:2], -1)) for a in jax.tree.leaves(paths)], axis=2
        )
        weight = scipy.special.softmax(log_weights(params, X, few), axis=1)[..., None]
        for a, factor in (
            (0.0, weight**2),
            (0.25, 0.25 * weight + 0.5 * weight**2),
            (0.5, 0.5 * weight),
            (1.0, weight - weight**2),
        ):
            found = estimates("iwae", noise, dreg_alpha=a)["dreg"]
            expected = -(factor * paths).sum(axis=1)
            np.testing.assert_allclose(found.encoder[:100], expected, atol=1e-11)
            np.testing.assert_allclose(found.decoder, stl.decoder, atol=1e-11)
            if a == 0.5:
                np.testing.assert_allclose(found.encoder, 0.5 * stl.encoder, atol=1e-11)


class TestAtThePosterior:
    """q(z|x) is p(z|x): every weight is p(x), whatever z is. Oracle 11."""

    W = np.array([[0.9, -0.3, 0.5], [0.2, 0.8, -0.5]])

    @classmethod
    def posterior(cls, posterior):
        """(params, posterior's covariance); with the posterior `gaussian`, of orthogonal rows."""
        w = cls.W.copy()
        if posterior == "gaussian":
            w[1] -= w[0] * (w[0] @ w[1]) / (w[0] @ w[0])
        covariance = np.linalg.inv(np.eye(2) + w @ w.T / SIGMA**2)
        kernel = w.T @ covariance / SIGMA**2
        bias = np.array([0.5, -1.0, 0.2])
        root = np.linalg.cholesky(covariance)
        heads = {
            "mean": {"kernel": kernel, "bias": -bias @ kernel},
            "scale": {"kernel": np.zeros((3, 2)), "bias": 2 * np.log(np.diag(root))},
        }
        if posterior == "full":
            factor = root[1:, 0] / root[1, 1]
            heads["factor"] = {"kernel": np.zeros((3, 1)), "bias": factor}
        output = {"output": {"kernel": w, "bias": bias}}
        return {"encoder": heads, "decoder": output}, covariance

    @classmethod
    def estimates(cls, name, posterior="gaussian"):
        spec = model_spec(posterior)
        params, covariance = cls.posterior(posterior)
        found = estimates(name, standard_noise(spec), spec=spec, params=params)
        return found, covariance

    @pytest.mark.parametrize(
        ("name", "posterior"), [*((name, "gaussian") for name in BOUNDS), ("iwae", "full")]
    )
    def test_stl_and_dreg_are_zero_for_every_draw(self, name, posterior):
        found, covariance = self.estimates(name, posterior)
        assert posterior == "gaussian" or abs(covariance[0, 1]) > 0.01
        # What is left of numbers of size 10 in float64.
        for estimator in ("stl", "dreg"):
            assert np.abs(found[estimator].encoder).max() < 1e-13
        for estimator in ("reparameterization", "score"):
            assert np.abs(found[estimator].encoder).max() > 0.1
        assert all(np.abs(each.decoder).max() > 0.1 for each in found.values())

    def test_the_total_derivative_is_the_score(self):
        # −score of each sample: ε/σ for the mean, (ε² − 1)/2 for ln σ² = 2 ln σ, whose variances
        # are 1/σ² and 2/4; the loss is their mean over the samples.
        found, covariance = self.estimates("elbo")
        gradient, noise = found["reparameterization"].encoder, standard_noise(model_spec())
        sigma, count = np.sqrt(np.diag(covariance)), noise.shape[0]
        # Leaves in alphabetical order: mean's bias and kernel, scale's bias and kernel.
        mean, scale = gradient[:, :2], gradient[:, 8:10]
        np.testing.assert_allclose(mean, noise.mean(1) / sigma, atol=1e-12)
        np.testing.assert_allclose(scale, 0.5 * (noise**2 - 1).mean(1), atol=1e-12)
        # Standard errors of a variance, relative: √((κ + 2)/n), with an excess κ of 0 for ε and of
        # 12/K for the mean of K squares.
        n, k = count, noise.shape[1]
        assert np.abs(k * mean.var(0) * sigma**2 - 1).max() < 4 * np.sqrt(2 / n)
        assert np.abs(k * (2 * scale).var(0) / 2 - 1).max() < 4 * np.sqrt((12 / k + 2) / n)


class TestVarianceOfASquare:
    """Oracle 13: f = (z − c)², in the mean of q = N(μ, σ²), by q's own draws and log-densities."""

    MEAN, SIGMA, C = 0.7, 0.8, -0.4

    def gradients(self, mode, n=400_000):
        family, spec = POSTERIORS["gaussian"], model_spec(latents=1)
        scale = jnp.full(1, 2 * np.log(self.SIGMA))

        def one(noise, mean):
            posterior = family.posterior(spec, {"mean": mean, "scale": scale}, {}, HParams())
            z, drawn = family.draw(spec, {}, posterior, noise, HParams(), True)
            f = jnp.sum(jnp.square(z - self.C))
            if mode == "total":
                return f
            f, z = jax.lax.stop_gradient((f, z))
            return f * family.log_q(spec, {}, posterior, z, noise, drawn, "score")

        noise = jnp.asarray(np.random.default_rng(6).normal(size=(n, 1)))
        each = jax.jit(jax.vmap(jax.grad(one, argnums=1), (0, None)))
        return np.asarray(each(noise, jnp.full(1, self.MEAN)))[:, 0]

    @pytest.mark.parametrize("mode", ["total", "score"])
    def test_variance(self, mode):
        m, s = self.MEAN - self.C, self.SIGMA
        expected = 4 * s**2 if mode == "total" else m**4 / s**2 + 14 * m**2 + 15 * s**2
        found = self.gradients(mode)
        centred = found - found.mean()
        error = np.sqrt((np.mean(centred**4) - np.mean(centred**2) ** 2) / len(found))
        assert abs(found.var() - expected) < 4 * error and error < 0.02 * expected
        # Both are of the same gradient, 2m.
        assert abs(found.mean() - 2 * m) < 4 * np.sqrt(expected / len(found))


class TestSignalToNoise:
    """Oracle 10, with the toy of Rainforth et al. 2018: z ~ N(0, I), x|z ~ N(z + μ, I) and
    q = N(Ax + b, ⅔I) near the best A = ½I, b = −½μ, whose posterior is N(½(x − μ), ½I).

    SNR = |E g|/√(tr Var g) of the bias of the encoder's mean, and of the decoder's μ.
    """

    SAMPLES, DRAWS, DIM = np.array([10, 100]), 4000, 4

    @classmethod
    @functools.cache
    def moments(cls):
        """{(estimator, part): (means [K's, D], √ tr Var [K's])} of b (encoder) and μ (decoder)."""
        d, rng = cls.DIM, np.random.default_rng(7)
        spec = model_spec(values=d, latents=d)
        mu, x = rng.normal(size=d), rng.normal(size=d) * np.sqrt(2)
        # An offset of 0.2/√½ = 0.28 standard deviations in each dimension, so that the signal is
        # far above the floor of 1/√4000 under which no SNR of so many draws can be read.
        heads = {
            "mean": {"kernel": 0.5 * np.eye(d), "bias": -0.5 * mu + 0.2},
            "scale": {"kernel": np.zeros((d, d)), "bias": np.full(d, np.log(2 / 3))},
        }
        params = {"encoder": heads, "decoder": {"output": {"kernel": np.eye(d), "bias": mu}}}
        moments = {}
        for samples in cls.SAMPLES.tolist():
            noise = standard_noise(spec, cls.DRAWS, samples)
            found = estimates(
                "iwae",
                noise,
                params=params,
                spec=spec,
                x=x + mu,
                estimators=("reparameterization", "stl", "dreg"),
                sigma=1.0,
            )
            for estimator, part in itertools.product(found, ("encoder", "decoder")):
                # Leaves in alphabetical order, the biases first.
                gradient = getattr(found[estimator], part)[:, :d]
                each = gradient.mean(0), np.sqrt(gradient.var(0).sum())
                moments.setdefault((estimator, part), []).append(each)
        return {
            key: [np.array(a) for a in zip(*each, strict=True)] for key, each in moments.items()
        }

    @classmethod
    def slope(cls, values):
        return np.polyfit(np.log(cls.SAMPLES), np.log(values), 1)[0]

    # The signals are known to 1%, the noises to about 2%: over a factor of ten in K, slopes to
    # 0.03/ln 10 = 0.02. The next order in 1/K is 5% of the signal at K = 10 by the χ² of oracle 9,
    # another 0.02.
    @pytest.mark.parametrize(
        ("estimator", "part", "slope"),
        [
            ("reparameterization", "encoder", -0.5),
            ("dreg", "encoder", 0.5),
            ("reparameterization", "decoder", 0.5),
        ],
    )
    def test_slope(self, estimator, part, slope):
        # DReG has the same mean, and the only one that can be read (studies.md, A5).
        signal = np.linalg.norm(self.moments()["dreg", part][0], axis=1)
        noise = self.moments()[estimator, part][1]
        assert self.slope(signal / noise) == pytest.approx(slope, abs=0.07)

    def test_the_bias_of_stl_outgrows_the_gradient(self):
        # E Σ w̃ path tends to a constant and ∇L_K falls as 1/K.
        stl, dreg = (self.moments()[estimator, "encoder"][0] for estimator in ("stl", "dreg"))
        ratios = np.linalg.norm(stl - dreg, axis=1) / np.linalg.norm(dreg, axis=1)
        assert self.slope(ratios) == pytest.approx(1, abs=0.1)
        assert ratios[-1] > 30


class TestScores:
    """What the estimators rest on; the gradients themselves: tests/vae/test_posteriors.py."""

    @staticmethod
    def setting(posterior):
        """(spec, family, (flow, heads), noise [2000, size])."""
        spec = ModelSpec(
            (3,), 3, posterior=posterior, posterior_rank=2, flow_layers=2, flow_width=4
        )
        family, rng = POSTERIORS[posterior], np.random.default_rng(8)
        heads = {name: jnp.asarray(rng.normal(size=n)) for name, n in family.heads(spec).items()}
        noise = jnp.asarray(rng.normal(size=(2000, family.noise_size(spec))))
        flow = parameters(spec, 3, np.float64)[0].get("posterior", {})
        return spec, family, (flow, heads), noise

    @staticmethod
    def log_q(spec, family, mode, inputs, noise):
        def of(inputs):
            return inputs[0], family.posterior(spec, inputs[1], {}, HParams())

        held = jax.lax.stop_gradient
        z, drawn = family.draw(spec, *of(inputs), noise, HParams(), True)
        z = held(z) if mode == "score" else z
        inputs = held(inputs) if mode == "path" else inputs
        return family.log_q(spec, *of(inputs), z, noise, drawn, mode)

    @pytest.mark.parametrize("posterior", FAMILIES)
    def test_have_mean_zero(self, posterior):
        spec, family, inputs, noise = self.setting(posterior)
        log_q = functools.partial(self.log_q, spec, family, "score")
        scores = jax.jit(jax.vmap(jax.grad(log_q), (None, 0)))(inputs, noise)
        scores = np.concatenate(
            [np.reshape(a, (len(noise), -1)) for a in jax.tree.leaves(scores)], axis=1
        )
        moved = scores.std(axis=0) > 1e-9  # a few weights of a flow have no gradient at all
        assert moved.sum() >= 6
        # Of up to 100 normal numbers the largest passes 4 with a probability of 0.6%.
        assert np.max(np.abs(standard_errors(scores[:, moved]))) < 4

    @pytest.mark.parametrize("mode", ["path", "score"])
    def test_of_a_flow_without_its_inverse(self, mode):
        # log N(ε) − log|det ∂T/∂ε| for the ε with T(ε) = z: one Newton step from the right one,
        # which gives ε its gradients. T is the draw of the very parameters.
        spec, family, inputs, noise = self.setting("coupling")
        held = jax.lax.stop_gradient

        def density(z_of, inputs, noise):
            def draw(inputs, noise):
                posterior = family.posterior(spec, inputs[1], {}, HParams())
                return family.draw(spec, inputs[0], posterior, noise, HParams(), True)[0]

            jacobian = jax.jacobian(functools.partial(draw, inputs))
            step = jnp.linalg.solve(held(jacobian(noise)), draw(z_of, noise) - draw(inputs, noise))
            epsilon = noise + step
            log_base = -0.5 * jnp.sum(jnp.square(epsilon) + jnp.log(2 * jnp.pi))
            return log_base - jnp.linalg.slogdet(jacobian(epsilon))[1]

        def library(inputs, noise):
            return self.log_q(spec, family, mode, inputs, noise)

        few, which = noise[:20], 0 if mode == "path" else 1
        found = jax.jit(jax.vmap(jax.value_and_grad(library), (None, 0)))(inputs, few)
        by_newton = jax.vmap(jax.value_and_grad(density, which), (None, None, 0))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9),
            found,
            jax.jit(by_newton)(inputs, inputs, few),
        )
        assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(found[1])) > 0.1


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="counts the CPU's products")
class TestCost:
    """Asking for the same terms again is no second pass: XLA merges them."""

    @staticmethod
    @functools.cache
    def products(name, estimator):
        """Matrix products in the gradient of a batch's loss: as asked for, and as compiled."""
        groups = groups_of(name)
        spec = Spec(
            ModelSpec((6,), 2, depth=1, width=7),
            ObjectiveSpec(name, estimator, samples=4 // groups, groups=groups),
        )
        with jax.enable_x64(False):
            params, stats = parameters(spec.model)
            hparams = jax.tree.map(lambda a: jnp.asarray(a[0]), stack([HParams()]))
            batch = train.Batch(jnp.zeros((3, 6)), jnp.arange(3, dtype=jnp.int32))

            def loss(params):
                step = jnp.int32(0)
                return batch_loss(spec, Transform(), params, stats, hparams, step, batch)

            lowered = jax.jit(jax.grad(loss, has_aux=True)).lower(params)
            compiled = lowered.compile().as_text()
        return lowered.as_text().count("dot_general"), len(re.findall(r"= \S+ dot\(", compiled))

    def test_terms_that_are_asked_for_three_times_cost_no_product_more(self):
        # Forward five: a layer and two heads in the encoder, a layer and a head in the decoder.
        # Back two for each, but one for that of x, which has no gradient.
        assert self.products("iwae", "reparameterization") == (2 * 5 + 9, 5 + 9)
        assert self.products("iwae", "dreg") == (3 * 5 + 9, 5 + 9)

    def test_two_bounds_go_back_through_the_decoder_twice(self):
        # To its own layers by one bound's derivatives, and on to z by the other's: the product
        # between its two layers is there twice.
        assert self.products("piwae", "dreg")[1] == 5 + 9 + 1
