"""Measures studies in their folders, and writes studies.csv, study.html and figures.

A study that was measured to its end leaves study.json in its folder, by which the next command on
the same workdir knows to show it beside its own.
"""

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from experiments.report import canvas
from experiments.report.results import read_results
from experiments.studies import STUDIES, cases, html, verdicts
from experiments.studies.cases import Context, Found
from experiments.table import aligned
from vae import writers


def measure(
    name: str,
    budget: str,
    workdir: pathlib.Path,
    data_dir: str | None,
    stop: Callable[[], bool],
) -> Found | None:
    """What a study finds, its runs being trained; and its figure. None when stopped."""
    study, folder = STUDIES[name], workdir / name
    results = read_results(folder) if hasattr(study, "CONFIGS") else None
    context = Context(folder, results, data_dir)
    done = cases.measure_all(study, context, budget, stop, lambda line: print(line, flush=True))
    if done is None:
        return None
    found = Found(budget, results, done)
    figures = folder / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    with canvas.drawing():
        canvas.save(study.figure(found), figures / name)
    writers.write_json(folder / "study.json", _finished(name, budget))
    return found


def _finished(name: str, budget: str) -> dict[str, str]:
    return {"budget": budget, "code": cases.fingerprint(STUDIES[name], {"budget": budget})}


def earlier(workdir: pathlib.Path) -> dict[str, Found]:
    """What earlier commands found to the end in this workdir, with the code as it is."""
    found = {}
    for name, study in STUDIES.items():
        folder = workdir / name
        try:
            finished = json.loads((folder / "study.json").read_text())
            budget = finished["budget"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if finished != _finished(name, budget):
            continue
        kept = cases.kept(study, folder, budget)
        if len(kept) == len(cases.of_study(study, budget)):
            results = read_results(folder) if hasattr(study, "CONFIGS") else None
            found[name] = Found(budget, results, kept)
    return found


def write(found: Mapping[str, Found], workdir: pathlib.Path, made: Mapping[str, Any]) -> None:
    """studies.csv and study.html of all that has been found, now or earlier."""
    every = earlier(workdir) | dict(found)
    found = {name: every[name] for name in STUDIES if name in every}
    quantities = verdicts.measured(found)
    verdicts.write_csv(workdir / "studies.csv", found, quantities)
    writers.write_text(workdir / "study.html", html.page(found, quantities, made, workdir))


def write_page(
    path: pathlib.Path, found: Mapping[str, Found], made: Mapping[str, Any], command: str
) -> None:
    """The page of all studies in Markdown."""
    writers.write_text(path, verdicts.page(found, verdicts.measured(found), made, command))


def terminal(found: Mapping[str, Found]) -> str:
    """The verdict table, and how many of each."""
    quantities = verdicts.measured(found)
    return f"{aligned(verdicts.table(quantities))}\n\n{verdicts.counts(quantities)}"
