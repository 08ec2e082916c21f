"""What README, CONTRIBUTING and docs/ say: code is run, names and commands exist."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import config, fields, sweep
from tests.experiments import launch
from vae import data

ROOT = Path(__file__).resolve().parents[1]
DOCS = ("README.md", "CONTRIBUTING.md", "docs/extending.md")
README, _, EXTENDING = (ROOT.joinpath(name).read_text(encoding="utf-8") for name in DOCS)


def blocks(text, language):
    """The fenced code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def prose(text):
    """Everything outside of fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def spans(text):
    """The inline code of the prose."""
    return re.findall(r"`([^`\n]+)`", prose(text))


def target(block):
    """The file that a Python block is for, when its first line says so: `# configs/name.py`."""
    match = re.match(r"# ([\w/]+\.py)\n", block)
    return match and match[1]


def commands(text):
    """The command lines of shell blocks and of inline code, split into words."""
    lines = "\n".join(blocks(text, "sh")).replace("\\\n", " ").splitlines()
    lines += [span for span in spans(text) if span.startswith(("python -m ", "bash "))]
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


ALL_COMMANDS = [(name, words) for name in DOCS for words in commands((ROOT / name).read_text())]
# Files that the reader makes, following the text.
MADE = {
    target(block)
    for name in DOCS
    for block in blocks((ROOT / name).read_text(), "python")
    if target(block)
}


# Code.


def test_the_library_use_shows_what_beta_does():
    [code] = [block for block in blocks(README, "python") if "train_chunk" in block]
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    rate, distortion = (
        np.reshape(names["metrics"][name], (3, 2)).mean(1) for name in ("rate", "distortion")
    )
    assert np.all(np.diff(rate) < 0) and np.all(np.diff(distortion) > 0)
    assert np.all(np.asarray(names["metrics"]["elbo"]) > -64 * np.log(2))  # better than a fair coin


def test_a_run_loads_as_the_readme_says(tmp_path, monkeypatch):
    [code] = [block for block in blocks(README, "python") if "load_run" in block]
    workdir, _ = launch.finished()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "quickstart").symlink_to(workdir)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    # The same posterior mean as the run's own pictures show for the first test image.
    with np.load(names["folder"] / "gallery.npz") as pictures:
        mean = np.asarray(names["posterior"].mean)[pictures["latent_dims"]]
        np.testing.assert_allclose(mean, pictures["latents"][0], rtol=1e-4, atol=1e-5)


def test_the_config_of_the_readme_is_one(tmp_path):
    [code] = [block for block in blocks(README, "python") if target(block)]
    file = tmp_path / "config.py"
    file.write_text(code)
    base, runs = config.from_args(str(file), [], [])
    assert base["model"]["latent_dim"] == 16
    assert len(runs) == 3 * 5 * 3


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A copy of the code in which the recipes of docs/extending.md have been carried out."""
    folder = tmp_path_factory.mktemp("extended")
    for package in ("vae", "experiments", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for block in blocks(EXTENDING, "python"):
        with open(folder / target(block), "a", encoding="utf-8") as file:
            file.write("\n\n" + block)
    # What the text says to write between two existing lines.
    leaf = "    ceiling: jax.Array | float = 0.0\n"
    row = '    "objective.ceiling": Field(float, at_least=0, hparam="ceiling"),\n'
    default = "    objective.ceiling = 0.0\n"
    for line in (leaf, row, default):
        assert f"`{line.strip()}`" in EXTENDING.replace("\n  ", " ")
    replace(folder / "vae/hparams.py", "    # model\n", leaf + "    # model\n")
    table = folder / "experiments/fields.py"
    replace(table, "    # Training and evaluation\n", row + "    # Training and evaluation\n")
    replace(table, '"model.net": Field(str, choices=(', '"model.net": Field(str, choices=("skip", ')
    start = '"objective.name": Field(\n        str,\n        choices=(\n'
    replace(table, start, start + '            "ceiling",\n')
    line = "    objective.free_bits = 0.0\n"
    replace(folder / "configs/default.py", line, line + default)
    return folder


def replace(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path.name} no longer has one {old!r}: mend this test"
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.thorough
def test_the_recipes_work_together(extended):
    """One run with the new data set, architecture and objective, and its number in the sweep."""
    flags = [
        "--config=configs/ceiling.py",
        "--config.data.source=call:stripes:stripes",
        "--config.model.net=skip",
        "--config.model.width=16",
        # A first nat of rate saves more than two of distortion here: β = 2 would not hold C = 1.
        "--config.objective.beta=20",
        "--config.train.epochs=30",
        "--config.eval.iw_samples=0",
        "--sweep=seed=0",
        "--noreport",
        "--workdir=results",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "experiments.run", *flags],
        cwd=extended,
        env=launch.environment(PYTHONPATH=str(extended)),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rows = list(launch.rows(extended / "results").values())
    targets = [float(row["objective.ceiling"]) for row in rows]
    rates = [float(row["test/rate"]) for row in rows]
    assert targets == [1.0, 2.0, 4.0, 8.0]
    # The text promises a few tenths after a full training; this is a third of one, after which the
    # highest ceiling is not reached.
    np.testing.assert_allclose(rates[:3], targets[:3], atol=0.7)
    assert rates[2] + 0.5 < rates[3] < 8.7
    run = extended / "results" / "runs" / rows[0]["run_id"]
    layers = list(json.loads((run / "metrics.jsonl").read_text().splitlines()[0]))
    assert "grad/decoder/layer_1/norm" in layers


def test_both_ways_to_a_data_set_are_the_same(tmp_path, monkeypatch):
    [code] = [block for block in blocks(EXTENDING, "python") if target(block) == "stripes.py"]
    names = {}
    exec(compile(code, "stripes.py", "exec"), names)
    [span] = [span for span in spans(EXTENDING) if span.startswith("np.savez")]
    monkeypatch.chdir(tmp_path)
    exec(span, names)
    stored = data.load("npz:stripes.npz", binarization="dynamic")
    called = data.load(names["stripes"], binarization="dynamic")
    assert stored.protocol["fingerprint"] == called.protocol["fingerprint"]
    assert stored.example_shape == (16, 16, 1)
    np.testing.assert_array_equal(stored.test_labels, called.test_labels)


# Commands.


def defined_flags(*paths):
    """The names of the absl flags that these modules define."""
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in paths]
    return {name for text in texts for name in re.findall(r"DEFINE_\w+\(\s*\"(\w+)\"", text)}


