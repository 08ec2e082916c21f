"""The table of config fields: what each may hold, and whether it is numeric or structural.

``FIELDS`` is the one place that says, for every dotted name, its type, its range or choices,
whether null is allowed, and its kind:

* *numeric*: ``hparam`` names the traced leaf of ``vae.hparams.HParams`` that carries it, so that
  runs which differ only in such fields train in one compiled program;
* *structural*: ``hparam`` is None. The value is static, so each distinct value is a group.

Meaning, unit and default of each field stand in ``configs/default.py``.
"""

import dataclasses
import difflib
import math
import numbers
import re
import reprlib
from typing import Any

import numpy as np

from vae.errors import UserError

# Step counters and sizes are int32 on the device.
INT32_MAX = 2**31 - 1
UINT32_MAX = 2**32 - 1

_FLOAT32 = np.finfo(np.float32)


@dataclasses.dataclass(frozen=True)
class Field:
    """One row of the table.

    Attributes:
      type: ``int``, ``float``, ``str``, or ``tuple`` (one whole number, or a tuple of them).
      choices: the allowed strings; empty means any printable text.
      above, at_least, below, at_most: bounds of a number (of each number of a tuple).
      hparam: name of the ``HParams`` leaf when the field is numeric, None when it is structural.
      null: what null means, in words; empty means that null is not allowed.
      none_value: of a numeric field, the value of the leaf that stands for null.
      each: of a tuple, what it has a number for each of.
      optional: of a numeric field, whether null or a number is itself structural (there is a leaf,
        or there is none), while the number is numeric.
      how: whether it says how a run is made and not what it is: no part of the run's id, free to
        change when a run is gone on with, and not swept.

    A numeric field that allows null has exactly one of three rules: ``none_value``, ``optional``,
    or, with neither, the planner replaces null by a number that it knows (the number of training
    steps).
    """

    type: type
    choices: tuple[str, ...] = ()
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    hparam: str | None = None
    null: str = ""
    none_value: float | None = None
    each: str = ""
    optional: bool = False
    how: bool = False

    @property
    def allows_none(self) -> bool:
        return bool(self.null)

    @property
    def numeric(self) -> bool:
        return self.hparam is not None


