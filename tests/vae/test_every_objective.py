"""One table of objectives with posteriors, priors and likelihoods; what must hold for every row."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from tests.vae import test_population
from tests.vae.building import COMPILE_FAST, context, examples, parameters, population
from vae import elbo, model, objectives, train, validity
from vae.bounds import BOUNDS
from vae.data import Transform
from vae.hparams import HParams, stack
from vae.likelihoods import LIKELIHOODS
from vae.loss import Batch, batch_loss
from vae.objectives import OBJECTIVES
from vae.posteriors import POINTS, POSTERIORS
from vae.priors import PRIORS
from vae.spec import ModelSpec, ObjectiveSpec, OptimizerSpec, Spec

BATCH, SHAPE = 8, (6,)

# Each objective with what it is mostly used with, and with something else; each posterior, prior
# and likelihood in one row at least.
CASES = [
    ("elbo", "gaussian", "standard", "bernoulli"),
    ("elbo", "low_rank", "flow", "continuous_bernoulli"),
    ("elbo", "categorical", "standard", "gaussian_shared"),
    ("elbo", "ladder", "hierarchical", "bernoulli"),
    ("iwae", "gaussian", "standard", "bernoulli"),
    ("iwae", "full", "mixture", "gaussian_pixel"),
    ("iwae", "hierarchical", "hierarchical", "bernoulli"),
    ("miwae", "gaussian", "standard", "laplace"),
    ("miwae", "coupling", "standard", "gaussian"),
    ("ciwae", "low_rank", "mixture", "student_shared"),
    ("piwae", "gaussian", "vamp", "gaussian_optimal"),
    ("renyi", "iaf", "flow", "logistic_shared"),
    ("capacity", "gaussian", "standard", "bernoulli"),
    ("capacity", "categorical", "standard", "logistic_mixture"),
    ("tcvae", "gaussian", "standard", "bernoulli"),
    ("tcvae", "gaussian", "mixture", "laplace_pixel"),
    ("factor", "gaussian", "standard", "bernoulli"),
    ("factor", "iaf", "standard", "laplace_shared"),
    ("dip_i", "gaussian", "standard", "gaussian"),
    ("dip_ii", "gaussian", "vamp", "student"),
    ("mmd", "point", "standard", "gaussian"),
    ("mmd", "coupling", "mixture", "student_pixel"),
    ("autoencoder", "point", "standard", "gaussian"),
    ("autoencoder", "point", "standard", "categorical"),
    ("log_softmax", "squashed", "standard", "gaussian"),
    ("tied", "tied", "standard", "gaussian"),
    ("vaegan", "gaussian", "standard", "bernoulli"),
    ("vaegan", "full", "flow", "gaussian_optimal"),
    ("vq", "vq", "standard", "gaussian"),
    ("vq", "vq", "standard", "logistic_pixel"),
]
HPARAMS = HParams(
    beta=0.7,
    free_bits=0.02,
    ciwae_beta=0.3,
    renyi_alpha=0.4,
    capacity=5.0,
    capacity_steps=10.0,
    penalty=3.0,
    penalty_diagonal=2.0,
    bandwidth=0.8,
    commitment=0.4,
    sigma=0.6,
)
STEP = 4


def spec_of(objective, posterior="gaussian", prior="standard", likelihood="bernoulli"):
    """A spec of one layer of 8 units and two latent variables."""
    bound = OBJECTIVES[objective].loss is None
    spec = Spec(
        ModelSpec(
            SHAPE,
            2,
            depth=1,
            width=8,
            activation="tanh",
            likelihood=likelihood,
            posterior=posterior,
            posterior_rank=1,
            codes=4,
            code_dim=2,
            prior=prior,
            prior_components=3,
            flow_layers=1,
            flow_width=4,
            stochastic=(1, 1) if POSTERIORS[posterior].nets else (),
            stochastic_depth=1,
            stochastic_width=4,
        ),
        ObjectiveSpec(
            objective,
            samples=2 if bound else 1,
            groups=2 if objective in ("miwae", "piwae") else 1,
            num_examples=29,
            tc_estimator="weighted" if prior == "standard" else "stratified",
            kernel="imq",
            discriminator_depth=1,
            discriminator_width=8,
        ),
        OptimizerSpec("sgd"),
        batch_size=BATCH,
    )
    validity.check(spec)
    return spec


def parameters_of(spec, seed=0, dtype=np.float32):
    """Those of the VAE, and of the discriminator where there is one: N(0, 0.4²)."""
    params, stats = parameters(spec.model, seed, dtype)
    shapes = jax.eval_shape(lambda: objectives.init_adversary(spec, jax.random.key(0)))
    if shapes:
        rng = np.random.default_rng(seed + 1)
        params["discriminator"] = jax.tree.map(
            lambda a: jnp.asarray(0.4 * rng.normal(size=a.shape), dtype), shapes
        )
    return params, stats


def images(seed=0, dtype=np.float32):
    """Grey values of 8 bits, which every likelihood takes: [B, *x]."""
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, 256, (BATCH, *SHAPE)) / 255, dtype)


def test_the_table_has_everything():
    for column, names in enumerate((OBJECTIVES, POSTERIORS, PRIORS, LIKELIHOODS)):
        assert {case[column] for case in CASES} == set(names)


def changed(tree, change):
    """A tree whose leaves are change("part/layer/name", leaf)."""
    return jax.tree_util.tree_map_with_path(
        lambda path, a: change("/".join(key.key for key in path), a), tree
    )


def filled(ending, value):
    """Sets the leaves whose names end so, with alternating signs if `value` is a pair."""

    def change(name, a):
        values = jnp.resize(jnp.asarray(value, a.dtype), a.shape)
        return values if name.endswith(ending) else a

    return change


# Name: what is done to the parameters; and to the images.
SETTINGS = {
    "plain": (lambda name, a: a, lambda x: x),
    "start": (lambda name, a: a if "kernel" in name or "weight" in name else 0 * a, lambda x: x),
    "logits of ±1e4": (filled("decoder/output/bias", [1e4, -1e4]), lambda x: x),
    "means of ±1e4": (filled("encoder/mean/bias", [1e4, -1e4]), lambda x: x),
    "logits of the code of ±1e4": (filled("encoder/logits/bias", [1e4, -1e4]), lambda x: x),
    "a tiny σ of z": (filled("encoder/scale/bias", -60.0), lambda x: x),
    "a tiny σ of x": (
        lambda name, a: filled("likelihood/logvar", -20.0)(
            name, filled("decoder/variance/bias", -1e4)(name, a)
        ),
        lambda x: x,
    ),
    "a sure discriminator": (filled("discriminator/output/bias", 1e4), lambda x: x),
    "black images": (lambda name, a: a, jnp.zeros_like),
    "white images": (lambda name, a: a, jnp.ones_like),
}


def stacked(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@functools.cache
def program(spec):
    """(params [S], stats, x [S]) -> ((loss + the discriminator's, metrics), gradients) of each."""
    numbers = jax.tree.map(lambda a: jnp.asarray(a[0]), stack([HPARAMS]))

    def value(params, stats, x):
        index = jnp.arange(BATCH, dtype=jnp.int32)
        total, (metrics, _) = batch_loss(
            spec, Transform(), params, stats, numbers, jnp.int32(STEP), Batch(x, index)
        )
        return total, metrics

    each = jax.vmap(jax.value_and_grad(value, has_aux=True), (0, None, 0))
    return jax.jit(each, compiler_options=COMPILE_FAST)


@functools.cache
def results(case):
    """All settings of a case in one program: (metrics [S], gradients [S])."""
    spec = spec_of(*case)
    params, stats = parameters_of(spec)
    settings = [(changed(params, change), of_x(images())) for change, of_x in SETTINGS.values()]
    (_, metrics), grads = program(spec)(
        stacked([p for p, _ in settings]), stats, jnp.stack([x for _, x in settings])
    )
    return metrics, grads


@pytest.mark.sampled
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_values_and_gradients_are_finite(case):
    metrics, grads = results(case)
    spec = spec_of(*case)
    assert set(OBJECTIVES[case[0]].metrics) <= set(metrics)
    # A point has no rate and says so; no loss is made of it.
    unknown = {"rate", "elbo"} if spec.model.posterior in POINTS else set()
    for i, setting in enumerate(SETTINGS):
        if case[0] == "tied" and setting == "means of ±1e4":
            continue  # its mean is its log-variance too, and e^10,000 is no number of float32
        for name, values in metrics.items():
            assert np.isfinite(values[i]) == (name not in unknown), (setting, name)
        bad = changed(grads, lambda name, a, i=i: not np.all(np.isfinite(a[i])))
        assert not any(jax.tree.leaves(bad)), (setting, bad)


def moved(tree, direction, rate):
    return jax.tree.map(lambda p, g: p - rate * g, tree, direction)


@pytest.mark.sampled
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_gradient_step_lowers_the_loss(case):
    # By rate·|g|² to first order: at one of ten rates this is so within a few percent, unless the
    # gradient is another's. Smaller ones are lost in rounding, larger ones in the second order.
    spec = spec_of(*case)
    params, stats = parameters_of(spec)
    metrics, grads = jax.tree.map(lambda a: a[0], results(case))
    rates = 10.0 ** -np.arange(1.0, 1 + len(SETTINGS))
    plays = {"discriminator_loss": ("discriminator",)} if "discriminator" in params else {}
    plays["loss"] = tuple(part for part in params if part != "discriminator")
    for name, parts in plays.items():
        direction = {
            part: jax.tree.map(lambda g, on=float(part in parts): on * g, tree)
            for part, tree in grads.items()
        }
        squared = sum(np.sum(np.square(np.float64(g))) for g in jax.tree.leaves(direction))
        assert squared > 1e-8
        steps = stacked([moved(params, direction, np.float32(r / squared**0.5)) for r in rates])
        x = jnp.broadcast_to(images(), (len(rates), BATCH, *SHAPE))
        after = np.float64(program(spec)(steps, stats, x)[0][1][name])
        quotients = (float(metrics[name]) - after) / (rates * squared**0.5)
        if case[0] in ("vq", "piwae"):
            # Straight through, and the encoder by another bound: not the gradient of the loss.
            assert np.any(quotients > 0.1), quotients
        elif (case[0], name) != ("vaegan", "loss"):  # whose parts play against each other
            assert np.min(np.abs(quotients - 1)) < 0.05, quotients


class TestFormulas:
    """The loss of a batch in NumPy float64, from its densities, means and samples."""

    @staticmethod
    def penalty_capacity(t, numbers):
        return numbers.beta * (abs(t["kl"].sum(1).mean() - 5.0 * STEP / 10) - t["rate"])

    @staticmethod
    def penalty_tcvae(t, numbers, estimator):
        mean, std, z = t["mean"], t["std"], t["z"][:, 0]
        normal = scipy.stats.norm.logpdf(z[:, None], mean[None], std[None])
        weights = {
            "weighted": np.full((BATCH, BATCH), 1 / (29 * BATCH)),
            # Of itself 1/N, of the next (N − M)/(N·M), of the others 1/M; M = B − 1 = 7.
            "stratified": np.where(np.eye(BATCH), 1 / 29, 1 / 7)
            - np.roll(np.eye(BATCH), 1, axis=1) * (1 / 7 - 22 / (29 * 7)),
        }[estimator]
        joint = scipy.special.logsumexp(normal.sum(2), axis=1, b=weights)
        product = scipy.special.logsumexp(normal, axis=1, b=weights[:, :, None]).sum(1)
        return (numbers.penalty - 1) * np.mean(joint - product)

    @staticmethod
    def penalty_dip(t, numbers, noise):
        covariance = np.cov(t["mean"].T, ddof=0) + noise * np.diag((t["std"] ** 2).mean(0))
        diagonal = np.diagonal(covariance)
        outside = np.sum(covariance**2) - np.sum(diagonal**2)
        return numbers.penalty * outside + numbers.penalty_diagonal * np.sum((diagonal - 1) ** 2)

    @staticmethod
    def penalty_mmd(t, numbers):
        z, y = t["z"][:, 0], t["prior_z"]
        scale = 2 * z.shape[1] * numbers.bandwidth**2

        def kernel(a, b):
            u = np.square(a[:, None] - b[None]).sum(2) / scale
            return sum(s / (s + u) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))

        others = ~np.eye(BATCH, dtype=bool)
        within = kernel(z, z)[others].mean() + kernel(y, y)[others].mean()
        return numbers.penalty * (within - 2 * kernel(z, y).mean())

    @staticmethod
    def bound(name, log_w, numbers):
        """Of log-weights [B, M, K]."""
        lse = scipy.special.logsumexp
        flat = log_w.reshape(BATCH, -1)
        iwae = lse(flat, axis=1) - np.log(flat.shape[1])
        alpha = numbers.renyi_alpha
        return {
            "iwae": iwae,
            "piwae": iwae,
            "miwae": (lse(log_w, axis=2) - np.log(log_w.shape[2])).mean(1),
            "ciwae": numbers.ciwae_beta * flat.mean(1) + (1 - numbers.ciwae_beta) * iwae,
            "renyi": (lse((1 - alpha) * flat, axis=1) - np.log(flat.shape[1])) / (1 - alpha),
        }[name].mean()

    def expected(self, spec, t, numbers):
        name, beta = spec.objective.name, numbers.beta
        if name in BOUNDS and name != "elbo":
            log_w = t["log_px"] + beta * (t["log_pz"] - t["log_qz"])
            return -self.bound(name, log_w.reshape(BATCH, spec.objective.groups, -1), numbers)
        loss = -t["log_px"].mean()
        if name == "vq":
            error = np.square(t["encoded"] - t["quantized"]).sum((1, 2)).mean()
            return loss + numbers.commitment * error
        if spec.model.posterior not in POINTS:
            loss += beta * t["rate"]
        if name == "log_softmax":
            mean, z = (scipy.special.log_softmax(a, axis=-1) for a in (t["mean"], t["z"][:, 0]))
            return loss + beta * (z - mean).sum(1).mean()
        if name == "tied":
            head = t["mean"]
            kl = -0.5 * (1 + head - head**2 - np.exp(head)).sum(1)
            return 2 * loss + beta * kl.mean()
        penalties = {
            "capacity": self.penalty_capacity,
            "tcvae": functools.partial(self.penalty_tcvae, estimator=spec.objective.tc_estimator),
            "dip_i": functools.partial(self.penalty_dip, noise=0),
            "dip_ii": functools.partial(self.penalty_dip, noise=1),
            "mmd": self.penalty_mmd,
        }
        return loss + penalties[name](t, numbers) if name in penalties else loss

    # The games are in test_adversaries.
    @pytest.mark.sampled
    @pytest.mark.parametrize(
        "case", [c for c in CASES if not OBJECTIVES[c[0]].adversary], ids="-".join
    )
    def test_the_loss_is_the_formula(self, case):
        # Schedules, of which the capacity is one, are float32 whatever the model is.
        dtype, rel = (np.float32, 1e-5) if case[0] == "capacity" else (np.float64, 1e-9)
        with jax.enable_x64(dtype == np.float64):
            spec = spec_of(*case)
            params, stats = parameters_of(spec, dtype=dtype)
            numbers = jax.tree.map(lambda a: jnp.asarray(a, dtype), HPARAMS)
            x, keys = images(dtype=dtype), jax.random.split(jax.random.key(3), BATCH)
            noise = jax.vmap(
                lambda key: model.noise(
                    spec.model, jax.random.fold_in(key, 0), objectives.num_samples(spec)
                )
            )(keys)

            @jax.jit
            def batch(x, noise, keys):
                def one(x, noise, key):
                    def terms_of(path, held):
                        return elbo.terms(
                            spec.model, params, stats, numbers, x, noise, True, path=path
                        )

                    run = context(
                        spec,
                        numbers,
                        step=jnp.int32(STEP),
                        params=params,
                        stats=stats,
                        rng=key,
                    )
                    loss, extra, terms, _ = objectives.example_loss(run, terms_of)
                    prior = model.sample_prior(spec.model, params, stats, numbers, key)
                    return loss, extra, terms, prior

                return jax.vmap(one, axis_name="batch")(x, noise, keys)

            loss, extra, terms, prior_z = jax.tree.map(np.asarray, batch(x, noise, keys))
        posterior = terms.posterior
        t = {"mean": posterior.mean, "z": terms.z, "kl": terms.kl, "prior_z": prior_z}
        t |= {"log_px": terms.log_px, "log_pz": terms.log_pz, "log_qz": terms.log_qz}
        t |= {n: posterior.rest.get(n) for n in ("encoded", "quantized")}
        t["std"] = None if posterior.logvar is None else np.exp(0.5 * posterior.logvar)
        t["rate"] = np.maximum(terms.kl.mean(0), HPARAMS.free_bits).sum()
        t = {name: None if a is None else np.float64(a) for name, a in t.items()}
        assert loss.mean() == pytest.approx(self.expected(spec, t, HPARAMS), rel=rel)
        if case[0] == "vq":
            used = np.bincount(posterior.rest["codes"].ravel(), minlength=4) / (2 * BATCH)
            perplexity = np.exp(scipy.stats.entropy(used))
            assert extra["perplexity"].mean() == pytest.approx(perplexity)
            assert extra["code_usage"].mean() == np.mean(used > 0)
        if case[0] == "capacity":
            assert np.all(extra["capacity"] == 5.0 * STEP / 10)
        if "bound" in extra:  # without β
            log_w = t["log_px"] + t["log_pz"] - t["log_qz"]
            value = self.bound(case[0], log_w.reshape(BATCH, spec.objective.groups, -1), HPARAMS)
            assert extra["bound"].mean() == pytest.approx(value, rel=1e-9)


# Those of the others are swept there.
ALONE = sorted(set(OBJECTIVES) - {spec.objective.name for spec, *_ in test_population.FIELDS})


@pytest.mark.sampled
@pytest.mark.parametrize("objective", ALONE)
def test_a_run_in_a_population_is_the_run_alone(objective):
    case = next(case for case in CASES if case[0] == objective)
    spec, data = spec_of(*case), examples(29, *SHAPE)
    data = dataclasses.replace(data, raw=jnp.abs(jnp.tanh(data.raw)))
    numbers = dataclasses.replace(HPARAMS, learning_rate=3e-3)
    runs = [dataclasses.replace(numbers, seed=seed, beta=0.5 + seed) for seed in range(2)]
    starts = [population(spec, [run]) for run in runs]
    both = jax.tree.map(lambda *a: jnp.concatenate(a), *[(s.states, s.interval) for s in starts])
    together = starts[0].replace(step=jnp.copy(starts[0].step), states=both[0], interval=both[1])
    together = train.train_chunk(spec, "vmap", together, data, 12)
    assert not np.any(together.states.diverged)
    for i, start in enumerate(starts):
        alone = train.train_chunk(spec, "vmap", start, data, 12)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            jax.tree.map(lambda a, i=i: a[i], (together.states, together.interval)),
            jax.tree.map(lambda a: a[0], (alone.states, alone.interval)),
        )
