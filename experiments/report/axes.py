"""The axes of a sweep: which fields were swept, over which values, and what each is called."""

import dataclasses
import json
import math
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Axis:
    """One swept field.

    Attributes:
      field: its dotted name. label: the shortest name that is still clear.
      values: those that runs have, in reading order.
      implied: whether the other axes tell its value, as of a field that is set with another one.
      unsaid: values that need no word in a label.
    """

    field: str
    label: str
    values: tuple[Any, ...]
    implied: bool = False
    unsaid: tuple[Any, ...] = ()

    @property
    def numeric(self) -> bool:
        return all(is_number(value) for value in self.values)

    @property
    def log(self) -> bool:
        """Whether a logarithmic scale suits: positive numbers that span a decade, or whose ratios
        are steadier than their differences (1, 2, 4, but not 1, 2, 3).
        """
        if not self.numeric or min(self.values) <= 0 or len(self.values) < 2:
            return False
        if max(self.values) / min(self.values) >= 10:
            return True
        ordered = np.array(self.values, np.float64)
        gaps, log_gaps = np.diff(ordered), np.diff(np.log(ordered))
        return bool(log_gaps.max() / log_gaps.min() < gaps.max() / gaps.min())

    def index(self, value: Any) -> int:
        return [value_key(other) for other in self.values].index(value_key(value))

    def labels(self) -> list[str]:
        return [value_label(value) for value in self.values]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def value_key(value: Any) -> str:
    """A hashable identity of a config value; 1 and 1.0 are the same value."""
    return json.dumps(float(value) if is_number(value) else value, sort_keys=True, default=str)


def value_label(value: Any) -> str:
    """How a config value is written in the report: 0.5, 1e-05, relu, [500, 200]."""
    if is_number(value):
        return f"{value:.4g}" if abs(value) < 1e4 or value != int(value) else f"{int(value)}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def lookup(config: dict[str, Any], field: str) -> Any:
    node: Any = config
    for part in field.split("."):
        if not isinstance(node, dict) or part not in node:
            return None
        node = node[part]
    return node


def swept_axes(
    fields: list[str],
    declared: dict[str, list[Any]],
    runs: list[dict[str, Any]],
    config: dict[str, Any],
) -> tuple[Axis, ...]:
    """Swept fields with the values that runs have: numbers ascending, anything else in the sweep's
    order, after the value of the runs that do not sweep the field.

    Args:
      fields: their dotted names. declared: of each, its values in the order of the sweep.
      runs: of each run, the value of each field. config: that before the sweep.
    """
    axes = []
    for field in fields:
        taken = {value_key(run[field]): run[field] for run in runs}
        order = [value_key(value) for value in declared.get(field, ())]
        values = [value for key, value in taken.items() if key not in order]
        values += [taken[key] for key in dict.fromkeys(order) if key in taken]
        if values and all(is_number(value) for value in values):
            values.sort()
        axes.append(Axis(field, _short_name(field, fields), tuple(values)))
    return _with_labels(_with_implied(axes, runs), runs, config)


def _with_implied(axes: list[Axis], runs: list[dict[str, Any]]) -> tuple[Axis, ...]:
    """Marks axes, the last ones first, without which all conditions could still be told apart."""
    keys = {axis.field: [value_key(run[axis.field]) for run in runs] for axis in axes}
    varied = kept = [axis.field for axis in axes if len(axis.values) > 1]

    def conditions(fields: list[str]) -> int:
        return len(set(zip(*(keys[field] for field in fields), strict=True)))

    for field in reversed(varied):
        others = [other for other in kept if other != field]
        if others and conditions(others) == conditions(kept):
            kept = others
    implied = set(varied) - set(kept)
    return tuple(dataclasses.replace(axis, implied=axis.field in implied) for axis in axes)


def _with_labels(
    axes: tuple[Axis, ...], runs: list[dict[str, Any]], config: dict[str, Any]
) -> tuple[Axis, ...]:
    """Where not every combination was run, only what differs from the base config is named."""
    swept = [axis for axis in axes if len(axis.values) > 1 and not axis.implied]
    groups = {tuple(value_key(run[axis.field]) for axis in swept) for run in runs}
    if len(groups) == math.prod(len(axis.values) for axis in swept):
        return axes
    return tuple(
        dataclasses.replace(axis, unsaid=(lookup(config, axis.field),))
        if axis in swept[1:]
        else axis
        for axis in axes
    )


def _short_name(field: str, fields: list[str]) -> str:
    """The last part of a dotted name, or the whole name where two swept fields would share it.

    Of a `name`, it is what is named: objective.name is the objective.
    """

    def last(field: str) -> str:
        parts = field.split(".")
        return parts[-2] if parts[-1] == "name" and len(parts) > 1 else parts[-1]

    return last(field) if sum(last(other) == last(field) for other in fields) == 1 else field
