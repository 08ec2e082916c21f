"""The page's numbers against results.csv, its escaping, and that it needs nothing but itself."""

import base64
import hashlib
import html.parser
import json
import math
import re

import numpy as np
import pytest

from experiments.report import aggregate
from experiments.report.page import json_script, page
from experiments.report.results import read_results
from tests.experiments.report.synthetic import CONFIG, write_workdir
from tests.experiments.report.test_aggregate import read_rows

TAG = "<img src=x onerror=\"document.title='pwned'\">"
SCRIPT = "</script><script>document.title='pwned'</script><!--"


class Page(html.parser.HTMLParser):
    """What a browser would see: elements with their attributes, table rows, the scripts' text."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[tuple[dict[str, str | None], str]]]] = {}
        self.row_classes: dict[str, list[str | None]] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self._table = self._script = None
        self._cell: tuple[dict[str, str | None], list[str]] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if tag == "table":
            self._table = attributes.get("id")
            self.tables[self._table], self.row_classes[self._table] = [], []
        elif tag == "tr":
            self.tables[self._table].append([])
            self.row_classes[self._table].append(attributes.get("class"))
        elif tag in ("td", "th"):
            self._cell = (attributes, [])
        elif tag == "script":
            self._script = (attributes, [])

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self._table][-1].append((self._cell[0], "".join(self._cell[1])))
            self._cell = None
        elif tag == "script":
            self.scripts.append((self._script[0], "".join(self._script[1])))
            self._script = None

    def handle_data(self, data):
        if self._script:
            self._script[1].append(data)
            return
        self.text += data
        if self._cell:
            self._cell[1].append(data)

    def data(self, anchor: str):
        """The JSON that the page's script reads under this id."""
        (text,) = [text for attributes, text in self.scripts if attributes.get("id") == anchor]
        return json.loads(text)


@pytest.fixture(scope="module")
def sweep_page(sweep):
    return Page(page(read_results(sweep)))


def hostile_workdir(folder):
    environment = {
        "versions": {"jax": SCRIPT},
        "devices": [TAG],
        "git_commit": SCRIPT,
        "command": ["python", TAG, f"--config.data.dir={SCRIPT}"],
        "earlier": [{"versions": {"jax": TAG}, "git_commit": TAG}],
        "dataset": {TAG: {"fingerprint": SCRIPT, "classes": [TAG]}},
    }
    config = CONFIG | {"data": {"source": SCRIPT, TAG: TAG}}
    axes = {"model.activation": [TAG, SCRIPT, "$x$ %{y} &amp;"], "seed": [0, 1]}
    workdir = write_workdir(
        folder, axes, lines=6, diverged=(5,), environment=environment, config=config
    )
    text = (workdir / "results.csv").read_text().replace("encoder/scale", "<b>" + SCRIPT)
    (workdir / "results.csv").write_text(text)
    return workdir


def test_table_equals_an_independent_computation(sweep, sweep_page):
    header, *body = sweep_page.tables["group-table"]
    assert len(body) == 27
    assert [text for _, text in header][1:4] == ["beta", "latent_dim", "depth"]
    assert any(text.startswith("NLL (K = 500)") for _, text in header)
    rows = read_rows(sweep)
    for line in body:
        condition = [float(attributes["data-value"]) for attributes, _ in line[1:4]]
        members = [
            row
            for row in rows
            if [float(row[f]) for f in ("objective.beta", "model.latent_dim", "model.depth")]
            == condition
        ]
        assert len(members) == 3
        seen = set()
        for attributes, text in line:
            if "data-metric" not in attributes:
                continue
            seen.add(attributes["data-metric"])
            cells = [row[attributes["data-metric"]] for row in members]
            values = np.array([float(cell) for cell in cells if cell])
            error = values.std(ddof=1) / math.sqrt(len(values))
            assert int(attributes["data-seeds"]) == len(values)
            assert float(attributes["data-value"]) == pytest.approx(values.mean(), rel=1e-12)
            assert float(attributes["data-error"]) == pytest.approx(error, rel=1e-9, abs=1e-15)
            # What one reads is what one computes, to the last digit shown.
            shown = re.fullmatch(r"(−?[\d.]+) ± ([\d.]+)", text)
            places = len(shown[1].split(".")[1])
            assert abs(float(shown[1].replace("−", "-")) - values.mean()) <= 0.501 * 10**-places
            assert abs(float(shown[2]) - error) <= 0.501 * 10**-places
        assert seen == {
            "test/elbo",
            "test/rate",
            "test/distortion",
            "test/nll",
            "test/active_units",
            "gap/elbo",
        }