FLAGS = {
    "experiments.run": defined_flags("experiments/run.py"),
    "experiments.submit": defined_flags("experiments/run.py", "experiments/submit.py"),
    "experiments.status": defined_flags("experiments/status.py"),
    "experiments.report": defined_flags("experiments/report/__main__.py"),
    "experiments.study": defined_flags("experiments/study.py"),
    "experiments.benchmark": defined_flags("experiments/benchmark/__main__.py"),
}


@pytest.mark.parametrize(("doc", "words"), ALL_COMMANDS)
def test_a_command_can_be_given(doc, words):
    if "-m" in words and words[0] == "python":
        module = words[words.index("-m") + 1]
        check_module_flags(module, words[words.index("-m") + 2 :])
    elif words[0] == "bash":
        script = ROOT / words[1]
        assert script.is_file()
        text = script.read_text(encoding="utf-8")
        for flag in (word.partition("=")[0] for word in words[2:] if word.startswith("--")):
            assert flag in text
        if script.name == "test.sh":
            assert all((ROOT / word).exists() for word in words[2:] if word.startswith("tests"))
    else:
        known = (".venv/bin/ruff", ".ci/run", "source", "pip")
        assert words[0] in known, f"{doc}: unknown command {words}"


def check_module_flags(module, words):
    overrides, rest = config.split_argv(words)
    for name, text in overrides:
        fields.check(name, fields.parse(name, text))
    values = {}
    for position, word in enumerate(rest):
        if not word.startswith("--"):
            continue
        flag, _, value = word.removeprefix("--").partition("=")
        assert flag in FLAGS[module] | {"help"}, f"{module} has no flag --{flag}"
        values.setdefault(flag, []).append(value or rest[position + 1 : position + 2])
    for text in (v if isinstance(v, str) else v[0] for v in values.get("sweep", [])):
        assert sweep.parse_axis(text)
    for path in values.get("config", []):
        assert path in MADE or config.load(str(ROOT / path))


@pytest.mark.parametrize("doc", DOCS)
def test_a_flag_in_the_text_exists(doc):
    others = {"config", "help", "durations", "upgrade"}  # the launcher's own, of pytest, of uv
    known = others.union(*FLAGS.values())
    known |= {f"no{flag}" for flag in known}
    for span in spans((ROOT / doc).read_text()):
        assert set(re.findall(r"(?<!\S)--(\w+)", span)) <= known, span


def test_the_sweep_forms_can_be_read():
    for form in ("0.5,1,2", "0:5", "0:10:2", "linspace(0,1,5)", "logspace(-1,1,5)"):
        assert form in spans(README)
        assert len(sweep.parse_axis(f"objective.beta={form}")) in (3, 5)
    assert "[64,64],[128,64]" in spans(README)
    assert len(sweep.parse_axis("model.width=[64,64],[128,64]")) == 2


