"""Which parts of a spec go together: each rule names the field, says why not, and what to do."""

from collections.abc import Callable

from vae import bounds, elbo, objectives
from vae.errors import UserError
from vae.likelihoods import LIKELIHOODS
from vae.objectives import OBJECTIVES
from vae.posteriors import POINTS, POSTERIORS
from vae.priors import PRIORS
from vae.spec import Spec


def check(spec: Spec) -> None:
    """Passes a spec that can be trained.

    Raises:
      UserError: the first rule that it breaks.
    """
    for rule in RULES:
        if message := rule(spec):
            raise UserError(message)


def _posterior(spec: Spec) -> str:
    name, posterior = spec.objective.name, spec.model.posterior
    if name == "factor" and posterior == "categorical":
        return (
            "model.posterior: categorical, whose one-hot z is not one number a variable, and "
            "factor permutes the numbers of z one by one. Set model.posterior or objective.name."
        )
    if name == "factor" and POSTERIORS[posterior].nets:
        return (
            f"model.posterior: {posterior}, whose layers depend on each other by their prior, and "
            "factor makes all numbers of z independent. Set model.posterior or objective.name."
        )
    if OBJECTIVES[name].admits(posterior):
        return ""
    fitting = ", ".join(p for p in POSTERIORS if OBJECTIVES[name].admits(p))
    needs = {
        "point": "which has no density and so no rate: use it with objective.name autoencoder or "
        "mmd",
        "squashed": "which is the code of objective.name log_softmax alone",
        "tied": "which is the code of objective.name tied alone",
        "vq": "whose codebook and encoder need objective.name vq",
    }
    why = needs.get(posterior, f"which the objective {name} does not know: it takes {fitting}")
    return f"model.posterior: {posterior}, {why}. Set model.posterior or objective.name."


def _floor(spec: Spec) -> str:
    posterior, prior = spec.model.posterior, spec.model.prior
    if spec.model.posterior_scale != "floored":
        return ""
    if posterior not in ("gaussian", "full"):
        return (
            "model.posterior_scale: floored bounds the scale head's σ, which in model.posterior "
            f"{posterior} is not all of a dimension's spread, so that its KL can be less than "
            "model.rate_floor. Set model.posterior_scale to logvar, or model.posterior to gaussian."
        )
    if prior != "standard":
        return (
            "model.posterior_scale: floored keeps the KL to N(0, I) above model.rate_floor, and "
            f"model.prior {prior} is learned: it can follow the posterior. Set "
            "model.posterior_scale to logvar, or model.prior to standard."
        )
    return ""


def _dimensions(spec: Spec) -> str:
    posterior, prior, d = spec.model.posterior, spec.model.prior, spec.model.latent_dim
    if posterior == "iaf" and spec.model.flow_width < d:
        return (
            f"model.flow_width: {spec.model.flow_width} hidden units cannot connect the {d} latent "
            "dimensions of model.posterior iaf. Make it at least model.latent_dim."
        )
    if d > 1:
        return ""
    if posterior in ("full", "iaf", "coupling"):
        return (
            f"model.posterior: {posterior} couples latent dimensions, and model.latent_dim is {d}. "
            "Set model.latent_dim to 2 or more, or model.posterior to gaussian."
        )
    if prior == "flow":
        return (
            f"model.prior: flow couples latent dimensions, and model.latent_dim is {d}. "
            "Set model.latent_dim to 2 or more, or model.prior to mixture."
        )
    return ""


def _layers(spec: Spec) -> str:
    """Of stochastic layers."""
    model, layered = spec.model, POSTERIORS[spec.model.posterior].nets
    if layered and not PRIORS[model.prior].layered:
        return (
            f"model.prior: {model.prior}, and the layers of model.posterior {model.posterior} have "
            "a prior of layers. Set model.prior to hierarchical, or model.posterior to gaussian."
        )
    if PRIORS[model.prior].layered and not layered:
        return (
            f"model.prior: hierarchical, and model.posterior {model.posterior} has no layers. Set "
            "model.posterior to hierarchical or ladder, or model.prior to standard."
        )
    if len(model.latent_dims) > 1 and not layered:
        return (
            f"model.latent_dim: {len(model.latent_dims)} stochastic layers, and model.posterior "
            f"{model.posterior} has one. Set model.posterior to hierarchical or ladder, or "
            "model.latent_dim to one number."
        )
    between = len(model.latent_dims) - 1
    if layered and len(model.stochastic_widths) != between:
        return (
            f"model.stochastic_width: {len(model.stochastic_widths)} numbers, and between the "
            f"layers of model.latent_dim there are {between}. Set model.stochastic_width to one "
            "number, or one for each pair of neighbours."
        )
    plain = spec.objective.estimator == "reparameterization"
    if layered and between and model.norm == "batch" and not plain:
        return (
            f"objective.estimator: {spec.objective.estimator} needs log q(z|x) of a given z, which "
            "with model.norm batch is that of a whole batch between stochastic layers. Set "
            "objective.estimator to reparameterization, or model.norm to layer."
        )
    return ""


