"""The results folder: who may write to it, what has been asked of it, and what is done.

config.json  sweep.json  populations.json  environment.json  results.csv
runs/<run_id>/config.json, metrics.jsonl, probe.jsonl, gallery.npz, params/, result.json (last)
populations/<id>/checkpoints/
tensorboard/<run_id>/
submissions/<name>/       of `experiments.submit`, see `experiments.cluster.submissions`

Locks (see `experiments.locks`), of which each guards what only its holder writes:

.lock                     held alone by a plain run; shared by the tasks of submissions
populations/<id>/.lock    held by the task that trains a population: its runs and checkpoints
.write.lock               held for a moment: the files at the top, which tasks have in common
"""

import contextlib
import fcntl
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from experiments import config as configs
from experiments import locks
from vae import writers
from vae.errors import UserError

FIRST_COLUMNS = ("run_id", "status")
LAST_COLUMNS = ("diverged/step", "diverged/term", "diverged/layer")

# How long a task waits for the one before it to let go of a population: Slurm may start it again
# while its former self still saves, and a lost node's locks end after a lease (NFS 4: 90 seconds).
HOLD_SECONDS = 180.0
# How long for another task's turn at the files in common, of which the report takes the longest.
WRITE_SECONDS = 600.0
# How long for what another node has written: NFS remembers for up to a minute that it was absent.
SEEN_SECONDS = 75.0