def test_the_best_elbo_is_marked(sweep_page):
    _, *body = sweep_page.tables["group-table"]
    elbos = [
        float(attributes["data-value"])
        for line in body
        for attributes, _ in line
        if attributes.get("data-metric") == "test/elbo"
    ]
    marked = [i for i, css in enumerate(sweep_page.row_classes["group-table"][1:]) if css == "best"]
    assert marked == [int(np.argmax(elbos))]
    assert body[marked[0]][0][1] == "★"


def test_one_seed_has_no_error(single):
    shown = Page(page(read_results(single)))
    _, line = shown.tables["group-table"]
    for attributes, text in line:
        if "data-metric" in attributes:
            assert attributes["data-error"] == ""
            assert "±" not in text
    assert "NaN" not in shown.text and "nan" not in shown.text.split()


def test_every_run_is_listed(sweep, sweep_page):
    _, *body = sweep_page.tables["run-table"]
    assert sorted(line[0][1] for line in body) == sorted(row["run_id"] for row in read_rows(sweep))


def test_diverged_runs_are_named(sweep, sweep_page):
    (row,) = [row for row in read_rows(sweep) if row["status"] == "diverged"]
    _, line = sweep_page.tables["diverged-table"]
    words = [text for _, text in line]
    assert words[0] == "beta = 4, latent_dim = 32, depth = 3, seed = 0"
    assert words[1:5] == [row["run_id"], "600 of 2000 (30%)", "rate", "encoder/scale"]


def test_figures_of_the_sweep(sweep_page):
    for i in range(3):
        figure = sweep_page.data(f"figure-ablation-{i}")
        titles = [note["text"] for note in figure["layout"]["annotations"]]
        assert titles[:2] == ["<b>ELBO</b> (nats)", "<b>Rate</b> (nats)"]
        assert "<b>NLL</b> (nats, K = 500)" in titles
        assert len(figure["data"]) == 6 * 3
    assert len(sweep_page.data("training-data")["groups"]) == 27
    layers = sweep_page.data("layers-data")["runs"]
    assert {len(run["layers"]) for run in layers} == {5, 7, 9}
    points = [t for t in sweep_page.data("figure-rate-distortion")["data"] if "text" in t]
    assert sum(len(trace["x"]) for trace in points) == 80
    assert len(sweep_page.data("figure-latents")["layout"]["shapes"]) == 12


def test_ablation_points_are_the_aggregated_ones(sweep, sweep_page):
    results = read_results(sweep)
    figure = sweep_page.data("figure-ablation-0")
    _, points = aggregate.ablation(results, results.axes[0], results.axes[1], "test/elbo")[0]
    trace = figure["data"][0]
    assert trace["x"] == [0.5, 1.0, 4.0]
    assert trace["y"] == pytest.approx([p.estimate.mean for p in points], rel=1e-4)
    assert trace["error_y"]["array"] == pytest.approx([p.estimate.error for p in points], rel=1e-9)


def test_the_page_needs_nothing_but_itself(sweep):
    text = page(read_results(sweep))
    shown = Page(text)
    for tag, attributes in shown.elements:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, value[:80])
    (policy,) = [a["content"] for tag, a in shown.elements if "http-equiv" in a]
    assert "default-src 'none'" in policy
    run = [body for attributes, body in shown.scripts if attributes.get("type") is None]
    assert len(run) == 2
    for body in run:
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert len(text) < 15e6


