"""The paper figures: all there, in formats that submission systems accept."""

import os
import subprocess
import sys

import pytest

from experiments.report import write_report
from experiments.report.interactive import clip_level, level_label
from experiments.report.style import fixed
from tests.experiments.report.synthetic import CONFIG, write_workdir
from tests.experiments.report.test_page import hostile_workdir
from vae.errors import UserError

ALWAYS = {"rate_distortion", "training_curves", "layer_norms", "gallery"}


def written(workdir):
    """Stems of the figures after checking that each is a whole PNG and a whole PDF."""
    stems = {path.stem for path in (workdir / "figures").iterdir()}
    for stem in stems:
        png = (workdir / "figures" / f"{stem}.png").read_bytes()
        pdf = (workdir / "figures" / f"{stem}.pdf").read_bytes()
        assert png.startswith(b"\x89PNG") and png.rstrip().endswith(b"IEND\xaeB`\x82")
        assert pdf.startswith(b"%PDF") and pdf.rstrip().endswith(b"%%EOF")
        # Type 42 is embedded as TrueType; Type 3, matplotlib's default, is refused by many venues.
        assert b"/Type3" not in pdf
        assert b"/FontFile2" in pdf
        assert len(pdf) < 500_000
    return stems


@pytest.mark.thorough
def test_a_sweep_with_a_diverged_and_a_missing_run(tmp_path):
    axes = {"objective.beta": [0.5, 5.0], "model.depth": [1, 2], "seed": [0, 1]}
    workdir = write_workdir(tmp_path / "w", axes, lines=6, diverged=(0,), missing=(7,))
    assert write_report(workdir) == workdir / "report.html"
    assert written(workdir) == ALWAYS | {"ablation_objective_beta", "ablation_model_depth"}
    assert not list(workdir.rglob("*.tmp"))


def test_one_run_of_vectors_without_labels_in_one_latent_dim(tmp_path):
    config = CONFIG | {"model": CONFIG["model"] | {"latent_dim": 1}}
    workdir = write_workdir(tmp_path / "w", {}, lines=6, shape=(5,), labels=False, config=config)
    write_report(workdir)
    assert written(workdir) == ALWAYS


def test_hostile_names_are_drawn_as_text(tmp_path):
    workdir = hostile_workdir(tmp_path / "w")
    write_report(workdir)
    assert written(workdir) == ALWAYS | {"ablation_model_activation"}


def test_nothing_finished_draws_nothing(tmp_path):
    workdir = write_workdir(tmp_path / "w", {"seed": [0]}, missing=(0,))
    write_report(workdir)
    assert written(workdir) == set()


@pytest.mark.parametrize("level", [3.0, 4.5, 7.0])
def test_a_level_is_clipped_to_the_frame(level):
    x_range, y_range = (1.0, 4.0), (1.0, 5.0)
    (x0, y0), (x1, y1) = clip_level(level, x_range, y_range)
    assert x0 + y0 == pytest.approx(level) == x1 + y1
    for x, y in ((x0, y0), (x1, y1)):
        assert 1 <= x <= 4 and 1 <= y <= 5
        # Each end lies on the frame, else the line would stop in the middle of the plot.
        assert x in (1.0, 4.0) or y in (1.0, 5.0)
    assert clip_level(1.5, x_range, y_range) is None
    assert clip_level(9.5, x_range, y_range) is None


def test_labels_of_levels_differ():
    for levels in ([10.0, 20.0, 30.0], [27.5, 28.0], [0.02, 0.04], [5.0]):
        labels = [level_label(level, levels) for level in levels]
        assert len(set(labels)) == len(levels)
        shown = [-float(label.replace("−", "-")) for label in labels]
        assert shown == pytest.approx(levels, rel=1e-9)


def test_numbers_are_as_long_as_they_are_read():
    assert fixed(-27.126, 2) == "−27.13"
    assert fixed(-0.001, 2) == "0.00"
    assert fixed(float("nan"), 2) == "–"
    assert fixed(-340662616064.0, 2) == "−3.41e+11"


def test_a_folder_that_cannot_be_written(tmp_path):
    workdir = write_workdir(tmp_path / "w", {}, lines=6)
    (workdir / "report.html").mkdir()
    with pytest.raises(UserError, match=r"workdir: cannot write the report"):
        write_report(workdir)


def test_the_command_line_reports_and_refuses(single):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )

    refused = run("-m", "experiments.report", f"--workdir={single / 'none'}")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: workdir: there is no folder")
    assert "Traceback" not in refused.stderr
    # A report is rebuilt on a laptop that has the folder and no accelerator stack.
    check = f"""
import sys
from absl import app
from experiments.report import __main__ as command
early = {{"matplotlib", "plotly"}} & set(sys.modules)
try:
    app.run(command.main, argv=["report", "--workdir={single}"])
finally:
    assert not early, early
    assert "jax" not in sys.modules
"""
    built = run("-c", check)
    # Nothing else is said: matplotlib's fonts, say, have much to tell.
    assert (built.stderr, built.returncode) == ("", 0)
    assert built.stdout.strip() == str(single / "report.html")
    assert written(single) == ALWAYS