class Workdir:
    """A results folder from `open` to `close`: of one process, or shared by tasks."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self._lock: TextIO | None = None
        self._held: list[TextIO] = []  # locks of populations
        self._made = False
        self._shared = False
        self._writing = False

    def open(self, *, shared: bool = False) -> None:
        """Creates the folder and takes its lock, which ends with the process however it ends.

        Args:
          shared: beside other processes that share it; `hold` then says what this one works on.

        Raises:
          UserError: it is not writable, or another process holds it.
        """
        self._made = not self.path.exists()
        self._shared = shared
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = locks.acquire(self.path / ".lock", shared=shared)
        except OSError as error:
            raise UserError(
                f"--workdir: cannot write to {self.path} ({error.strerror}). "
                "Give a folder in which you may create files."
            ) from None
        if lock is None:
            raise UserError(
                f"--workdir: {self.path} is in use by another process "
                f"({locks.holder(self.path / '.lock')}). "
                "Wait for it, stop it, or give another folder."
            )
        # Not all who share it would fit, and what one of them wrote is true of any.
        me = "tasks of experiments.submit: see experiments.status" if shared else None
        locks.sign(lock, me or locks.this_process())
        self._lock = lock
        if not shared:
            self._remove_leftovers([".*.tmp", "runs/*"])

    def hold(self, populations: Sequence[Any], stop: Callable[[], bool]) -> bool:
        """Takes the locks of populations, for a folder that is shared; False: `stop` said so.

        Raises:
          UserError: another process works on one of them, and goes on doing so.
        """
        for population in sorted(populations, key=lambda p: p.id):  # in one order: no deadlock
            file = self.path / "populations" / population.id / ".lock"
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = locks.acquire(file)
            if lock is None:
                print(f"Population {population.id} is held by {locks.holder(file)}: waiting.")
                lock = locks.acquire(file, wait=HOLD_SECONDS, stop=stop)
            if lock is None and stop():
                return False
            if lock is None:
                raise UserError(
                    f"--populations: {population.id} is in use by another process "
                    f"({locks.holder(file)}). Wait for it, or stop it."
                )
            locks.sign(lock, locks.this_process())
            self._held.append(lock)
            self._remove_leftovers([f"runs/{run.run_id}" for run in population.runs])
        return True

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """One process at a time writes the files that tasks have in common.

        Raises:
          UserError: another process has been at it for very long.
        """
        if not self._shared or self._writing:
            yield
            return
        file = self.path / ".write.lock"
        lock = locks.acquire(file, wait=WRITE_SECONDS)
        if lock is None:
            raise UserError(
                f"--workdir: {self.path} has been written to by {locks.holder(file)} for "
                f"{WRITE_SECONDS / 60:.0f} minutes. If that process hangs, end it."
            )
        locks.sign(lock, locks.this_process())
        self._writing = True
        try:
            with lock:
                yield
        finally:
            self._writing = False

    def await_submission(self, name: str) -> None:
        """Makes sure that this is the folder that was submitted, and not one of the same name.

        Raises:
          UserError: the submission's record is not here, so the disk is not the submitter's.
        """
        record = self.path / "submissions" / name / "submission.json"
        end = time.monotonic() + SEEN_SECONDS
        while not record.exists():
            if time.monotonic() >= end:
                raise UserError(
                    f"--workdir: {self.path} as {os.uname().nodename} sees it is not the folder "
                    f"that was submitted: {record.relative_to(self.path)} is not there. Give a "
                    "folder on a disk that all nodes share."
                )
            time.sleep(1)

    def _remove_leftovers(self, places: Sequence[str]) -> None:
        """Temporary files of processes that were killed: under the lock of a place, nobody's."""
        for place in places:
            patterns = [f"{place}/.*.tmp", f"{place}/*.orbax-checkpoint-tmp*"]
            for pattern in patterns if place.startswith("runs/") else [place]:
                for path in self.path.glob(pattern):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives the locks back; a folder made for a command that was refused goes with it."""
        if self._lock:
            if self._made and set(os.listdir(self.path)) <= {".lock", ".write.lock"}:
                with contextlib.suppress(OSError):  # others share it
                    fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(self.path)
            self._lock.close()
            self._lock = None
        for lock in self._held:
            lock.close()
        self._held = []

    def write_mark(self, mark: int) -> None:
        """Leaves a number by which other processes know this folder for the same as theirs."""
        writers.write_text(self._mark(mark), "")

    def await_mark(self, mark: int) -> None:
        """Waits for what `write_mark` leaves, for as long as network disks take to show it.

        Raises:
          UserError: it is not here: the folder is another one, of the same name.
        """
        file, end = self._mark(mark), time.monotonic() + SEEN_SECONDS
        while not file.exists():
            if time.monotonic() > end:
                raise UserError(
                    f"--workdir: {self.path} as {os.uname().nodename} sees it is not the folder "
                    "that process 0 writes to. Give a folder on a disk that all nodes share."
                )
            time.sleep(0.2)

    def remove_mark(self, mark: int) -> None:
        """Removes it, when all have seen it."""
        with contextlib.suppress(OSError):  # where the folder cannot be written, there is none
            self._mark(mark).unlink()

    def _mark(self, mark: int) -> pathlib.Path:
        # The number is in the name, because tasks of several processes may share the folder.
        return self.path / f".mark.{mark}"

    def claim(self, base: Mapping[str, Any], axes: Mapping[str, Any], runs: Sequence[Any]) -> None:
        """Records what is asked of the folder, or checks that it is what was asked before.

        Raises:
          UserError: the folder holds the results of another config or sweep; says where they
            differ.
        """
        with self.writing():
            self._claim(base, axes, runs)

    def _claim(self, base: Mapping[str, Any], axes: Mapping[str, Any], runs: Sequence[Any]) -> None:
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
        """Records what this execution is made with; other ones before it stay under `earlier`.

        Of tasks, which come by the hundred, only one that differs from all before it is recorded.
        """
        with self.writing():
            if (self.path / "environment.json").exists():
                before = self._read("environment.json")
                earlier = before.pop("earlier", [])
                if self._shared and writers.plain(record) in [before, *earlier]:
                    return
                earlier += [before] if before != writers.plain(record) else []
                record = record | ({"earlier": earlier} if earlier else {})
            writers.write_json(self.path / "environment.json", record)

    def packed(self) -> list[dict[str, Any]] | None:
        """The populations of an earlier execution, `id`, `runs` and `pack` of each; or None."""
        if not (self.path / "populations.json").exists():
            return None
        return self._read("populations.json")

    def populations(self) -> dict[str, list[str]] | None:
        """The run ids of each population of an earlier execution, by its id, or None."""
        found = self.packed()
        return None if found is None else {p["id"]: p["runs"] for p in found}

    def write_packed(self, populations: Sequence[Any]) -> None:
        """Records how runs are packed, so that a resumed execution finds its checkpoints."""
        records = [
            {"id": p.id, "runs": [run.run_id for run in p.runs], "pack": p.pack.how}
            for p in populations
        ]
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
        with self.writing():
            rows = self._rows(runs, axes)
            columns = dict.fromkeys([*FIRST_COLUMNS, *axes, "seed", "steps", "wall_s"])
            columns |= dict.fromkeys(k for row in rows for k in row if k not in LAST_COLUMNS)
            columns = [*columns, *LAST_COLUMNS]
            writers.write_csv(self.path / "results.csv", columns, rows)
        return rows

    def _rows(self, runs: Sequence[Any], axes: Sequence[str]) -> list[dict[str, Any]]:
        rows = []
        for run in runs:
            if (row := self.result(run.run_id)) is not None:
                # A field that this run does not sweep has the value of its config.
                rows.append(row | {name: writers.plain(run.flat[name]) for name in axes})
        return rows


def _axis_text(values: Any) -> str:
    return "not swept" if values is None else ", ".join(map(str, values))
