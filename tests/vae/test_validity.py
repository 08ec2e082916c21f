"""Which parts go together: one table of everything, and what is said of the pairs that do not."""

import dataclasses
import itertools
import re

import pytest

from vae import validity
from vae.bounds import BOUNDS, ESTIMATORS
from vae.errors import UserError
from vae.likelihoods import LIKELIHOODS
from vae.objectives import OBJECTIVES
from vae.posteriors import POSTERIORS
from vae.priors import PRIORS
from vae.spec import ModelSpec, ObjectiveSpec, Spec

OWN = {
    "model": {field.name for field in dataclasses.fields(ModelSpec)} | {"rate_floor"},
    "objective": {field.name for field in dataclasses.fields(ObjectiveSpec)},
    "train": {"batch_size", "accumulate", "remat", "precision"},
}


def spec(batch_size=8, num_examples=100, accumulate=1, **parts):
    """A spec by the names of its parts, wherever they belong."""
    model = {name: value for name, value in parts.items() if name in OWN["model"]}
    objective = {name: value for name, value in parts.items() if name not in model}
    return Spec(
        ModelSpec((6,), **{"latent_dim": 4} | model),
        ObjectiveSpec(num_examples=num_examples, **objective),
        batch_size=batch_size,
        accumulate=accumulate,
    )


def refusal(**parts):
    """The message of a spec that is refused, which names fields that there are."""
    with pytest.raises(UserError) as caught:
        validity.check(spec(**parts))
    message = str(caught.value)
    assert re.match(r"(model|objective|train)\.[a-z_]+: ", message)
    assert re.search(r"(Set|Make) [^.]*(model|objective|train)\.[^:]*\.$|Set it to", message)
    for section, name in re.findall(r"\b(model|objective|train)\.([a-z_]+)", message):
        assert name in OWN[section], message
    return message


# The posterior of the objectives that admit no Gaussian.
POSTERIOR = {"autoencoder": "point", "vq": "vq", "log_softmax": "squashed", "tied": "tied"}
GAUSSIANS = ("gaussian", "full", "low_rank")
FLOWS = ("iaf", "coupling")
LAYERED = ("hierarchical", "ladder")
MOMENTS = ("tcvae", "dip_i", "dip_ii")  # which read mean and variance of each dimension


