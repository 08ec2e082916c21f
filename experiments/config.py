"""From a config file and flags to plain, fully checked dicts.

The way of a run: ``split_argv`` takes the ``--config.FIELD`` overrides out of the command line,
``load`` reads the config file, ``from_args`` joins file, overrides and ``--sweep`` axes into a base
config and a list of runs, ``resolve`` gives the complete config of one run, and ``run_id`` names
it.

A config is a nested plain dict, ``{"seed": 0, "model": {"depth": 2, ...}, ...}``; *flat* means
``{"seed": 0, "model.depth": 2, ...}``.
"""

import difflib
import hashlib
import importlib.machinery
import importlib.util
import json
import pathlib
import re
import traceback
import types
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from experiments import fields, rules
from experiments import sweep as sweeps
from vae.errors import UserError

Config = dict[str, Any]


def split_argv(argv: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Takes ``--config.FIELD=VALUE`` and ``--config.FIELD VALUE`` out of a command line.

    They are read here and not by absl, so that a typo or a bad value gets an error that names the
    field.

    Args:
      argv: the arguments, with or without the program's name.
    Returns:
      The overrides (field, text) in order, and the arguments that remain, ``--config`` among them.
    Raises:
      UserError: an override without a value.
    """
    overrides, rest = [], []
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if argument == "--":  # everything after it is no flag
            rest += [argument, *argv[position:]]
            break
        match = re.fullmatch(r"--?config\.([^=]*)(?:=(.*))?", argument, re.DOTALL)
        if not match:
            rest.append(argument)
            continue
        name, text = match[1], match[2]
        if text is None:
            if position == len(argv) or argv[position].startswith("--"):
                raise UserError(f"{name}: no value given. Write --config.{name}=VALUE.")
            text = argv[position]
            position += 1
        overrides.append((name, text))
    return overrides, rest


def load(path: str) -> tuple[ml_collections.ConfigDict, sweeps.Sweep]:
    """Runs a config file.

    Args:
      path: a Python file with ``get_config() -> ConfigDict`` and, for an ablation, ``get_sweep()``.
    Returns:
      The config, and the file's own sweep; ``[{}]``, one run that overrides nothing, when it has
      none.
    Raises:
      UserError: no such file, no ``get_config``, an exception inside, or a bad sweep.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise _missing_file(file)
    module = _call(path, f"importing {path}", lambda: _execute(file))
    if not callable(getattr(module, "get_config", None)):
        raise UserError(
            f"--config: {path} has no function get_config(). Define one that returns a ConfigDict, "
            "starting from configs.default.get_config()."
        )
    config = _call(path, f"get_config() of {path}", module.get_config)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config: get_config() of {path} returned {type(config).__name__}, not a ConfigDict. "
            "Return the config that configs.default.get_config() makes."
        )
    if not hasattr(module, "get_sweep"):
        return config, [{}]
    return config, _call(path, f"get_sweep() of {path}", lambda: sweeps.check(module.get_sweep()))


