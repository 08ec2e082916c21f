"""Discriminators: whose gradient goes where, what they are shown, and what they come to say."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special

from tests.vae.building import COMPILE_FAST, population
from tests.vae.test_every_objective import images, parameters_of, spec_of
from vae import adversaries
from vae.data import Transform
from vae.hparams import HParams, stack
from vae.loss import Batch, batch_loss
from vae.spec import ModelSpec, ObjectiveSpec, Spec

OBJECTIVES = ("factor", "vaegan")


@functools.cache
def program(objective, name, posterior="gaussian"):
    """(params, hparams) -> (a metric of the batch, or `total`, its gradient)."""
    spec = spec_of(objective, posterior)
    _, stats = parameters_of(spec)

    def value(params, hparams):
        x = images()
        total, (metrics, _) = batch_loss(
            spec,
            Transform(),
            params,
            stats,
            hparams,
            jnp.int32(3),
            Batch(x, jnp.arange(len(x), dtype=jnp.int32)),
        )
        return {**metrics, "total": total}[name]

    return jax.jit(jax.value_and_grad(value), compiler_options=COMPILE_FAST)


def value_and_gradient(objective, name, posterior="gaussian", **numbers):
    params, _ = parameters_of(spec_of(objective, posterior))
    hparams = jax.tree.map(lambda a: jnp.asarray(a[0]), stack([HParams(**numbers)]))
    return program(objective, name, posterior)(params, hparams)


def norm(tree):
    return math.sqrt(sum(np.sum(np.square(np.float64(a))) for a in jax.tree.leaves(tree)))


def assert_close(a, b, rtol=1e-5):
    """To `rtol` of the largest entry of the layer: float32, sums over a batch of eight."""
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=rtol, atol=rtol * max(float(np.max(np.abs(b))), 1e-3)
        ),
        a,
        b,
    )


@pytest.mark.parametrize("objective", OBJECTIVES)
class TestGradients:
    def test_no_side_sees_the_gradient_of_the_other(self, objective):
        _, of_loss = value_and_gradient(objective, "loss")
        _, of_game = value_and_gradient(objective, "discriminator_loss")
        for part in of_loss:
            own, other = (of_game, of_loss) if part == "discriminator" else (of_loss, of_game)
            assert all(np.all(a == 0) for a in jax.tree.leaves(other[part])), part
            assert norm(own[part]) > 1e-4, part

    def test_what_is_differentiated_has_both(self, objective):
        loss, of_loss = value_and_gradient(objective, "loss")
        game, of_game = value_and_gradient(objective, "discriminator_loss")
        total, grads = value_and_gradient(objective, "total")
        assert float(total) == pytest.approx(float(loss) + float(game), rel=1e-6)
        for part in grads:
            own = of_game if part == "discriminator" else of_loss
            assert_close(grads[part], own[part])

    def test_another_posterior_plays_too(self, objective):
        posterior = "categorical" if objective == "vaegan" else "full"
        _, grads = value_and_gradient(objective, "total", posterior)
        assert all(norm(grads[part]) > 1e-5 for part in grads)

    def test_what_is_reported(self, objective):
        for name in ("discriminator_loss", "discriminator_accuracy"):
            value, _ = value_and_gradient(objective, name)
            assert value > 0
        accuracy, grads = value_and_gradient(objective, "discriminator_accuracy")
        assert 0 <= accuracy <= 1 and norm(grads) == 0


class TestVAEGAN:
    """Larsen et al. 2016, algorithm 1: γ weighs the features' error for the decoder alone."""

    def grads(self, name="loss", **numbers):
        return value_and_gradient("vaegan", name, **numbers)[1]

    def test_the_encoder_sees_the_features_with_weight_one(self):
        # Without the rate and at γ = 1, where nothing is scaled.
        expected = self.grads("feature_error", penalty=1.0)["encoder"]
        assert norm(expected) > 1e-3
        for weight in (0.01, 1.0, 30.0):
            assert_close(self.grads(beta=0.0, penalty=weight)["encoder"], expected)

    def test_the_decoder_sees_them_with_weight_gamma_and_the_game(self):
        error = self.grads("feature_error", penalty=1.0)["decoder"]
        game = self.grads(beta=0.0, penalty=0.0)["decoder"]
        assert norm(game) > 1e-3 and norm(error) > 1e-3
        for weight in (0.01, 30.0):
            expected = jax.tree.map(lambda g, e, w=weight: g + w * e, game, error)
            assert_close(self.grads(beta=0.0, penalty=weight)["decoder"], expected)

    def test_the_rate_is_for_the_encoder(self):
        with_rate, without = self.grads(beta=0.7), self.grads(beta=0.0)
        rate = value_and_gradient("vaegan", "rate")[1]
        expected = jax.tree.map(lambda a, b: a + 0.7 * b, without["encoder"], rate["encoder"])
        assert_close(with_rate["encoder"], expected)
        assert_close(with_rate["decoder"], without["decoder"])

    def test_the_loss_is_the_sum(self):
        names = ("loss", "rate", "feature_error")
        values = [value_and_gradient("vaegan", n, beta=0.7, penalty=3.0)[0] for n in names]
        loss, rate, error = map(float, values)
        game = float(value_and_gradient("vaegan", "loss", beta=0.0, penalty=0.0)[0])
        assert loss == pytest.approx(0.7 * rate + 3 * error + game, rel=1e-5)

    def test_terms_are_the_formulas(self, x64):
        # A discriminator without hidden layers: its features are x itself, its logit w·x + b.
        spec = Spec(ModelSpec((3,), 2, depth=0), ObjectiveSpec("vaegan"))
        rng = np.random.default_rng(0)
        kernel, bias = rng.normal(size=(3, 1)), rng.normal(size=1)
        params = jax.tree.map(jnp.asarray, {"output": {"kernel": kernel, "bias": bias}})
        x, rebuilt, generated = rng.normal(size=3), rng.normal(size=3), rng.normal(size=(2, 3))
        error, game, loss, metrics = adversaries.vaegan(
            spec, params, *map(jnp.asarray, (x, rebuilt, generated))
        )
        assert float(error) == pytest.approx(0.5 * np.sum((x - rebuilt) ** 2), rel=1e-12)
        real, fake = (scipy.special.expit(a @ kernel[:, 0] + bias) for a in (x, generated))
        assert float(game) == pytest.approx(-np.log(fake).mean(), rel=1e-12)
        expected = -np.log(real[0]) - np.log(1 - fake).mean()
        assert float(loss) == pytest.approx(expected, rel=1e-12)
        accuracy = 0.5 * ((real[0] > 0.5) + (fake < 0.5).mean())
        assert float(metrics["discriminator_accuracy"]) == accuracy

    def test_the_optimal_discriminator_is_the_log_ratio_of_densities(self, x64):
        # Real x ~ N(m, I), decoded ~ N(0, I): ln p(x)/q(x) = m·x − ½|m|². The least loss over w, b
        # is logistic regression, off by its standard errors: the root of the diagonal of 2/n·F⁻¹,
        # F the information of a sample, which is estimated by differences of the gradient.
        n, m = 20_000, np.array([1.0, -0.5])
        spec = Spec(ModelSpec((2,), 2, depth=0), ObjectiveSpec("vaegan"))
        rng = np.random.default_rng(1)
        x, generated = jnp.asarray(m + rng.normal(size=(n, 2))), rng.normal(size=(n, 2, 2))
        generated = jnp.asarray(generated)

        @jax.jit
        @jax.value_and_grad
        def loss(theta):
            params = {"output": {"kernel": theta[:2, None], "bias": theta[2:]}}
            each = jax.vmap(lambda x, g: adversaries.vaegan(spec, params, x, x, g)[2])
            return jnp.mean(each(x, generated))

        def value_and_gradient(theta):
            value, grad = loss(jnp.asarray(theta))
            return float(value), np.asarray(grad)

        best = scipy.optimize.minimize(value_and_gradient, np.zeros(3), jac=True).x
        curvature = np.stack(
            [
                (value_and_gradient(best + e)[1] - value_and_gradient(best - e)[1]) / 2e-4
                for e in 1e-4 * np.eye(3)
            ]
        )
        # The loss is a mean over n real and 2n decoded: at most what n of each would leave.
        errors = np.sqrt(np.diagonal(np.linalg.inv(curvature)) / n)
        expected = np.array([*m, -0.5 * m @ m])
        assert np.all(np.abs(best - expected) < 5 * errors) and np.all(errors < 0.03)


