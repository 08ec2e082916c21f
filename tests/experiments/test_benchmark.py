"""That each benchmark runs and says what it should; what it measures is no business of tests."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as main
from experiments.benchmark import commands, library, measure, products
from experiments.benchmark.measure import Row, Settings

QUICK = Settings(quick=True)

# Ratios that have a target.
TARGETS = {
    "step": {"Adam, dynamic binarisation: step / products"},
    "dispatch": {"chunks of one / chunk", "train_step / chunk"},
    "probing": {"terms+signal: looks / training"},
    "nll": {"buffers for K = 128 / K = 12"},
    "processes": {
        "gain, each cache empty at first",
        "gain over processes without a cache",
        "gain, all programs in the cache",
    },
    "quickstart": {"wall clock", "peak memory"},
}


@pytest.mark.parametrize("name", ["step", "dispatch", "packing", "nll", "probing"])
def test_library_benchmarks_run(name):
    rows = list(main.BENCHMARKS[name](QUICK))
    assert {row.what for row in rows if row.target} == TARGETS.get(name, set())
    for row in rows:
        assert row.benchmark == name and np.isfinite(row.value) and row.value > 0
        assert row.low is None or row.low <= row.value <= row.high


def test_memory_compares_the_estimate_with_what_was_compiled():
    rows = library.memory_(QUICK)
    assert rows and all(row.value > 0 and row.target == (">=", 1.0) for row in rows)


def test_products_are_all_there_and_nothing_else():
    weights, x = products.weights(12, 7, 3), jnp.ones((5, 12))
    # As outside of the tests, see tests/conftest.py.
    loops = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else None
    program = jax.jit(products.loop).lower(weights, x, jnp.int32(0)).compile(loops)
    *parts, entry = re.split(r"\n(?=%|ENTRY)", program.as_text().strip())
    assert sum(text.count(" dot(") for text in parts) == products.COUNT
    # None moved in front of the loop: what is there is neither a product nor a call of one.
    multiplying = [text.split()[0] for text in parts if " dot(" in text]
    assert entry.startswith("ENTRY") and " dot(" not in entry
    before = re.findall(r"calls=(%[\w.-]+)", entry)
    assert before and not set(before) & set(multiplying)
    each = [v.size for v in weights] * 3  # forward, its weights' gradient, its input's gradient
    assert products.flops(5, 12, 7, 3) == 2 * 5 * (sum(each) - weights[0].size)


def test_products_are_those_of_a_gradient_step():
    """Of h = xW₁ and so on: the loop's first and last results, by numpy."""
    weights, x = products.weights(12, 7, 3), np.ones((5, 12), np.float32)
    (g_1, *_, g_out), _ = products.loop(weights, jnp.asarray(x), jnp.int32(2))
    w_1, w_mean, _, w_2, w_out = map(np.asarray, weights)
    d = x @ w_1 @ w_mean @ w_2
    np.testing.assert_allclose(g_out, d.T @ (d @ w_out), rtol=1e-4)
    np.testing.assert_allclose(
        g_1, x.T @ (d @ w_out @ w_out.T @ w_2.T @ w_mean.T), rtol=1e-4, atol=1e-12
    )


def _fake_launch(seconds, output="First step after 3.5 s\n"):
    calls = []

    def launch(arguments, cache):
        calls.append((arguments, cache.name))
        workdir = next(a for a in arguments if a.startswith("--workdir=")).partition("=")[2]
        if not any("noreport" in a for a in arguments):
            folder = cache.parent / workdir
            folder.mkdir(parents=True)
            (folder / "report.html").write_text("x" * 1000)
        return commands.Launch(next(seconds), 10**9, output)

    return launch, calls


def test_processes_extrapolates_from_its_sample(monkeypatch):
    # Cold: 10 s together; 6 s for the first alone, 2 s for each later one. Warm: 4 s and 1 s.
    launch, calls = _fake_launch(iter([10, 6, 2, 2, 2, 4, 1, 1, 1, 1]))
    monkeypatch.setattr(commands, "launch", launch)
    rows = {row.what: row for row in commands.processes(Settings())}
    assert rows["gain, each cache empty at first"].value == pytest.approx((6 + 23 * 2) / 10)
    assert rows["gain over processes without a cache"].value == pytest.approx(24 * 6 / 10)
    assert rows["gain, all programs in the cache"].value == pytest.approx(24 / 4)
    assert {row.what for row in rows.values() if row.target} == TARGETS["processes"]
    assert "4 of 24 run" in rows["24 processes, cache empty at first"].note
    # Two caches, and no folder twice: a finished folder would return at once.
    assert {cache for _, cache in calls} == {"one", "many"}
    assert len({a for arguments, _ in calls for a in arguments if "workdir" in a}) == len(calls)


