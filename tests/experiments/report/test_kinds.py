"""Runs of all kinds in one report: objectives with terms of their own, without a rate, with codes,
with a rate that is one number, and with bits per value.
"""

import json
import math
import re

import numpy as np
import pytest

from experiments.report import aggregate, latents, write_report
from experiments.report.page import page
from experiments.report.reported import reported
from experiments.report.results import read_results
from experiments.table import results_table
from tests.experiments.report.synthetic import CONFIG, write_workdir
from tests.experiments.report.test_browser import CHROMIUM, open_offline
from tests.experiments.report.test_page import Page

POINTS = [
    {"objective.name": name, "model.posterior": posterior, "model.prior": prior}
    for name, posterior, prior in (
        ("elbo", "gaussian", "standard"),
        ("elbo", "iaf", "standard"),
        ("elbo", "gaussian", "vamp"),
        ("elbo", "categorical", "standard"),
        ("autoencoder", "point", "standard"),
        ("vq", "vq", "standard"),
        ("tcvae", "gaussian", "standard"),
        ("factor", "gaussian", "standard"),
        ("mine", "gaussian", "standard"),
    )
]


def seeds(points, count=2):
    return [point | {"seed": seed} for point in points for seed in range(count)]


def autoencoders(folder, points=({},), **options):
    config = CONFIG | {
        "model": CONFIG["model"] | {"posterior": "point"},
        "objective": CONFIG["objective"] | {"name": "autoencoder"},
    }
    own = {"objective.name": "autoencoder", "model.posterior": "point"}
    return write_workdir(folder, seeds([own | point for point in points]), config=config, **options)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    config = CONFIG | {
        "model": CONFIG["model"] | {"posterior": "gaussian", "prior": "standard"},
        "objective": CONFIG["objective"] | {"name": "elbo"},
    }
    folder = tmp_path_factory.mktemp("kinds") / "mixed"
    return write_workdir(folder, seeds(POINTS), lines=6, config=config)


@pytest.fixture(scope="module")
def mixed_page(mixed):
    return Page(page(read_results(mixed)))


def rows_by_group(shown):
    """The group table: condition, or values of the axes that are words -> metric -> text."""
    _, *body = shown.tables["group-table"]
    return {
        tuple(text for attributes, text in line if "word" in (attributes.get("class") or "")): {
            attributes["data-metric"]: text
            for attributes, text in line
            if "data-metric" in attributes
        }
        for line in body
    }


# The tables.


def test_what_a_run_does_not_have_is_a_dash_and_the_run_is_finished(mixed_page):
    cells = rows_by_group(mixed_page)["objective = autoencoder, posterior = point",]
    assert {cells[f"test/{name}"] for name in ("elbo", "rate", "nll")} == {"–"}
    assert re.fullmatch(r"[\d.]+ ± [\d.]+", cells["test/distortion"])
    seeds = [
        text
        for line in mixed_page.tables["group-table"][1:]
        for attributes, text in line
        if attributes.get("data-value") == "2"
    ]
    assert seeds == ["2"] * len(POINTS)
    assert "NaN" not in mixed_page.text and "nan" not in mixed_page.text.split()


def test_columns_that_no_run_has_are_left_out(tmp_path):
    workdir = autoencoders(tmp_path / "w", ({"model.depth": 1}, {"model.depth": 2}), lines=6)
    shown = Page(page(read_results(workdir)))
    for table in ("group-table", "run-table"):
        titles = [text for _, text in shown.tables[table][0]]
        assert any(title.startswith("Distortion") for title in titles)
        assert not any(title.startswith(("ELBO", "Rate", "NLL")) for title in titles)
    assert "Lowest test distortion" in shown.text
    assert "Best test ELBO" not in shown.text
    assert "what an autoencoder learns" in shown.text


def test_bits_per_value_are_shown_where_they_are_measured(tmp_path):
    axes = {"model.likelihood": ["logistic_shared", "categorical"], "seed": [0, 1]}
    workdir = write_workdir(tmp_path / "w", axes, lines=6)
    results = read_results(workdir)
    shown = Page(page(results))
    for run in results.runs:
        elbo = run.number("test/elbo")
        assert run.number("test/bpd") == pytest.approx(-elbo / (64 * math.log(2)), rel=1e-12)
    assert "Bits/dim, there" in shown.text  # of the best group
    assert set(rows_by_group(shown)["logistic_shared",]) >= {"test/elbo", "test/bpd"}
    titles = [n["text"] for n in shown.data("figure-ablation-0")["layout"]["annotations"]]
    assert "<b>Bits/dim</b> (bits)" in titles
    assert "bpd" in results_table(workdir).splitlines()[0].split()


