"""The rules between fields that need neither the data nor the library, and what they assume."""

import re

import jax
import jax.numpy as jnp
import pytest

from configs import default
from experiments import config, rules
from experiments.fields import FIELDS
from vae import train
from vae.bounds import ESTIMATORS
from vae.data import Transform
from vae.errors import UserError
from vae.hparams import HParams, stack
from vae.likelihoods import LIKELIHOODS
from vae.loss import Batch, batch_loss
from vae.objectives import OBJECTIVES
from vae.posteriors import POINTS
from vae.spec import ModelSpec, ObjectiveSpec, Spec

BASE = config.flatten(config.resolve(default.get_config().to_dict(), {}))

# The posterior of the objectives that admit no Gaussian.
POSTERIOR = {"autoencoder": "point", "vq": "vq", "log_softmax": "squashed", "tied": "tied"}


def error(**changes):
    """What is said of the default config with changes {section__field: value}."""
    flat = {name.replace("__", "."): value for name, value in changes.items()}
    with pytest.raises(UserError) as caught:
        config.resolve(config.unflatten(BASE), flat)
    return str(caught.value)


def test_the_default_breaks_no_rule():
    rules.check(BASE)


def test_likelihoods_are_those_of_the_library():
    discrete = {name for name, row in LIKELIHOODS.items() if row.levels}
    assert discrete == set(rules.BYTE_LIKELIHOODS)
    unit = {name for name, row in LIKELIHOODS.items() if row.support == (0.0, 1.0)}
    assert unit == set(rules.UNIT_LIKELIHOODS)


def test_points_are_those_of_the_library():
    assert rules.POINTS == POINTS


def loss(name, estimator, *free_bits):
    """The loss of one batch at initialisation, under each of the floors."""
    posterior = POSTERIOR.get(name, "gaussian")
    prior = "flow" if ESTIMATORS[estimator].prior else "standard"
    spec = Spec(
        ModelSpec((3,), 2, depth=1, width=4, posterior=posterior, prior=prior),
        ObjectiveSpec(
            name=name,
            estimator=estimator,
            samples=2,
            groups=2 if name in ("miwae", "piwae") else 1,
            num_examples=8,
            discriminator_depth=1,
            discriminator_width=4,
        ),
        batch_size=4,
    )
    batch = Batch(jnp.linspace(0, 1, 12).reshape(4, 3), jnp.arange(4, dtype=jnp.int32))

    @jax.jit
    @jax.vmap
    def run(hparams):
        state = train.init_run(spec, hparams, jnp.zeros(3))
        _, (metrics, _) = batch_loss(
            spec, Transform(), state.params, state.stats, hparams, state.step, batch
        )
        return metrics["loss"]

    return run(stack([HParams(free_bits=floor) for floor in free_bits]))


PLAIN = [(name, "reparameterization") for name in OBJECTIVES]


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("name", "estimator"), PLAIN + [("elbo", e) for e in ESTIMATORS if e != "reparameterization"]
)
def test_free_bits_are_refused_where_the_loss_has_none(name, estimator):
    without, with_them = loss(name, estimator, 0.0, 5.0)
    # Neither of the two dimensions has 5 nats: the floor adds some, or the loss has none.
    unused = name in rules.NO_FREE_BITS or estimator in rules.NO_FREE_BITS_ESTIMATORS
    assert (without == with_them) == unused
    assert unused or with_them > without + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train__steps": 10}, r"train\.epochs and train\.steps: both .*50 and 10"),
        ({"train__epochs": None}, r"train\.epochs and train\.steps: neither"),
        ({"model__net": "conv", "model__depth": 0}, r"model\.depth: 0 with model\.net conv"),
        ({"model__width": (64, 32, 16)}, r"model\.width: \[64,32,16\] lists 3 .*model\.depth is 2"),
        ({"model__net": "conv", "model__residual": "plain"}, r"model\.residual: plain needs .*mlp"),
        ({"model__residual": "plain", "model__width": (64, 32)}, r"model\.residual: .*\[64,32\]"),
        ({"model__latent_skip": "concat", "model__net": "conv"}, r"model\.latent_skip: .*got conv"),
        (
            {"model__latent_skip": "concat", "model__residual": "scaled"},
            r"model\.latent_skip: .*got scaled",
        ),
        (
            {"data__scaling": "symmetric"},
            r"data\.binarization: dynamic .* needs data\.scaling unit",
        ),
        (
            {"data__scaling": "standardize", "data__binarization": "none"},
            r"model\.likelihood: bernoulli needs values in \[0, 1\]",
        ),
        ({"model__likelihood": "categorical"}, r"model\.likelihood: categorical .* 256 values"),
        (
            {"objective__free_bits": 0.5, "train__accumulate": 2},
            r"train\.accumulate: 2 parts .*objective\.free_bits 0\.5.* Set train\.accumulate to 1",
        ),
        (
            {"objective__free_bits": 0.5, "objective__name": "iwae"},
            r"objective\.free_bits: 0\.5, but the loss of iwae",
        ),
        (
            {"objective__free_bits": 0.5, "objective__estimator": "dreg"},
            r"objective\.free_bits: 0\.5, but the loss of elbo with the estimator dreg",
        ),
        (
            {
                "objective__free_bits": 0.5,
                "objective__name": "mmd",
                "model__posterior": "point",
            },
            r"objective\.free_bits: 0\.5, but the loss of mmd",
        ),
        (
            {"objective__corruption": "mask", "objective__corruption_level": 1.5},
            r"objective\.corruption_level: 1\.5 is the share",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_each_rule_names_its_field_and_what_to_do(changes, message):
    said = error(**changes)
    assert re.match(message, said)
    assert re.search(r"(Set|Give|Make) .*\.$", said)
    # Every field that it names is one.
    assert set(re.findall(r"\b(?:data|model|objective|train)\.[a-z_]+", said)) <= FIELDS.keys()


def warned(caplog, runs, num_steps):
    """The warnings of schedules that are too long, of runs given as changes to the default."""
    flats = [BASE | {n.replace("__", "."): v for n, v in run.items()} for run in runs]
    with caplog.at_level("WARNING", logger="absl"):
        rules.warn_of_length(flats, num_steps)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("name", rules.LENGTHS)
def test_a_schedule_longer_than_training_is_warned_of_once(name, caplog):
    switch, values = rules.LENGTHS[name]
    on = {switch: values[0]} if switch else {}
    runs = [{name: 101.0} | on, {name: 150.0} | on, {name: 100.0} | on, {name: 101.0} | on]
    (message,) = warned(caplog, runs, [100, 100, 100, 101])
    assert message.startswith(f"{name}: 101 is longer than the training of 100 steps (2 of 4 runs)")


@pytest.mark.parametrize("name", rules.LENGTHS)
def test_a_schedule_that_fits_or_that_is_not_used_is_no_warning(name, caplog):
    switch, values = rules.LENGTHS[name]
    runs = [{name: 100.0} | ({switch: values[0]} if switch else {})]
    if switch:  # unused: the default has another value of the switch
        assert BASE[switch] not in values
        runs.append({name: 1000.0})
    if FIELDS[name].allows_none:
        runs.append({name: None} | ({switch: values[0]} if switch else {}))
    assert not warned(caplog, runs, [100] * len(runs))


def test_a_fold_needs_folds():
    assert error(data__fold=1).startswith("data.fold: 1, but data.folds is null.")
    assert "data.folds is 3" in error(data__folds=3, data__fold=3)