FIELDS: dict[str, Field] = {
    "seed": Field(int, at_least=0, at_most=UINT32_MAX, hparam="seed"),
    # Data
    "data.source": Field(str),
    "data.dir": Field(str, null="the default place"),
    "data.train_split": Field(str),
    "data.test_split": Field(str),
    "data.binarization": Field(str, choices=("none", "threshold", "static", "dynamic")),
    "data.scaling": Field(str, choices=("unit", "symmetric", "standardize", "none")),
    "data.folds": Field(int, at_least=2, null="no cross-validation"),
    "data.fold": Field(int, at_least=0),
    "data.seed": Field(int, at_least=0),
    "data.placement": Field(str, choices=("device", "host"), how=True),
    # Model
    "model.net": Field(str, choices=("mlp", "conv")),
    "model.latent_dim": Field(tuple, at_least=1, each="stochastic layer"),
    "model.depth": Field(int, at_least=0),
    "model.width": Field(tuple, at_least=1, each="hidden layer"),
    "model.activation": Field(
        str,
        choices=("relu", "tanh", "sigmoid", "gelu", "silu", "leaky_relu", "elu", "identity"),
    ),
    "model.norm": Field(str, choices=("none", "layer", "batch")),
    "model.init": Field(str, choices=("glorot", "he", "lecun", "orthogonal", "uniform")),
    "model.init_gain": Field(float, above=0, hparam="init_gain"),
    "model.residual": Field(str, choices=("none", "plain", "scaled", "zero_init")),
    "model.latent_skip": Field(str, choices=("none", "concat")),
    "model.likelihood": Field(
        str,
        choices=(
            "bernoulli",
            "continuous_bernoulli",
            "gaussian",
            "gaussian_shared",
            "gaussian_pixel",
            "gaussian_optimal",
            "laplace",
            "laplace_shared",
            "laplace_pixel",
            "student",
            "student_shared",
            "student_pixel",
            "categorical",
            "logistic_shared",
            "logistic_pixel",
            "logistic_mixture",
        ),
    ),
    "model.sigma": Field(float, above=0, hparam="sigma"),
    "model.student_df": Field(float, above=0, hparam="student_df"),
    "model.output": Field(str, choices=("identity", "sigmoid")),
    "model.output_bias": Field(str, choices=("zero", "data_mean")),
    "model.posterior": Field(
        str,
        choices=(
            "gaussian",
            "full",
            "low_rank",
            "iaf",
            "coupling",
            "hierarchical",
            "ladder",
            "point",
            "squashed",
            "tied",
            "categorical",
            "vq",
        ),
    ),
    "model.posterior_scale": Field(
        str, choices=("logvar", "softplus", "softplus_ln2", "soft_clamp", "floored")
    ),
    "model.rate_floor": Field(float, above=0, at_most=1e4, hparam="rate_floor"),
    "model.posterior_rank": Field(int, at_least=1),
    "model.codes": Field(int, at_least=2),
    "model.code_dim": Field(int, at_least=1),
    "model.codebook_decay": Field(float, at_least=0, below=1, hparam="codebook_decay"),
    "model.temperature": Field(float, above=0, hparam="temperature"),
    "model.temperature_min": Field(float, above=0, hparam="temperature_min"),
    "model.temperature_steps": Field(float, above=0, hparam="temperature_steps"),
    "model.prior": Field(str, choices=("standard", "mixture", "vamp", "flow", "hierarchical")),
    "model.prior_components": Field(int, at_least=1),
    "model.flow_layers": Field(int, at_least=1),
    "model.flow_width": Field(int, at_least=1),
    "model.stochastic_depth": Field(int, at_least=0),
    "model.stochastic_width": Field(tuple, at_least=1, each="pair of neighbouring layers"),
    # Objective
    "objective.name": Field(
        str,
        choices=(
            "elbo",
            "iwae",
            "miwae",
            "ciwae",
            "piwae",
            "renyi",
            "capacity",
            "tcvae",
            "factor",
            "dip_i",
            "dip_ii",
            "mmd",
            "autoencoder",
            "log_softmax",
            "tied",
            "vaegan",
            "vq",
        ),
    ),
    "objective.estimator": Field(
        str, choices=("reparameterization", "stl", "dreg", "gdreg", "score")
    ),
    "objective.kl": Field(str, choices=("auto", "analytic", "sampled")),
    "objective.beta": Field(float, at_least=0, hparam="beta"),
    "objective.beta_schedule": Field(str, choices=("constant", "linear", "sigmoid", "cyclical")),
    "objective.warmup_steps": Field(float, at_least=0, hparam="beta_warmup_steps"),
    "objective.cycles": Field(float, at_least=1, hparam="beta_cycles"),
    "objective.ramp": Field(float, above=0, at_most=1, hparam="beta_ramp"),
    "objective.samples": Field(int, at_least=1),
    "objective.groups": Field(int, at_least=1),
    "objective.free_bits": Field(float, at_least=0, hparam="free_bits"),
    "objective.free_bits_groups": Field(int, at_least=1, null="each dimension is a group"),
    "objective.ciwae_beta": Field(float, at_least=0, at_most=1, hparam="ciwae_beta"),
    "objective.renyi_alpha": Field(float, at_least=-1e3, at_most=1e3, hparam="renyi_alpha"),
    "objective.dreg_alpha": Field(float, at_least=0, at_most=1, hparam="dreg_alpha"),
    "objective.capacity": Field(float, at_least=0, hparam="capacity"),
    "objective.capacity_steps": Field(
        float, at_least=0, hparam="capacity_steps", null="all training steps"
    ),
    "objective.penalty": Field(float, at_least=0, hparam="penalty"),
    "objective.penalty_diagonal": Field(float, at_least=0, hparam="penalty_diagonal"),
    "objective.tc_estimator": Field(str, choices=("weighted", "stratified")),
    "objective.kernel": Field(str, choices=("imq", "rbf", "rational_quadratic", "laplace")),
    "objective.bandwidth": Field(float, above=0, hparam="bandwidth"),
    "objective.commitment": Field(float, at_least=0, hparam="commitment"),
    "objective.corruption": Field(str, choices=("none", "gaussian", "mask")),
    "objective.corruption_level": Field(float, at_least=0, hparam="corruption_level"),
    "objective.discriminator_depth": Field(int, at_least=1),
    "objective.discriminator_width": Field(int, at_least=1),
    # Optimizer
    "optimizer.name": Field(str, choices=("adam", "adamw", "sgd", "rmsprop", "adagrad", "adamax")),
    "optimizer.learning_rate": Field(float, above=0, at_most=1e6, hparam="learning_rate"),
    "optimizer.momentum": Field(float, at_least=0, below=1, hparam="momentum"),
    "optimizer.b1": Field(float, at_least=0, below=1, hparam="b1"),
    "optimizer.b2": Field(float, at_least=0, below=1, hparam="b2"),
    "optimizer.eps": Field(float, above=0, hparam="eps"),
    "optimizer.weight_decay": Field(float, at_least=0, at_most=1e6, hparam="weight_decay"),
    "optimizer.clip_norm": Field(
        float, above=0, hparam="clip_norm", null="no clipping", none_value=math.inf
    ),
    "optimizer.skip_norm": Field(
        float, above=0, hparam="skip_norm", null="no step is passed over", optional=True
    ),
    "optimizer.encoder_steps": Field(int, at_least=1),
    "optimizer.encoder_lr_factor": Field(
        float, at_least=0, at_most=1e6, hparam="encoder_lr_factor"
    ),
    "optimizer.discriminator_lr_factor": Field(
        float, at_least=0, at_most=1e6, hparam="discriminator_lr_factor"
    ),
    "optimizer.discriminator_b1": Field(float, at_least=0, below=1, hparam="discriminator_b1"),
    "optimizer.schedule": Field(
        str, choices=("constant", "cosine", "step", "stages", "exponential", "plateau")
    ),
    "optimizer.warmup_steps": Field(float, at_least=0, hparam="lr_warmup_steps"),
    # Null: the planner puts the number of training steps, which it knows from the data's size.
    "optimizer.decay_steps": Field(
        float, above=0, hparam="lr_decay_steps", null="all training steps"
    ),
    "optimizer.decay_rate": Field(float, at_least=0, at_most=1, hparam="lr_decay_rate"),
    "optimizer.plateau_factor": Field(float, above=0, below=1),
    "optimizer.plateau_patience": Field(int, at_least=1),
    "optimizer.plateau_window": Field(int, at_least=1, null="one epoch"),
    "optimizer.ema_decay": Field(
        float, at_least=0, below=1, hparam="ema_decay", null="no average", optional=True
    ),
    # Training and evaluation
    "train.epochs": Field(int, at_least=1, null="the length is train.steps"),
    "train.steps": Field(int, at_least=1, null="the length is train.epochs"),
    "train.batch_size": Field(int, at_least=1),
    "train.precision": Field(str, choices=("float32", "bfloat16")),
    "train.accumulate": Field(int, at_least=1),
    "train.remat": Field(str, choices=("none", "layers")),
    "eval.every": Field(int, at_least=1, null="a twentieth of the training"),
    "eval.samples": Field(int, at_least=1),
    "eval.iw_samples": Field(int, at_least=0),
    "eval.train_limit": Field(int, at_least=1, null="as many as the test split has"),
    # Probe
    "probe.instruments": Field(str),
    "probe.every": Field(int, at_least=1, null="a fifth of the training"),
    "probe.examples": Field(int, at_least=2, null="a batch"),
    "probe.draws": Field(int, at_least=2),
    "probe.layers": Field(str, null="all"),
    # Where it runs
    "mesh.runs": Field(int, at_least=1, null="as many as there is use for", how=True),
    "mesh.data": Field(int, at_least=1, null="as many as there is use for", how=True),
}

