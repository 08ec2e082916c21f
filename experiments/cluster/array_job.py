"""Array jobs of Slurm, through submitit: one task of a job for each task of a submission.

Of submitit is used what writes, submits and keeps the script, and reads the job's number from what
sbatch says. What it is known for, functions that it pickles here and that the task unpickles, is
not: a task is a command, so nothing is pickled and nothing is unpickled.

The script finds a task's populations by its number in the array; it starts one process on each
node; when the run has saved and stopped (at the time limit, at preemption) it has Slurm queue the
task again, and at its end it leaves the exit status for `experiments.cluster.survey`.
"""

import contextlib
import dataclasses
import io
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.cluster import slurm
from experiments.cluster.submissions import Submission
from vae.errors import UserError

# How long before the time limit a task is told to save, in seconds. Slurm may be a minute early.
SAVE_SECONDS = 120
# Exit statuses of a task that has saved and wants to be started again: 128 + SIGUSR1, which Slurm
# sends SAVE_SECONDS before the limit; 128 + SIGTERM, at preemption.
STOPPED = "138 | 143"
# How often a task is started again, so that one that gets nowhere ends. (Slurm's own requeues,
# after preemption or the loss of a node, count but are not refused.)
RESTARTS = 50


@dataclasses.dataclass(frozen=True)
class Job:
    """What to ask of Slurm.

    Attributes:
      command: of every task, but for which populations are its own.
      options: of sbatch, by their names there with underscores; what is absent is Slurm's default.
      parallel: tasks at a time; None: as many as Slurm starts. setup: shell lines before it.
    """

    command: Sequence[str]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    parallel: int | None = None
    setup: Sequence[str] = ()


def check_size(count: int) -> None:
    """Raises UserError where this Slurm takes no array job of so many tasks, or does not answer."""
    try:
        limit = slurm.max_array_size()
    except slurm.Silent as silent:
        raise UserError(f"--cluster: Slurm does not answer ({silent}).") from None
    if limit is not None and count > limit:
        raise UserError(
            f"--runs_per_task: {count} tasks are more than this Slurm lets an array job have "
            f"({limit}, its MaxArraySize). Give --runs_per_task, or make it larger, so that "
            "populations share a task."
        )


def submit(submission: Submission, job: Job) -> Submission:
    """Hands a submission over to Slurm; returns it with the job's number, which is recorded.

    Raises:
      UserError: Slurm refuses it; names the flag. The submission's record is removed.
    """
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints what the error says too
            made = _executor(submission, job)._submit_command(_command(submission, job))
    except (FailedJobError, FailedSubmissionError) as error:
        for file in submission.folder.iterdir():
            file.unlink()
        submission.folder.rmdir()
        raise slurm.refusal(str(error)) from None
    for link in submission.folder.glob(".submission_file_*"):  # to the script, which has its name
        link.unlink()
    submission = dataclasses.replace(submission, job=made.job_id)
    submission.write()
    return submission


def script(submission: Submission, job: Job) -> str:
    """The script that `submit` would hand over. Needs no Slurm."""
    return _executor(submission, job)._make_submission_file_text(_command(submission, job), "")


def _executor(submission: Submission, job: Job) -> Any:
    """submitit's, for one array job whose tasks tell themselves apart in the script."""
    import submitit

    class Executor(submitit.SlurmExecutor):
        """One that writes scripts where there is no Slurm too."""

        @classmethod
        def affinity(cls) -> int:
            return 2

    executor = Executor(submission.folder)
    # Since Slurm 22.05 srun does not take the cores over from sbatch by itself. A process that is
    # done may not end the others: they may still be writing.
    srun = ["--open-mode=append", "--kill-on-bad-exit=0"]
    srun += [f"--cpus-per-task={n}" for n in [job.options.get("cpus_per_task")] if n]
    # None is what leaves an option out, where submitit has a default of its own.
    executor.update_parameters(
        **{"time": None, "wckey": None, "nodes": 1} | dict(job.options),
        ntasks_per_node=1,
        job_name="vae-lab",
        stderr_to_stdout=True,
        array_parallelism=job.parallel or len(submission.tasks),
        srun_args=srun,
        setup=before(submission, job.setup),
        teardown=after(),
        # Requeued by Slurm itself after preemption and the loss of a node.
        additional_parameters={"requeue": True, "signal": f"USR1@{SAVE_SECONDS}"},
    )
    executor.parameters["map_count"] = len(submission.tasks)  # an array, of one task too
    return executor


def before(submission: Submission, setup: Sequence[str]) -> list[str]:
    """Lines of the script before the command: the task's populations, then those of --setup."""
    populations = [",".join(task) for task in submission.tasks]
    folder = shlex.quote(str(submission.folder))
    return [
        f"populations=({' '.join(populations)})",
        f"left={folder}/$SLURM_ARRAY_TASK_ID.exit  # the exit status, of a task that has ended",
        'rm -f "$left"',
        *setup,
    ]


def _command(submission: Submission, job: Job) -> str:
    """The task's command in the script's words, with its exit status kept."""
    own = '--populations="${populations[$SLURM_ARRAY_TASK_ID]}"'
    return f"{shlex.join(job.command)} {own} --submission={submission.name} {KEPT}"


# In this form, so that a `set -e` of --setup does not end the script here.
KEPT = "&& status=0 || status=$?"


def after() -> list[str]:
    """Lines of the script after the command: queue the task again, or leave the exit status.

    After scancel and at the time limit itself Slurm ends the script too: it does not get here.
    """
    return [
        f"case $status in {STOPPED})",
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {RESTARTS} ]; then',
        '    scontrol requeue "$SLURM_JOB_ID" && exit "$status"',
        "  fi",
        "esac",
        'echo "$status" >"$left"',
        'exit "$status"',
    ]
