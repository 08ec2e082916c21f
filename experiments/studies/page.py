"""The tables of studies, in Markdown and for a terminal, from their results folders alone."""

import datetime
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.report import aggregate
from experiments.report.results import Results, read_results
from experiments.studies import STUDIES
from experiments.studies.quantity import Quantity
from experiments.table import aligned, markdown, results_rows, written

_HEADING = ["study", "quantity", "seeds", "seen", "elsewhere", "asked", "verdict"]


def _row(study: str, quantity: Quantity) -> list[str]:
    seen = "–" if math.isnan(quantity.seen.mean) else written(quantity.seen)
    asked = "" if quantity.at_least is None else f"≥ {quantity.at_least:g}"
    count = str(quantity.seen.n)
    return [study, quantity.name, count, seen, quantity.elsewhere, asked, quantity.verdict]


def verdicts(found: Mapping[str, pathlib.Path]) -> str:
    """A line for each quantity of which something is asked, for a terminal.

    Args:
      found: of each study, its results folder.
    """
    rows = [
        _row(name, quantity)
        for name, folder in found.items()
        for quantity in STUDIES[name].measure(read_results(folder))
        if quantity.at_least is not None
    ]
    return aligned([_HEADING, *rows])


def page(found: Mapping[str, pathlib.Path]) -> str:
    """A Markdown page: what was asked and seen, then each study with its claim and conditions."""
    results = {name: read_results(folder) for name, folder in found.items()}
    quantities = {name: STUDIES[name].measure(r) for name, r in results.items()}
    asked = [_row(name, q) for name, of in quantities.items() for q in of if q.at_least is not None]
    names = " ".join(f"--name={name}" for name in found)
    which = "--all" if list(found) == list(STUDIES) else names
    command = f"python -m experiments.study {which} --data_dir=DIR --workdir=results/studies"
    parts = [
        "# Results",
        f"Written by `{command}`. Means over seeds ± standard errors; nats are per example, and of "
        "test examples. A difference is of runs of the same seed. The verdict is on the mean.",
        markdown([_HEADING, *asked]),
    ]
    for name, of in quantities.items():
        parts += [f"## {name}", *_study(name, results[name], of)]
    return "\n\n".join(parts) + "\n"


def _study(name: str, results: Results, quantities: list[Quantity]) -> list[str]:
    study = STUDIES[name]
    claim, *paragraphs = (" ".join(p.split()) for p in study.__doc__.strip().split("\n\n"))
    return [
        f"**{claim}**",
        *paragraphs,
        f"Config: `{study.CONFIG}`. {_made(results)}",
        markdown([_HEADING[1:], *(_row(name, quantity)[1:] for quantity in quantities)]),
        "All conditions:",
        markdown(_conditions(results)),
    ]


def _conditions(results: Results) -> list[list[str]]:
    """The table that a launch prints, and what a run of each condition takes."""
    heading, *rows = results_rows(results)
    seconds = [group.estimate("wall_s").mean for group in aggregate.groups(results)]
    times = ["–" if math.isnan(s) else f"{s:.0f}" for s in seconds]
    return [[*heading, "seconds a run"], *([*r, t] for r, t in zip(rows, times, strict=True))]


def _accelerator(made: Mapping[str, Any]) -> str:
    return "" if made.get("backend", "cpu") == "cpu" else f" with {', '.join(made['devices'])}"


def _made(results: Results) -> str:
    """With what: runs, seeds, time, machine, versions, commit."""
    made = results.environment
    done = [run for run in results.runs if run.status == "ok"]
    seconds = sum(run.number("wall_s") for run in done)
    seeds = ", ".join(map(str, results.seeds))
    versions = made.get("versions", {})
    return (
        f"{len(done)} of {len(results.runs)} runs finished, seeds {seeds}, "
        f"{datetime.timedelta(seconds=round(seconds))} of training and evaluation on "
        f"{made.get('cores', '?')} cores of {made.get('cpu', '?')}{_accelerator(made)}; Python "
        f"{versions.get('python', '?')}, JAX {versions.get('jax', '?')}, commit "
        f"{str(made.get('git_commit'))[:10]}{' and changes' if made.get('git_dirty') else ''}."
    )
