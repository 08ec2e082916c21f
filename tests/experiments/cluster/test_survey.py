"""How populations stand: by what is in the folder, and by what stand-ins for Slurm say."""

import dataclasses
import os
import pathlib
import stat

import pytest

from experiments import locks
from experiments.cluster import slurm, submissions, survey
from vae import writers
from vae.errors import UserError


@pytest.fixture
def workdir(tmp_path):
    """A folder of two populations of two runs, without results."""
    planned = [{"id": p, "runs": [f"{p}-0", f"{p}-1"]} for p in ("pa", "pb")]
    writers.write_json(tmp_path / "populations.json", planned)
    return tmp_path


@pytest.fixture
def says(tmp_path_factory, monkeypatch):
    """Stands in for Slurm: `says(scontrol="text", ...)`; other commands of it are absent."""
    folder = tmp_path_factory.mktemp("bin")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name in ("scontrol", "sinfo", "sacct"):  # there may be a real one
        _stand_in(folder, name, "echo no such command >&2; exit 1")

    def say(**commands):
        for name, text in commands.items():
            _stand_in(folder, name, f"cat <<'END'\n{text}\nEND")

    return say


def _stand_in(folder, name, body):
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)


def finish(workdir, population, **row):
    for i in range(2):
        row = {"run_id": f"{population}-{i}", "status": "ok"} | row
        writers.write_json(workdir / "runs" / f"{population}-{i}" / "result.json", row)


def submitted(workdir, cluster="slurm", job="7"):
    made = submissions.create(workdir, cluster, [["pa"], ["pb"]])
    made = dataclasses.replace(made, job=job)
    made.write()
    return made


def standing(workdir, index=0):
    return survey.survey(workdir).populations[index]


def test_a_folder_of_nothing(tmp_path):
    with pytest.raises(UserError, match="--workdir: .* no populations.json"):
        survey.survey(tmp_path)


def test_done_and_nobody_at_work(workdir, capsys):
    finish(workdir, "pa")
    found = survey.survey(workdir)
    assert [p.state for p in found.populations] == ["done", "idle"]
    assert survey.exit_status(found) == 3
    finish(workdir, "pb", status="diverged", **{"diverged/step": 3, "diverged/term": "rate"})
    found = survey.survey(workdir)
    assert survey.exit_status(found) == 0
    said = survey.describe(workdir, found)
    assert "4 runs in" in said and "4 done" in said
    assert "2 of the finished runs diverged" in said and "pb-1: step 3, term rate" in said


def test_whoever_holds_a_lock_runs(workdir):
    folder = workdir / "populations" / "pb"
    folder.mkdir(parents=True)
    with locks.acquire(folder / ".lock") as lock:
        locks.sign(lock, "process 5 on n3")
        found = standing(workdir, 1)
        assert (found.state, found.where) == ("running", "process 5 on n3")
        assert standing(workdir).state == "idle"
    with locks.acquire(workdir / ".lock") as lock:  # a plain run
        locks.sign(lock, "process 6 on n3")
        assert standing(workdir).state == "running"
        assert standing(workdir).where == "process 6 on n3"


def test_tasks_of_this_machine(workdir):
    made = submitted(workdir, "local", "local")
    with locks.acquire(made.folder / ".lock"):
        assert standing(workdir).state == "waiting"
        (made.folder / "0.exit").write_text("2\n")
        made.log(0).write_text("one\nerror: --workdir: no good.\n")
        found = standing(workdir)
        assert (found.state, found.why) == ("failed", "--workdir: no good.")
        assert standing(workdir, 1).state == "waiting"
    found = standing(workdir, 1)
    assert found.state == "idle" and "submitting process ended" in found.why
    said = survey.describe(workdir, survey.survey(workdir))
    assert f"pa, the end of {made.log(0)}:\n  | one\n  | error: --workdir: no good." in said


@pytest.mark.parametrize(
    "code, log, why",
    [
        (1, "Traceback ...\nValueError: bad\n", "exit status 1: ValueError: bad"),
        (1, "", "exit status 1"),
        (2, "error: data.source: absent.", "data.source: absent."),
        (137, "", "killed (SIGKILL): by hand, or by the system for want of memory"),
        (139, "", "crashed (SIGSEGV)"),
        (138, "", "stopped by SIGUSR1, with all saved"),
        (250, "", "exit status 250"),
        (0, "", "ended well, but its results are not there any more"),
    ],
)
def test_what_an_exit_status_means(workdir, code, log, why):
    made = submitted(workdir, "local", "local")
    (made.folder / "0.exit").write_text(f"{code}\n")
    made.log(0).write_text(log)
    assert standing(workdir).why == why


