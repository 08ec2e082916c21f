"""The page's tables: over seeds, of every run, of runs that diverged, and of what terms mean."""

import math
from collections.abc import Sequence
from typing import Any

from experiments.report import aggregate, style
from experiments.report.aggregate import Estimate, Group
from experiments.report.axes import value_label
from experiments.report.markup import escape, pairs
from experiments.report.results import Results, Run


def results_tables(results: Results, groups: Sequence[Group]) -> str:
    """Main effects, the table of groups over seeds, and every run behind a fold."""
    terms = [(metric.title, metric.meaning) for metric in aggregate.tabulated(results)]
    # Where not every combination was run, means over the other fields are each over other ones.
    effects = _effects(results) if aggregate.crossed(results, groups) else ""
    parts = [effects, _group_table(results, groups), _run_table(results)]
    return "\n".join([*parts, glossary("What the columns mean", terms)])


def diverged(results: Results) -> str:
    """The runs that were frozen, with where they stopped and what went bad first."""
    runs = [run for run in results.runs if run.status == "diverged"]
    if not runs:
        return "<p>None: every run stayed finite.</p>"
    rows = []
    for run in runs:
        planned = run.values.get("train.steps", results.config.get("train", {}).get("steps"))
        step = run.number("diverged/step")
        reached = _count(step)
        if isinstance(planned, int) and planned > 0 and math.isfinite(step):
            reached += f" of {planned} ({100 * step / planned:.0f}%)"
        last = run.curves.get("train/elbo", ())
        seen = next((value for value in reversed(last) if math.isfinite(value)), math.nan)
        cells = [
            ("word wrap", aggregate.run_label(results, run)),
            ("word mono", run.run_id),
            ("", reached),
            ("word mono", run.row.get("diverged/term") or "not recorded"),
            ("word mono", run.row.get("diverged/layer") or "not recorded"),
            ("", style.fixed(seen, 2)),
        ]
        rows.append(
            "<tr>"
            + "".join(f'<td class="{css}">{escape(text)}</td>' for css, text in cells)
            + "</tr>"
        )
    heads = (
        ("word", "Run", ""),
        ("word", "run_id", ""),
        ("", "Step", "of divergence"),
        ("word", "Term", "first not finite"),
        ("word", "Layer", "first not finite"),
        ("", "Last train ELBO", "nats"),
    )
    return (
        "<p>A run whose loss or gradient turns non-finite is frozen at its last good state; the "
        "other runs are what they would have been without it. Its test metrics are left empty and "
        "enter no mean.</p>" + _table("diverged-table", heads, rows)
    )


def glossary(title: str, terms: Sequence[tuple[str, str]]) -> str:
    """Names with what they mean, behind a fold; those without a meaning are left out."""
    rows = [(name, escape(meaning)) for name, meaning in terms if meaning]
    if not rows:
        return ""
    return f"<details><summary>{escape(title)}</summary>{pairs(rows)}</details>"


def footer(results: Results) -> str:
    return (
        f"Built from <code>{escape(results.workdir.resolve())}</code>. Rebuild with <code>python "
        "-m experiments.report --workdir=DIR</code>. Units: nats, sums over dimensions, means "
        "over examples. PNG and PDF versions of the figures are in <code>figures/</code>."
    )


UNSAID = (
    "Conditions are named by what they change; every other swept field is as in the base "
    "configuration, or goes with what is named: see every run."
)
NO_COMPARISON = (
    "Runs here differ in their data or in the kind of their likelihood (a density, or a "
    "probability of bits or of bytes): their ELBOs are of different things and do not compare."
)

OF_FOLDS = (
    "Runs of several seeds of one fold are averaged first. Folds share training data, so their "
    "standard error is too small by an amount that cannot be estimated from them."
)


def _effects(results: Results) -> str:
    """One line per numeric axis: each metric from the lowest to the highest value."""
    metrics = [m for m in aggregate.tabulated(results) if m.key.startswith("test/")]
    effects = [
        (axis, ends)
        for axis, ends in aggregate.main_effects(results, [m.key for m in metrics])
        if ends
    ]
    if not effects:
        return ""
    metrics = [metric for metric in metrics if any(metric.key in ends for _, ends in effects)]
    heads = [("word", "Field", ""), ("word", "from → to", "")]
    samples = [run.number("test/nll_samples") for run in results.runs]
    heads += [("", metric.title, style.with_samples(metric, samples).unit) for metric in metrics]
    rows = []
    for axis, ends in effects:
        cells = [f'<td class="word mono">{escape(axis.field)}</td>']
        cells.append(
            f'<td class="word">{escape(axis.labels()[0])} → {escape(axis.labels()[-1])}</td>'
        )
        for metric in metrics:
            low, high = ends.get(metric.key, (math.nan, math.nan))
            places = max(1, metric.places - 1)
            cells.append(f"<td>{style.fixed(low, places)} → {style.fixed(high, places)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<h3>At a glance</h3><p class='note'>Each test metric at a field's lowest and highest "
        "value, averaged over everything else.</p>" + _table("effects-table", heads, rows)
    )