# What probe.instruments joins by +; `none` and `all` stand alone.
INSTRUMENTS = ("terms", "signal", "examples", "noise", "jacobian", "hessian", "collapse")

SECTIONS: tuple[str, ...] = tuple(dict.fromkeys(n.split(".")[0] for n in FIELDS if "." in n))


def check(name: str, value: Any) -> Any:
    """The canonical form of a value of a field, or an error that says why it is none.

    Args:
      name: dotted field name.
      value: int, float (Python or NumPy), str, list or tuple of ints, or None, as the field allows.
    Returns:
      Python ``int``, ``float``, ``str``, tuple of ``int``, or None. An int given for a float field
      comes back as a float, a list as a tuple, -0.0 as 0.0: equal settings have equal values.
    Raises:
      UserError: no such field, wrong type, or outside the range.
    """
    if name not in FIELDS:
        raise unknown_field_error(str(name))
    field = FIELDS[name]
    if value is None:
        if not field.allows_none:
            raise _error(name, None)
        return None
    return _CHECKS[field.type](name, field, value)


def parse(name: str, text: str) -> Any:
    """The checked value of a field written as text on the command line.

    ``null`` and ``none`` are None where the field allows it. A list of widths is written ``64,32``,
    ``[64,32]`` or ``(64, 32)``.

    Raises:
      UserError: no such field, or the text is no value of it.
    """
    if name not in FIELDS:
        raise unknown_field_error(name)
    field = FIELDS[name]
    stripped = text.strip()
    if field.allows_none and stripped.lower() in ("null", "none"):
        return None
    if field.type is str:
        return check(name, stripped)
    return check(name, _number_or_text(stripped, widths=field.type is tuple))


