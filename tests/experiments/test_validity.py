"""What a config may not ask of an objective: an error that names the field and says what to do."""

import re

import numpy as np
import pytest

from configs import default
from experiments import config as configs
from experiments import plan as plans
from experiments import sweep
from tests.experiments import launch
from vae.errors import UserError

BASE = default.get_config().to_dict()


def make(*axes, **changes):
    """The plan of the default config with changes {section__field: value}, and of a sweep."""
    flat = {name.replace("__", "."): value for name, value in changes.items()}
    nested = configs.unflatten(configs.flatten(BASE) | flat)
    runs = sweep.product(*axes) if axes else [{}]
    return plans.make(nested, runs, sweep.axes(runs), budget=2**40)


def error(**changes):
    with pytest.raises(UserError) as caught:
        make(**changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective__name": "betatcvae"}, r"objective\.name: .* Did you mean 'tcvae'\?"),
        ({"objective__name": "iwea"}, r"objective\.name: .* Did you mean 'iwae'\?"),
        ({"objective__estimator": "dregs"}, r"objective\.estimator: .* Did you mean 'dreg'\?"),
        ({"objective__kernel": "rfb"}, r"objective\.kernel: .* Did you mean 'rbf'\?"),
        ({"objective__tc_estimator": "mws"}, r"objective\.tc_estimator: .*weighted, stratified"),
        ({"model__posterior": "gausian"}, r"model\.posterior: .* Did you mean 'gaussian'\?"),
        ({"model__prior": "vampprior"}, r"model\.prior: .* Did you mean 'vamp'\?"),
    ],
    ids=lambda value: next(iter(value.values())) if isinstance(value, dict) else "",
)
def test_unknown_names_and_the_nearest(changes, message):
    assert re.match(message, error(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"objective__name": "tcvae", "objective__estimator": "dreg"},
            r"objective\.estimator: dreg is an estimator for bounds on log p\(x\), and tcvae",
        ),
        (
            {"objective__name": "iwae", "objective__estimator": "stl", "model__posterior": "iaf"},
            r"objective\.estimator: stl needs .*iaf would take one pass for each dimension",
        ),
        (
            {"objective__name": "iwae", "objective__estimator": "score"},
            r"objective\.estimator: score takes its baseline from the other samples",
        ),
        (
            {"model__posterior": "categorical", "objective__estimator": "dreg"},
            r"objective\.estimator: dreg needs the density of a continuous z",
        ),
        (
            {"model__prior": "mixture", "objective__estimator": "gdreg"},
            r"objective\.estimator: gdreg moves .*model\.prior mixture .*model\.prior to flow",
        ),
    ],
    ids=lambda value: "-".join(value.values()) if isinstance(value, dict) else "",
)
def test_an_estimator_that_the_bound_or_the_posterior_does_not_admit(changes, message):
    assert re.match(message, error(**changes))


@pytest.mark.parametrize("samples", [0, -1])
def test_iwae_without_samples(samples):
    said = error(objective__name="iwae", objective__samples=samples)
    assert said.startswith(f"objective.samples: expected a whole number >= 1, got {samples}.")


def test_groups_without_a_group():
    said = error(objective__name="miwae", objective__groups=0)
    assert said.startswith("objective.groups: expected a whole number >= 1, got 0.")


@pytest.mark.parametrize("estimator", ["stratified", "weighted"])
def test_total_correlation_of_a_dataset_smaller_than_the_batch(estimator):
    changes = {"objective__name": "tcvae", "objective__tc_estimator": estimator}
    changes |= {"data__train_split": "train[:100]"}
    said = error(**changes, train__batch_size=101)
    assert said.startswith("train.batch_size: 101 is more than the 100 training examples of digits")
    make(**changes, train__batch_size=100)


def test_vampprior_with_more_components_than_examples():
    changes = {"model__prior": "vamp", "data__train_split": "train[:200]"}
    said = error(**changes, model__prior_components=201)
    assert said.startswith("model.prior_components: 201 pseudo-inputs")
    assert "there are 200" in said
    make(**changes, model__prior_components=200)


DISCRETE = ["categorical", "logistic_shared", "logistic_pixel", "logistic_mixture"]


@pytest.mark.parametrize("likelihood", DISCRETE)
def test_discretised_likelihoods_of_what_are_no_bytes(likelihood, tmp_path):
    images = np.random.default_rng(0).uniform(size=(20, 6)).astype(np.float32)
    np.savez(tmp_path / "floats.npz", train=images, test=images)
    np.savez(tmp_path / "bytes.npz", **dict.fromkeys(("train", "test"), np.uint8(255 * images)))
    changes = {"data__binarization": "none", "model__likelihood": likelihood}
    changes |= {"train__batch_size": 10}
    message = rf"model\.likelihood: {likelihood} .* those of .* are not bytes .* Use uint8 data"
    # Numbers in [0, 1] that are no levels, and levels that are not 256: digits have 17.
    for source in (f"npz:{tmp_path / 'floats.npz'}", "digits"):
        assert re.match(message, error(**changes, data__source=source))
    make(**changes, data__source=f"npz:{tmp_path / 'bytes.npz'}")
    # Bytes, but not as they are.
    changes |= {"data__source": f"npz:{tmp_path / 'bytes.npz'}"}
    said = error(**changes | {"data__scaling": "symmetric"})
    assert said.startswith(f"model.likelihood: {likelihood} needs values in [0, 1]")
    said = error(**changes | {"data__binarization": "dynamic"})
    assert said.startswith(f"model.likelihood: {likelihood} is a distribution over the 256 values")


@pytest.mark.parametrize("codes", [1, 0])
@pytest.mark.parametrize("posterior", ["vq", "categorical"])
def test_a_codebook_of_fewer_than_two(posterior, codes):
    objective = "vq" if posterior == "vq" else "elbo"
    said = error(model__posterior=posterior, objective__name=objective, model__codes=codes)
    assert said.startswith(f"model.codes: expected a whole number >= 2, got {codes}.")


def test_a_schedule_longer_than_training_is_warned_of_once(caplog):
    runs = [sweep.axis("objective.warmup_steps", [10, 600, 700]), sweep.axis("model.depth", [1, 2])]
    with caplog.at_level("WARNING", logger="absl"):
        make(*runs, objective__beta_schedule="linear")
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "objective.warmup_steps: 600 is longer than the training of 550 steps (4 of 6 runs)"
    )


def test_what_the_user_sees(tmp_path):
    folder = tmp_path / "results"
    said = launch.user_error("--config.objective.kernel=imk", workdir=folder)
    assert re.match(r"objective\.kernel: .* got 'imk'\. Did you mean 'imq'\?", said)
    said = launch.user_error(
        "--config.objective.name=mmd", "--sweep=objective.estimator=stl,score", workdir=folder
    )
    assert said.startswith("objective.estimator: score is an estimator for bounds on log p(x)")
    assert not folder.exists()
    flags = ("--config.objective.name=capacity", "--config.objective.capacity_steps=201")
    done = launch.run(folder, *flags, "--sweep=seed=0,1", "--dry_run")
    assert done.stderr.count("is longer than the training of 200 steps (2 of 2 runs)") == 1
