"""Reads a results folder into memory: numpy, json and csv only, nothing of JAX.

The folder is the contract between a run and its report (architecture, "The contract of a results
folder"). A folder may be unfinished: runs without a row, a metrics line cut in half, or no gallery
are noted and left out, never an error.
"""

import csv
import dataclasses
import functools
import json
import math
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.report.axes import Axis, is_number, lookup, swept_axes
from vae.errors import UserError

SEED = "seed"
FOLD = "data.fold"
# Fields whose values repeat a condition: no axes.
REPLICATES = (SEED, FOLD)

# Columns of results.csv that hold words, not numbers, whatever they look like (a run id such as
# "12e4567890" is no number).
_TEXT_COLUMNS = ("run_id", "status", "data/fingerprint", "diverged/term", "diverged/layer")


class Looks(NamedTuple):
    """What instruments saw of a run: int64 [T] steps, and float64 [T] for each name."""

    step: np.ndarray
    curves: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One run as its files tell it.

    Attributes:
      run_id: the hash that names the run's folder.
      values: the run's value on every swept field, the seed among them.
      seed: the run's seed, None where the folder does not say.
      fold: the part of the data that it leaves out, None where runs do not differ in that.
      status: "ok", "diverged", "unfinished" (curves but no result) or "missing" (nothing yet).
      row: its row of results.csv: numbers as float (nan where the cell is empty), words as str.
      step: int64 [L], the steps at which metrics were logged, ascending.
      curves: metric key -> float64 [L], nan where nothing finite was logged.
      layers: names of the layers in order of depth.
      directory: the run's folder.
      config: the config before the sweep.
    """

    run_id: str
    values: dict[str, Any]
    seed: int | None
    fold: int | None
    status: str
    row: dict[str, Any]
    step: np.ndarray
    curves: dict[str, np.ndarray]
    layers: tuple[str, ...]
    directory: pathlib.Path
    config: dict[str, Any]

    @property
    def replicate(self) -> int | None:
        """What a condition is repeated over: the fold, where there are folds, else the seed.

        A fold's runs of several seeds share their data: they are averaged, and count as one.
        """
        return self.seed if self.fold is None else self.fold

    @property
    def replicate_label(self) -> str:
        """As in seed = 0, or fold = 2, seed = 0; "" where the folder says neither."""
        parts = (("fold", self.fold), ("seed", self.seed))
        return ", ".join(f"{name} = {value}" for name, value in parts if value is not None)

    def setting(self, field: str, default: Any = None) -> Any:
        """The run's value of a field, swept or not."""
        value = self.values.get(field, lookup(self.config, field))
        return default if value is None else value

    def number(self, key: str) -> float:
        """The run's final value of a metric; nan where it has none (not finished, diverged, not
        measured).
        """
        value = self.row.get(key, math.nan)
        return float(value) if is_number(value) else math.nan

    @functools.cached_property
    def looks(self) -> Looks:
        """What is in probe.jsonl; empty where nothing has looked."""
        step, curves, _, _ = read_metrics(self.directory / "probe.jsonl")
        return Looks(step, curves)

    @functools.cached_property
    def gallery(self) -> dict[str, np.ndarray]:
        """The arrays of gallery.npz; empty where the file is absent or damaged."""
        return read_gallery(self.directory / "gallery.npz")


@dataclasses.dataclass(frozen=True)
class Results:
    """A results folder. `axes` leaves out `REPLICATES`; `notes`: what was skipped while reading."""

    workdir: pathlib.Path
    config: dict[str, Any]
    environment: dict[str, Any]
    axes: tuple[Axis, ...]
    seeds: tuple[Any, ...]
    folds: tuple[int, ...]
    runs: tuple[Run, ...]
    notes: tuple[str, ...]

    @property
    def repeats(self) -> str:
        """What means are over, in the plural."""
        return "folds" if self.folds else "seeds"

    def counted(self, count: int) -> str:
        """As in 3 seeds, 1 fold."""
        return f"{count} {self.repeats[: len(self.repeats) - (count == 1)]}"

    @property
    def swept(self) -> tuple[Axis, ...]:
        """The axes that can be plotted against: of more than one value, which no other tells."""
        return tuple(axis for axis in self.axes if len(axis.values) > 1 and not axis.implied)


