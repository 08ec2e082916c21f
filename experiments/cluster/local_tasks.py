"""The tasks of a submission as processes of this machine, some at a time.

Not with submitit's executor for this: it starts all tasks at once, and unpickles.
"""

import subprocess
import time
from collections.abc import Callable, Sequence

from experiments.cluster.submissions import Submission


def command(
    submission: Submission, task: Sequence[str], common: Sequence[str], setup: Sequence[str]
) -> list[str]:
    """The command of one task, after the shell lines of --setup.

    Args:
      task: its populations. common: the command of every task.
    """
    words = [*common, f"--populations={','.join(task)}", f"--submission={submission.name}"]
    return ["bash", "-c", "\n".join([*setup, 'exec "$@"']), "bash", *words] if setup else words


def run(
    submission: Submission,
    commands: Sequence[Sequence[str]],
    parallel: int,
    stop: Callable[[], int | None],
) -> dict[int, int]:
    """Runs the tasks and leaves their logs and exit statuses; returns the statuses, by task.

    Args:
      parallel: tasks at a time.
      stop: the signal to stop with, or None: it is passed on to the tasks, and no more are started.
    """
    waiting = list(enumerate(commands))
    running: dict[int, subprocess.Popen] = {}
    ended: dict[int, int] = {}
    told = False
    while running or waiting and not stop():
        while waiting and not stop() and len(running) < parallel:
            index, words = waiting.pop(0)
            with open(submission.log(index), "a", encoding="utf-8") as log:
                running[index] = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C is for this process, which passes it on once
                )
        if stop() and not told:
            for process in running.values():
                process.send_signal(stop())
            told = True
        time.sleep(0.1)
        for index, process in list(running.items()):
            if (status := process.poll()) is None:
                continue
            del running[index]
            ended[index] = status if status >= 0 else 128 - status  # as a shell has it
            (submission.folder / f"{index}.exit").write_text(f"{ended[index]}\n")
            well = "ended well" if status == 0 else f"exit status {ended[index]}"
            names = ", ".join(submission.tasks[index])
            print(f"Task {index} ({names}): {well}. Log: {submission.log(index)}", flush=True)
    return ended
