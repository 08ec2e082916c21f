"""Sweeps: lists of override dicts, built from small pure functions.

A sweep is a list with one dict per run, ``[{"objective.beta": 1.0, "seed": 0}, ...]``; a run is the
base config with these fields replaced. ``get_sweep()`` of a config file builds one from ``axis``,
``product``, ``zip_`` and ``chain``; ``parse_axis`` reads one axis from a ``--sweep`` flag. Every
function takes and returns checked sweeps: not empty, existing fields, valid values, no run twice.
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from experiments import fields
from vae.errors import UserError

Overrides = dict[str, Any]
Sweep = list[Overrides]

# A slip such as seed=0:1000000000 is refused instead of filling the memory.
MAX_RUNS = 100_000

_RANGE = re.compile(r"([+-]?\d+):([+-]?\d+)(?::([+-]?\d+))?")
_SPACE = re.compile(r"(logspace|linspace)\((.*)\)")


def axis(name: str, values: Iterable[Any]) -> Sweep:
    """One run for each value of one field.

    Raises:
      UserError: no such field, a value that it does not allow, no values, or a value twice.
    """
    if name not in fields.FIELDS:
        raise fields.unknown_field_error(name)
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(
            f"{name}: an axis takes a list of values, got {values!r}. Write axis({name!r}, [...])."
        )
    if fields.FIELDS[name].how:
        raise UserError(
            f"{name}: it says how runs are made and not what they are, so that a sweep over it "
            f"would compare nothing. Set it with --config.{name}=VALUE."
        )
    checked = [fields.check(name, value) for value in values]
    if not checked:
        raise UserError(f"{name}: the axis has no values. Give at least one.")
    if len(set(checked)) < len(checked):
        twice = next(v for i, v in enumerate(checked) if v in checked[:i])
        raise UserError(f"{name}: the axis has the value {fields.show(twice)} twice. Remove one.")
    return [{name: value} for value in checked]


def product(*sweeps: Sweep) -> Sweep:
    """Every combination of one run of each sweep; the last sweep varies fastest."""
    checked = _separate("product", sweeps)
    _check_count("product", math.prod(len(s) for s in checked))
    runs: Sweep = [{}]
    for sweep in checked:
        runs = [{**left, **right} for left in runs for right in sweep]
    return runs


def zip_(*sweeps: Sweep) -> Sweep:
    """The first runs of all sweeps merged, then the second ones, and so on; equal lengths."""
    checked = _separate("zip_", sweeps)
    if len({len(s) for s in checked}) > 1:
        lengths = ", ".join(f"{len(s)} ({', '.join(axes(s))})" for s in checked)
        raise UserError(f"zip_: the sweeps differ in length: {lengths}. Make them equally long.")
    rows = zip(*checked, strict=True)
    return check([dict(pair for run in row for pair in run.items()) for row in rows])


def chain(*sweeps: Sweep) -> Sweep:
    """The runs of the first sweep, then those of the second, and so on; no run twice."""
    return check([run for sweep in sweeps for run in check(sweep)])


def axes(sweep: Sweep) -> dict[str, list[Any]]:
    """The swept fields in order of appearance, each with its distinct values in order."""
    found: dict[str, dict[Any, None]] = {}
    for run in sweep:
        for name, value in run.items():
            found.setdefault(name, {})[value] = None
    return {name: list(values) for name, values in found.items()}


def check(sweep: Any) -> Sweep:
    """A sweep with every value in canonical form.

    Raises:
      UserError: no list of dicts, empty, an unknown field, a bad value, or two equal runs.
    """
    if not isinstance(sweep, list | tuple) or not all(isinstance(run, dict) for run in sweep):
        raise UserError(
            "sweep: expected a list of dicts such as [{'objective.beta': 1.0}], "
            "which axis, product, zip_ and chain of experiments.sweep make."
        )
    if not sweep:
        raise UserError("sweep: it has no runs. Give each axis at least one value.")
    _check_count("sweep", len(sweep))
    runs = [{name: fields.check(name, value) for name, value in run.items()} for run in sweep]
    seen: dict[frozenset, int] = {}
    for index, run in enumerate(runs):
        first = seen.setdefault(frozenset(run.items()), index)
        if first != index:
            raise UserError(
                f"sweep: runs {first} and {index} are the same ({describe(run)}). Remove one."
            )
    return runs


def describe(overrides: Overrides) -> str:
    """One run in words: ``objective.beta=1.0, seed=0``."""
    return ", ".join(f"{n}={fields.show(v)}" for n, v in overrides.items()) or "the base config"


def linspace(start: float, stop: float, num: int) -> list[float]:
    """``num`` evenly spaced numbers from ``start`` to ``stop``, both included."""
    if num < 1:
        raise UserError(f"linspace({start}, {stop}, {num}): give a count of 1 or more.")
    _check_count("linspace", num)
    if num == 1:
        return [float(start)]
    # Weighted ends rather than start + i * step: the ends are exact, linspace(0, 1, 11) has 0.3.
    last = num - 1
    return [(start * (last - i) + stop * i) / last for i in range(num)]


def logspace(start: float, stop: float, num: int) -> list[float]:
    """Powers of ten with evenly spaced exponents from ``start`` to ``stop``, both included."""
    try:
        return [10.0**exponent for exponent in linspace(start, stop, num)]
    except OverflowError:
        raise UserError(
            f"logspace({start}, {stop}, {num}): the first two are exponents of ten, and too large. "
            "Write logspace(-1, 1, 5) for 0.1 to 10."
        ) from None


def parse_axis(text: str) -> Sweep:
    """The axis that a ``--sweep`` flag gives: ``FIELD=VALUES``.

    VALUES is a comma-separated list of values, ranges ``0:5`` or ``0:10:2`` (the end is left out),
    ``logspace(a,b,n)`` (powers of ten) and ``linspace(a,b,n)``. Lists of widths are separated by
    semicolons (``model.width=64,64;128,64``) or bracketed (``model.width=[64,64],128``); without
    semicolons and brackets each item is one width.

    Raises:
      UserError: naming the field and the part that cannot be read.
    """
    name, equals, values = (part.strip() for part in text.partition("="))
    if not equals:
        raise UserError(f"--sweep {text}: expected FIELD=V1,V2,... such as objective.beta=0.5,1,2.")
    if name not in fields.FIELDS:
        raise fields.unknown_field_error(name)
    if not values:
        raise UserError(f"{name}: --sweep gives no values. Write --sweep {name}=V1,V2,...")
    separator = ";" if fields.FIELDS[name].type is tuple and ";" in values else ","
    items = _split(name, values, separator)
    if not all(items):
        raise UserError(
            f"{name}: --sweep {text} has an empty value beside a {separator!r}. "
            f"Remove the extra {separator!r}."
        )
    read = [value for item in items for value in _item(name, item)]
    _check_count(name, len(read))
    return axis(name, read)


def _item(name: str, text: str) -> Sequence[Any]:
    """The values of one item of an axis: a range, a space, or a single value."""
    kind = fields.FIELDS[name].type
    if kind is str:
        return [fields.parse(name, text)]
    if match := _RANGE.fullmatch(text):
        return _range(name, text, match)
    if match := _SPACE.fullmatch(text):
        values = _space(name, text, match)
        # linspace(1,5,5) and logspace(0,2,3) are whole numbers where the field needs them.
        return [int(v) if kind is not float and v.is_integer() else v for v in values]
    return [fields.parse(name, text)]


def _range(name: str, text: str, match: re.Match) -> range:
    try:
        start, stop, step = (int(part) for part in (match[1], match[2], match[3] or "1"))
    except ValueError:  # Python refuses to read more than 4300 digits
        raise UserError(f"{name}: the range has too many digits. Write smaller numbers.") from None
    if step == 0:
        raise UserError(f"{name}: the range {text} has step 0. Write another step, or none.")
    # len() of a huge range overflows, so it is counted by hand.
    count = max(0, -((start - stop) // step))
    if count == 0:
        raise UserError(
            f"{name}: the range {text} is empty, because its end is left out. Write 0:5 for 0 to 4."
        )
    _check_count(name, count)
    return range(start, stop, step)


def _space(name: str, text: str, match: re.Match) -> list[float]:
    parts = match[2].split(",")
    try:
        start, stop, num = float(parts[0]), float(parts[1]), int(parts[2])
    except (ValueError, IndexError):
        parts = []
    if len(parts) != 3 or not math.isfinite(start) or not math.isfinite(stop):
        raise UserError(
            f"{name}: cannot read {text}. Write {match[1]}(START,STOP,COUNT), "
            f"such as {match[1]}(-1,1,5)."
        )
    try:
        return (logspace if match[1] == "logspace" else linspace)(start, stop, num)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _split(name: str, text: str, separator: str) -> list[str]:
    """``text`` split at the separators that stand outside of every bracket."""
    if fields.FIELDS[name].type is str:
        return [part.strip() for part in text.split(separator)]
    items, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if depth < 0:
            break
        if char == separator and depth == 0:
            items.append("")
        else:
            items[-1] += char
    if depth != 0:
        raise UserError(f"{name}: the brackets in {text} do not match. Close each ( and [.")
    return [item.strip() for item in items]


def _separate(function: str, sweeps: Sequence[Sweep]) -> list[Sweep]:
    """The checked sweeps, which must not set the same field."""
    if not sweeps:
        raise UserError(f"{function}: no sweeps given. Give at least one axis.")
    checked = [check(sweep) for sweep in sweeps]
    owner: dict[str, int] = {}
    for index, sweep in enumerate(checked):
        for name in axes(sweep):
            if owner.setdefault(name, index) != index:
                raise UserError(
                    f"{name}: two axes are over this field. Put all of its values into one axis."
                )
    return checked


def _check_count(what: str, count: int) -> None:
    if count > MAX_RUNS:
        raise UserError(
            f"{what}: {count} runs, more than the {MAX_RUNS} allowed. Give fewer values."
        )
