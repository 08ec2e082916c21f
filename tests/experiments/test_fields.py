"""The field table: what each field takes, refuses and says."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import fields
from vae import (
    bounds,
    likelihoods,
    nets,
    objectives,
    optimizers,
    penalties,
    posteriors,
    priors,
    schedules,
)
from vae.data import dataset
from vae.errors import UserError
from vae.hparams import HParams

NAN, INF = math.nan, math.inf

# Written out by hand rather than derived from the table, so that a wrong row is seen:
# field -> (values that are allowed, values that are not).
EXAMPLES = {
    "seed": ([0, 2**32 - 1], [-1, 2**32, 0.5, "a"]),
    "data.source": (["digits", "tfds:mnist", "npz:/a b/c.npz"], ["", "  ", "a\nb", "a\0", 3]),
    "data.dir": ([None, "/data"], ["", 3]),
    "data.train_split": (["train", "train[:80%]"], ["", 1]),
    "data.test_split": (["test"], ["", None]),
    "data.binarization": (["none", "threshold", "static", "dynamic"], ["dynamc", True]),
    "data.scaling": (["unit", "symmetric", "standardize", "none"], ["Unit", 1]),
    "data.folds": ([None, 2, 10], [1, 0, 2.5]),
    "data.fold": ([0, 3], [-1, None]),
    "data.seed": ([0, 7], [-1, 0.5]),
    "data.placement": (["device", "host"], ["disk", None]),
    "model.net": (["mlp", "conv"], ["resnet"]),
    "model.latent_dim": ([1, 64, (64, 32, 16)], [0, -1, 2.5, 2**31, (), (8, 0)]),
    "model.depth": ([0, 10], [-1, 1.5]),
    "model.width": ([1, 64, (64, 32)], [0, -4, (), (64, 0), (64, "a"), ((1,), 2), 2**31, 1.5]),
    "model.activation": (
        ["relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu", "elu", "identity"],
        ["rellu", None],
    ),
    "model.norm": (["none", "layer", "batch"], ["group", None]),
    "model.init": (["glorot", "he", "lecun", "orthogonal", "uniform"], ["xavier"]),
    "model.init_gain": ([0.1, 2.0], [0, -1, NAN, INF]),
    "model.residual": (["none", "plain", "scaled", "zero_init"], ["yes", True]),
    "model.latent_skip": (["none", "concat"], ["add", True, None]),
    "model.likelihood": (
        ["bernoulli", "gaussian", "gaussian_optimal", "logistic_mixture"],
        ["poisson", "gausian"],
    ),
    "model.sigma": ([0.01], [0, -1]),
    "model.student_df": ([0.5, 30.0], [0, -1]),
    "model.output": (["identity", "sigmoid"], ["softmax", None]),
    "model.output_bias": (["zero", "data_mean"], [0]),
    "model.posterior": (["gaussian", "full", "iaf", "vq"], ["normal"]),
    "model.posterior_scale": (["logvar", "softplus_ln2", "soft_clamp", "floored"], ["exp"]),
    "model.rate_floor": ([0.1, 1e4], [0, 2e4]),
    "model.posterior_rank": ([1, 8], [0]),
    "model.codes": ([2, 512], [1, 0]),
    "model.code_dim": ([1, 64], [0]),
    "model.codebook_decay": ([0.0, 0.99], [1, -0.1]),
    "model.temperature": ([0.5, 1.0], [0]),
    "model.temperature_min": ([0.1], [0]),
    "model.temperature_steps": ([1.0, 1e4], [0]),
    "model.prior": (["standard", "mixture", "vamp", "flow", "hierarchical"], ["gaussian"]),
    "model.prior_components": ([1, 500], [0]),
    "model.flow_layers": ([1, 8], [0]),
    "model.flow_width": ([1, 64], [0]),
    "model.stochastic_depth": ([0, 2], [-1]),
    "model.stochastic_width": ([1, (64, 32)], [0, (), (8, 0)]),
    "objective.name": (["elbo", "iwae", "vq"], ["iwea", "beta_vae"]),
    "objective.estimator": (["reparameterization", "stl", "dreg", "gdreg", "score"], ["reinforce"]),
    "objective.kl": (["auto", "analytic", "sampled"], ["exact"]),
    "objective.beta": ([0.0, 1.0, 1e3], [-0.1, NAN, INF, 1e39, 10**400, "abc", True, None]),
    "objective.beta_schedule": (["constant", "linear", "sigmoid", "cyclical"], ["cosine"]),
    "objective.warmup_steps": ([0.0, 500.0], [-1]),
    "objective.cycles": ([1.0, 4.0], [0.5]),
    "objective.ramp": ([0.1, 1.0], [0, 1.1]),
    "objective.samples": ([1, 5], [0]),
    "objective.groups": ([1, 8], [0]),
    "objective.free_bits": ([0.0, 0.5], [-0.5]),
    "objective.free_bits_groups": ([None, 1, 4], [0]),
    "objective.ciwae_beta": ([0.0, 1.0], [-0.1, 1.1]),
    "objective.renyi_alpha": ([-1.0, 0.0, 2.0], [2000.0, NAN]),
    "objective.dreg_alpha": ([0.0, 1.0], [-0.1, 1.1]),
    "objective.capacity": ([0.0, 25.0], [-1]),
    "objective.capacity_steps": ([None, 0.0, 1e5], [-1]),
    "objective.penalty": ([0.0, 10.0], [-1]),
    "objective.penalty_diagonal": ([0.0, 10.0], [-1]),
    "objective.tc_estimator": (["weighted", "stratified"], ["mws"]),
    "objective.kernel": (["imq", "rbf", "rational_quadratic", "laplace"], ["rbff"]),
    "objective.bandwidth": ([0.5], [0]),
    "objective.commitment": ([0.0, 0.25], [-1]),
    "objective.corruption": (["none", "gaussian", "mask"], ["dropout"]),
    "objective.corruption_level": ([0.0, 0.5], [-0.1]),
    "objective.discriminator_depth": ([1, 6], [0]),
    "objective.discriminator_width": ([1, 1000], [0]),
    "optimizer.name": (["adam", "adamw", "sgd", "rmsprop", "adagrad", "adamax"], ["lion"]),
    "optimizer.learning_rate": ([1e-5, 1e6], [0, -1e-3, 1.1e6]),
    "optimizer.momentum": ([0.0, 0.9], [1, -0.1]),
    "optimizer.b1": ([0.0, 0.9], [1, 1 - 1e-12]),
    "optimizer.b2": ([0.0, 0.999], [1, 1 - 1e-12]),
    "optimizer.eps": ([1e-8], [0, 1e-50]),
    "optimizer.weight_decay": ([0.0, 1e6], [-1e-4, 2e6]),
    "optimizer.clip_norm": ([None, 1.0], [0, INF]),
    "optimizer.skip_norm": ([None, 200.0], [0, INF]),
    "optimizer.encoder_steps": ([1, 100], [0]),
    "optimizer.encoder_lr_factor": ([0.0, 2.0], [-1, 2e6]),
    "optimizer.discriminator_lr_factor": ([0.0, 2.0], [-1, 2e6]),
    "optimizer.discriminator_b1": ([0.0, 0.5], [1, -0.1]),
    "optimizer.schedule": (
        ["constant", "cosine", "step", "stages", "exponential", "plateau"],
        ["poly"],
    ),
    "optimizer.warmup_steps": ([0.0, 10.0], [-1]),
    "optimizer.decay_steps": ([None, 100.0], [0]),
    "optimizer.decay_rate": ([0.0, 1.0], [-0.1, 1.1]),
    "optimizer.plateau_factor": ([0.5], [0, 1]),
    "optimizer.plateau_patience": ([1], [0, None]),
    "optimizer.plateau_window": ([None, 1], [0]),
    "optimizer.ema_decay": ([None, 0.0, 0.999], [1, -0.1]),
    "train.epochs": ([None, 1], [0, -1, 1.5]),
    "train.steps": ([None, 1000], [0, 2**31]),
    "train.batch_size": ([1, 128], [0, -128, None]),
    "train.precision": (["float32", "bfloat16"], ["float16", None]),
    "train.accumulate": ([1, 4], [0, None]),
    "train.remat": (["none", "layers"], ["all", None]),
    "eval.every": ([None, 1], [0]),
    "eval.samples": ([1], [0]),
    "eval.iw_samples": ([0, 5000], [-1]),
    "eval.train_limit": ([None, 1], [0]),
    "probe.instruments": (["none", "all", "terms+noise"], ["", 1]),
    "probe.every": ([1, None], [0, 1.5]),
    "probe.examples": ([2, 64, None], [1, 0]),
    "probe.draws": ([2, 16], [1, None]),
    "probe.layers": ([None, "encoder/mean+decoder/output"], ["", 3]),
    "mesh.runs": ([None, 1, 8], [0, 1.5]),
    "mesh.data": ([None, 1, 8], [0, 1.5]),
}
ALLOWED = [(name, value) for name, (allowed, _) in EXAMPLES.items() for value in allowed]
REFUSED = [(name, value) for name, (_, refused) in EXAMPLES.items() for value in refused]


def test_examples_cover_the_table():
    assert list(EXAMPLES) == list(fields.FIELDS)


@pytest.mark.parametrize(("name", "value"), ALLOWED)
def test_allowed_value_is_kept_and_survives_the_command_line(name, value):
    checked = fields.check(name, value)
    assert checked == value
    assert type(checked) is type(value)
    assert fields.parse(name, str(value)) == value
    assert fields.parse(name, fields.show(value)) == value
    assert fields.check(name, checked) == checked


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_refused_value_names_the_field_the_need_and_the_value(name, value):
    with pytest.raises(UserError) as caught:
        fields.check(name, value)
    message = str(caught.value)
    assert message.startswith(f"{name}: expected ")
    assert "got " in message
    assert "configs/default.py" in message
    assert len(message) < 500


@pytest.mark.parametrize("name", fields.FIELDS)
@pytest.mark.parametrize("value", [{}, set(), object(), b"64", 1j, True, np.bool_(True), [[]], ""])
def test_no_field_takes_a_value_of_a_foreign_type(name, value):
    with pytest.raises(UserError, match=f"^{name}: expected"):
        fields.check(name, value)


@pytest.mark.parametrize("name", fields.FIELDS)
@pytest.mark.parametrize("text", ["", " ", "1;2", "nan", "-inf", "[", "1,,2", "9" * 5000, "\ud800"])
def test_hostile_text_is_a_user_error_or_a_value_of_the_field(name, text):
    try:
        value = fields.parse(name, text)
    except UserError as error:
        assert str(error).startswith(f"{name}: ")
        assert len(str(error)) < 500
    else:
        assert fields.FIELDS[name].type is str and not fields.FIELDS[name].choices
        assert value == text


def test_equal_settings_have_equal_values():
    assert type(fields.check("objective.beta", 1)) is float
    assert type(fields.check("objective.beta", np.float32(0.5))) is float
    assert type(fields.check("seed", np.int64(3))) is int
    assert math.copysign(1, fields.check("objective.beta", -0.0)) == 1
    assert fields.check("model.width", [64, np.int32(32)]) == (64, 32)


def test_float_fields_round_trip_through_text():
    # repr of a Python float is exact, so parsing it gives the same bits.
    for value in np.random.default_rng(0).lognormal(sigma=5, size=200).tolist():
        assert fields.parse("objective.beta", str(value)) == value


@pytest.mark.parametrize("text", ["64,32", "[64,32]", "(64, 32)", "64,32,", " [ 64 , 32 ] "])
def test_lists_of_widths(text):
    assert fields.parse("model.width", text) == (64, 32)


@pytest.mark.parametrize(("text", "value"), [("64", 64), ("[64]", (64,)), ("(64,)", (64,))])
def test_one_width(text, value):
    assert fields.parse("model.width", text) == value


@pytest.mark.parametrize("text", ["null", "none", "None", "NULL"])
def test_null(text):
    assert fields.parse("optimizer.clip_norm", text) is None
    # "none" is an ordinary choice where the field has no null.
    assert fields.parse("model.norm", "none") == "none"
    with pytest.raises(UserError, match="^model.depth: expected a whole number"):
        fields.parse("model.depth", text)


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("model.activation", "rellu", "Did you mean 'relu'"),
        ("train.steps", "1e4", "Write 10000"),
        ("train.steps", "99999999999", "largest possible is 2147483647"),
        ("optimizer.clip_norm", "inf", "Write null for no clipping"),
        ("objective.beta", "1e39", "float32, in which this is inf"),
        ("optimizer.b1", "0.99999999999", "float32, in which this is 1"),
        ("optimizer.eps", "1e-50", "float32, in which this is 0"),
    ],
)
def test_hints(name, text, hint):
    with pytest.raises(UserError, match=hint):
        fields.parse(name, text)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("model.latentdim", "Did you mean model.latent_dim"),
        ("latent_dim", "Did you mean model.latent_dim"),
        ("beta", "Did you mean objective.beta"),
        ("objective.bata", "Did you mean objective.beta"),
        ("model.beta", "Did you mean objective.beta"),
        ("sed", "Did you mean seed"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("model", "Set one of .*model.depth"),
        ("zzz", "configs/default.py lists every field"),
        ("", "configs/default.py lists every field"),
    ],
)
def test_unknown_field_names_the_nearest(name, near):
    assert isinstance(fields.unknown_field_error(name), UserError)
    for function in (fields.check, fields.parse):
        with pytest.raises(UserError, match=near) as caught:
            function(name, "1")
        assert name in str(caught.value)


def test_rows_are_consistent():
    leaves = [row.hparam for row in fields.FIELDS.values() if row.numeric]
    assert len(leaves) == len(set(leaves))
    for name, row in fields.FIELDS.items():
        # A traced leaf is a number, and the rules of null are exclusive.
        assert not row.numeric or row.type in (int, float), name
        assert not (row.optional and row.none_value is not None), name
        if row.optional or row.none_value is not None:
            assert row.numeric and row.allows_none, name
    assert fields.FIELDS["optimizer.clip_norm"].none_value == INF
    assert fields.FIELDS["optimizer.ema_decay"].optional
    by_planner = [
        name
        for name, row in fields.FIELDS.items()
        if row.numeric and row.allows_none and not row.optional and row.none_value is None
    ]
    assert by_planner == ["objective.capacity_steps", "optimizer.decay_steps"]


def test_which_fields_are_numeric():
    assert {name: row.hparam for name, row in fields.FIELDS.items() if row.numeric} == {
        "seed": "seed",
        "model.init_gain": "init_gain",
        "model.sigma": "sigma",
        "model.student_df": "student_df",
        "model.rate_floor": "rate_floor",
        "model.codebook_decay": "codebook_decay",
        "model.temperature": "temperature",
        "model.temperature_min": "temperature_min",
        "model.temperature_steps": "temperature_steps",
        "objective.beta": "beta",
        "objective.warmup_steps": "beta_warmup_steps",
        "objective.cycles": "beta_cycles",
        "objective.ramp": "beta_ramp",
        "objective.free_bits": "free_bits",
        "objective.ciwae_beta": "ciwae_beta",
        "objective.renyi_alpha": "renyi_alpha",
        "objective.dreg_alpha": "dreg_alpha",
        "objective.capacity": "capacity",
        "objective.capacity_steps": "capacity_steps",
        "objective.penalty": "penalty",
        "objective.penalty_diagonal": "penalty_diagonal",
        "objective.bandwidth": "bandwidth",
        "objective.commitment": "commitment",
        "objective.corruption_level": "corruption_level",
        "optimizer.learning_rate": "learning_rate",
        "optimizer.momentum": "momentum",
        "optimizer.b1": "b1",
        "optimizer.b2": "b2",
        "optimizer.eps": "eps",
        "optimizer.weight_decay": "weight_decay",
        "optimizer.clip_norm": "clip_norm",
        "optimizer.skip_norm": "skip_norm",
        "optimizer.encoder_lr_factor": "encoder_lr_factor",
        "optimizer.discriminator_lr_factor": "discriminator_lr_factor",
        "optimizer.discriminator_b1": "discriminator_b1",
        "optimizer.warmup_steps": "lr_warmup_steps",
        "optimizer.decay_steps": "lr_decay_steps",
        "optimizer.decay_rate": "lr_decay_rate",
        "optimizer.ema_decay": "ema_decay",
    }


def test_the_table_agrees_with_the_library():
    leaves = {field.name for field in dataclasses.fields(HParams)}
    named = {row.hparam for row in fields.FIELDS.values() if row.numeric}
    # The number of steps is a result of the plan, not a field of its own; what of a shared program
    # is a run's own is two structural fields.
    assert leaves - named == {"total_steps", "latents", "layers"}
    assert named <= leaves
    for name, known in {
        "data.binarization": dataset.BINARIZATIONS,
        "data.scaling": dataset.SCALINGS,
        "model.net": nets.NETS,
        "model.activation": nets.ACTIVATIONS,
        "model.init": nets.INITIALIZERS,
        "model.likelihood": likelihoods.LIKELIHOODS,
        "model.output": likelihoods.OUTPUTS,
        "model.posterior": posteriors.POSTERIORS,
        "model.prior": priors.PRIORS,
        "objective.name": objectives.OBJECTIVES,
        "objective.estimator": bounds.ESTIMATORS,
        "objective.kernel": penalties.KERNELS,
        "objective.tc_estimator": penalties.ESTIMATORS,
        "objective.beta_schedule": schedules.BETA_SCHEDULES,
        "optimizer.name": optimizers.OPTIMIZERS,
        "optimizer.schedule": schedules.LEARNING_RATE_SCHEDULES,
    }.items():
        assert set(fields.FIELDS[name].choices) == set(known), name
