"""The script of an array job, run with stand-ins for Slurm; test_slurm.py has a real one."""

import os
import subprocess

import pytest

from experiments.cluster import array_job, submissions


@pytest.mark.parametrize(
    "status, restarts, requeued, left",
    [
        (0, 0, False, "0"),
        (1, 0, False, "1"),
        (138, 0, True, None),
        (143, 49, True, None),
        (138, 50, False, "138"),
        (137, 0, False, "137"),
    ],
)
def test_how_the_script_ends(tmp_path, status, restarts, requeued, left):
    """The script itself, with stand-ins for srun and scontrol, under the strictest shell."""
    for name, body in (("srun", f"exit {status}"), ("scontrol", f'echo "$@" >{tmp_path}/asked')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    variables = {"PATH": path, "SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "7"}
    made = submissions.Submission(tmp_path / "sub mission", "slurm", (("a", "b"),))
    made.folder.mkdir()
    (made.folder / "0.exit").write_text("1")  # of the attempt before
    lines = array_job.before(made, ["set -eu"]) + [f"srun {array_job.KEPT}"]
    script = "\n".join([*lines, *array_job.after()])
    done = subprocess.run(
        ["bash", "-c", script], env=variables | {"SLURM_RESTART_COUNT": str(restarts)}
    )
    assert done.returncode == status
    assert (tmp_path / "asked").exists() == requeued
    if requeued:
        assert (tmp_path / "asked").read_text() == "requeue 7\n"
    file = made.folder / "0.exit"
    assert (file.read_text().strip() if file.exists() else None) == left