def _prior(spec: Spec) -> str:
    posterior, prior = spec.model.posterior, spec.model.prior
    if prior != "standard" and spec.objective.name in ("autoencoder", "log_softmax", "tied"):
        return (
            f"model.prior: {prior} is learned through the rate, and the loss of "
            f"{spec.objective.name} has none. Set model.prior to standard, or objective.name to "
            "mmd."
        )
    if prior != "standard" and not POSTERIORS[posterior].continuous:
        return (
            f"model.prior: {prior} is a density, and the latents of model.posterior {posterior} "
            "are discrete. Set model.prior to standard, which is uniform there."
        )
    if prior == "vamp" and posterior != "gaussian":
        return (
            f"model.prior: vamp mixes diagonal Gaussian posteriors, got model.posterior "
            f"{posterior}. Set model.posterior to gaussian, or model.prior to mixture or flow."
        )
    components, examples = spec.model.prior_components, spec.objective.num_examples
    if prior == "vamp" and components > examples:
        return (
            f"model.prior_components: {components} pseudo-inputs start as training examples, of "
            f"which there are {examples}. Make model.prior_components smaller."
        )
    return ""


def _kl(spec: Spec) -> str:
    kl, estimator = spec.objective.kl, spec.objective.estimator
    if kl == "analytic" and not elbo.analytic_kl(spec.model):
        return (
            f"objective.kl: analytic, but the KL of model.posterior {spec.model.posterior} to "
            f"model.prior {spec.model.prior} has no closed form. Set objective.kl to auto or "
            "sampled."
        )
    if kl == "analytic" and (estimator != "reparameterization" or _is_bound(spec)):
        what = f"objective.name {spec.objective.name} with objective.estimator {estimator}"
        return (
            f"objective.kl: analytic, but {what} is made of log-densities of the samples. Set "
            "objective.kl to auto or sampled."
        )
    if kl == "sampled" and not POSTERIORS[spec.model.posterior].continuous:
        return (
            "objective.kl: sampled, but a relaxed or quantised sample of model.posterior "
            f"{spec.model.posterior} has no density. Set objective.kl to auto."
        )
    return ""


def _is_bound(spec: Spec) -> bool:
    return OBJECTIVES[spec.objective.name].loss is None


def _estimator(spec: Spec) -> str:
    objective, posterior = spec.objective, spec.model.posterior
    name = objective.estimator
    if name == "reparameterization":
        return ""
    if name not in ("stl", *_bound_estimators(objective.name)):
        return (
            f"objective.estimator: {name} is an estimator for bounds on log p(x), and "
            f"{objective.name} has a penalty that is none. Set objective.estimator to "
            "reparameterization or stl, or objective.name to one of "
            f"{', '.join(bounds.BOUNDS)}."
        )
    if posterior in (*POINTS, "categorical", "vq"):
        return (
            f"objective.estimator: {name} needs the density of a continuous z, which "
            f"model.posterior {posterior} has not. Set objective.estimator to reparameterization."
        )
    if bounds.ESTIMATORS[name].mode not in POSTERIORS[posterior].modes:
        return (
            f"objective.estimator: {name} needs log q(z|x) of a given z, for which "
            f"model.posterior {posterior} would take one pass for each dimension. Set "
            "objective.estimator to reparameterization, or model.posterior to coupling."
        )
    if bounds.ESTIMATORS[name].prior and PRIORS[spec.model.prior].moved is None:
        fitting = ", ".join(prior for prior, row in PRIORS.items() if row.moved)
        return (
            f"objective.estimator: {name} moves draws of the prior by its parameters, and those of "
            f"model.prior {spec.model.prior} cannot be moved. Set objective.estimator to dreg, or "
            f"model.prior to {fitting}."
        )
    if name == "score" and objective.samples < 2:
        return (
            "objective.estimator: score takes its baseline from the other samples, and "
            f"objective.samples is {objective.samples}. Set objective.samples to 2 or more."
        )
    return ""


def _bound_estimators(name: str) -> tuple[str, ...]:
    return tuple(bounds.ESTIMATORS) if name in bounds.BOUNDS else ()


