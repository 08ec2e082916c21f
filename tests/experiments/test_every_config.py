"""Every config that comes with the package builds, and trains."""

import math
import pathlib
import time

import jax
import numpy as np
import pytest

from experiments import config as configs
from experiments import execute, fields, programs, sweep
from experiments import plan as plans
from experiments.workdir import Workdir
from tests.experiments import launch

SHIPPED = sorted(
    str(path.relative_to(launch.REPOSITORY))
    for path in (launch.REPOSITORY / "configs").rglob("*.py")
    if path.name != "__init__.py"
)
# One step, a small evaluation, and as little data as that needs.
SHORT = {
    "train.epochs": "null",
    "train.steps": "1",
    "eval.iw_samples": "2",
    "eval.train_limit": "50",
}


def load(path, request):
    """The config with its sweep, shortened; its dataset where it lies beside the repository."""
    overrides = dict(SHORT)
    base, _ = configs.from_args(str(launch.REPOSITORY / path), [], [])
    if base["data"]["source"].startswith("tfds:"):
        shared = request.getfixturevalue("shared_data")
        overrides |= {"data.dir": str(shared / "tfds"), "data.test_split": "test[-100:]"}
    elif base["data"]["source"] == "npz:frey_faces.npz":  # a file that the user makes
        shared = request.getfixturevalue("shared_data")
        faces = np.load(shared / "freyfaces" / "freyfaces.npz")["ff"]
        file = request.getfixturevalue("tmp_path") / "frey_faces.npz"
        np.savez(file, train=faces[:-100], test=faces[-100:])
        overrides |= {"data.source": f"npz:{file}"}
    return configs.from_args(str(launch.REPOSITORY / path), list(overrides.items()), [])


def covering(runs):
    """Few runs in which each value of each swept structural field occurs."""
    chosen, seen = [], set()
    for run in runs:
        values = {item for item in run.items() if not fields.FIELDS[item[0]].numeric}
        if not chosen or values - seen:
            chosen.append(run)
            seen |= values
    return chosen


@pytest.mark.sampled
@pytest.mark.parametrize("path", SHIPPED)
def test_every_structure_builds(path, request):
    base, runs = load(path, request)
    chosen = covering(runs)
    plan = plans.make(base, chosen, sweep.axes(chosen), budget=2**40)
    assert plan.groups == len(plan.populations) == len(chosen)
    for population in plan.populations:
        # Traced, not compiled: shapes and types fit from the data to the update.
        function, arguments, _ = programs._signature("chunk", population)
        before = arguments[2]
        after = jax.eval_shape(lambda *a, f=function, s=arguments[:2]: f(*s, *a), *arguments[2:])
        assert jax.tree.structure(after) == jax.tree.structure(before)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)


# The objectives take their steps in tests/vae/test_every_objective.py, and those whose results are
# of another kind are launched by test_shipped_configs.py; studies and seeds by test_study.py.
LAUNCHED = [p for p in SHIPPED if p.split("/")[1] not in ("objectives", "studies", "seeds")]


@pytest.mark.sampled
@pytest.mark.parametrize("path", LAUNCHED)
def test_one_step_of_its_first_run(path, request, tmp_path, monkeypatch):
    base, runs = load(path, request)
    # This process keeps its own cache of compiled programs, and these are for one step.
    monkeypatch.setattr(execute, "use_persistent_cache", lambda: None)
    compile_ = programs.compiled
    monkeypatch.setattr(programs, "compiled", lambda f, arguments, *_: compile_(f, arguments, 0))
    monkeypatch.setattr(execute.environment, "command_line", lambda: ["python"])

    def make_plan(packed):
        return plans.make(base, runs[:1], sweep.axes(runs[:1]), packed=packed)

    status = execute.execute(
        make_plan,
        pathlib.Path(tmp_path),
        started=time.monotonic(),
        stop=execute.StopOnSignal(()),
        checkpoint_seconds=60,
        keep_checkpoints=2,
        report=False,
    )
    assert status == 0
    (run,) = make_plan(None).runs
    result = Workdir(tmp_path).result(run.run_id)
    assert result["status"] == "ok" and result["steps"] == 1
    assert all(math.isfinite(result[f"test/{name}"]) for name in ("elbo", "nll"))
