"""What was submitted to a cluster: a folder for each submission inside the results folder.

submissions/<number>-<random>/
  submission.json          the populations of each task, and the job that they are
  <job>_submission.sh      the script, of Slurm
  <job>_<task>_<process>_log.out
  <task>.exit              the exit status of a task that came to its end
  .lock                    held by the submitting process while it runs the tasks itself
"""

import dataclasses
import json
import pathlib
import secrets
from collections.abc import Sequence

from experiments import locks
from vae import writers


@dataclasses.dataclass(frozen=True)
class Submission:
    """A submission and its folder.

    Attributes:
      cluster: `slurm` or `local`. tasks: ids of the populations that each task trains, in turn.
      job: what the cluster calls it; None where the submission did not come to its end.
    """

    folder: pathlib.Path
    cluster: str
    tasks: tuple[tuple[str, ...], ...]
    job: str | None = None

    @property
    def name(self) -> str:
        return self.folder.name

    def write(self) -> None:
        writers.write_json(
            self.folder / "submission.json",
            {"cluster": self.cluster, "job": self.job, "tasks": self.tasks},
        )

    def exit_status(self, task: int) -> int | None:
        """The exit status that a task left; None: it did not come to its end."""
        try:
            return int((self.folder / f"{task}.exit").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def logs(self, task: int) -> list[pathlib.Path]:
        """The logs of a task's processes, the first one's first."""
        return sorted(self.folder.glob(f"{self.job}_{task}_*_log.out"))

    def log(self, task: int) -> pathlib.Path:
        """The log of a task's first process."""
        return self.folder / f"{self.job}_{task}_0_log.out"

    def is_attended(self) -> bool:
        """Whether the process that runs the tasks itself is alive."""
        return locks.is_held(self.folder / ".lock")


def create(workdir: pathlib.Path, cluster: str, tasks: Sequence[Sequence[str]]) -> Submission:
    """A new submission, recorded before it is handed over. To be called by one process at a time.

    The random part of its name tells this folder from another one at the same path: that of a node
    with which the disk is not shared.
    """
    number = 1 + max((_number(folder) for folder in _folders(workdir)), default=0)
    folder = workdir / "submissions" / f"{number}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    made = Submission(folder, cluster, tuple(map(tuple, tasks)))
    made.write()
    return made


def recorded(workdir: pathlib.Path) -> list[Submission]:
    """All submissions, the oldest first."""
    found = []
    for folder in sorted(_folders(workdir), key=_number):
        try:
            record = json.loads((folder / "submission.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):  # the submitting process was killed before it wrote it
            continue
        tasks = tuple(map(tuple, record["tasks"]))
        found.append(Submission(folder, record["cluster"], tasks, record["job"]))
    return found


def _folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    return [f for f in workdir.glob("submissions/*-*") if f.name.partition("-")[0].isdigit()]


def _number(folder: pathlib.Path) -> int:
    return int(folder.name.partition("-")[0])
