import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae.building import examples, hand_made, parameters, population
from vae import evaluate, model, random, train
from vae.hparams import HParams
from vae.spec import ModelSpec, OptimizerSpec, Spec

SPEC = Spec(ModelSpec((5,), 3, depth=1, width=4, activation="tanh", likelihood="gaussian"))
N = 13
DATA = examples(N, 5)
TEST, TRAIN = (jnp.int32(evaluate.SPLITS[name]) for name in ("test", "train"))


@functools.cache
def model_population(seed=3):
    params, _ = parameters(SPEC.model)
    return hand_made(SPEC, params, seed=seed, sigma=0.7)


def example_keys(seed, split):
    key = jax.random.fold_in(random.stream(jnp.uint32(seed), random.EVALUATE), split)
    return [jax.random.fold_in(key, i) for i in range(N)]


def numpy_parts(noise):
    """log p(x|z), log p(z), log q(z|x) [N, K] and KL [N, d] for noise [N, K, d], in float64."""
    params = jax.tree.map(np.float64, parameters(SPEC.model)[0])
    x, noise = np.float64(DATA.raw), np.float64(noise)

    def dense(layer, h):
        return h @ layer["kernel"] + layer["bias"]

    encoder, decoder = params["encoder"], params["decoder"]
    h = np.tanh(dense(encoder["layer_0"]["dense"], x))
    mean, logvar = dense(encoder["mean"], h), dense(encoder["scale"], h)
    std = np.exp(0.5 * logvar)[:, None]
    z = mean[:, None] + std * noise
    output = dense(decoder["output"], np.tanh(dense(decoder["layer_0"]["dense"], z)))
    normal = scipy.stats.norm
    return (
        normal.logpdf(x[:, None], output, 0.7).sum(-1),
        normal.logpdf(z).sum(-1),
        normal.logpdf(z, mean[:, None], std).sum(-1),
        0.5 * (mean**2 + np.exp(logvar) - 1 - logvar),
        mean,
    )


