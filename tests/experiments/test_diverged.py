"""One bad run hurts only itself, and says what happened to it."""

import json

import numpy as np
import pytest

from tests.experiments import launch

GOOD = [round(0.001 * (i + 1), 3) for i in range(15)]
SGD = ("--config.optimizer.name=sgd", "--config.optimizer.momentum=0", "--config.train.steps=60")


def rates(bad):
    values = GOOD[:7] + [bad] + GOOD[7:]
    return (*SGD, f"--sweep=optimizer.learning_rate={','.join(map(str, values))}")


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory):
    """The folder of sixteen runs, one of which explodes, and what the command said."""
    folder = tmp_path_factory.mktemp("sixteen") / "bad"
    return folder, launch.run(folder, *rates(1e6))


@pytest.mark.thorough
def test_a_nan_in_one_run_of_sixteen_leaves_the_other_fifteen_alone(sixteen, tmp_path):
    bad, _ = sixteen
    good = tmp_path / "good"
    launch.run(good, *rates(0.02))
    assert len(launch.rows(bad)) == 16
    shared = launch.rows(bad).keys() & launch.rows(good).keys()
    assert len(shared) == 15
    assert launch.everything(bad, shared) == launch.everything(good, shared)


def test_the_bad_run_is_named_with_step_term_and_layer(sixteen):
    bad, said = sixteen
    rows = launch.rows(bad)
    (run_id,) = [i for i, row in rows.items() if row["status"] == "diverged"]
    row = rows[run_id]
    assert float(row["optimizer.learning_rate"]) == 1e6
    assert [n for n in row if n.startswith(("test/", "train_eval/", "gap/")) and row[n]] == []
    # The first update throws every layer, so that the second step meets exploded ones. Which of
    # them overflows hangs on the seed (tests/vae/test_divergence.py has cases with one answer).
    assert row["diverged/step"] == row["steps"] == "1"
    part = {"rate": "encoder/", "distortion": "decoder/", "gradient": ""}[row["diverged/term"]]
    healthy = launch.readings(bad, next(i for i in rows if i != run_id))[0]
    assert row["diverged/layer"].startswith(part)
    assert f"grad/{row['diverged/layer']}/norm" in healthy
    assert {row["status"] for i, row in rows.items() if i != run_id} == {"ok"}
    assert f"1 of 16 runs diverged: {run_id}" in said.stdout
    # What is left of it: the parameters before the bad step, and no reading, as there was none.
    assert launch.readings(bad, run_id) == []
    assert all(np.isfinite(array).all() for array in launch.params(bad, run_id).values())
    result = json.loads((bad / "runs" / run_id / "result.json").read_text(encoding="utf-8"))
    assert result["status"] == "diverged" and "test/elbo" not in result