def read_results(workdir: pathlib.Path) -> Results:
    """Reads a results folder.

    Args:
      workdir: the folder that `python -m experiments.run --workdir=DIR` wrote, finished or not.

    Returns:
      What it holds, with notes on what could not be read.

    Raises:
      UserError: there is no such folder, it is no results folder, or one of its JSON or CSV files
        is damaged.
    """
    workdir = pathlib.Path(workdir)
    advice = "give the folder that `python -m experiments.run --config=... --workdir=DIR` wrote"
    if not workdir.is_dir():
        raise UserError(f"workdir: there is no folder {workdir}; {advice}")
    if not (workdir / "config.json").is_file():
        raise UserError(
            f"workdir: {workdir} is no results folder, for it has no config.json; {advice}"
        )

    config = _read_json(workdir / "config.json", {})
    environment = _read_json(workdir / "environment.json", {})
    sweep = _read_json(workdir / "sweep.json", {})
    rows = read_csv(workdir / "results.csv")
    overrides = _overrides(workdir, sweep, rows)

    fields = list(sweep.get("axes", {}))
    for of_run in overrides.values():
        fields += [field for field in of_run if field not in fields]

    runs, notes = [], []
    for run_id, of_run in overrides.items():
        directory = workdir / "runs" / run_id
        row = rows.get(run_id) or _result_row(directory / "result.json")
        values = {field: of_run.get(field, lookup(config, field)) for field in fields}
        step, curves, layers, skipped = read_metrics(directory / "metrics.jsonl")
        if skipped:
            notes.append(
                f"runs/{run_id}/metrics.jsonl: {skipped} damaged line{'s' * (skipped > 1)} skipped "
                "(a run killed while writing leaves such a line; resuming the run repairs it)"
            )
        status = str(
            row.get("status") or ("ok" if row else "unfinished" if step.size else "missing")
        )
        seed = values.get(SEED, row.get(SEED, lookup(config, SEED)))
        seed = int(seed) if is_number(seed) and math.isfinite(seed) else None
        fold = values.get(FOLD)
        files = (row, step, curves, layers, directory, config)
        runs.append(Run(run_id, values, seed, fold, status, *files))

    unfinished = [run.run_id for run in runs if run.status in ("unfinished", "missing")]
    if unfinished:
        notes.append(
            f"{len(unfinished)} of {len(runs)} runs have no final result yet "
            f"({_some(unfinished)}): the same command on the same folder finishes them; means "
            "below are over the runs that are there"
        )
    # Sorting by axis keeps groups and legends in reading order however the planner packed the runs.
    swept_fields = [field for field in fields if field not in REPLICATES]
    values_of = [run.values for run in runs]
    axes = swept_axes(swept_fields, sweep.get("axes", {}), values_of, config)
    runs.sort(
        key=lambda run: (
            *(axis.index(run.values[axis.field]) for axis in axes),
            run.fold or 0,
            run.seed or 0,
        )
    )
    seeds, folds = (
        tuple(sorted({value for run in runs if (value := getattr(run, name)) is not None}))
        for name in ("seed", "fold")
    )
    return Results(workdir, config, environment, axes, seeds, folds, tuple(runs), tuple(notes))


def read_metrics(
    path: pathlib.Path,
) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[str, ...], int]:
    """Reads a metrics.jsonl.

    A step that occurs twice (a run that was resumed from before its last line) counts once, the
    later line.

    Returns:
      Steps int64 [L]; curves, key -> float64 [L] with nan for null and absent values; layer names
      in order of depth, which is their order of appearance; and the number of damaged lines that
      were skipped.
    """
    if not path.is_file():
        return np.zeros(0, np.int64), {}, (), 0
    by_step: dict[int, dict[str, Any]] = {}
    skipped = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            by_step[int(record["step"])] = record
        except (ValueError, KeyError, TypeError, OverflowError):
            skipped += 1
    steps = sorted(by_step)
    keys = dict.fromkeys(key for step in steps for key in by_step[step] if key != "step")
    curves = {}
    for key in keys:
        column = [by_step[step].get(key) for step in steps]
        curves[key] = np.array([v if is_number(v) else math.nan for v in column], np.float64)
        curves[key][~np.isfinite(curves[key])] = math.nan
    layers = dict.fromkeys(
        key[len("grad/") : -len("/norm")]
        for key in keys
        if key.startswith("grad/") and key.endswith("/norm")
    )
    return np.array(steps, np.int64), curves, tuple(layers), skipped


def read_csv(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Reads results.csv: run_id -> row, cells as float where they are numbers, nan where they are
    empty.
    """
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames:
            return {}
        if "run_id" not in reader.fieldnames:
            raise UserError(
                f"workdir: {path} has no column run_id; delete the file and run the same command "
                "again"
            )
        return {
            row["run_id"]: {key: _cell(key, text) for key, text in row.items() if key}
            for row in reader
        }


def read_gallery(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads gallery.npz without ever loading a pickle; an absent or damaged file reads as empty,
    and an array with a nan or an infinity (a run that went bad) as absent.
    """
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            loaded = {name: arrays[name] for name in arrays.files}
    except Exception:
        # zipfile, zlib and numpy each raise their own; whatever it was, this file shows nothing.
        return {}
    return {
        name: array
        for name, array in loaded.items()
        if array.dtype.kind in "biuf" and np.isfinite(array).all()
    }


def _read_json(path: pathlib.Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"workdir: {path} is no valid JSON ({error}); delete the file and run the same command "
            "again"
        ) from error
    if not isinstance(value, dict):
        raise UserError(
            f"workdir: {path} holds no JSON object; delete the file and run the same command again"
        )
    return value


def _cell(column: str, text: str | None) -> float | str:
    if column in _TEXT_COLUMNS:
        return text or ""
    if not text:
        return math.nan
    try:
        return float(text)
    except ValueError:
        return text


def _result_row(path: pathlib.Path) -> dict[str, Any]:
    """A finished run's result.json stands in while results.csv has not been gathered yet."""
    try:
        return _read_json(path, {})
    except UserError:
        return {}


def _overrides(
    workdir: pathlib.Path, sweep: dict[str, Any], rows: dict[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """run_id -> swept fields with values: from sweep.json, else one entry for every run that left
    anything.
    """
    planned = {str(run["run_id"]): dict(run.get("overrides", {})) for run in sweep.get("runs", ())}
    if planned:
        return planned
    folder = workdir / "runs"
    found = (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    )
    return {run_id: {} for run_id in dict.fromkeys([*rows, *found])}


def _some(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
