"""The results folder: who may write to it, what has been asked of it, and what is done.

config.json  sweep.json  populations.json  environment.json  results.csv
runs/<run_id>/config.json, metrics.jsonl, probe.jsonl, gallery.npz, params/, result.json (last)
populations/<id>/checkpoints/
tensorboard/<run_id>/
"""

import errno
import fcntl
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from experiments import config as configs
from vae import writers
from vae.errors import UserError

FIRST_COLUMNS = ("run_id", "status")
LAST_COLUMNS = ("diverged/step", "diverged/term", "diverged/layer")


class Workdir:
    """A results folder, held by one process from `open` to `close`."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._lock: TextIO | None = None
        self._made = False

    def open(self) -> None:
        """Creates the folder and takes its lock, which ends with the process however it ends.

        Raises:
          UserError: it is not writable, or another process holds it.
        """
        self._made = not self.path.exists()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # A handle that stays open: the lock is released when the process ends, even killed.
            lock = open(self.path / ".lock", "a+", encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"--workdir: cannot write to {self.path} ({error.strerror}). "
                "Give a folder in which you may create files."
            ) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                lock.close()
                raise UserError(
                    f"--workdir: {self.path} cannot be locked ({error.strerror}), as on some "
                    "network disks. Give a folder on another disk."
                ) from None
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise UserError(
                f"--workdir: {self.path} is in use by another process ({holder}). "
                "Wait for it, stop it, or give another folder."
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        self._lock = lock
        self._remove_leftovers()

    def _remove_leftovers(self) -> None:
        """Temporary files of processes that were killed: while the lock is held, nobody's."""
        for pattern in (".*.tmp", "runs/*/.*.tmp", "runs/*/*.orbax-checkpoint-tmp*"):
            for path in self.path.glob(pattern):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the lock back; a folder made for a command that was refused goes with it."""
        if self._lock:
            if self._made and os.listdir(self.path) == [".lock"]:
                (self.path / ".lock").unlink()
                self.path.rmdir()
            self._lock.close()
            self._lock = None

    def claim(self, base: Mapping[str, Any], axes: Mapping[str, Any], runs: Sequence[Any]) -> None:
        """Records what is asked of the folder, or checks that it is what was asked before.

        Raises:
          UserError: the folder holds the results of another config or sweep; says where they
            differ.
        """
        sweep = {
            "axes": writers.plain(axes),
            "runs": [{"run_id": r.run_id, "overrides": writers.plain(r.overrides)} for r in runs],
        }
        base = writers.plain(base)
        if (self.path / "config.json").exists() and (self.path / "sweep.json").exists():
            self._refuse_other(base, sweep)
            return
        writers.write_json(self.path / "sweep.json", sweep)
        writers.write_json(self.path / "config.json", base)

    def _refuse_other(self, base: dict[str, Any], sweep: dict[str, Any]) -> None:
        old_base = self._read("config.json")
        old_sweep = self._read("sweep.json")
        lines = configs.difference(old_base, base)
        old_axes, axes = old_sweep["axes"], sweep["axes"]
        for name in dict.fromkeys([*old_axes, *axes]):
            if old_axes.get(name) != axes.get(name):
                old = _axis_text(old_axes.get(name))
                lines.append(f"sweep {name}: {old} -> {_axis_text(axes.get(name))}")
        if not lines and {r["run_id"] for r in old_sweep["runs"]} != {
            r["run_id"] for r in sweep["runs"]
        }:
            lines.append("sweep: other combinations of the same values, or other fields")
        if lines:
            raise UserError(
                f"--workdir: {self.path} holds the results of another config:\n  "
                + "\n  ".join(lines)
                + "\nGive another folder, or the config that made this one."
            )

    def _read(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"--workdir: {self.path / name} cannot be read ({error}). "
                "Restore it, or give another folder."
            ) from None

    def check_data(self, datasets: Mapping[str, Mapping[str, Any]]) -> None:
        """Refuses to go on with other data than the folder's earlier runs had.

        Args:
          datasets: by source, what environment.json records of each.

        Raises:
          UserError: a source of the same name has other bytes now.
        """
        if not (self.path / "environment.json").exists():
            return
        before = self._read("environment.json").get("dataset", {})
        for name in before.keys() & datasets.keys():
            old, new = before[name]["fingerprint"], datasets[name]["fingerprint"]
            if old != new:
                raise UserError(
                    f"data.source: {name} has changed since the runs in {self.path} began "
                    f"(fingerprint {old} -> {new}). Restore the data, or give another --workdir."
                )

    def write_environment(self, record: dict[str, Any]) -> None:
        """Records what this execution is made with; other ones before it stay under `earlier`."""
        if (self.path / "environment.json").exists():
            before = self._read("environment.json")
            earlier = before.pop("earlier", [])
            earlier += [before] if before != writers.plain(record) else []
            record = record | ({"earlier": earlier} if earlier else {})
        writers.write_json(self.path / "environment.json", record)

    def packed(self) -> list[list[str]] | None:
        """The run ids of each population of an earlier execution, or None."""
        if not (self.path / "populations.json").exists():
            return None
        return [p["runs"] for p in self._read("populations.json")]

    def write_packed(self, populations: Sequence[Any]) -> None:
        """Records how runs are packed, so that a resumed execution finds its checkpoints."""
        records = [{"id": p.id, "runs": [run.run_id for run in p.runs]} for p in populations]
        writers.write_json(self.path / "populations.json", records)

    def run(self, run_id: str) -> pathlib.Path:
        return self.path / "runs" / run_id

    def checkpoints(self, population_id: str) -> pathlib.Path:
        return self.path / "populations" / population_id / "checkpoints"

    def result(self, run_id: str) -> dict[str, Any] | None:
        """The result of a finished run, or None."""
        file = self.run(run_id) / "result.json"
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def write_results(self, runs: Sequence[Any], axes: Sequence[str]) -> list[dict[str, Any]]:
        """Writes results.csv of all finished runs, in the order of the sweep; returns its rows."""
        rows = []
        for run in runs:
            if (row := self.result(run.run_id)) is not None:
                # A field that this run does not sweep has the value of its config.
                rows.append(row | {name: writers.plain(run.flat[name]) for name in axes})
        columns = dict.fromkeys([*FIRST_COLUMNS, *axes, "seed", "steps", "wall_s"])
        columns |= dict.fromkeys(name for row in rows for name in row if name not in LAST_COLUMNS)
        columns = [*columns, *LAST_COLUMNS]
        writers.write_csv(self.path / "results.csv", columns, rows)
        return rows


def _axis_text(values: Any) -> str:
    return "not swept" if values is None else ", ".join(map(str, values))