TASK = "JobId=9 ArrayJobId=7 ArrayTaskId={index} JobName=vae-lab JobState={state} Reason={reason} "
TASK += "Restarts={restarts} ExitCode={code} NodeList={nodes} BatchHost=n1"


def told(state, reason="None", restarts=0, code="0:0", nodes="n1", index="0"):
    return TASK.format(**locals())


@pytest.mark.parametrize(
    "task, state, why",
    [
        (told("PENDING", "Resources", nodes="(null)"), "waiting", "for free nodes"),
        (told("PENDING", "JobHeldUser"), "waiting", "JobHeldUser"),
        (told("PENDING", "Priority", index="0-1%4"), "waiting", "behind other jobs"),
        (told("RUNNING"), "running", ""),
        (told("COMPLETING"), "running", ""),
        (told("TIMEOUT", "TimeLimit", code="0:15"), "failed", "ran into the time limit"),
        (told("OUT_OF_MEMORY", code="0:125"), "failed", "out of memory: give more --mem"),
        (told("NODE_FAIL", nodes="n2"), "failed", "n2 failed, and Slurm did not requeue it"),
        (told("CANCELLED"), "failed", "cancelled (scancel)"),
        (told("FAILED", code="0:53", nodes="n2"), "failed", "left no log: n2 does not see --work"),
        (told("SOMETHING_NEW"), "failed", "something_new"),
    ],
)
def test_what_slurm_says(workdir, says, task, state, why):
    submitted(workdir)
    says(scontrol=task, sinfo="n1|idle|none")
    found = standing(workdir)
    assert found.state == state and found.why.startswith(why)
    assert "Slurm job 7_0" in found.where


def test_a_task_of_several_processes_that_was_killed_by_a_signal(workdir, says):
    made = submitted(workdir)
    made.log(0).write_text("fine\n")
    (made.folder / "7_0_1_log.out").write_text("RuntimeError: lost its neighbour\n")
    says(scontrol=told("FAILED", code="1:0"), sinfo="n1|idle|none")
    assert standing(workdir).why == "exit status 1: RuntimeError: lost its neighbour"
    assert len(standing(workdir).logs) == 2
    says(scontrol=told("FAILED", code="0:9"))
    assert "SIGKILL" in standing(workdir).why


def test_a_lost_node(workdir, says):
    submitted(workdir)
    (workdir / "populations" / "pa").mkdir(parents=True)
    (workdir / "populations" / "pa" / ".lock").write_text("process 8 on n2, Slurm job 7_0\n")
    says(
        scontrol=told("PENDING", "BeginTime", restarts=1),
        sinfo="n1|idle|none\nn2|down*|Not responding",
    )
    found = standing(workdir)
    assert found.state == "waiting"
    assert found.why == "its node n2 is lost (down, Not responding); requeued 1 time"
    says(sinfo="n1|idle|none\nn2|idle|none")
    assert standing(workdir).why == "requeued 1 time"


def test_what_the_controller_forgot_is_in_the_accounts_or_in_the_folder(workdir, says):
    made = submitted(workdir)
    said = "slurm_load_jobs error: Invalid job id specified"
    folder = os.environ["PATH"].split(":")[0]
    says(sinfo="n1|idle|none")
    _stand_in(pathlib.Path(folder), "scontrol", f"echo '{said}' >&2; exit 1")
    found = standing(workdir)
    assert found.state == "failed" and "Slurm no longer knows" in found.why
    (made.folder / "0.exit").write_text("137\n")
    assert "SIGKILL" in standing(workdir).why
    says(sacct="7_0|CANCELLED by 1000|0:0|n1\n7_[1-4%2]|PENDING|0:0|None assigned")
    assert standing(workdir).why == "cancelled (scancel)"
    assert standing(workdir, 1).state == "waiting"
    assert slurm.tasks(["7"])["7", 4].nodes == ""


def test_slurm_does_not_answer(workdir, says):
    made = submitted(workdir)
    found = survey.survey(workdir)
    assert found.silent == "no such command"
    assert found.populations[0].state == "waiting" and "unknown" in found.populations[0].why
    (made.folder / "0.exit").write_text("1\n")  # the files still say what they know
    assert standing(workdir).state == "failed"
    assert "from the files alone" in survey.describe(workdir, survey.survey(workdir))


def test_a_submission_that_did_not_come_to_its_end(workdir):
    submissions.create(workdir, "slurm", [["pa"]])
    assert standing(workdir).state == "idle"
    assert "did not come to its end" in standing(workdir).why


def test_the_last_submission_of_a_population_counts(workdir, says):
    first = submitted(workdir)
    (first.folder / "0.exit").write_text("1\n")
    submitted(workdir, job="8")
    says(scontrol=told("RUNNING").replace("ArrayJobId=7", "ArrayJobId=8"), sinfo="n1|idle|none")
    assert "Slurm job 8_0" in standing(workdir).where
