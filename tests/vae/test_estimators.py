"""Estimators of gradients: expectations, and what each of them is for every draw."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae.building import parameters
from tests.vae.estimating import (
    ALPHA,
    BOUNDS,
    CIWAE_BETA,
    ESTIMATORS,
    FAMILIES,
    SIGMA,
    X,
    estimates,
    groups_of,
    hand_params,
    model_spec,
    of_bound,
    standard_errors,
    standard_noise,
)
from vae import elbo, objectives, train
from vae.data import Transform
from vae.elbo import Path
from vae.hparams import HParams, stack
from vae.loss import batch_loss
from vae.spec import ModelSpec, ObjectiveSpec, Spec

pytestmark = pytest.mark.usefixtures("x64")


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
    @pytest.mark.sampled
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

    @pytest.mark.sampled
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
            terms, _ = elbo.terms(
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
