"""study.html in a real browser: offline, silent, its figure drawn, its folds closed."""

import pytest

from experiments.report import canvas
from experiments.studies import STUDIES, writing
from tests.experiments.report.test_browser import CHROMIUM, open_offline
from tests.experiments.studies.test_studies import (
    MADE,
    folder_of,
    found_in,
    of_beta,
    of_bounds,
)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH")
def test_the_page_of_studies_is_shown_without_a_word(tmp_path):
    found = {}
    for name, of in (("bounds", of_bounds), ("beta", of_beta)):
        found[name] = found_in(folder_of(tmp_path / name, name, of))
        (tmp_path / name / "figures").mkdir()
        with canvas.drawing():
            canvas.save(STUDIES[name].figure(found[name]), tmp_path / name / "figures" / name)
    writing.write(found, tmp_path, MADE)
    dom, console = open_offline(tmp_path / "study.html", tmp_path / "profile")
    assert console == []
    assert dom.count('src="data:image/png;base64,') == len(found)
    # A row for each study first, then what is not reproduced, then all rows, folded.
    first, rest = dom.split("<h3>Not reproduced, or inconclusive</h3>")
    assert first.index('href="#bounds"') < first.index('href="#beta"')
    not_so, rest = rest.split("<details>", 1)
    assert not_so.count("distortion rises: its smallest step") == 1
    assert "nll, VAE − IWAE-5, nats" not in not_so and "nll, VAE − IWAE-5, nats" in rest
    for name in found:
        assert f'<section id="{name}"' in dom and f'href="{name}/report.html"' in dom
