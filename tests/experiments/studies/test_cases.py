"""Cases are measured once, kept one by one, and measured anew when damaged."""

import types

import numpy as np
import pytest

from experiments.studies import cases
from experiments.studies.cases import Context, Found


class Study(types.ModuleType):
    """A study of three cases that counts its measurements; `inspect` finds the class's file."""

    def __init__(self):
        super().__init__("study")
        self.measured = []

    @staticmethod
    def cases(budget):
        return [{"samples": n, "seed": 0} for n in range(3 if budget == "quick" else 4)]

    def run(self, arguments, context):
        self.measured.append(arguments["samples"])
        if arguments["samples"] == 13:
            raise KeyboardInterrupt
        return {"square": arguments["samples"] ** 2, "all": np.arange(3.0)}


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(cases.inspect, "getsource", lambda study: "x = 1")
    return Study()


def run(study, folder, budget="quick", stop=lambda: False, lines=None):
    context = Context(folder, None, None)
    say = (lines if lines is not None else []).append
    return cases.measure_all(study, context, budget, stop, say)


def test_each_is_measured_once(study, tmp_path):
    first = run(study, tmp_path)
    lines = []
    again = run(study, tmp_path, "full", lines=lines)
    assert study.measured == [0, 1, 2, 3]
    assert [int(c.values["square"]) for c in again] == [0, 1, 4, 9]
    assert again[2].seconds == first[2].seconds and again[2].arguments == first[2].arguments
    np.testing.assert_array_equal(again[0].values["all"], np.arange(3.0))
    assert lines[0] == "  1/4  samples 0, seed 0: kept" and "s" in lines[3].split(":")[1]


def test_a_study_that_was_stopped_goes_on_where_it_was(study, tmp_path):
    asked = iter([False, True])
    assert run(study, tmp_path, stop=lambda: next(asked)) is None
    assert study.measured == [0]
    assert len(cases.kept(study, tmp_path, "quick")) == 1
    assert run(study, tmp_path) is not None
    assert study.measured == [0, 1, 2]


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
def test_a_damaged_case_is_measured_again(study, tmp_path, damage):
    run(study, tmp_path)
    path = cases.file_of(study, tmp_path, {"samples": 1, "seed": 0})
    path.write_bytes(damage(path.read_bytes()))
    run(study, tmp_path)
    assert study.measured == [0, 1, 2, 1]


def test_a_changed_study_is_measured_again(study, tmp_path, monkeypatch):
    run(study, tmp_path)
    monkeypatch.setattr(cases.inspect, "getsource", lambda study: '"""Said."""\nx = 1  # so')
    run(study, tmp_path)
    assert study.measured == [0, 1, 2]  # words alone have changed
    monkeypatch.setattr(cases.inspect, "getsource", lambda study: "x = 2")
    run(study, tmp_path)
    assert study.measured == [0, 1, 2, 0, 1, 2]


def test_found_gives_cases_by_their_arguments(study, tmp_path):
    found = Found("quick", None, run(study, tmp_path))
    (case,) = found.of(samples=2)
    assert int(case.values["square"]) == 4
    assert found.of(samples=2, seed=1) == []
    assert found.seconds == sum(case.seconds for case in found.cases)