def fits(objective, posterior, prior, estimator):
    """What the issue and the papers admit, said once more, independently of the rules."""
    if posterior == "vq" or objective == "vq":
        return (objective, posterior, prior, estimator) == (
            "vq",
            "vq",
            "standard",
            "reparameterization",
        )
    printed = {"squashed": "log_softmax", "tied": "tied"}
    if posterior in printed or objective in printed.values():
        own = printed.get(posterior) == objective
        return own and (prior, estimator) == ("standard", "reparameterization")
    if objective == "autoencoder" or posterior == "point":
        plain = prior == "standard" or objective == "mmd" and prior in ("mixture", "flow")
        where = objective in ("autoencoder", "mmd") and posterior == "point"
        return where and plain and estimator == "reparameterization"
    if posterior == "categorical":
        likely = objective in ("elbo", "capacity", "vaegan")
        return likely and prior == "standard" and estimator == "reparameterization"
    if (posterior in LAYERED) != (prior == "hierarchical"):
        return False
    if posterior in LAYERED and objective not in (*BOUNDS, "capacity", "vaegan"):
        return False
    if objective in MOMENTS and posterior != "gaussian":
        return False
    if prior == "vamp" and posterior != "gaussian":
        return False
    if estimator in ("dreg", "gdreg", "score") and objective not in BOUNDS:
        return False
    if estimator == "gdreg" and prior not in ("flow", "hierarchical"):
        return False
    return posterior != "iaf" or estimator == "reparameterization"


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_table_of_everything(objective):
    found = {True: 0, False: 0}
    for posterior, prior, estimator in itertools.product(POSTERIORS, PRIORS, ESTIMATORS):
        groups = 2 if objective in ("miwae", "piwae") else 1
        parts = {
            "name": objective,
            "posterior": posterior,
            "prior": prior,
            "estimator": estimator,
            "samples": 2,
            "groups": groups,
        }
        valid = fits(objective, posterior, prior, estimator)
        found[valid] += 1
        if valid:
            validity.check(spec(**parts))
        else:
            refusal(**parts)
    assert found[True] and found[False]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_goes_with_every_objective(likelihood):
    for name in OBJECTIVES:
        posterior = POSTERIOR.get(name, "gaussian")
        validity.check(spec(name=name, posterior=posterior, likelihood=likelihood))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        # _posterior
        ({"posterior": "point"}, r"model\.posterior: point, .*no rate.*autoencoder or mmd"),
        ({"posterior": "squashed"}, r"model\.posterior: squashed, .*log_softmax alone"),
        ({"posterior": "tied"}, r"model\.posterior: tied, .*objective\.name tied alone"),
        # _output
        ({"output": "sigmoid"}, r"model\.output: sigmoid, but .*bernoulli makes its own"),
        (
            {"output": "sigmoid", "likelihood": "logistic_shared"},
            r"model\.output: sigmoid, but .*logistic_shared",
        ),
        ({"posterior": "vq"}, r"model\.posterior: vq, .*objective\.name vq"),
        ({"name": "vq"}, r"model\.posterior: gaussian, which .* vq does not know: it takes vq"),
        ({"name": "tcvae", "posterior": "full"}, r"model\.posterior: full, .* it takes gaussian"),
        (
            {"name": "factor", "posterior": "categorical"},
            r"model\.posterior: categorical, whose one-hot z .* factor permutes",
        ),
        # _floor
        (
            {"posterior_scale": "floored", "posterior": "low_rank"},
            r"model\.posterior_scale: floored .*low_rank is not all of a dimension's spread",
        ),
        (
            {"posterior_scale": "floored", "posterior": "coupling"},
            r"model\.posterior_scale: floored .*model\.rate_floor",
        ),
        (
            {"posterior_scale": "floored", "prior": "mixture"},
            r"model\.posterior_scale: floored .*model\.prior mixture is learned",
        ),
        # _dimensions
        ({"posterior": "full", "latent_dim": 1}, r"model\.posterior: full couples"),
        ({"posterior": "coupling", "latent_dim": 1}, r"model\.posterior: coupling couples"),
        ({"posterior": "iaf", "latent_dim": 1}, r"model\.posterior: iaf couples"),
        ({"posterior": "iaf", "flow_width": 3}, r"model\.flow_width: 3 hidden .* 4 latent"),
        ({"prior": "flow", "latent_dim": 1}, r"model\.prior: flow couples .* to mixture"),
        # _layers
        (
            {"name": "factor", "posterior": "ladder", "prior": "hierarchical"},
            r"model\.posterior: ladder, whose layers depend on each other .*factor makes all",
        ),
        (
            {"posterior": "hierarchical"},
            r"model\.prior: standard, and the layers of model\.posterior hierarchical",
        ),
        (
            {"prior": "hierarchical", "posterior": "full"},
            r"model\.prior: hierarchical, and model\.posterior full has no layers",
        ),
        (
            {"stochastic": (3, 1)},
            r"model\.latent_dim: 2 stochastic layers, and model\.posterior gaussian has one",
        ),
        (
            {"stochastic": (2, 1, 1), "stochastic_width": (8,)}
            | {"posterior": "ladder", "prior": "hierarchical"},
            r"model\.stochastic_width: 1 numbers, .* there are 2",
        ),
        (
            {"stochastic": (3, 1), "norm": "batch", "name": "iwae", "estimator": "dreg"}
            | {"posterior": "hierarchical", "prior": "hierarchical"},
            r"objective\.estimator: dreg needs log q\(z\|x\) of a given z, .*model\.norm batch",
        ),
        (
            {"posterior_scale": "floored", "posterior": "ladder", "prior": "hierarchical"},
            r"model\.posterior_scale: floored .*ladder is not all of a dimension's spread",
        ),
        # _prior
        (
            {"name": "autoencoder", "posterior": "point", "prior": "flow"},
            r"model\.prior: flow is learned through the rate, .*autoencoder has none",
        ),
        (
            {"prior": "mixture", "posterior": "categorical"},
            r"model\.prior: mixture is a density, .*categorical are discrete",
        ),
        ({"prior": "vamp", "posterior": "low_rank"}, r"model\.prior: vamp mixes diagonal"),
        (
            {"prior": "vamp", "prior_components": 101},
            r"model\.prior_components: 101 pseudo-inputs .* there are 100",
        ),
        # _estimator
        (
            {"name": "factor", "estimator": "dreg"},
            r"objective\.estimator: dreg is an estimator for bounds.*factor has a penalty",
        ),
        (
            {"name": "dip_i", "estimator": "score", "samples": 2},
            r"objective\.estimator: score is an estimator for bounds.*elbo, iwae, miwae",
        ),
        (
            {"posterior": "categorical", "estimator": "score", "samples": 2},
            r"objective\.estimator: score needs the density of a continuous z",
        ),
        (
            {"posterior": "iaf", "estimator": "stl"},
            r"objective\.estimator: stl needs log q\(z\|x\) of a given z.*posterior to coupling",
        ),
        ({"estimator": "score"}, r"objective\.estimator: score takes .*objective\.samples is 1"),
        (
            {"name": "miwae", "groups": 4, "estimator": "score"},
            r"objective\.estimator: score takes .*objective\.samples is 1",
        ),
        # _kl
        ({"kl": "analytic", "prior": "flow"}, r"objective\.kl: analytic, .* no closed form"),
        ({"kl": "analytic", "posterior": "iaf"}, r"objective\.kl: analytic, .* no closed form"),
        ({"kl": "analytic", "name": "iwae"}, r"objective\.kl: analytic, .*log-densities"),
        ({"kl": "analytic", "estimator": "stl"}, r"objective\.kl: analytic, .*log-densities"),
        ({"kl": "sampled", "posterior": "categorical"}, r"objective\.kl: sampled, .* no density"),
        # _bounds
        (
            {"name": "iwae", "posterior": "categorical"},
            r"objective\.name: iwae weighs samples by their densities",
        ),
        ({"name": "iwae", "groups": 2}, r"objective\.groups: 2, but iwae has no groups"),
        ({"free_bits_groups": 3}, r"objective\.free_bits_groups: 3 does not divide .*\(4\)"),
        ({"free_bits_groups": 2, "kl": "sampled"}, r"objective\.free_bits_groups: 2, .* sampled"),
        # _coupled
        ({"name": "mmd", "batch_size": 1}, r"train\.batch_size: 1, but mmd compares"),
        ({"name": "tcvae", "batch_size": 1}, r"train\.batch_size: 1, but tcvae compares"),
        # _output_bias
        (
            {"output_bias": "data_mean", "likelihood": "logistic_mixture"},
            r"model\.output_bias: data_mean, .*logistic_mixture should start",
        ),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_what_is_refused_and_why(parts, message):
    assert re.match(message, refusal(**parts), re.DOTALL)