def test_columns_of_skipped_steps(tmp_path):
    workdir = write_workdir(tmp_path / "w", {"seed": [0, 1, 2]}, lines=6, diverged=(2,))
    for path, count in zip(sorted((workdir / "runs").iterdir()), (3, 5, 100), strict=True):
        row = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps(row | {"steps_skipped": count}))
    (workdir / "results.csv").unlink()
    ((cells),) = rows_by_group(Page(page(read_results(workdir)))).values()
    assert cells["steps_skipped"] == "4.0 ± 1.0"  # not of the run that diverged
    assert "steps_clipped" not in cells


@pytest.mark.parametrize(
    ("axes", "comparable"),
    [
        ({"objective.name": ["elbo", "iwae"]}, True),
        ({"model.likelihood": ["gaussian", "laplace"]}, True),
        ({"model.likelihood": ["logistic_shared", "categorical"]}, True),
        ({"model.likelihood": ["gaussian", "categorical"]}, False),
        ({"model.likelihood": ["bernoulli", "continuous_bernoulli"]}, False),
        ({"data.scaling": ["unit", "symmetric"]}, False),
    ],
)
def test_only_elbos_of_the_same_thing_have_a_best_one(tmp_path, axes, comparable):
    results = read_results(write_workdir(tmp_path / "w", axes, lines=6))
    groups = aggregate.groups(results)
    assert (aggregate.best_group(results, groups) is not None) is comparable
    shown = Page(page(results))
    assert ("★" in shown.text) is comparable
    assert ("do not compare" in shown.text) is not comparable


def test_the_printed_table_tells_a_dash_from_a_divergence(mixed, tmp_path):
    text = results_table(mixed)
    (line,) = [line for line in text.splitlines() if "autoencoder" in line]
    assert line.startswith("objective = autoencoder, posterior = point ")
    assert line.split(" = point ")[1].split()[:3] == ["2", "–", "–"]
    assert "diverged" not in text
    workdir = write_workdir(tmp_path / "w", {"objective.beta": [1.0, 2.0]}, diverged=(1,), lines=6)
    assert "diverged" in results_table(workdir).splitlines()[-1]


# What belongs together.


def test_fields_that_are_set_together_are_one_axis(tmp_path):
    points = [
        {"objective.name": "elbo"},
        {"objective.name": "tcvae", "objective.penalty": 6.0},
        {"objective.name": "autoencoder", "model.posterior": "point"},
    ]
    config = CONFIG | {"objective": {"name": "elbo", "beta": 1.0, "penalty": 1.0}}
    config |= {"model": CONFIG["model"] | {"posterior": "gaussian"}}
    results = read_results(write_workdir(tmp_path / "w", seeds(points), lines=6, config=config))
    assert [axis.label for axis in results.axes] == ["objective", "penalty", "posterior"]
    assert [axis.field for axis in results.swept] == ["objective.name"]
    labels = [group.label for group in aggregate.groups(results)]
    assert labels == ["objective = elbo", "objective = tcvae", "objective = autoencoder"]
    # Of a field that only some runs sweep, the value of the others comes first.
    assert results.axes[2].values == ("gaussian", "point")


def test_axes_of_a_product_imply_nothing(sweep):
    assert len(read_results(sweep).swept) == 3


def test_an_axis_that_is_needed_stays(mixed):
    results = read_results(mixed)
    assert [axis.label for axis in results.swept] == ["objective", "posterior", "prior"]
    groups = aggregate.groups(results)
    assert len({group.label for group in groups}) == len(groups) == len(POINTS)
    assert not aggregate.crossed(results, groups)
    assert [group.label for group in groups][:2] == [
        "objective = elbo",
        "objective = elbo, prior = vamp",
    ]
    # A middle of all axes is not among them, and a metric against one of them would mix the rest.
    assert aggregate.plotted(results, groups) == ()
    assert aggregate.middle_groups(results, groups, results.swept[0]) == list(groups)


