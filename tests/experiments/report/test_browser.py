"""The report in a real browser: headless Chromium, no network, plots drawn, a silent console."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.request

import pytest

from experiments.report.page import page
from experiments.report.results import read_results
from tests.experiments.report.synthetic import write_workdir
from tests.experiments.report.test_page import hostile_workdir

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)

DRIVER = shutil.which("chromedriver")

# The address of the driver is this machine, whatever proxy the environment names.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))

FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
    "--window-size=1400,1000",
]

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")


def open_offline(path, profile) -> tuple[str, list[str]]:
    """Opens a page with every host name unresolvable.

    Returns:
      The page's markup, less its scripts, after they have run; and the lines on its console.
    """
    done = subprocess.run(
        [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
            "--enable-logging=stderr",
            "--virtual-time-budget=20000",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    dom = re.sub(r"<script.*?</script>", "", done.stdout, flags=re.DOTALL)
    return dom, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_a_sweep_is_drawn_without_a_word(sweep, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page(read_results(sweep)))
    dom, console = open_offline(path, tmp_path / "profile")
    assert console == []
    assert 'data-ready="true"' in dom
    # Three ablations, the plane, three explorers (with β the loss is no ELBO), latents, KL; plotly
    # draws each with several svgs.
    plots = re.findall(r'<div class="plot[^"]*js-plotly-plot"', dom)
    assert len(plots) == 9
    assert dom.count('class="main-svg"') >= 16
    # Traces are in the drawing, not only an empty frame.
    assert dom.count('class="errorbars"') >= 1
    assert dom.count('class="hm"') >= 1
    assert "Share chart" not in dom


def test_hostile_names_run_nothing(tmp_path):
    workdir = hostile_workdir(tmp_path / "w")
    path = workdir / "report.html"
    path.write_text(page(read_results(workdir)))
    dom, console = open_offline(path, tmp_path / "profile")
    assert console == []
    assert 'data-ready="true"' in dom
    assert "<title>w · VAE report</title>" in dom
    # In attribute values a DOM dump leaves "<" as it is; as an element it would stand alone.
    outside = re.sub(r'="[^"]*"', "", dom)
    assert "<img src=x" not in outside
    assert outside.count("&lt;img src=x") >= 8


@contextlib.contextmanager
def browser(path, profile):
    """Opens a page under WebDriver (W3C, 2018); yields a function that runs JavaScript in it."""
    driver = subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        started = next(
            match
            for line in driver.stdout
            if (match := re.search(r"successfully on port (\d+)", line))
        )
        address = f"http://127.0.0.1:{started[1]}/session"

        def call(where: str, body: dict | None, method: str = "POST"):
            data = None if body is None else json.dumps(body).encode()
            request = urllib.request.Request(f"{address}{where}", data, method=method)
            with _OPENER.open(request, timeout=240) as answer:
                return json.loads(answer.read())["value"]

        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = call("", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
        call(f"/{session}/url", {"url": path.as_uri()})
        yield lambda script: call(f"/{session}/execute/sync", {"script": script, "args": []})
        assert call(f"/{session}/se/log", {"type": "browser"}) == []
        call(f"/{session}", None, "DELETE")
    finally:
        driver.terminate()
        driver.wait(timeout=60)
        driver.stdout.close()


@pytest.mark.skipif(DRIVER is None, reason="no chromedriver on the PATH")
def test_tables_sort_and_explorers_follow_their_controls(tmp_path):
    axes = {"objective.beta": [1.0, 0.5, 4.0], "model.depth": [1, 2], "seed": [0, 1]}
    workdir = write_workdir(tmp_path / "w", axes, lines=6, missing=(10, 11))
    path = workdir / "report.html"
    path.write_text(page(read_results(workdir)))
    with browser(path, tmp_path / "profile") as run:
        # 1. A click sorts, a second reverses, and what has no value stays at the bottom.
        click = """
            const table = document.getElementById("group-table");
            const cells = Array.from(table.tHead.rows[0].cells);
            const column = cells.findIndex((cell) => cell.textContent.startsWith("Rate"));
            cells[column].click();
            return Array.from(table.tBodies[0].rows).map((row) => row.cells[column].dataset.value);
        """
        rates = run(click)
        assert len(rates) == 6 and rates[-1] == ""
        assert [float(rate) for rate in rates[:-1]] == sorted(map(float, rates[:-1]))
        assert run(click) == [*reversed(rates[:-1]), ""]

        # 2. Training curves: one line per value of the axis that varies, the others fixed.
        legend = """
            const plot = document.getElementById("training-plot");
            return plot.data.filter((trace) => trace.showlegend).map((trace) => trace.name);
        """
        assert run(legend) == ["beta = 0.5", "beta = 1", "beta = 4"]
        choose = """
            const element = document.getElementById("%s");
            element.value = "%s";
            element.dispatchEvent(new Event("change"));
        """
        run(choose % ("training-vary", "1"))
        assert run(legend) == ["depth = 1", "depth = 2"]
        assert run('return document.getElementById("training-fix-box-1").hidden') is True
        run(choose % ("training-vary", "all"))
        # Five of the six groups: one has not begun.
        assert len(run(legend)) == 5

        # 3. Layers: the deepest run first, another on request, on the same colour scale.
        layers = """
            const [map] = document.getElementById("layers-plot").data;
            return [map.z.length, map.zmin, map.zmax];
        """
        deep = run(layers)
        assert deep[0] == 7
        run(choose % ("layers-run", "0"))
        assert run(layers) == [5, *deep[1:]]