def factor_terms(z, params, key, depth=0, width=8):
    """(ratio, the discriminator's loss) of each z [B, n]."""
    spec = Spec(
        ModelSpec((3,), z.shape[1]),
        ObjectiveSpec("factor", discriminator_depth=depth, discriminator_width=width),
    )
    one = functools.partial(adversaries.factor, spec, params, step_rng=key)
    return jax.vmap(lambda z: one(z)[:2], axis_name="batch")(z)


class TestFactor:
    """Kim and Mnih 2018."""

    B, D = 64, 5

    def shown(self, z, key):
        """The draws of Π q(z_j) that the discriminator is shown, [B, d], from its losses.

        Without hidden layers its logit is w·z. With w = e_j, joint logit z_j and product logit
        z'_j, the loss is ½[ln(1 + e^−z_j) + ln(1 + e^z'_j)], of which the second is solved for.
        """
        columns = []
        for j in range(z.shape[1]):
            kernel = jnp.zeros((z.shape[1], 1)).at[j].set(1.0)
            ratio, loss = factor_terms(z, {"output": {"kernel": kernel, "bias": jnp.zeros(1)}}, key)
            np.testing.assert_allclose(ratio, z[:, j], rtol=1e-12)
            product = 2 * np.asarray(loss) - np.logaddexp(0, -np.asarray(z[:, j]))
            columns.append(np.log(np.expm1(product)))
        return np.stack(columns, axis=1)

    def test_each_dimension_is_permuted_on_its_own(self, x64):
        z = np.random.default_rng(0).normal(size=(self.B, self.D))
        orders = []
        for seed in (0, 1):
            shown = self.shown(jnp.asarray(z), jax.random.key(seed))
            # Each dimension has the batch's own values, every one once: the marginals are kept.
            np.testing.assert_allclose(np.sort(shown, axis=0), np.sort(z, axis=0), rtol=1e-9)
            orders += list(np.abs(shown[:, None] - z[None]).argmin(1).T)
        # Ten orders, of five dimensions at two steps: none is the identity, no two agree in more
        # places than chance has it (one on average, of 64; eight have a probability of 1e-5).
        orders.append(np.arange(self.B))
        for i, a in enumerate(orders):
            assert all(np.sum(a == b) < 8 for b in orders[:i])

    def test_dependence_is_broken(self, x64):
        # All dimensions of an example are equal: the joint is on the diagonal, the product is not.
        z = np.repeat(np.random.default_rng(0).normal(size=(self.B, 1)), self.D, axis=1)
        shown = self.shown(jnp.asarray(z), jax.random.key(0))
        correlations = np.corrcoef(shown.T)[~np.eye(self.D, dtype=bool)]
        # Of 64 independent pairs a correlation has the standard error 1/8.
        assert np.all(np.abs(correlations) < 5 / 8) and np.abs(correlations).mean() < 0.25

    def test_the_optimal_discriminator_is_the_log_ratio_of_densities(self, x64):
        # z in {−1, 1}² with p(s, t) = (1 + c·st)/4, uniform margins: the log ratio is ln(1 + c·st).
        # Eight features of a hidden layer that is held span all functions of the four points, and
        # the least loss over the last layer is then the log ratio of the frequencies: those of the
        # joint are exact here, those of the permuted draws off by 1/√n of themselves, n = 4096.
        n, c = 4096, 0.6
        points = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)])
        counts = np.round(n * (1 + c * points.prod(1)) / 4).astype(int)
        z = np.repeat(points, counts, axis=0).astype(float)
        n = len(z)
        rng = np.random.default_rng(0)
        hidden = {"dense": {"kernel": rng.normal(size=(2, 8)), "bias": rng.normal(size=8)}}

        def params(theta):
            output = {"kernel": theta[:8, None], "bias": theta[8:]}
            return {"layer_0": jax.tree.map(jnp.asarray, hidden), "output": output}

        @jax.jit
        @jax.value_and_grad
        def loss(theta):
            return jnp.mean(factor_terms(jnp.asarray(z), params(theta), jax.random.key(2), 1)[1])

        def value_and_gradient(theta):
            value, grad = loss(jnp.asarray(theta))
            return float(value), np.asarray(grad)

        best = scipy.optimize.minimize(
            value_and_gradient, np.zeros(9), jac=True, options={"gtol": 1e-7}
        ).x
        ratios, _ = factor_terms(
            jnp.asarray(points, float), params(jnp.asarray(best)), jax.random.key(2), 1
        )
        expected = np.log1p(c * points.prod(1))
        np.testing.assert_allclose(ratios, expected, atol=5 / np.sqrt(n))
        # Its mean under q(z) is then the total correlation.
        total_correlation = np.mean((1 + c * points.prod(1)) * expected)
        estimate, _ = factor_terms(jnp.asarray(z), params(jnp.asarray(best)), jax.random.key(2), 1)
        assert float(estimate.mean()) == pytest.approx(total_correlation, abs=5 / np.sqrt(n))
        assert total_correlation > 0.15

    def test_the_ratio_enters_with_its_weight(self):
        def grads(name, weight):
            return value_and_gradient("factor", name, beta=0.7, penalty=weight)

        plain, base = grads("loss", 0.0)
        ratio, slope = grads("total_correlation", 0.0)
        for weight in (1.0, 10.0):
            loss, grad = grads("loss", weight)
            assert float(loss) == pytest.approx(float(plain) + weight * float(ratio), rel=1e-5)
            expected = jax.tree.map(
                lambda a, b, w=weight: a + w * b, base["encoder"], slope["encoder"]
            )
            assert_close(grad["encoder"], expected)
            # The decoder knows nothing of it.
            assert_close(grad["decoder"], base["decoder"])


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_discriminator_changes_nothing_about_how_the_vae_starts(objective):
    run = HParams(seed=4)
    with_one = population(spec_of(objective), [run]).states.params
    without = population(spec_of("elbo"), [run]).states.params
    assert set(with_one) - set(without) == {"discriminator"}
    for part in without:
        jax.tree.map(np.testing.assert_array_equal, with_one[part], without[part])
    first = with_one["discriminator"]["layer_0"]["dense"]["kernel"]
    assert first.shape == (1, *((2, 8) if objective == "factor" else (6, 8)))