def test_conditions_are_compared_one_by_one(mixed, mixed_page):
    results = read_results(mixed)
    groups = aggregate.groups(results)
    figure = mixed_page.data("figure-conditions")
    titles = [note["text"] for note in figure["layout"]["annotations"]]
    (distortion,) = [i for i, title in enumerate(titles) if "Distortion" in title]
    trace = figure["data"][distortion]
    expected = [group.estimate("test/distortion") for group in groups]
    assert trace["x"] == pytest.approx([seen.mean for seen in expected], rel=1e-4)
    assert trace["error_x"]["array"] == pytest.approx([seen.error for seen in expected], rel=1e-9)
    names = figure["layout"][f"yaxis{distortion + 1}"]["ticktext"]
    assert names == [group.label for group in groups]
    elbo = figure["data"][0]["x"][names.index("objective = autoencoder, posterior = point")]
    assert elbo is None
    assert not any(a.get("id", "").startswith("figure-ablation") for a, _ in mixed_page.scripts)


def test_two_axes_that_are_not_crossed_are_still_plotted_where_they_are_numbers(tmp_path):
    points = [
        {"objective.beta": beta, "model.depth": depth} for beta, depth in ((1, 1), (2, 1), (1, 3))
    ]
    results = read_results(write_workdir(tmp_path / "w", seeds(points), lines=6))
    groups = aggregate.groups(results)
    assert [axis.label for axis in aggregate.plotted(results, groups)] == ["beta", "depth"]


# Curves.


def test_what_only_some_objectives_report_has_curves(mixed, mixed_page):
    data = mixed_page.data("training-data")
    titles = [panel["title"] for panel in data["panels"]["reported"]]
    assert titles == [
        "Mutual information",
        "Total correlation",
        "KL of the dimensions",
        "Commitment",
        "Perplexity",
        "Code usage",
        "Discriminator's loss",
        "Discriminator's accuracy",
        "Strange term",
    ]
    owners = {
        group["label"].split(",")[0]
        for group in data["groups"]
        if "train/total_correlation" in group["curves"]
    }
    assert owners == {"objective = tcvae", "objective = factor"}
    (own,) = [g for g in data["groups"] if g["label"].startswith("objective = autoencoder")]
    assert set(own["curves"]) == {"train/distortion", "test/distortion"}
    runs = [r for r in read_results(mixed).runs if r.setting("objective.name") == "tcvae"]
    (curve,) = [
        group["curves"]["train/total_correlation"]
        for group in data["groups"]
        if group["label"].startswith("objective = tcvae")
    ]
    expected = np.mean([run.curves["train/total_correlation"] for run in runs], axis=0)
    np.testing.assert_allclose(curve["y"], expected, rtol=1e-4)
    assert "how far the latent dimensions depend on each other" in mixed_page.text


def keys(results):
    return [metric.key for metric in reported(results)]


def test_a_loss_that_is_the_negative_elbo_says_nothing_more(tmp_path):
    assert keys(read_results(write_workdir(tmp_path / "one", {}, lines=6))) == []
    axes = {"objective.beta": [1.0, 4.0]}
    assert keys(read_results(write_workdir(tmp_path / "two", axes, lines=6))) == ["train/loss"]
    assert keys(read_results(autoencoders(tmp_path / "three", lines=6))) == []


def test_numbers_of_the_optimiser_are_shown_where_they_change(tmp_path):
    workdir = write_workdir(tmp_path / "w", {}, lines=6)
    (path,) = (workdir / "runs").glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for i, line in enumerate(lines):
        line |= {"train/learning_rate": 1e-3 / (i + 1), "train/grad_norm": 2.0}
        line |= {"train/clipped": 0.0, "train/skipped": 0.5 * (i == 3)}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert keys(read_results(workdir)) == [
        "train/learning_rate",
        "train/grad_norm",
        "train/skipped",
    ]


# Latents.


def test_a_rate_that_is_one_number_is_told_in_words(mixed, mixed_page):
    first = reversed(read_results(mixed).runs)  # seed 0, which is the one shown
    runs = {run.values["model.posterior"]: run for run in first}
    bars, text = latents.rates(runs["iaf"])
    assert bars is None
    whole = float(runs["iaf"].gallery["kl_per_dim"].sum())
    assert text.startswith(f"{whole:.3f} nats in all")
    assert "has no density" in latents.rates(runs["point"])[1]
    assert "for each of 8 variables" in latents.rates(runs["vq"])[1]
    assert latents.rates(runs["categorical"])[0].shape == (8,)
    titles = [n["text"] for n in mixed_page.data("figure-kl")["layout"]["annotations"]]
    # Gaussians with the standard prior (elbo, tcvae, factor, mine), and the categorical run.
    assert len(titles) == 5
    assert not any("vamp" in title or "iaf" in title for title in titles)
    assert text in mixed_page.text


