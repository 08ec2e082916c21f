"""Records of submissions: numbered, named by chance, read back as they were."""

import dataclasses

from experiments import locks
from experiments.cluster import submissions


def test_what_is_written_is_read_back_in_order(tmp_path):
    made = [submissions.create(tmp_path, "slurm", [["a", "b"], ["c"]]) for _ in range(11)]
    assert [s.name.partition("-")[0] for s in made] == [str(i) for i in range(1, 12)]
    assert len({s.name.partition("-")[2] for s in made}) == 11
    assert submissions.recorded(tmp_path) == made  # the tenth after the ninth
    handed_over = dataclasses.replace(made[3], job="12")
    handed_over.write()
    assert submissions.recorded(tmp_path)[3] == handed_over
    assert handed_over.tasks == (("a", "b"), ("c",))


def test_what_a_killed_submitter_left_is_passed_over(tmp_path):
    submissions.create(tmp_path, "local", [["a"]])
    (tmp_path / "submissions" / "2-abc").mkdir()
    (tmp_path / "submissions" / "notes-of-mine").mkdir()
    assert len(submissions.recorded(tmp_path)) == 1
    assert submissions.create(tmp_path, "local", [["a"]]).name.startswith("3-")


def test_what_tasks_leave(tmp_path):
    made = dataclasses.replace(submissions.create(tmp_path, "slurm", [["a"]] * 11), job="7")
    assert made.exit_status(1) is None and made.logs(1) == []
    (made.folder / "1.exit").write_text("137\n")
    (made.folder / "10.exit").write_text("0\n")
    assert made.exit_status(1) == 137 and made.exit_status(10) == 0
    (made.folder / "1.exit").write_text("")  # a full disk
    assert made.exit_status(1) is None
    logs = [made.folder / f"7_{name}_log.out" for name in ("1_0", "1_1", "10_0")]
    for file in logs:
        file.touch()
    assert made.logs(1) == logs[:2] and made.log(10) == logs[2]


def test_whether_the_submitter_is_there(tmp_path):
    made = submissions.create(tmp_path, "local", [["a"]])
    assert not made.is_attended()
    with locks.acquire(made.folder / ".lock"):
        assert made.is_attended()
    assert not made.is_attended()