def from_args(
    path: str,
    overrides: Sequence[tuple[str, str]],
    sweep_texts: Sequence[str],
    *,
    folds: int | None = None,
) -> tuple[Config, sweeps.Sweep]:
    """The base config and the runs that a command line asks for.

    The runs are the product of the config file's own sweep and the ``--sweep`` axes. An axis by
    flag replaces the axis of the config's own sweep over the same field.

    Args:
      path: the config file.
      overrides: (field, text) pairs of ``--config.FIELD=VALUE``; the last of a field counts.
      sweep_texts: the values of the ``--sweep`` flags.
      folds: K: each run once for each fold of K-fold cross-validation.
    Returns:
      The base config, nested, each field checked (rules between fields hold for runs, not for the
      base), and one override dict per run. Every run has been resolved without error.
    Raises:
      UserError: naming the field; see ``resolve``, ``load`` and ``sweep.parse_axis``.
    """
    if folds is not None:
        overrides, sweep_texts = _with_folds(folds, overrides, sweep_texts)
    config, own = load(path)
    base = _check_fields(flatten(config.to_dict()))
    flags = [sweeps.parse_axis(text) for text in sweep_texts]
    flag_axes = sweeps.axes([run for sweep in flags for run in sweep])
    own_axes = sweeps.axes(own)
    for name, text in overrides:
        value = fields.parse(name, text)
        if name in flag_axes:
            raise UserError(
                f"{name}: given by --config.{name} and by --sweep, which contradict each other. "
                "Leave one of them out."
            )
        if name in own_axes:
            values = ", ".join(fields.show(v) for v in own_axes[name])
            raise UserError(
                f"{name}: {path} sweeps it ({values}), so one value in the base config would "
                f"change nothing. Write --sweep {name}={text} to replace that axis."
            )
        base[name] = value
    kept = [{n: v for n, v in run.items() if n not in flag_axes} for run in own]
    kept = list({frozenset(run.items()): run for run in kept}.values())
    runs = sweeps.product(kept, *flags)
    nested = unflatten(base)
    _check_runs(nested, runs)
    return nested, runs


