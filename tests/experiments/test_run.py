"""What the command leaves: the contract of a results folder, and that packing changes no result."""

import contextlib
import csv
import hashlib
import json
import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import config as configs
from experiments import entry, execute, run
from experiments import plan as plans
from experiments.devices import Devices
from experiments.population import DeviceData
from tests.experiments import launch
from vae import checkpoint, evaluate, train, writers
from vae.errors import UserError
from vae.hparams import stack

# The same run in another program has its sums in another order: a few units in the last place of
# float32 (6e-8) for a test metric, which is a mean over examples. 100 of them.
METRIC = 1e-5
# A reading follows up to 200 steps of Adam, whose division by √v amplifies small differences.
READING = 1e-3

METRICS = ("elbo", "rate", "distortion", "active_units")


@pytest.fixture(scope="module")
def finished():
    return launch.finished()[0]


def run_folders(workdir):
    return sorted(path for path in (workdir / "runs").iterdir())


def read_json(path):
    def refuse(constant):
        raise AssertionError(f"{path}: {constant} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


# The results contract -----------------------------------------------------------------------------


def test_every_file_of_the_contract_is_there_and_no_other(finished):
    top = {path.name for path in finished.iterdir()}
    assert top == {
        ".lock",
        "config.json",
        "sweep.json",
        "populations.json",
        "environment.json",
        "results.csv",
        "runs",
        "populations",
        "tensorboard",
    }
    ids = {path.name for path in run_folders(finished)}
    assert len(ids) == 4
    assert {path.name for path in (finished / "tensorboard").iterdir()} == ids
    for folder in run_folders(finished):
        names = {path.name for path in folder.iterdir()}
        assert names == {"config.json", "metrics.jsonl", "result.json", "gallery.npz", "params"}
    (population,) = (finished / "populations").iterdir()
    assert launch.checkpoints(finished)[-1] == 200
    assert read_json(finished / "populations.json")[0]["id"] == population.name


def test_no_temporary_file_is_left(finished):
    assert [f for f in finished.rglob("*") if ".tmp" in f.name or "tmp-" in f.name] == []


def test_what_was_asked_is_recorded(finished):
    base, sweep = read_json(finished / "config.json"), read_json(finished / "sweep.json")
    assert base["model"]["width"] == 16 and base["train"] == {
        "batch_size": 128,
        "epochs": None,
        "steps": 200,
        "precision": "float32",
        "accumulate": 1,
        "remat": "none",
    }
    assert sweep["axes"] == {"objective.beta": [0.5, 2.0], "seed": [0, 1]}
    overrides = [run["overrides"] for run in sweep["runs"]]
    assert overrides == [{"objective.beta": b, "seed": s} for b in (0.5, 2.0) for s in (0, 1)]
    for one in sweep["runs"]:
        own = read_json(finished / "runs" / one["run_id"] / "config.json")
        assert configs.run_id(own) == one["run_id"]
        assert own == writers.plain(configs.resolve(base, one["overrides"]))


def test_the_table_has_the_agreed_columns(finished):
    with open(finished / "results.csv", newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    splits = [f"{split}/{name}" for split in ("test", "train_eval") for name in METRICS]
    expected = {"run_id", "status", "objective.beta", "seed", "steps", "wall_s", "gap/elbo"}
    expected |= {*splits, "test/nll", "test/nll_samples", "data/fingerprint"}
    expected |= {"diverged/step", "diverged/term", "diverged/layer"}
    assert set(header) == expected
    assert header[:6] == ["run_id", "status", "objective.beta", "seed", "steps", "wall_s"]
    assert len(lines) == 4
    order = [run["run_id"] for run in read_json(finished / "sweep.json")["runs"]]
    rows = launch.rows(finished)
    assert list(rows) == order
    environment = read_json(finished / "environment.json")
    for run_id, row in rows.items():
        assert row["status"] == "ok" and row["steps"] == "200" and row["test/nll_samples"] == "8"
        assert row["diverged/step"] == row["diverged/term"] == row["diverged/layer"] == ""
        fingerprint = row.pop("data/fingerprint")
        assert fingerprint == environment["dataset"]["digits"]["fingerprint"][:16]
        number = {k: float(v) for k, v in row.items() if v and k not in ("run_id", "status")}
        assert all(map(math.isfinite, number.values()))
        elbo = -(number["test/rate"] + number["test/distortion"])
        assert number["test/elbo"] == pytest.approx(elbo, rel=METRIC)
        gap = number["train_eval/elbo"] - number["test/elbo"]
        assert number["gap/elbo"] == pytest.approx(gap, abs=1e-4)
        result = read_json(finished / "runs" / run_id / "result.json")
        assert result.pop("data/fingerprint") == fingerprint
        assert {k: v for k, v in row.items() if v} == {
            k: v if isinstance(v, str) else json.dumps(v) for k, v in result.items()
        }


def test_the_readings_have_the_agreed_keys(finished):
    (metrics, *_) = [folder / "metrics.jsonl" for folder in run_folders(finished)]
    text = metrics.read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    readings = writers.read_jsonl(metrics)
    assert [reading["step"] for reading in readings] == list(range(10, 201, 10))
    layers = ["encoder/layer_0", "encoder/mean", "encoder/scale", "decoder/layer_0"]
    layers += ["decoder/output"]
    train_keys = ["loss", "elbo", "rate", "distortion", "beta", "learning_rate"]
    for reading in readings:
        assert {f"train/{name}" for name in train_keys} <= reading.keys()
        assert {f"test/{name}" for name in METRICS} <= reading.keys()
        for kind in ("grad", "param", "update"):
            # The order of the keys is the order of depth.
            names = [key for key in reading if key.startswith(f"{kind}/")]
            assert names == [f"{kind}/{layer}/norm" for layer in layers]
            assert all(reading[name] > 0 for name in names)
    rows = launch.rows(finished)
    last = readings[-1]
    for name in METRICS:
        assert last[f"test/{name}"] == float(rows[metrics.parent.name][f"test/{name}"])


def test_the_gallery_has_the_agreed_arrays(finished):
    for folder in run_folders(finished):
        with np.load(folder / "gallery.npz", allow_pickle=False) as archive:
            shapes = {name: (archive[name].dtype.name, archive[name].shape) for name in archive}
        assert shapes == {
            "originals": ("uint8", (8, 8, 8, 1)),
            "reconstructions": ("uint8", (8, 8, 8, 1)),
            "samples": ("uint8", (32, 8, 8, 1)),
            "traversals": ("uint8", (2, 7, 8, 8, 1)),
            "traversal_dims": ("int32", (2,)),
            "traversal_values": ("float32", (7,)),
            "latents": ("float32", (359, 2)),
            "latent_dims": ("int32", (2,)),
            "labels": ("int32", (359,)),
            "kl_per_dim": ("float32", (2,)),
        }


def test_the_environment_says_what_made_the_results(finished):
    made = read_json(finished / "environment.json")
    assert made["command"][:3] == ["python", "-m", "experiments.run"]
    assert "--sweep=seed=0,1" in made["command"]
    assert made["versions"]["jax"] == jax.__version__
    protocol = made["dataset"]["digits"]
    assert len(protocol["fingerprint"]) == hashlib.sha256().digest_size * 2
    assert made.keys() >= {"platform", "backend", "devices", "git_commit", "git_dirty"}


def test_the_saved_parameters_give_the_reported_numbers_again(finished):
    base, sweep = read_json(finished / "config.json"), read_json(finished / "sweep.json")
    plan = plans.make(base, [run["overrides"] for run in sweep["runs"]], sweep["axes"])
    (population,) = plan.populations
    third, hparams = population.runs[2], stack(population.hparams()[2:3])
    mean = jnp.asarray(population.dataset.train_mean)
    shapes = jax.eval_shape(lambda h: train.init(population.spec, h, mean), hparams).states
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), shapes)
    tree = checkpoint.restore_tree(
        finished / "runs" / third.run_id / "params", {"params": state.params, "stats": state.stats}
    )
    tree = jax.tree.map(jnp.asarray, tree)
    hparams = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), hparams)
    state = state.replace(params=tree["params"], stats=tree["stats"], hparams=hparams)
    found = evaluate.evaluate_run(
        population.spec.model,
        DeviceData(population.dataset).evaluation("test", population.dataset.num_test),
        jnp.int32(evaluate.SPLITS["test"]),
        state,
        num_samples=population.evaluation.samples,
        batch_size=64,
    )
    row = launch.rows(finished)[third.run_id]
    for name in METRICS:
        assert float(found[name]) == pytest.approx(float(row[f"test/{name}"]), rel=METRIC)