def test_one_latent_dimension_is_a_bar_whatever_its_kl(tmp_path):
    config = CONFIG | {"model": CONFIG["model"] | {"latent_dim": 1, "prior": "mixture"}}
    workdir = write_workdir(tmp_path / "w", {}, lines=6, config=config)
    (run,) = read_results(workdir).runs
    bars, _ = latents.rates(run)
    assert bars.shape == (1,)


def test_discrete_latents_are_named_by_code_and_lie_in_no_plane(mixed, mixed_page):
    assert mixed_page.text.count("; code 0, 1, 2, 3, 4, 5") == 2
    assert mixed_page.text.count("prior sd") == 5
    figure = mixed_page.data("figure-codes")
    assert len(figure["data"]) == 2
    results = read_results(mixed)
    (first, _) = [run for run in results.runs if run.values["model.posterior"] == "vq"]
    counts = first.gallery["code_counts"]
    np.testing.assert_allclose(figure["data"][1]["z"], counts / 360, atol=1e-3)
    assert len(mixed_page.data("figure-latents")["layout"]["annotations"]) == 7


def test_a_circle_only_where_the_prior_is_standard(mixed_page):
    figure = mixed_page.data("figure-latents")
    titles = [note["text"] for note in figure["layout"]["annotations"]]
    circled = {shape["xref"].replace("x", "") for shape in figure["layout"]["shapes"]}
    drawn = [title for i, title in enumerate(titles, 1) if ("" if i == 1 else str(i)) in circled]
    without = [title for title in titles if title not in drawn]
    assert len(without) == 2
    assert any("vamp" in title for title in without)
    assert any("autoencoder" in title for title in without)


def test_a_frame_holds_its_points_wherever_they_lie(mixed):
    (run, _) = [r for r in read_results(mixed).runs if r.values["model.posterior"] == "point"]
    run.gallery["latents"] = run.gallery["latents"] * 50 + 1000
    (frame,) = latents.frames([run])
    points = run.gallery["latents"]
    for (low, high), column in zip((frame.x, frame.y), points.T, strict=True):
        assert np.mean((column >= low) & (column <= high)) > 0.98
        assert high - low < 3 * np.ptp(points)
    assert not frame.standard


def test_a_run_of_autoencoders_says_so(tmp_path):
    workdir = autoencoders(tmp_path / "w", ({"model.depth": 1}, {"model.depth": 2}), lines=6)
    shown = Page(page(read_results(workdir)))
    assert "No run has finished yet" not in shown.text
    assert "All runs are of autoencoders, which have neither rate nor ELBO" in shown.text
    assert "An autoencoder has no prior" in shown.text
    assert "Of every run: none: a point has no density" in shown.text
    assert "Hollow points" not in shown.text
    titles = [n["text"] for n in shown.data("figure-ablation-0")["layout"]["annotations"]]
    assert titles == ["<b>Distortion</b> (nats)", "<b>Active units</b>"]


# As drawn.


@pytest.mark.thorough
def test_figures_of_every_kind_are_drawn(tmp_path):
    workdir = write_workdir(tmp_path / "w", POINTS[1:5], lines=3)
    write_report(workdir)
    stems = {path.stem for path in (workdir / "figures").iterdir()}
    swept = ("model_posterior",)  # which tells the other two
    assert stems == {f"ablation_{name}" for name in swept} | {
        "rate_distortion",
        "training_curves",
        "layer_norms",
        "gallery",
    }


def test_figures_without_a_rate(tmp_path):
    workdir = autoencoders(tmp_path / "w", lines=6)
    write_report(workdir)
    stems = {path.stem for path in (workdir / "figures").iterdir()}
    assert stems == {"training_curves", "layer_norms", "gallery"}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_a_browser_draws_it_without_a_word(mixed, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page(read_results(mixed)))
    dom, console = open_offline(path, tmp_path / "profile")
    assert console == []
    assert 'data-ready="true"' in dom
    # Conditions, the plane, three explorers, latents, codes, KL.
    assert len(re.findall(r'<div class="plot[^"]*js-plotly-plot"', dom)) == 8
    # Every term has its panel, though at first only some groups show.
    for title in ("Total correlation", "Perplexity", "Strange term"):
        assert f">{title}<" in dom