def test_processes_in_full_runs_all(monkeypatch):
    launch, calls = _fake_launch(iter([1.0] * 50))
    monkeypatch.setattr(commands, "launch", launch)
    commands.processes(Settings(full=True))
    assert len(calls) == 2 * (1 + 24)


def test_quickstart_and_startup_read_what_was_launched(monkeypatch):
    launch, _ = _fake_launch(iter([42.0]))
    monkeypatch.setattr(commands, "launch", launch)
    rows = {row.what: row for row in commands.quickstart_(Settings())}
    assert {what for what, row in rows.items() if row.target} == TARGETS["quickstart"]
    assert rows["wall clock"].value == 42 and rows["peak memory"].value == 1
    launch, _ = _fake_launch(iter([1.0, 1.0]))
    monkeypatch.setattr(commands, "launch", launch)
    assert [row.value for row in commands.startup(QUICK)] == [3.5, 3.5]


def test_a_real_launch_reaches_its_first_step(tmp_path):
    arguments = [f"--config={commands.default.__file__}", "--noreport", f"--workdir={tmp_path}/w"]
    arguments += ["--config.train.epochs=null", "--config.train.steps=2"]
    arguments += ["--config.eval.iw_samples=0", "--config.model.width=4"]
    done = commands.launch(arguments, tmp_path / "cache")
    assert 0 < commands.first_step(done.output) < done.seconds
    # Python with JAX takes some 300 MB, however much this process has.
    assert 50e6 < done.peak < 1.5e9 and "peak" not in done.output
    assert (tmp_path / "cache" / "jax").exists()


def test_a_failed_launch_shows_what_was_printed(tmp_path):
    with pytest.raises(RuntimeError, match="no_such_config"):
        commands.launch(["--config=no_such_config.py", f"--workdir={tmp_path}"], tmp_path)


def test_ratios_are_taken_turn_by_turn():
    clock = {"a": np.array([1.0, 2.0, 4.0]), "b": np.array([2.0, 2.0, 2.0])}
    assert measure.ratio(clock["a"], clock["b"]) == {"value": 1.0, "low": 0.5, "high": 2.0}


def test_functions_take_turns():
    seen = []
    functions = {name: lambda n, name=name: seen.append((name, n)) for name in "ab"}
    seconds = measure.in_turns(functions, 7, 2)
    assert seen == [("a", 7), ("b", 7)] * 3  # once unmeasured
    assert all(s.shape == (2,) for s in seconds.values())


def test_rows_say_whether_a_target_is_met():
    assert Row("x", "y", 1.2, "ratio", target=("<=", 1.3)).met
    assert not Row("x", "y", 1.2, "ratio", target=(">=", 1.3)).met
    assert Row("x", "y", 1.2, "ratio").met is None
    text = measure.table([Row("x", "y", 1.4, "ratio", 1.0, 2.0, ("<=", 1.3), "a note")])
    assert re.search(r"x +y +1.4 ratio +1..2 +<= 1.3 +NO +a note", text)


def test_crossing_is_where_the_ratio_passes_one():
    points = [(100, 0.5), (400, 2.0)]  # in logarithms the middle
    assert library._crossing(points) == pytest.approx(200)
    assert library._crossing([(100, 0.5), (400, 0.9)]) is None


def test_json_holds_the_machine_and_the_rows(monkeypatch, tmp_path):
    monkeypatch.setitem(
        main.BENCHMARKS, "step", lambda settings: [Row("step", "y", 1.4, "", target=("<=", 1.3))]
    )
    file = tmp_path / "benchmark.json"
    main.flags.FLAGS(["benchmark", f"--json={file}"])
    main.main(["benchmark", "step"])
    content = json.loads(file.read_text())
    assert {"cpu", "cores", "devices", "versions", "load_average"} <= content["machine"].keys()
    assert content["rows"][0]["met"] is False and content["rows"][0]["target"] == "<= 1.3"


def test_an_unknown_benchmark_names_those_there_are():
    main.flags.FLAGS(["benchmark"])
    with pytest.raises(main.UserError, match="stepp.*step, dispatch"):
        main.main(["benchmark", "stepp"])