def test_what_the_command_prints(finished):
    _, done = launch.finished()
    assert done.stdout.startswith(f"4 runs in 1 population -> {finished}\n")
    table = [line.split() for line in done.stdout.splitlines()]
    assert ["beta", "runs", "elbo", "rate", "distortion", "nll", "(K", "=", "8)"] == next(
        words for words in table if words[:1] == ["beta"]
    )[:9]
    assert "4 runs finished in" in done.stdout
    assert f"Table:  {finished / 'results.csv'}" in done.stdout
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr


# Packing changes no result ------------------------------------------------------------------------


def assert_same_numbers(workdir, other, run_ids):
    """The rows and readings of both folders agree, up to the order of float32 sums."""
    rows, others = launch.rows(workdir), launch.rows(other)
    for run_id in run_ids:
        names = [n for n in rows[run_id] if n.startswith(("test/", "train_eval/"))]
        assert len(names) == 10
        for name in names:
            expected = float(others[run_id][name])
            assert float(rows[run_id][name]) == pytest.approx(expected, rel=METRIC), (run_id, name)
        pairs = zip(launch.readings(workdir, run_id), launch.readings(other, run_id), strict=True)
        for reading, expected in pairs:
            assert reading == pytest.approx(expected, rel=READING, abs=1e-6)


