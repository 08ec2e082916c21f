"""The verdicts of studies as tables: studies.csv, a terminal's, Markdown for docs/studies.md."""

import datetime
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.report import aggregate
from experiments.report.results import Results
from experiments.studies import STUDIES, quantity
from experiments.studies.cases import Found
from experiments.studies.quantity import Quantity
from experiments.table import markdown, results_rows
from vae import writers

COLUMNS = (
    "study",
    "quantity",
    "expected",
    "tolerance",
    "measured",
    "ci_low",
    "ci_high",
    "seeds",
    "verdict",
    "seconds",
    "relation",
    "source",
    "note",
)
HEADING = ["study", "quantity", "expected", "measured", "95% interval", "seeds", "verdict"]

Measured = Mapping[str, Sequence[Quantity]]


def measured(found: Mapping[str, Found]) -> dict[str, list[Quantity]]:
    """The quantities of each study."""
    return {name: STUDIES[name].measure(of) for name, of in found.items()}


def write_csv(path: pathlib.Path, found: Mapping[str, Found], quantities: Measured) -> None:
    """studies.csv: one row for each quantity."""
    rows = []
    for name, of in quantities.items():
        seconds = round(found[name].seconds, 1)
        for q in of:
            low, high = q.ci
            rows.append(
                {
                    "study": name,
                    "quantity": q.name,
                    "expected": q.expected,
                    "tolerance": q.tolerance if q.asked and q.relation == "=" else None,
                    "measured": q.measured,
                    "ci_low": low,
                    "ci_high": high,
                    "seeds": q.seeds,
                    "verdict": q.verdict,
                    "seconds": seconds,
                    "relation": q.relation if q.asked else None,
                    "source": q.source,
                    "note": q.remark,
                }
            )
    writers.write_csv(path, COLUMNS, rows)


def number(value: float) -> str:
    """Four significant digits, with a true minus sign; an en dash where there is none."""
    if not math.isfinite(value):
        return "–"
    text = f"{value:.4g}" if abs(value) < 1e4 or abs(value) >= 1e6 else f"{value:.0f}"
    return text.replace("-", "−")


def interval(q: Quantity) -> str:
    """`[−0.51, −0.49]`; "" where no seed could change the value."""
    low, high = q.ci
    if not math.isfinite(low) or (q.seeds < 2 and q.interval is None):
        return ""
    return f"[{number(low)}, {number(high)}]"


def row(study: str, q: Quantity) -> list[str]:
    """A row under `HEADING`."""
    return [
        study,
        q.name,
        q.expectation(),
        number(q.measured),
        interval(q),
        str(q.seeds),
        q.verdict,
    ]


def table(quantities: Measured) -> list[list[str]]:
    """The heading, and a row for each quantity of which something is expected."""
    return [HEADING, *(row(name, q) for name, of in quantities.items() for q in of if q.asked)]


SUMMARY = ["", "study", "claim", *quantity.VERDICTS, "seeds", "time"]


def summary(found: Mapping[str, Found], quantities: Measured) -> list[list[str]]:
    """The heading, and a row for each study: its claim, and how many rows of each verdict."""
    rows = []
    for name, of in quantities.items():
        verdicts = [q.verdict for q in of]
        tally = [str(verdicts.count(v)) if v in verdicts else "" for v in quantity.VERDICTS]
        seeds = str(max((q.seeds for q in of), default=0))
        time = duration(found[name].seconds)
        rows.append([STUDIES[name].ID, name, claim(name)[0], *tally, seeds, time])
    return [SUMMARY, *rows]


def exceptions(quantities: Measured) -> list[list[str]]:
    """The heading, and the rows that are not reproduced, with what is known of the cause."""
    rows = [
        [*row(name, q), q.remark]
        for name, of in quantities.items()
        for q in of
        if q.verdict in (quantity.NOT_REPRODUCED, quantity.INCONCLUSIVE)
    ]
    return [[*HEADING, "remark"], *rows]


def counts(quantities: Measured) -> str:
    """`3 reproduced, 1 inconclusive`."""
    all_of = [q.verdict for of in quantities.values() for q in of]
    return ", ".join(f"{all_of.count(v)} {v}" for v in quantity.VERDICTS if v in all_of)


def claim(name: str) -> tuple[str, list[str]]:
    """The claim of a study, and the paragraphs of its docstring after it."""
    first, *rest = (
        " ".join(part.split()) for part in (STUDIES[name].__doc__ or "").strip().split("\n\n")
    )
    return first, rest


def page(
    found: Mapping[str, Found], quantities: Measured, made: Mapping[str, Any], command: str
) -> str:
    """docs/studies.md: the verdict table, then each study with all that it measured."""
    seconds = sum(of.seconds for of in found.values())
    parts = [
        "# Studies",
        f"Written by `{command}`: {counts(quantities)}. {machine(made)} {duration(seconds)} of "
        "training and measuring in all. Means over seeds with 95% confidence intervals; "
        "*reproduced*: the interval lies within what is expected; *not reproduced*: outside of it; "
        "*inconclusive*: neither. Nats are per example.",
        markdown(summary(found, quantities)),
    ]
    but = exceptions(quantities)
    if len(but) > 1:
        parts += ["Not reproduced, or inconclusive:", markdown(but)]
    for name, of in quantities.items():
        first, rest = claim(name)
        parts += [f"## {STUDIES[name].ID} {name}", f"**{first}**", *rest, effort(found[name])]
        body = [[*row(name, q)[1:], q.source] for q in of]
        parts.append(markdown([[*HEADING[1:], "source"], *body]))
        parts += [f"{q.name}: {q.remark}." for q in of if q.remark]
        if found[name].results:
            parts += ["All conditions:", markdown(conditions(found[name].results))]
    return "\n\n".join(parts) + "\n"


def conditions(results: Results) -> list[list[str]]:
    """The table that a launch prints, and what a run of each condition takes."""
    heading, *rows = results_rows(results)
    seconds = [group.estimate("wall_s").mean for group in aggregate.groups(results)]
    times = ["–" if math.isnan(s) else f"{s:.0f}" for s in seconds]
    return [[*heading, "seconds a run"], *([*r, t] for r, t in zip(rows, times, strict=True))]


def duration(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))


def effort(found: Found) -> str:
    """How many runs and cases, and how long they took."""
    parts = []
    if found.results:
        runs = found.results.runs
        done = sum(run.status == "ok" for run in runs)
        diverged = sum(run.status == "diverged" for run in runs)
        parts.append(f"{done} of {len(runs)} runs finished")
        parts += [f"{diverged} diverged"] if diverged else []
    if found.cases:
        parts.append(f"{len(found.cases)} measurements")
    return f"Budget {found.budget}: {', '.join(parts)}, {duration(found.seconds)}."


def machine(made: Mapping[str, Any]) -> str:
    """With what: machine, versions, commit."""
    versions = made.get("versions", {})
    device = "" if made.get("backend", "cpu") == "cpu" else f" with {', '.join(made['devices'])}"
    return (
        f"{made.get('cores', '?')} cores of {made.get('cpu', '?')}{device}; Python "
        f"{versions.get('python', '?')}, JAX {versions.get('jax', '?')}, commit "
        f"{str(made.get('git_commit'))[:10]}{' and changes' if made.get('git_dirty') else ''}."
    )