@pytest.mark.parametrize(
    "parts",
    [
        {"posterior": "low_rank", "latent_dim": 1},
        {"posterior": "iaf", "latent_dim": 2, "flow_width": 2},
        {"prior": "vamp", "prior_components": 100},
        {"prior": "mixture", "prior_components": 1000, "latent_dim": 1},
        {"estimator": "score", "samples": 2},
        {"kl": "analytic", "posterior": "categorical"},
        {"kl": "sampled", "estimator": "stl"},
        {"name": "miwae", "groups": 5},
        {"free_bits_groups": 4},
        {"name": "factor", "batch_size": 2},
        {"name": "capacity", "batch_size": 1},
        {"output_bias": "data_mean", "likelihood": "logistic_pixel"},
        {"posterior_scale": "floored", "posterior": "full"},
        {"posterior": "ladder", "prior": "hierarchical", "free_bits_groups": 2},
        {"posterior": "ladder", "prior": "hierarchical", "norm": "batch", "estimator": "stl"},
        {"posterior": "hierarchical", "prior": "hierarchical", "stochastic": (2, 1, 1)}
        | {"stochastic_width": (8, 4), "norm": "batch"},
        {"posterior": "hierarchical", "prior": "hierarchical", "stochastic": (3, 1)}
        | {"norm": "layer", "estimator": "gdreg"},
    ],
    ids=lambda parts: "-".join(map(str, parts.values())),
)
def test_the_last_that_is_admitted(parts):
    validity.check(spec(**parts))