def test_a_run_alone_is_the_run_in_a_population(finished, tmp_path):
    launch.run(tmp_path, "--config.objective.beta=2", "--config.seed=1")
    (run_id,) = launch.rows(tmp_path)
    assert launch.rows(finished)[run_id]["objective.beta"] == "2.0"
    assert launch.rows(finished)[run_id]["seed"] == "1"
    assert_same_numbers(tmp_path, finished, [run_id])
    saved, expected = launch.params(tmp_path, run_id), launch.params(finished, run_id)
    assert saved.keys() == expected.keys()
    for name, array in saved.items():
        np.testing.assert_allclose(array, expected[name], rtol=READING, atol=1e-5)


@pytest.mark.thorough
def test_in_turn_is_side_by_side(finished, tmp_path):
    done = launch.run(tmp_path, *launch.SWEEP, "--pack=map")
    assert "in turn (map)" in done.stdout
    assert_same_numbers(tmp_path, finished, launch.rows(finished))


@pytest.mark.thorough
def test_a_population_that_is_too_large_is_split(finished, tmp_path):
    base, sweep = read_json(finished / "config.json"), read_json(finished / "sweep.json")
    overrides = [run["overrides"] for run in sweep["runs"]]

    # Room for two of the four runs, and not for three.
    there = Devices(1)  # as in the command's process, not as in that of the tests
    plan = plans.make(base, overrides[:2], {}, budget=2**40, pack="vmap", there=there)
    pair = plan.populations[0]
    budget = pair.estimate.total
    done = launch.run(tmp_path, *launch.SWEEP, f"--memory_gib={budget / 2**30!r}")
    assert "4 runs in 2 populations" in done.stdout
    assert "split to fit the memory" in done.stdout
    assert len(list((tmp_path / "populations").iterdir())) == 2
    assert_same_numbers(tmp_path, finished, launch.rows(finished))
    # Going on with more room keeps the packing, and so the checkpoints.
    packing = (tmp_path / "populations.json").read_bytes()
    launch.run(tmp_path, *launch.SWEEP)
    assert (tmp_path / "populations.json").read_bytes() == packing


# The report, and the way out ----------------------------------------------------------------------


class Never:
    """Stands for `execute.StopOnSignal` where no signal comes."""

    def __call__(self):
        return False

    at_once = contextlib.nullcontext


def test_a_report_is_made_where_it_is_missing_and_only_there(finished, tmp_path, monkeypatch):
    workdir = shutil.copytree(finished, tmp_path / "results")
    base, sweep = read_json(workdir / "config.json"), read_json(workdir / "sweep.json")
    overrides = [run["overrides"] for run in sweep["runs"]]
    reported = []
    monkeypatch.setattr(execute, "_report", reported.append)
    monkeypatch.setattr(execute, "use_persistent_cache", lambda: None)

    def again(report):
        status = execute.execute(
            lambda packed: plans.make(base, overrides, sweep["axes"], packed=packed),
            workdir,
            started=0.0,
            stop=execute.StopOnSignal(()),
            checkpoint_seconds=60,
            keep_checkpoints=2,
            report=report,
        )
        assert status == 0

    again(report=False)
    assert reported == []
    again(report=True)
    assert reported == [workdir]
    (workdir / "report.html").write_text("made")
    again(report=True)
    assert reported == [workdir]


def test_the_first_signal_asks_and_the_second_one_kills(capsys):
    numbers = execute.STOPPING
    assert signal.SIGUSR1 in numbers  # what Slurm can send before a time limit
    before = [signal.getsignal(number) for number in numbers]
    try:
        stop = execute.StopOnSignal()
        assert not stop()
        signal.raise_signal(signal.SIGTERM)
        assert stop() and stop.signal == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert "saving first (once more to stop at once)" in capsys.readouterr().err
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def test_a_task_of_a_population_that_there_is_not(finished, tmp_path):
    def refused(workdir):
        def make_plan(packed):
            raise AssertionError("refused before anything is planned")

        options = {"started": 0.0, "checkpoint_seconds": 60, "keep_checkpoints": 2}
        with pytest.raises(UserError) as caught:
            execute.execute(make_plan, workdir, only=["abc"], stop=Never(), report=False, **options)
        return str(caught.value)

    [planned] = [record["id"] for record in read_json(finished / "populations.json")]
    said = f"--populations: {finished} has no population abc. There are {planned}."
    assert refused(finished) == said
    assert "has no populations.json" in refused(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_ctrl_c_before_anything_has_begun(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(entry.app, "run", interrupted)
    with pytest.raises(SystemExit) as caught:
        run.enter()
    assert caught.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err == "Stopped; nothing had begun.\n"


def test_what_has_nothing_to_save_ends_at_once_by_a_signal():
    before = signal.getsignal(signal.SIGUSR1)
    try:
        stop = execute.StopOnSignal([signal.SIGUSR1])
        with pytest.raises(execute.Stopped), stop.at_once():
            signal.raise_signal(signal.SIGUSR1)
            raise AssertionError("it went on")
        # A signal that came before counts too.
        with pytest.raises(execute.Stopped), stop.at_once():
            raise AssertionError("it began")
    finally:
        signal.signal(signal.SIGUSR1, before)