def show(value: Any) -> str:
    """A value as one would write it on the command line: ``parse(name, show(v)) == v``."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return "[" + ",".join(show(v) for v in value) + "]"
    return value if isinstance(value, str) else repr(value)


def unknown_field_error(name: str) -> UserError:
    """The error for a field that does not exist; names the nearest, or what the section has."""
    if name in SECTIONS:
        return UserError(f"{name}: a section, not a field. Set one of {_section(name)}.")
    near = nearest(name)
    if near:
        return UserError(f"{name}: no such field. Did you mean {' or '.join(near)}?")
    section = name.split(".")[0]
    if section in SECTIONS:
        return UserError(f"{name}: no such field. The section {section} has {_section(section)}.")
    return UserError(
        f"{name or '(empty name)'}: no such field. configs/default.py lists every field: seed, "
        f"and those of the sections {', '.join(SECTIONS)}."
    )


def nearest(name: str) -> list[str]:
    """Up to three field names that ``name`` may have meant, the likeliest first; may be empty."""
    section, _, word = name.rpartition(".")
    # Only the last words are compared: a shared section would make "optimizer.lr" resemble
    # "optimizer.b1", a missing one would hide that "latentdim" is "model.latent_dim".
    here = {n.rpartition(".")[2]: n for n in FIELDS if n.rpartition(".")[0] == section}
    in_section = difflib.get_close_matches(word, here, n=2, cutoff=0.6)
    words = dict.fromkeys(n.rpartition(".")[2] for n in FIELDS)
    anywhere = difflib.get_close_matches(word, words, n=1, cutoff=0.75)
    same_word = [n for n in FIELDS if n.rpartition(".")[2] == word]
    close_word = [n for n in FIELDS if n.rpartition(".")[2] in anywhere]
    return list(dict.fromkeys(same_word + [here[w] for w in in_section] + close_word))[:3]


def _check_int(name: str, field: Field, value: Any) -> int:
    if not _is(value, numbers.Integral):
        whole = _is(value, numbers.Real) and float(value).is_integer()
        raise _error(name, value, f" Write {int(value)}." if whole else "")
    value = int(value)
    if not _inside(field, value):
        raise _error(name, value)
    if field.at_most is None and value > INT32_MAX:
        raise _error(name, value, f" The largest possible is {INT32_MAX}.")
    return value


def _check_float(name: str, field: Field, value: Any) -> float:
    if not _is(value, numbers.Real):
        raise _error(name, value)
    try:
        number = float(value) + 0.0  # -0.0 + 0.0 is 0.0
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        meaning = f" Write null for {field.null}." if field.allows_none else ""
        raise _error(name, value, f" It must be finite.{meaning}")
    if not _inside(field, number):
        raise _error(name, value)
    # The device computes in float32, where 1e39 is infinite, 1e-50 is 0 and 0.999999999 is 1: the
    # range has to hold for the number that is used.
    used = _as_float32(number)
    if not math.isfinite(used) or not _inside(field, used):
        raise _error(name, value, f" Training uses float32, in which this is {used:g}.")
    return number


def _check_str(name: str, field: Field, value: Any) -> str:
    if not isinstance(value, str):
        raise _error(name, value)
    value = str(value)
    if field.choices:
        if value not in field.choices:
            near = difflib.get_close_matches(value.lower(), field.choices, n=1)
            raise _error(name, value, f" Did you mean {near[0]!r}?" if near else "")
    elif not value.strip() or not value.isprintable():
        raise _error(name, value)
    return value


def _check_tuple(name: str, field: Field, value: Any) -> int | tuple[int, ...]:
    if not isinstance(value, list | tuple):
        return _check_int(name, field, value)
    if not value:
        raise _error(name, value)
    return tuple(_check_int(name, field, item) for item in value)


_CHECKS = {int: _check_int, float: _check_float, str: _check_str, tuple: _check_tuple}


def _is(value: Any, kind: type) -> bool:
    # bool is an int in Python, but True is no width.
    return isinstance(value, kind) and not isinstance(value, bool)


def _inside(field: Field, value: float) -> bool:
    return (
        (field.above is None or value > field.above)
        and (field.at_least is None or value >= field.at_least)
        and (field.below is None or value < field.below)
        and (field.at_most is None or value <= field.at_most)
    )


def _as_float32(value: float) -> float:
    """``value`` as the device sees it: rounded to float32, subnormals flushed to zero by XLA."""
    if abs(value) > float(_FLOAT32.max):
        return math.copysign(math.inf, value)
    return float(np.float32(value)) if abs(value) >= float(_FLOAT32.tiny) else 0.0


def _number_or_text(text: str, widths: bool) -> Any:
    """``text`` as int, else float, else (where ``widths``) a tuple of such, else as it is."""
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            pass
    bracketed = re.fullmatch(r"\[(.*)\]|\((.*)\)", text)
    if widths and (bracketed or "," in text):
        inside = (bracketed[1] or bracketed[2] or "") if bracketed else text
        items = inside.removesuffix(",").split(",") if inside.strip() else []
        return tuple(_number_or_text(item.strip(), widths=False) for item in items)
    return text


def _error(name: str, value: Any, hint: str = "") -> UserError:
    got = "null" if value is None else reprlib.repr(value)
    return UserError(
        f"{name}: expected {expectation(name)}, got {got}.{hint} "
        f"configs/default.py says what {name} means."
    )


def expectation(name: str) -> str:
    """What a field accepts, in words: ``a number >= 0``, ``one of none, layer, batch``."""
    field = FIELDS[name]
    if field.choices:
        words = f"one of {', '.join(field.choices)}"
    elif field.type is str:
        words = "non-empty text without line breaks or other control characters"
    else:
        bounds = (
            (">", field.above),
            (">=", field.at_least),
            ("<", field.below),
            ("<=", field.at_most),
        )
        limits = " and ".join(f"{sign} {_plain(b)}" for sign, b in bounds if b is not None)
        noun = "a number" if field.type is float else "a whole number"
        words = f"{noun} {limits}".strip()
        if field.type is tuple:
            words += f", or a list of such, one per {field.each}"
    return f"{words}, or null ({field.null})" if field.allows_none else words


def _plain(bound: float) -> str:
    return str(int(bound)) if float(bound).is_integer() else repr(bound)


def _section(section: str) -> str:
    return ", ".join(n for n in FIELDS if n.startswith(section + "."))