def _bounds(spec: Spec) -> str:
    objective = spec.objective
    if _is_bound(spec) and spec.model.posterior == "categorical":
        return (
            f"objective.name: {objective.name} weighs samples by their densities, and a relaxed "
            "sample of model.posterior categorical has none. Set objective.name to elbo."
        )
    if objective.groups > 1 and objective.name not in ("miwae", "piwae"):
        return (
            f"objective.groups: {objective.groups}, but {objective.name} has no groups of samples. "
            "Set objective.groups to 1, or objective.name to miwae or piwae."
        )
    groups = objective.free_bits_groups
    if groups and spec.model.latent_dim % groups:
        return (
            f"objective.free_bits_groups: {groups} does not divide model.latent_dim "
            f"({spec.model.latent_dim}). Set it to a divisor."
        )
    if groups and not objectives.splits(spec):
        return (
            f"objective.free_bits_groups: {groups}, but the KL in this loss is sampled, one number "
            "for all dimensions. Set objective.free_bits_groups to null."
        )
    return ""


def _coupled(spec: Spec) -> str:
    if OBJECTIVES[spec.objective.name].coupled and spec.batch_size < 2:
        return (
            f"train.batch_size: {spec.batch_size}, but {spec.objective.name} compares the examples "
            "of a batch with each other. Set train.batch_size to 2 or more."
        )
    return ""


def _accumulate(spec: Spec) -> str:
    parts, name = spec.accumulate, spec.objective.name
    if parts == 1:
        return ""
    if spec.batch_size % parts:
        return (
            f"train.accumulate: {parts} does not divide train.batch_size ({spec.batch_size}). Set "
            "train.accumulate to a divisor."
        )
    whole, likelihood = "", LIKELIHOODS[spec.model.likelihood]
    if spec.model.norm == "batch":
        whole = "model.norm batch normalises by the statistics of the whole"
    elif likelihood.scale == "optimal":
        whole = f"the variance of model.likelihood {spec.model.likelihood} is that of the whole"
    elif POSTERIORS[spec.model.posterior].update is not None:
        whole = f"model.posterior {spec.model.posterior} keeps averages over the whole"
    elif OBJECTIVES[name].coupled or name == "capacity":
        whole = f"objective.name {name} is a function of the whole"
    if whole:
        return (
            f"train.accumulate: {parts} parts of a batch, but {whole} batch, which the parts "
            "are not. Set train.accumulate to 1; train.remat and train.precision save memory too."
        )
    return ""


def _packed(spec: Spec) -> str:
    model = spec.model
    if not model.packed:
        return ""
    for name, allowed in (
        ("net", ("mlp",)),
        ("posterior", ("gaussian",)),
        ("prior", ("standard",)),
        ("norm", ("none", "layer")),
        ("residual", ("none", "plain", "zero_init")),
        ("latent_skip", ("none",)),
    ):
        if getattr(model, name) not in allowed:
            return (
                f"model.{name}: {getattr(model, name)}, for which there are no masks that tell "
                f"runs of several sizes apart. Set model.{name} to {' or '.join(allowed)}, or "
                "train each size by itself."
            )
    if spec.objective.name not in bounds.BOUNDS:
        return (
            f"objective.name: {spec.objective.name} reads latents that are masked where runs of "
            "several sizes share a program. Set objective.name to elbo, or train each size by "
            "itself."
        )
    return ""


def _encoder_steps(spec: Spec) -> str:
    steps, posterior = spec.optimizer.encoder_steps, spec.model.posterior
    if steps > 1 and posterior != "gaussian":
        return (
            f"optimizer.encoder_steps: {steps} needs an estimate of the mutual information, which "
            f"is there for model.posterior gaussian, got {posterior}. Set one of the two."
        )
    if steps > 1 and OBJECTIVES[spec.objective.name].adversary:
        return (
            f"optimizer.encoder_steps: {steps}, but {spec.objective.name} trains a discriminator "
            "beside the encoder. Set optimizer.encoder_steps to 1."
        )
    return ""


def _output(spec: Spec) -> str:
    likelihood = spec.model.likelihood
    if spec.model.output != "identity" and not LIKELIHOODS[likelihood].location:
        return (
            f"model.output: {spec.model.output}, but model.likelihood {likelihood} makes its own "
            "of the decoder's output. Set model.output to identity, or model.likelihood to one of "
            "gaussian, laplace or student."
        )
    return ""


def _output_bias(spec: Spec) -> str:
    if spec.model.output_bias == "data_mean" and LIKELIHOODS[spec.model.likelihood].bias is None:
        return (
            f"model.output_bias: data_mean, but the mean does not say where the outputs of "
            f"model.likelihood {spec.model.likelihood} should start. Set model.output_bias to zero."
        )
    return ""


RULES: tuple[Callable[[Spec], str], ...] = (
    _posterior,
    _floor,
    _dimensions,
    _layers,
    _prior,
    _estimator,
    _kl,
    _bounds,
    _coupled,
    _accumulate,
    _packed,
    _encoder_steps,
    _output,
    _output_bias,
)
