"""Progress: one bar on a terminal, plain lines elsewhere."""

import os
import pty
import re
import subprocess
import types

import pytest

from experiments import progress
from tests.experiments import launch


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def plan(runs, steps):
    return types.SimpleNamespace(runs=range(runs), num_steps=steps)


def test_lines_say_runs_populations_speed_time_left_and_score(clock, capsys):
    plans = [plan(4, 100), plan(2, 300)]
    shown = progress.Progress(plans)
    shown.begin(plans[0])
    shown.update(0, None)
    clock.now += 60  # compiling
    shown.update(1, None)
    clock.now += 20
    shown.update(51, ("test elbo", -40.125))  # 200 run-steps in 20 s, and 796 to do
    clock.now += 20
    shown.update(100, ("test elbo", -30.0))
    shown.begin(plans[1])
    shown.update(0, None)
    clock.now += 20
    shown.update(300, ("test distortion", 20.0))
    shown.close()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "  0%  0/6 runs, population 1/2, compiling",
        "  0%  0/6 runs, population 1/2",
        " 20%  0/6 runs, population 1/2, 10 run-steps/s, 1:20 left, test elbo -40.12",
        " 40%  4/6 runs, population 1/2, 10 run-steps/s, 1:01 left, test elbo -30.00",
        "100%  6/6 runs, population 2/2, 17 run-steps/s, 0:00 left, test distortion 20.00",
    ]


def test_lines_are_few(clock, capsys):
    (only,) = plans = [plan(1, 1000)]
    shown = progress.Progress(plans)
    shown.begin(only)
    for step in range(1001):
        shown.update(step, None)
        clock.now += 0.1
    # 100 seconds: one line in ten of them, the first and the last.
    assert len(capsys.readouterr().err.splitlines()) == 100 / progress.LINE_SECONDS + 1


def test_steps_of_an_earlier_process_are_no_speed(clock, capsys):
    plans = [plan(2, 100), plan(2, 100)]
    shown = progress.Progress(plans)
    shown.begin(plans[0])
    shown.update(100, None)  # only its results were missing
    shown.begin(plans[1])
    shown.update(50, None)
    clock.now += 10
    shown.update(51, None)
    clock.now += 10
    shown.update(61, None)
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith(" 50%  2/4 runs, population 1/2, compiling")
    assert last == " 80%  2/4 runs, population 2/2, 2 run-steps/s, 0:39 left"


def test_what_is_done_beside_training_is_said(clock, capsys):
    (only,) = plans = [plan(1, 10)]
    shown = progress.Progress(plans)
    shown.begin(only)
    shown.update(10, None)
    clock.now += progress.LINE_SECONDS
    shown.note("nll of 5000 samples, 100/10000")
    assert capsys.readouterr().err.splitlines()[-1].strip() == "nll of 5000 samples, 100/10000"


@pytest.mark.parametrize(
    "seconds, text",
    [(0, "0:00"), (59.4, "0:59"), (61, "1:01"), (3599.7, "1:00:00"), (86400, "24:00:00")],
)
def test_clock(seconds, text):
    assert progress._clock(seconds) == text


def test_one_bar_on_a_terminal(tmp_path):
    launch.finished()  # its compiled programs
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        launch.command(tmp_path, *launch.SWEEP),
        cwd=launch.REPOSITORY,
        env=launch.environment(TERM="xterm", COLUMNS="150"),
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    seen = b""
    while chunk := read(controller):
        seen += chunk
    stdout, _ = process.communicate(timeout=100)
    os.close(controller)
    assert process.returncode == 0
    assert b"4 runs finished" in stdout and b"\x1b" not in stdout
    # Without its control sequences: states of one line, each drawn over the one before.
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    states = [state.strip() for state in re.split(r"[\r\n]+", text) if state.strip()]
    assert all(state.startswith(("compiling", "training", "evaluating")) for state in states)
    assert re.fullmatch(
        r"training +━+ +100% 4/4 runs, population 1/1, [\d,]+ run-steps/s, "
        r"0:00 left, test elbo -\d+\.\d\d",
        states[-1],  # which stays on the screen
    )


def read(controller):
    try:
        return os.read(controller, 4096)
    except OSError:  # how Linux says that the other side is closed
        return b""