def test_nothing_from_the_folder_becomes_markup(tmp_path):
    shown = Page(page(read_results(hostile_workdir(tmp_path / "<b>w"))))
    run = [attributes for attributes, _ in shown.scripts if attributes.get("type") is None]
    assert len(run) == 2
    for tag, attributes in shown.elements:
        assert tag != "img" or attributes["src"].startswith("data:image/png;base64,")
        assert not any(name.startswith("on") for name in attributes)
    # Everything hostile is there to be read, as text.
    assert shown.text.count(TAG) >= 8
    assert shown.text.count(SCRIPT) >= 8
    assert "<b>w" in shown.text

    def strings(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for item in value.values() if isinstance(value, dict) else value:
                yield from strings(item)

    allowed = re.compile(r"</?(b|sub|sup)>|<br>")
    found = 0
    for attributes, _ in shown.scripts:
        if attributes.get("type") == "application/json":
            for string in strings(shown.data(attributes["id"])):
                found += "&lt;img src=x" in string
                assert "<" not in allowed.sub("", string), string
    assert found > 10


def test_what_an_earlier_execution_had_otherwise_is_told(tmp_path):
    now = {"versions": {"python": "3.13.1", "jax": "0.12.0"}, "backend": "gpu", "git_commit": "abc"}
    before = {"versions": {"python": "3.13.1", "jax": "0.10.2"}, "backend": "cpu"}
    environment = now | {"earlier": [before | {"git_commit": "abc"}]}
    text = page(read_results(write_workdir(tmp_path / "w", {"seed": [0]}, environment=environment)))
    told = re.search(r"begun with.*?</dd>|begun with.*?</tr>", text, re.DOTALL)[0]
    assert "jax 0.10.2" in told and "backend cpu" in told
    assert "3.13.1" not in told and "abc" not in told


def test_json_cannot_leave_its_script():
    value = {"a": [SCRIPT, "<!--", "&lt;", "\u2028", math.nan, np.float32(0.5), np.arange(2)]}
    markup = json_script("x", value)
    inside = markup.removeprefix('<script type="application/json" id="x">').removesuffix(
        "</script>"
    )
    assert not set("<>&\u2028") & set(inside)
    assert json.loads(inside) == {"a": [SCRIPT, "<!--", "&lt;", "\u2028", None, 0.5, [0, 1]]}


def test_a_damaged_line_and_missing_runs_are_told(tmp_path):
    workdir = write_workdir(tmp_path / "w", {"seed": [0, 1]}, lines=6, missing=(1,))
    metrics = workdir / "runs" / read_results(workdir).runs[0].run_id / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 9')
    shown = Page(page(read_results(workdir)))
    assert "1 damaged line skipped" in shown.text
    assert "1 of 2 runs have no final result yet" in shown.text


def test_a_folder_where_nothing_has_run_yet(tmp_path):
    axes = {"objective.beta": [1.0, 2.0], "seed": [0]}
    workdir = write_workdir(tmp_path / "w", axes, missing=(0, 1))
    shown = Page(page(read_results(workdir)))
    assert "2 missing" in shown.text
    assert "No run has finished yet" in shown.text


@pytest.mark.parametrize(
    ("shape", "labels", "latent_dim"),
    [
        ((5,), False, 1),
        ((1,), True, 2),
        ((2,), True, 1),
        ((6, 4, 3), False, 2),
        ((4, 4, 2), True, 3),
    ],
)
def test_vectors_channels_and_one_latent_dim(tmp_path, shape, labels, latent_dim):
    config = CONFIG | {"model": CONFIG["model"] | {"latent_dim": latent_dim}}
    workdir = write_workdir(tmp_path / "w", {}, lines=6, shape=shape, labels=labels, config=config)
    shown = Page(page(read_results(workdir)))
    pictures = [tag for tag, a in shown.elements if tag == "img" or a.get("class") == "profiles"]
    assert pictures == (["svg"] if len(shape) == 1 else ["img"]) * 3
    latents = shown.data("figure-latents")
    assert {trace["type"] for trace in latents["data"]} == {"bar" if latent_dim == 1 else "scatter"}
    assert any(trace["showlegend"] for trace in latents["data"]) is labels
    counted = sum(len(t["x"]) if latent_dim > 1 else sum(t["y"]) for t in latents["data"])
    assert counted == 360


def test_more_labels_than_a_legend_holds_are_shaded(tmp_path):
    workdir = write_workdir(tmp_path / "w", {}, lines=6)
    path = workdir / "runs" / read_results(workdir).runs[0].run_id / "gallery.npz"
    with np.load(path) as arrays:
        changed = dict(arrays) | {"labels": np.arange(360, dtype=np.int32)}
    np.savez(path, **changed)
    shown = Page(page(read_results(workdir)))
    (trace,) = shown.data("figure-latents")["data"]
    assert not trace["showlegend"]
    assert trace["marker"]["color"] == list(range(360))
    assert "coloured by label" in shown.text