def _group_table(results: Results, groups: Sequence[Group]) -> str:
    """Mean ± standard error, the exact numbers in data-value, data-error, data-seeds."""
    metrics = aggregate.tabulated(results)
    cells = {metric.key: [group.estimate(metric.key) for group in groups] for metric in metrics}
    places = {
        metric.key: style.decimals([seen.error for seen in cells[metric.key]], metric.places)
        for metric in metrics
    }
    best = aggregate.best_group(results, groups)
    starred = best is not None and len(groups) > 1
    heads = [("word", "", "")] if starred else []
    crossed = aggregate.crossed(results, groups)
    if crossed:
        heads += [("" if axis.numeric else "word", axis.label, "") for axis in results.axes]
    else:
        heads.append(("word", "condition", ""))
    heads.append(("", "runs" if results.folds else "seeds", "finished"))
    for metric in metrics:
        title = nll_title(results.runs) if metric is style.NLL else metric.title
        heads.append(("", title, ", ".join(filter(None, (metric.unit, metric.direction)))))
    rows = []
    for i, group in enumerate(groups):
        is_best = starred and group is best
        row = [f'<td class="star">{"★" * is_best}</td>'] if starred else []
        if crossed:
            row += [
                _value_cell(axis.numeric, value)
                for axis, value in zip(results.axes, group.values, strict=True)
            ]
        else:
            row.append(f'<td class="word long">{escape(group.label)}</td>')
        finished = sum(run.status == "ok" for run in group.runs)
        of = f" of {len(group.runs)}" if finished < len(group.runs) else ""
        row.append(f'<td data-value="{finished}">{finished}{of}</td>')
        row += [
            _estimate_cell(metric.key, cells[metric.key][i], places[metric.key])
            for metric in metrics
        ]
        rows.append(f"<tr{' class=best' * is_best}>{''.join(row)}</tr>")
    reading = (
        f"Mean ± standard error over {results.repeats} (s/√n, s with n − 1); one has no ±. Click a "
        "header to sort."
    )
    if results.folds:
        reading += f" {OF_FOLDS}"
    if not crossed:
        reading += f" {UNSAID}"
    if not aggregate.comparable(results):
        reading += f" {NO_COMPARISON}"
    if starred:
        reading += (
            " ★ marks the highest mean test ELBO; picked on the test set, it flatters itself when "
            "conditions are many."
        )
    return f"<h3>Over {results.repeats}</h3><p class='note'>{reading}</p>" + _table(
        "group-table", heads, rows, sortable=True
    )


def _run_table(results: Results) -> str:
    metrics = aggregate.tabulated(results)
    heads = [("word", "run_id", ""), ("word", "status", "")]
    heads += [("" if axis.numeric else "word", axis.label, "") for axis in results.axes]
    heads += [("", "fold", "")] if results.folds else []
    heads += [("", "seed", ""), ("", "steps", ""), ("", "wall", "s")]
    for metric in metrics:
        title = nll_title(results.runs) if metric is style.NLL else metric.title
        heads.append(("", title, metric.unit))
    rows = []
    for run in results.runs:
        row = [
            f'<td class="word mono">{escape(run.run_id)}</td>',
            f'<td class="word">{escape(run.status)}</td>',
        ]
        row += [_value_cell(axis.numeric, run.values[axis.field]) for axis in results.axes]
        replicate = (run.fold, run.seed) if results.folds else (run.seed,)
        row += [_value_cell(True, math.nan if v is None else v) for v in replicate]
        row.append(_number_cell(run.number("steps"), 0))
        row.append(_number_cell(run.number("wall_s"), 1))
        row += [_number_cell(run.number(metric.key), metric.places) for metric in metrics]
        rows.append(f"<tr{' class=diverged' * (run.status == 'diverged')}>{''.join(row)}</tr>")
    return (
        f"<details><summary>Every run ({len(results.runs)})</summary>"
        + _table("run-table", heads, rows, sortable=True)
        + "</details>"
    )


def _table(
    anchor: str, heads: Sequence[tuple[str, str, str]], rows: Sequence[str], sortable: bool = False
) -> str:
    """A table from (css class, title, unit) per column and the rows' markup; long ones scroll."""
    cells = "".join(
        f'<th scope="col" class="{css}">{escape(title)}'
        + (f"<small>{escape(unit)}</small></th>" if unit else "</th>")
        for css, title, unit in heads
    )
    tall = " tall" * (len(rows) > 30)
    kind = ' class="sortable"' * sortable
    return (
        f'<div class="scroll{tall}"><table{kind} id="{anchor}"><thead><tr>{cells}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _value_cell(numeric: bool, value: Any) -> str:
    if not numeric:
        return f'<td class="word">{escape(value_label(value))}</td>'
    if not math.isfinite(value):
        return '<td data-value="">–</td>'
    return f'<td data-value="{value!r}">{escape(value_label(value))}</td>'


def _number_cell(value: float, places: int) -> str:
    exact = repr(value) if math.isfinite(value) else ""
    return f'<td data-value="{exact}">{style.fixed(value, places)}</td>'


def _estimate_cell(key: str, seen: Estimate, places: int) -> str:
    if not seen.n:
        return f'<td data-metric="{escape(key)}" data-value="" data-seeds="0">–</td>'
    spread = f' <span class="se">± {style.fixed(seen.error, places)}</span>' if seen.n > 1 else ""
    error = repr(seen.error) if seen.n > 1 else ""
    return (
        f'<td data-metric="{escape(key)}" data-value="{seen.mean!r}" data-error="{error}" '
        f'data-seeds="{seen.n}">'
        f"{style.fixed(seen.mean, places)}{spread}</td>"
    )


def _count(value: float) -> str:
    return str(int(value)) if math.isfinite(value) else "not recorded"


def spread(seen: Estimate, places: int) -> str:
    error = f" ± {style.fixed(seen.error, places)}" if seen.n > 1 else ""
    return style.fixed(seen.mean, places) + error


def nll_title(runs: Sequence[Run]) -> str:
    return f"NLL ({style.samples_label([run.number('test/nll_samples') for run in runs])})"
