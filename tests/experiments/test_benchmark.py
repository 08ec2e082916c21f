"""That each benchmark runs and says what it should; what it measures is no business of tests."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import __main__ as main
from experiments.benchmark import (
    commands,
    library,
    markdown,
    measure,
    placement,
    products,
    throughput,
)
from experiments.benchmark.measure import Row, Settings

QUICK = Settings(quick=True)
TINY = {"model.width": "4", "model.depth": "1"}

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


@pytest.mark.sampled
@pytest.mark.parametrize(
    "name", ["step", "dispatch", "packing", "structures", "placement", "nll", "probing"]
)
def test_library_benchmarks_run(name):
    rows = list(main.BENCHMARKS[name](QUICK))
    assert {row.what for row in rows if row.target} == TARGETS.get(name, set())
    for row in rows:
        assert row.benchmark == name and np.isfinite(row.value) and row.value > 0
        assert row.low is None or row.low <= row.value <= row.high


@pytest.mark.thorough
def test_memory_compares_the_estimate_with_what_was_compiled():
    rows = library.memory_(QUICK)
    assert rows and all(row.value > 0 and row.target == ("within", 0.2) for row in rows)
    plan = library.population_plan(main.peers.default, TINY, ["seed=0:2"])
    _, peak = library.peak_bytes(plan)
    # Parameters and Adam's two moments of two runs, the examples in bytes, and buffers.
    at_least = 2 * 3 * 4 * plan.num_params + plan.dataset.train.nbytes
    assert at_least < peak < 10 * at_least


@pytest.mark.parametrize("widths", [(7,), (7, 6, 5)])
def test_products_are_all_there_and_nothing_else(widths):
    weights, x = products.weights(12, widths, 3), jnp.ones((4, 12))
    # As outside of the tests, see tests/conftest.py.
    loops = {"xla_cpu_use_fusion_emitters": True} if jax.__version_info__ < (0, 11) else None
    program = jax.jit(products.loop).lower(weights, x, jnp.int32(0)).compile(loops)
    *parts, entry = re.split(r"\n(?=%|ENTRY)", program.as_text().strip())
    assert sum(text.count(" dot(") for text in parts) == products.count(widths)
    # None moved in front of the loop: what is there is neither a product nor a call of one.
    multiplying = [text.split()[0] for text in parts if " dot(" in text]
    assert entry.startswith("ENTRY") and " dot(" not in entry
    before = re.findall(r"calls=(%[\w.-]+)", entry)
    assert before and not set(before) & set(multiplying)
    sizes = [v.size for v in jax.tree.leaves(weights)]
    # Forward, its weights' gradient, its input's gradient: but for the first.
    assert products.flops(4, 12, widths, 3) == 2 * 4 * (3 * sum(sizes) - sizes[0])


def test_products_are_those_of_a_gradient_step():
    """Of h = xW₁W₂ and so on: gradients of a linear model whose ∂ℓ/∂output is the output."""
    weights, x = products.weights(12, (7, 6), 3), jnp.ones((5, 12))

    def half_square(weights):
        encoder, mean, _, decoder = weights
        h = x
        for w in (*encoder, mean, *decoder):
            h = h @ w
        return jnp.sum(h**2) / 2

    expected = jax.grad(half_square)(weights)
    (encoder, mean, _, decoder), _ = products.loop(weights, x, jnp.int32(2))
    found = (encoder, mean, jnp.zeros_like(mean), decoder)
    # 0.02 for each weight on the way: the products are tiny, and rounded by their own size.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max()),
        found,
        expected,
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


def test_a_stream_trains_what_examples_on_the_device_train():
    few = TINY | {"train.steps": "40", "train.epochs": "null", "eval.every": "40"}
    trained = []
    for where, kind in (("device", library.Training), ("host", placement.Streamed)):
        plan = library.population_plan(main.peers.default, few | {"data.placement": where})
        training = kind(plan)
        training(3)
        training(2)
        trained.append(training.population)
    assert int(trained[1].step) == 5
    jax.tree.map(np.testing.assert_array_equal, *(p.states.params for p in trained))


def test_quickstart_and_startup_read_what_was_launched(monkeypatch):
    launch, _ = _fake_launch(iter([42.0]))
    monkeypatch.setattr(commands, "launch", launch)
    rows = {row.what: row for row in commands.quickstart_(Settings())}
    assert {what for what, row in rows.items() if row.target} == TARGETS["quickstart"]
    assert rows["wall clock"].value == 42 and rows["peak memory"].value == 1
    launch, _ = _fake_launch(iter([1.0, 1.0]))
    monkeypatch.setattr(commands, "launch", launch)
    monkeypatch.setattr(commands, "compile_seconds", lambda plan: {"chunk": 2.5})
    assert [row.value for row in commands.startup(QUICK)] == [3.5, 3.5, 2.5]


def test_compiling_is_timed_program_by_program():
    seconds = commands.compile_seconds(library.population_plan(commands.default, TINY))
    assert {"init", "chunk", "iw_bounds"} <= seconds.keys() and all(seconds.values())


@pytest.mark.thorough
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
    near = [Row("x", "y", value, "ratio", target=("within", 0.2)) for value in (0.7, 0.9, 1.1, 1.3)]
    assert [row.met for row in near] == [False, True, True, False]
    assert near[0].as_dict()["target"] == "1 ± 0.2"
    text = measure.table([Row("x", "y", 1.4, "ratio", 1.0, 2.0, ("<=", 1.3), "a note")])
    assert re.search(r"x +y +1.4 ratio +1..2 +<= 1.3 +NO +a note", text)


def test_a_population_is_faster_from_the_crossing_on():
    assert throughput.crossing([(1, 0.5), (4, 2.0), (16, 3.0)]) == pytest.approx(2)
    assert throughput.crossing([(1, 1.1), (4, 2.0)]) == 1
    assert throughput.crossing([(1, 2.0), (4, 0.9)]) is None
    assert throughput.crossing([(1, 2.0), (4, 0.5), (16, 2.0)]) == pytest.approx(8)


def test_throughput_compares_commands_with_processes(monkeypatch):
    """One process takes 4 s, two beside each other 5 s, the command of 3 runs 6 s."""
    calls = []

    def launch(arguments, cache):
        calls.append(arguments)
        together = any("--sweep" in a for a in arguments)
        seconds = 6 if together else 4 if len(calls) <= 2 else 5
        return commands.Launch(seconds, 10**9, "")

    monkeypatch.setattr(throughput, "launch", launch)
    monkeypatch.setattr(throughput.devices, "cores", lambda: 2)
    *rows, crossover = throughput._commands(QUICK, (1, 3))
    # One process alone; two side by side and then one.
    assert [row.value for row in rows] == [pytest.approx(4 / 6), pytest.approx((5 + 4) / 6)]
    assert 1 < crossover.value < 3
    workdirs = [a for arguments in calls for a in arguments if "workdir" in a]
    assert len(set(workdirs)) == len(calls)  # a finished folder would return at once


@pytest.mark.thorough
def test_populations_and_their_runs_one_by_one_are_timed():
    rows = list(
        throughput._together(
            QUICK, "digits", main.peers.default, {"model.width": "4"}, 3, gains := []
        )
    )
    assert [runs for runs, _ in gains] == [3] and gains[0][1] == rows[0].value > 0
    assert rows[1].value == pytest.approx(rows[0].value / 3)


def test_crossing_is_where_the_ratio_passes_one():
    points = [(100, 0.5), (400, 2.0)]  # in logarithms the middle
    assert library._crossing(points) == pytest.approx(200)
    assert library._crossing([(100, 0.5), (400, 0.9)]) is None


def _fake(monkeypatch, name, value=1.4):
    def benchmark(settings):
        """A ratio | of two."""
        return [Row(name, "y | z", value, "ratio", 1.0, 2.0, ("<=", 1.3), "a note")]

    monkeypatch.setitem(main.BENCHMARKS, name, benchmark)


def _main(*arguments):
    defaults = ["--out=", "--markdown=", "--data_dir=", "--noquick"]  # flags outlive a test
    main.flags.FLAGS(["benchmark", *defaults, *(a for a in arguments if a.startswith("--"))])
    main.main(["benchmark", *(a for a in arguments if not a.startswith("--"))])


def test_json_holds_the_machine_and_the_rows(monkeypatch, tmp_path):
    _fake(monkeypatch, "step")
    file = tmp_path / "benchmark.json"
    _main("step", f"--out={file}")
    content = json.loads(file.read_text())
    expected = {"cpu", "cores", "devices", "versions", "load_average", "git_commit", "threads"}
    assert expected <= content["machine"].keys()
    assert {"torch", "pythae", "jax"} <= content["machine"]["versions"].keys()
    assert content["rows"][0]["met"] is False and content["rows"][0]["target"] == "<= 1.3"


def test_markdown_keeps_what_is_written_by_hand(monkeypatch, tmp_path):
    file = tmp_path / "benchmarks.md"
    file.write_text(f"# By hand\n\n{markdown.BEGIN}\n{markdown.END}\n\n## Notes\n\nOurs.\n")
    for name in ("startup", "step"):
        _fake(monkeypatch, name)
        _main(name, f"--markdown={file}", "--data_dir=/somewhere")
    text = file.read_text()
    assert text.startswith("# By hand\n") and text.endswith("\n\n## Notes\n\nOurs.\n")
    assert text.index("### step") < text.index("### startup")  # as in BENCHMARKS, not as measured
    assert "| y \\| z | 1.4 ratio | 1 to 2 | <= 1.3 | NO | a note |" in text
    assert f"jax {jax.__version__}" in text and "A ratio | of two." in text
    assert "`python -m experiments.benchmark step --data_dir=DIR --markdown=FILE`" in text
    # Measured again: in place of what was there, and of nothing else.
    _fake(monkeypatch, "step", value=1.2)
    _main("step", f"--markdown={file}")
    again = file.read_text()
    assert "| 1.2 ratio |" in again and again.count("### step") == 1
    assert again.partition("### startup")[2] == text.partition("### startup")[2]


def test_markdown_makes_a_new_file_and_leaves_a_strange_one(monkeypatch, tmp_path):
    _fake(monkeypatch, "step")
    _main("step", f"--markdown={tmp_path / 'new.md'}")
    assert "### step" in (tmp_path / "new.md").read_text()
    strange = tmp_path / "README.md"
    strange.write_text("# Mine\n")
    with pytest.raises(main.UserError, match="--markdown.*README.md"):
        _main("step", f"--markdown={strange}")
    assert strange.read_text() == "# Mine\n"
    with pytest.raises(main.UserError, match="quick"):
        _main("step", f"--markdown={tmp_path / 'new.md'}", "--quick")


def test_a_benchmark_that_fails_leaves_the_others(monkeypatch, tmp_path, capsys):
    def broken(settings):
        raise RuntimeError("out of paper")

    monkeypatch.setitem(main.BENCHMARKS, "step", broken)
    _fake(monkeypatch, "startup")
    with pytest.raises(SystemExit) as stopped:
        _main("step", "startup", f"--markdown={tmp_path / 'new.md'}")
    assert stopped.value.code == 1
    printed = capsys.readouterr()
    assert "out of paper" in printed.err and "failed, see above: step" in printed.err
    assert "a note" in printed.out and "### startup" in (tmp_path / "new.md").read_text()


def test_an_unknown_benchmark_names_those_there_are():
    with pytest.raises(main.UserError, match="stepp.*step, peers"):
        _main("stepp")