# Names.


@pytest.mark.parametrize("doc", DOCS)
def test_a_field_in_the_text_exists(doc):
    for span in spans((ROOT / doc).read_text()):
        match = re.fullmatch(r"(([a-z_]+)\.[a-z_]+)(?:=(.*))?", span)
        if match and match[2] in fields.SECTIONS:
            assert match[1] in fields.FIELDS, span
            if match[3]:
                fields.parse(match[1], match[3])


@pytest.mark.parametrize("doc", DOCS)
def test_a_path_in_the_text_exists(doc):
    text = (ROOT / doc).read_text()
    links = re.findall(r"\]\(([^)#]+)\)", prose(text))
    missing = [link for link in links if not (ROOT / doc).parent.joinpath(link).exists()]
    for span in spans(text):
        made = span in MADE or span.startswith(("../", "results/"))
        if re.fullmatch(r"[\w./-]+(\.(py|sh|lock|toml|cfg|md)|/)", span) and not made:
            missing += [] if (ROOT / span).exists() else [span]
    assert missing == []


@pytest.mark.parametrize("doc", DOCS)
def test_a_table_or_function_in_the_text_exists(doc):
    for place in re.findall(r"`([A-Z]{4,})` in\s`([\w/]+\.py)`", prose((ROOT / doc).read_text())):
        name, path = place
        assert re.search(rf"^{name}\b", (ROOT / path).read_text(), re.MULTILINE), place


@pytest.mark.parametrize(
    "field",
    [
        *("objective.name", "objective.estimator"),
        *("model.posterior", "model.prior", "model.likelihood", "model.output"),
    ],
)
def test_the_readme_names_every_choice(field):
    [row] = [line for line in README.splitlines() if line.startswith(f"| `{field}`")]
    words = set(re.findall(r"\w+", row))
    scales = {f"{f}_{s}" for f in ("gaussian", "laplace", "student") for s in ("shared", "pixel")}
    assert set(fields.FIELDS[field].choices) - scales <= words


def test_the_readme_counts_what_is_compared():
    _, runs = config.from_args(str(ROOT / "configs/ablations/objectives.py"), [], [])
    compared = {json.dumps(run | {"seed": None}, sort_keys=True) for run in runs}
    assert f"compares {len(compared)} objectives" in README


def test_the_size_of_the_quickstart():
    _, runs = config.from_args(str(ROOT / "configs/quickstart.py"), [], [])
    axes = sweep.axes(runs)
    shapes = {tuple(r[n] for n in axes if not fields.FIELDS[n].numeric) for r in runs}
    assert f"{len(runs)} runs on real 8 × 8 digits" in README
    assert f"in {len(shapes)} programs" in README
    assert len(axes["seed"]) == 3


# The results folder.


def tree():
    """The entries of the README's tree: (depth in spaces, name)."""
    [text] = [block for block in blocks(README, "text") if block.startswith("WORKDIR/")]
    lines = [re.match(r"( +)([\w./]+)", line) for line in text.splitlines()[1:]]
    return [(len(m[1]), m[2]) for m in lines if m and len(m[1]) <= 4]


def test_the_tree_is_what_a_run_leaves():
    workdir, _ = launch.finished()  # made with --noreport
    there = {path.name for path in workdir.iterdir() if not path.name.startswith(".")}
    written = {name.split("/")[0] for depth, name in tree() if depth == 2}
    # Of a command without a report, and that was not submitted.
    assert written == there | {"report.html", "figures", "submissions"}
    run = next((workdir / "runs").iterdir())
    inside = {name.rstrip("/") for depth, name in tree() if depth == 4}
    assert inside == {path.name for path in run.iterdir()}
    assert list(workdir.glob("populations/*/checkpoints"))
    assert {path.name for path in (workdir / "tensorboard").iterdir()} == {
        path.name for path in (workdir / "runs").iterdir()
    }


def test_every_column_is_explained():
    workdir, _ = launch.finished()
    with open(workdir / "results.csv", newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file))
    named = spans(README)
    swept = ("objective.beta", "seed")
    for column in columns:
        group = "train_eval/*" if column.startswith("train_eval/") else column
        assert column in swept or group in named, column
    for span in named:  # and no other is promised
        if re.match(r"(test|train_eval|gap|diverged)/\w+$", span):
            assert span in columns, span


def test_wall_s_adds_up_to_the_population():
    rows = launch.rows(launch.finished()[0]).values()
    assert len({row["wall_s"] for row in rows}) == 1  # one population: its time, shared equally


def test_the_picture_is_small():
    picture = ROOT / "docs" / "report.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert os.path.getsize(picture) < 400_000
