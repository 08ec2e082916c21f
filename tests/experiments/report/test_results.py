"""Reading a results folder: what is there, what is missing, what is damaged."""

import json

import numpy as np
import pytest

from experiments.report.axes import Axis, value_key, value_label
from experiments.report.results import read_gallery, read_metrics, read_results
from tests.experiments.report.synthetic import write_workdir
from vae.errors import UserError


def test_a_sweep_is_read_in_the_order_of_its_values(sweep):
    results = read_results(sweep)
    assert [axis.field for axis in results.axes] == [
        "objective.beta",
        "model.latent_dim",
        "model.depth",
    ]
    assert results.axes[0].values == (0.5, 1.0, 4.0)  # Swept as 4, 0.5, 1.
    assert [axis.label for axis in results.axes] == ["beta", "latent_dim", "depth"]
    assert results.seeds == (0, 1, 2)
    assert len(results.runs) == 81
    assert [run.status for run in results.runs].count("diverged") == 1
    assert results.runs[0].values == {
        "objective.beta": 0.5,
        "model.latent_dim": 2,
        "model.depth": 1,
        "seed": 0,
    }
    assert results.notes == ()


def test_categories_keep_the_order_of_the_sweep(tmp_path):
    axes = {"model.activation": ["tanh", "relu"], "seed": [0]}
    results = read_results(write_workdir(tmp_path / "w", axes))
    assert results.axes[0].values == ("tanh", "relu")


def test_layers_come_in_order_of_depth(single):
    (run,) = read_results(single).runs
    assert run.layers[0] == "encoder/layer_0"
    assert run.layers[-1] == "decoder/output"
    assert run.layers.index("encoder/scale") < run.layers.index("decoder/layer_0")


def test_metrics_null_repeats_and_damage(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 200, "test/elbo": -3.0},
        {"step": 100, "test/elbo": None, "train/rate": 1.0},
        {"step": 200, "test/elbo": -2.0},
    ]
    text = "\n".join(map(json.dumps, lines)) + '\n[1]\n{"test/elbo": 1}\n{"step": 300, "test/el'
    path.write_text(text)
    step, curves, layers, skipped = read_metrics(path)
    np.testing.assert_array_equal(step, [100, 200])
    np.testing.assert_array_equal(curves["test/elbo"], [np.nan, -2.0])
    np.testing.assert_array_equal(curves["train/rate"], [1.0, np.nan])
    assert layers == ()
    assert skipped == 3


def test_a_half_written_line_is_noted(tmp_path):
    workdir = write_workdir(tmp_path / "w", {"seed": [0, 1]})
    run_id = read_results(workdir).runs[1].run_id
    with (workdir / "runs" / run_id / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2100, "train/')
    results = read_results(workdir)
    assert results.runs[1].step[-1] == 2000
    assert len(results.notes) == 1
    assert run_id in results.notes[0]
    assert "1 damaged line" in results.notes[0]


def test_unfinished_and_missing_runs(tmp_path):
    workdir = write_workdir(tmp_path / "w", {"seed": [0, 1, 2]}, missing=(2,))
    results = read_results(workdir)
    killed = results.runs[1].run_id
    rows = (workdir / "results.csv").read_text().splitlines()
    kept = [row for row in rows if not row.startswith(killed)]
    (workdir / "results.csv").write_text("\n".join(kept))
    (workdir / "runs" / killed / "result.json").unlink()
    results = read_results(workdir)
    assert [run.status for run in results.runs] == ["ok", "unfinished", "missing"]
    assert "2 of 3 runs have no final result" in results.notes[0]


def test_result_json_stands_in_for_a_row(tmp_path):
    workdir = write_workdir(tmp_path / "w", {"seed": [0, 1]})
    whole = read_results(workdir)
    (workdir / "results.csv").unlink()
    results = read_results(workdir)
    assert [run.status for run in results.runs] == ["ok", "ok"]
    elbos = [run.number("test/elbo") for run in results.runs]
    assert elbos == [run.number("test/elbo") for run in whole.runs]


def test_no_sweep_file(tmp_path):
    workdir = write_workdir(tmp_path / "w", {})
    (workdir / "sweep.json").unlink()
    (run,) = read_results(workdir).runs
    assert run.status == "ok"
    assert run.seed == 0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ("workdir", "no folder", "--workdir=DIR")),
        (lambda path: path.mkdir(), ("workdir", "config.json", "--workdir=DIR")),
        (
            lambda path: (write_workdir(path, {}) / "sweep.json").write_text('{"axes": '),
            ("workdir", "sweep.json", "no valid JSON", "run the same command again"),
        ),
        (
            lambda path: (write_workdir(path, {}) / "config.json").write_text("[]"),
            ("workdir", "config.json", "no JSON object"),
        ),
        (
            lambda path: (write_workdir(path, {}) / "results.csv").write_text("a,b\n1,2\n"),
            ("workdir", "results.csv", "run_id"),
        ),
    ],
)
def test_bad_folders_say_what_to_do(tmp_path, make, words):
    make(tmp_path / "w")
    with pytest.raises(UserError) as error:
        read_results(tmp_path / "w")
    for word in words:
        assert word in str(error.value)


def test_no_pickle_is_loaded_and_damage_reads_as_empty(tmp_path):
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, samples=np.array([{"a": 1}], dtype=object))
    assert read_gallery(pickled) == {}
    cut = tmp_path / "cut.npz"
    cut.write_bytes(pickled.read_bytes()[:100])
    assert read_gallery(cut) == {}
    assert read_gallery(tmp_path / "none.npz") == {}


def test_arrays_that_went_bad_are_left_out(tmp_path):
    path = tmp_path / "gallery.npz"
    np.savez(
        path, latents=np.array([[np.nan, 0.0]], np.float32), samples=np.zeros((1, 3), np.uint8)
    )
    assert list(read_gallery(path)) == ["samples"]


@pytest.mark.parametrize(
    ("values", "log"),
    [
        ((0.1, 1.0, 10.0), True),
        ((2, 32), True),
        ((1, 2, 4), True),
        ((1, 2, 3), False),
        ((1, 2), False),
        ((0.0, 1.0, 10.0), False),
        (("a", "b"), False),
    ],
)
def test_scale_of_an_axis(values, log):
    assert Axis("x", "x", values).log is log


def test_values_and_their_labels():
    assert value_key(1) == value_key(1.0)
    assert value_key(True) != value_key(1)
    labels = [value_label(v) for v in (0.5, 1e-5, 5000, 1e5, "relu", [500, 200], True, None)]
    assert labels == ["0.5", "1e-05", "5000", "100000", "relu", "[500, 200]", "true", "null"]
