"""The results as a table, for a terminal or for Markdown: mean ± error over seeds, or folds."""

import math
import pathlib
from collections.abc import Sequence

from experiments.report import aggregate
from experiments.report.aggregate import Estimate
from experiments.report.results import Results, read_results

_METRICS = {
    "test/elbo": "elbo",
    "test/rate": "rate",
    "test/distortion": "distortion",
    "test/nll": "nll",
    "test/bpd": "bpd",
    "test/active_units": "active units",
}


def results_table(workdir: pathlib.Path) -> str:
    """The table of `results_rows` for a terminal."""
    return aligned(results_rows(read_results(workdir)))


def aligned(rows: Sequence[Sequence[str]], *, left: bool = False) -> str:
    """A table of columns for a terminal, of which the first row is the heading.

    Args:
      left: words, which begin below each other; else numbers, which end so.
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    place = str.ljust if left else str.rjust
    lines = ["  ".join(map(place, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, of which the first row is the heading."""
    heading, *rest = ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join([heading, "|" + " --- |" * len(rows[0]), *rest])


def written(seen: Estimate, places: int = 2) -> str:
    """−23.88 ± 0.02, or of one run −23.88."""
    spread = f" ± {seen.error:.{places}f}" if seen.n > 1 else ""
    return f"{seen.mean:.{places}f}{spread}"


def results_rows(results: Results) -> list[list[str]]:
    """A row for each combination of the swept fields; nats, means over the seeds, or folds.

    Where not every combination was run, a line is named by what it changes in the base config.
    Where runs diverged, "2 of 3" says over how many the means are. A dash stands for what a
    finished run does not have, such as the elbo of an autoencoder.
    """
    axes = results.swept
    metrics = [m for m in _METRICS if any(math.isfinite(r.number(m)) for r in results.runs)]
    samples = {r.number("test/nll_samples") for r in results.runs}
    titles = dict(_METRICS)
    counts = sorted(int(k) for k in samples if math.isfinite(k))
    titles["test/nll"] = f"nll (K = {', '.join(map(str, counts))})"
    groups = aggregate.groups(results)
    crossed = aggregate.crossed(results, groups)
    names = [axis.label for axis in axes] if crossed else ["condition"]
    rows = [names + ["runs"] + [titles[m] for m in metrics]]
    for group in groups:
        swept = [str(group.values[results.axes.index(axis)]) for axis in axes]
        good, runs = sum(run.status == "ok" for run in group.runs), len(group.runs)
        cells = swept if crossed else [group.label]
        cells.append(str(runs) if good == runs else f"{good} of {runs}")
        for metric in metrics:
            seen = aggregate.over_replicates((run, run.number(metric)) for run in group.runs)
            if not seen.n:
                cells.append("–" if good else "diverged")
                continue
            cells.append(written(seen, 3 if metric == "test/bpd" else 2))
        rows.append(cells)
    return rows