@pytest.mark.parametrize("batch_size", [13, 5, 100])
def test_evaluation_is_the_definition(batch_size):
    # 13 is one full batch; of 5, the last is padded; 100 is more than there is.
    result = evaluate.evaluate(SPEC.model, "vmap", 2, batch_size, model_population(), DATA, TEST)
    noise = np.stack([jax.random.normal(k, (2, 3)) for k in example_keys(3, TEST)])
    log_px, _, _, kl, mean = numpy_parts(noise)
    expected = {
        "rate": kl.sum(1).mean(),
        "distortion": -log_px.mean(),
        "elbo": log_px.mean() - kl.sum(1).mean(),
        "active_units": np.sum(mean.var(0) > 0.01),
        "kl_per_dim": kl.mean(0),
    }
    assert set(result) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(result[name][0], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("num_samples", "batch_size"), [(1, 13), (65, 13), (100, 13), (100, 5), (128, 5)]
)
def test_iw_bound_is_the_definition(num_samples, batch_size):
    # The noise of samples 64 c .. 64 c + 63 is a function of (example, c).
    assert evaluate.IW_CHUNK == 64
    bound = evaluate.iw_bound(
        SPEC.model, "vmap", num_samples, batch_size, model_population(), DATA, TEST
    )
    noise = [
        np.concatenate(
            [
                jax.random.normal(jax.random.fold_in(key, c), (min(64, num_samples), 3))
                for c in range(-(-num_samples // 64))
            ]
        )[:num_samples]
        for key in example_keys(3, TEST)
    ]
    log_px, log_pz, log_qz, _, _ = numpy_parts(np.stack(noise))
    each = scipy.special.logsumexp(log_px + log_pz - log_qz, axis=1) - np.log(num_samples)
    assert float(bound[0]) == pytest.approx(each.mean(), rel=1e-5)


def test_bounds_of_some_examples_are_theirs_among_all():
    pop, index = model_population(), jnp.array([7, 0, 12, 3, 11])
    every = evaluate.iw_bounds(SPEC.model, "vmap", 65, 5, pop, DATA, TEST, jnp.arange(N))
    some = evaluate.iw_bounds(SPEC.model, "vmap", 65, 2, pop, DATA, TEST, index)
    assert every.shape == (1, N) and some.shape == (1, 5)
    np.testing.assert_allclose(some, every[:, index], rtol=1e-6)
    assert len(np.unique(every)) == N
    bound = evaluate.iw_bound(SPEC.model, "vmap", 65, 13, pop, DATA, TEST)
    assert float(bound[0]) == pytest.approx(float(every.mean()), rel=1e-6)


def test_one_weight_is_the_elbo_in_expectation():
    # Over 400 seeds of 13 examples: the sampled KL has the mean of the analytic one.
    seeds = jnp.arange(400, dtype=jnp.uint32)
    one = model_population()
    states = jax.tree.map(lambda a: jnp.repeat(a, len(seeds), axis=0), one.states)
    many = one.replace(states=states.replace(hparams=states.hparams.replace(seed=seeds)))
    bounds = np.float64(evaluate.iw_bound(SPEC.model, "vmap", 1, 13, many, DATA, TEST))
    elbos = np.float64(evaluate.evaluate(SPEC.model, "vmap", 1, 13, many, DATA, TEST)["elbo"])
    error = np.sqrt((bounds.var() + elbos.var()) / len(seeds))
    assert abs(bounds.mean() - elbos.mean()) < 5 * error
    assert error < 0.05 and bounds.std() > 0.1


def test_the_noise_is_that_of_the_split_and_the_seed():
    def elbo(seed, split):
        result = evaluate.evaluate(SPEC.model, "vmap", 2, 13, model_population(seed), DATA, split)
        return float(result["elbo"][0])

    values = [elbo(3, TEST), elbo(3, TRAIN), elbo(4, TEST)]
    assert len(set(values)) == 3
    assert elbo(3, TEST) == values[0]


def test_active_units_are_counted_by_the_variance_of_the_mean():
    # Means a·x_j: the variance over the data set, with ddof 0, just under and just over 0.01, and
    # far from it. A constant mean far from 0 is not active; the scale does not matter.
    spec = ModelSpec((4,), 4, depth=0, likelihood="gaussian")
    x = np.random.default_rng(0).normal(size=(50, 4))
    x = (x - x.mean(0)) / x.std(0)
    params = jax.tree.map(jnp.zeros_like, parameters(spec)[0])
    params["encoder"]["mean"] = {
        "kernel": jnp.diag(jnp.sqrt(jnp.float32([0.0098, 0.0102, 1.0, 0.0]))),
        "bias": jnp.float32([0, 5, -5, 100]),
    }
    params["encoder"]["scale"]["kernel"] = jnp.ones((4, 4))
    data = dataclasses.replace(DATA, raw=jnp.float32(x))
    for batch_size in (50, 7):
        result = evaluate.evaluate(
            spec, "vmap", 1, batch_size, hand_made(Spec(spec), params), data, TEST
        )
        assert int(result["active_units"][0]) == 2


def test_each_run_of_a_population_is_evaluated_as_if_alone():
    together = jax.tree.map(
        lambda *a: jnp.concatenate(a),
        *[
            hand_made(SPEC, parameters(SPEC.model, seed=s)[0], seed=s, sigma=0.5 + s).states
            for s in range(3)
        ],
    )
    many = model_population().replace(states=together)
    vmapped, mapped = (
        evaluate.evaluate(SPEC.model, pack, 2, 5, many, DATA, TEST) for pack in ("vmap", "map")
    )
    bounds = evaluate.iw_bound(SPEC.model, "vmap", 65, 5, many, DATA, TEST)
    close = functools.partial(np.testing.assert_allclose, rtol=2e-6)
    jax.tree.map(close, vmapped, mapped)
    for i in range(3):
        alone = many.replace(states=jax.tree.map(lambda a, i=i: a[i : i + 1], together))
        result = evaluate.evaluate(SPEC.model, "vmap", 2, 5, alone, DATA, TEST)
        jax.tree.map(lambda a, b, i=i: close(a[i], b[0]), vmapped, result)
        close(bounds[i], evaluate.iw_bound(SPEC.model, "vmap", 65, 5, alone, DATA, TEST)[0])


def test_the_moving_average_is_what_is_evaluated():
    spec = dataclasses.replace(SPEC, optimizer=OptimizerSpec(ema=True), batch_size=4)
    pop = population(spec, [HParams(learning_rate=0.05, ema_decay=0.5)])
    pop = train.train_chunk(spec, "vmap", pop, DATA, 5)

    def elbo(params, ema):
        states = pop.states.replace(params=params, ema=ema)
        return float(
            evaluate.evaluate(spec.model, "vmap", 2, 13, pop.replace(states=states), DATA, TEST)[
                "elbo"
            ][0]
        )

    params, average = pop.states.params, pop.states.ema
    assert elbo(params, average) == elbo(average, average)
    assert abs(elbo(params, average) - elbo(params, params)) > 1e-3
    assert elbo(params, None) == pytest.approx(elbo(params, params), rel=1e-6)


def test_batch_norm_is_evaluated_with_running_statistics():
    spec = dataclasses.replace(SPEC.model, norm="batch")
    params, stats = parameters(spec)
    pop = hand_made(Spec(spec), params, stats)
    one, many = (
        evaluate.evaluate(spec, "vmap", 1, batch_size, pop, DATA, TEST) for batch_size in (1, 13)
    )
    np.testing.assert_allclose(one["elbo"], many["elbo"], rtol=1e-5)


@functools.cache
def discrete(posterior):
    spec = ModelSpec(
        (5,), 2, depth=1, width=4, likelihood="gaussian", posterior=posterior, codes=3, code_dim=2
    )
    params, stats = parameters(spec)
    return spec, params, stats, hand_made(Spec(spec), params, stats, seed=3, sigma=0.7)


def exact_log_px(spec, params, stats):
    """log Σ_z p(x|z)/3² of each example, over the nine pairs of codes, [N]."""
    book = np.eye(3) if spec.posterior == "categorical" else stats["posterior"]["codebook"]
    z = jnp.stack([jnp.asarray(book[np.array(c)]).reshape(-1) for c in np.ndindex(3, 3)])
    decoded, _ = model.decode(spec, params, stats, HParams(), jnp.float32(z), train=False)
    output = np.float64(decoded.heads["output"])
    log_px = scipy.stats.norm.logpdf(np.float64(DATA.raw)[:, None], output[None], 0.7).sum(-1)
    return scipy.special.logsumexp(log_px, axis=1) - np.log(9)


def test_importance_sampling_of_classes_reaches_the_sum_over_all():
    spec, params, stats, pop = discrete("categorical")
    exact = exact_log_px(spec, params, stats)
    index = jnp.arange(N)
    many, few = (
        np.float64(evaluate.iw_bounds(spec, "vmap", k, 13, pop, DATA, TEST, index)[0])
        for k in (20_000, 1)
    )
    # Nine values: the weights are bounded by 1/q, so that 20,000 leave an error below a percent.
    np.testing.assert_allclose(many, exact, atol=0.03)
    result = evaluate.evaluate(spec, "vmap", 50, 13, pop, DATA, TEST)
    assert float(result["elbo"][0]) < exact.mean() - 1e-3
    assert np.max(np.abs(few - exact)) > 0.1


def test_a_code_is_a_bound_without_a_gap_of_sampling():
    # q is one code: log p(x, z) = log p(x|z) − 2 ln 3, which is a term of the sum over all.
    spec, params, stats, pop = discrete("vq")
    result = evaluate.evaluate(spec, "vmap", 1, 13, pop, DATA, TEST)
    assert float(result["rate"][0]) == pytest.approx(2 * np.log(3), rel=1e-6)
    np.testing.assert_allclose(result["kl_per_dim"][0], np.log(3), rtol=1e-6)
    bound = evaluate.iw_bound(spec, "vmap", 70, 13, pop, DATA, TEST)
    assert float(bound[0]) == pytest.approx(float(result["elbo"][0]), rel=1e-5)
    assert float(bound[0]) < exact_log_px(spec, params, stats).mean()


def test_the_units_of_discrete_latents_are_variables():
    # A variable is active by the sum of the variances of its numbers.
    spec, params, stats, pop = discrete("categorical")
    result = evaluate.evaluate(spec, "vmap", 1, 5, pop, DATA, TEST)
    means = jax.vmap(lambda x: model.encode(spec, params, stats, HParams(), x, False)[0].mean)(
        DATA.raw
    )
    variance = np.float64(means).var(0).reshape(2, 3).sum(1)
    assert int(result["active_units"][0]) == np.sum(variance > 0.01) == 2
    assert result["kl_per_dim"].shape == (1, 2)


def test_a_rate_without_a_closed_form_is_one_number():
    spec = dataclasses.replace(SPEC.model, posterior="coupling", prior="mixture", flow_width=4)
    params, stats = parameters(spec)
    pop = hand_made(Spec(spec), params, stats, seed=3, sigma=0.7)
    result = evaluate.evaluate(spec, "vmap", 4, 5, pop, DATA, TEST)
    assert result["kl_per_dim"].shape == (1, 1)
    np.testing.assert_allclose(result["kl_per_dim"][0], result["rate"], rtol=1e-6)


def test_bits_per_dimension_of_discrete_data():
    spec = dataclasses.replace(SPEC.model, likelihood="logistic_shared")
    params, stats = parameters(spec)
    grey = np.random.default_rng(0).integers(0, 256, (N, 5)) / 255
    data = dataclasses.replace(DATA, raw=jnp.float32(grey))
    pop = hand_made(Spec(spec), params, stats)
    result = evaluate.evaluate(spec, "vmap", 2, 13, pop, data, TEST)
    expected = -float(result["elbo"][0]) / (5 * np.log(2))
    assert float(result["bpd"][0]) == pytest.approx(expected, rel=1e-6)
    assert "bpd" not in evaluate.evaluate(SPEC.model, "vmap", 1, 13, model_population(), DATA, TEST)