def _with_folds(
    folds: int, overrides: Sequence[tuple[str, str]], sweep_texts: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    given = [name for name, _ in overrides] + [text.partition("=")[0] for text in sweep_texts]
    for name in ("data.folds", "data.fold"):
        if name in map(str.strip, given):
            raise UserError(
                f"{name}: --folds={folds} sets it for every run. Leave one of the two out."
            )
    return [*overrides, ("data.folds", str(folds))], [f"data.fold=0:{folds}", *sweep_texts]


def resolve(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> Config:
    """The full config of one run: the base with its overrides, every field and every rule checked.

    Args:
      base: nested config with every field.
      overrides: flat, dotted name to value.
    Returns:
      Nested plain dict with exactly the fields of ``fields.FIELDS``, in that order, canonical
      values.
    Raises:
      UserError: unknown, missing or invalid field, or two fields that contradict each other.
    """
    flat = _check_fields({**flatten(base), **overrides})
    rules.check(flat)
    return unflatten(flat)


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """``{"model": {"depth": 2}}`` to ``{"model.depth": 2}``; the inverse of ``unflatten``."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": v for inner, v in flatten(value).items()}
        else:
            flat[str(name)] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> Config:
    """``{"model.depth": 2}`` to ``{"model": {"depth": 2}}``; the inverse of ``flatten``."""
    config: Config = {}
    for name, value in flat.items():
        *sections, field = name.split(".")
        place = config
        for section in sections:
            place = place.setdefault(section, {})
        place[field] = value
    return config


def canonical_json(config: Mapping[str, Any]) -> str:
    """One text per setting: sorted keys, no spaces, float fields as floats (1 is 1.0).

    Without the fields that say how a run is made (`Field.how`): it is the same run.
    """
    every = _check_fields(flatten(config))
    checked = {name: value for name, value in every.items() if not fields.FIELDS[name].how}
    return json.dumps(unflatten(checked), sort_keys=True, separators=(",", ":"), allow_nan=False)


def run_id(config: Mapping[str, Any]) -> str:
    """10 hexadecimal digits that name a run: SHA-256 of the canonical JSON of its full config.

    40 bits: among 10,000 runs two share an id with probability 5e-5 (birthday bound n² / 2⁴¹).
    """
    return hashlib.sha256(canonical_json(config).encode()).hexdigest()[:10]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The fields in which two nested configs differ, as lines ``field: old -> new``.

    Either may come from another version or from JSON: unknown fields are compared as they are, and
    a list equals a tuple of the same items. How a run is made (`Field.how`) makes no difference.
    """
    before, after = flatten(old), flatten(new)
    how = {name for name, field in fields.FIELDS.items() if field.how}
    lines = []
    for name in sorted((before.keys() | after.keys()) - how):
        texts = [
            fields.show(_comparable(flat[name])) if name in flat else "(absent)"
            for flat in (before, after)
        ]
        both = name in before and name in after
        if not both or _comparable(before[name]) != _comparable(after[name]):
            lines.append(f"{name}: {texts[0]} -> {texts[1]}")
    return lines


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_fields(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of the table, in its order, checked alone; unknown or missing is an error."""
    for name in flat:
        if name not in fields.FIELDS:
            raise fields.unknown_field_error(name)
    for name in fields.FIELDS:
        if name not in flat:
            raise UserError(
                f"{name}: missing from the config. Start from configs.default.get_config(), "
                "which has every field."
            )
    return {name: fields.check(name, flat[name]) for name in fields.FIELDS}


def _check_runs(base: Config, runs: sweeps.Sweep) -> None:
    """Resolves every run, and refuses two that come to the same config in different words."""
    seen: dict[str, sweeps.Overrides] = {}
    for run in runs:
        try:
            name = run_id(resolve(base, run))
        except UserError as error:
            if not run:
                raise
            raise UserError(f"{error} (In the run {sweeps.describe(run)}.)") from None
        first = seen.setdefault(name, run)
        if first is not run:
            raise UserError(
                f"sweep: the runs {sweeps.describe(first)} and {sweeps.describe(run)} are the same "
                "config, since what one leaves out has that value in the base. Remove one of them."
            )


class _SourceLoader(importlib.machinery.SourceFileLoader):
    """Compiles the source each time.

    Python's bytecode cache tells versions apart by size and by a time stamp in whole seconds, so it
    can return the config as it was before a quick edit; it also writes beside the file.
    """

    def get_code(self, fullname: str) -> types.CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def _execute(file: pathlib.Path) -> types.ModuleType:
    loader = _SourceLoader("config_file", str(file))
    module = importlib.util.module_from_spec(
        importlib.util.spec_from_file_location("config_file", str(file), loader=loader)
    )
    loader.exec_module(module)
    return module


def _call(path: str, what: str, function: Any) -> Any:
    """Calls code of a config file; its exception becomes a message with the file's line."""
    try:
        return function()
    except UserError as error:
        raise UserError(f"--config: {what}: {error}") from error
    except Exception as error:
        reason = str(error).strip()
        if unknown := re.search(r'Key "(\w+)" does not exist', reason):
            # ml_collections follows this by a dump of the whole config.
            near = " or ".join(fields.nearest(unknown[1]))
            guess = f" Did you mean {near}?" if near else ""
            reason = f"there is no field {unknown[1]}.{guess}"
        if not reason.endswith((".", "?", "!")):
            reason += "."
        raise UserError(
            f"--config: {what} failed{_where(path, error)}: {type(error).__name__}: "
            f"{reason} Correct the config file."
        ) from error


def _where(path: str, error: Exception) -> str:
    if isinstance(error, SyntaxError) and error.lineno:
        return f" in line {error.lineno}"
    file = str(pathlib.Path(path))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f" in line {frames[-1].lineno} ({frames[-1].line})" if frames else ""


def _missing_file(file: pathlib.Path) -> UserError:
    """Names the config files that exist near the path that does not."""
    roots = [file.parent, pathlib.Path("configs")]
    found = sorted(
        {
            str(f)
            for root in roots
            if root.is_dir()
            for pattern in ("*.py", "ablations/*.py")
            for f in root.glob(pattern)
            if not f.name.startswith("__")
        }
    )
    what = "is a directory" if file.is_dir() else "does not exist"
    near = difflib.get_close_matches(str(file), found, n=1)
    guess = f" Did you mean {near[0]}?" if near else ""
    listed = f" There are {', '.join(found[:20])}." if found else " Give the path of a config file."
    return UserError(f"--config: the file {file} {what}.{guess}{listed}")
