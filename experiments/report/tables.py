"""The page's words and numbers: what was asked, the table over seeds, every run, and the runs that
diverged.
"""

import json
import math
import shlex
from collections.abc import Sequence
from typing import Any

from experiments.report import aggregate, style
from experiments.report.aggregate import Estimate, Group
from experiments.report.markup import chips, escape, pairs
from experiments.report.results import SEED, Results, Run, value_label


def header(results: Results, groups: Sequence[Group], name: str) -> str:
    """Title, the question in one sentence, and the few numbers one asks for first."""
    swept = [f"<code>{escape(axis.field)}</code>" for axis in results.swept]
    source = escape(results.config.get("data", {}).get("source", "the data"))
    runs = len(results.runs)
    if swept:
        verb = "changes" if len(swept) == 1 else "change"
        asked = f"How {_and(swept)} {verb} what a VAE learns on <code>{source}</code>."
    elif len(results.seeds) > 1:
        asked = f"One VAE on <code>{source}</code>, {len(results.seeds)} seeds."
    else:
        asked = f"One VAE on <code>{source}</code>."
    counts = {status: sum(run.status == status for run in results.runs) for status in _STATUSES}
    states = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    facts = [
        ("Runs", str(runs), states),
        ("Conditions", str(len(groups)), f"seeds: {_seeds(results)}"),
    ]
    best = aggregate.best_group(groups)
    if best is not None:
        elbo = best.estimate("test/elbo")
        places = style.decimals([elbo.error], 2)
        facts.append(
            (
                "Best test ELBO (nats)",
                _spread(elbo, places),
                best.label.replace(" = ", "\u00a0=\u00a0") if len(groups) > 1 else "",
            )
        )
        nll = best.estimate("test/nll")
        if nll.n:
            facts.append(
                (
                    _nll_title(best.runs) + ", there",
                    _spread(nll, style.decimals([nll.error], 2)),
                    "nats",
                )
            )
    cards = "".join(
        f"<div><dt>{escape(title)}</dt><dd>{escape(value)}<small>{escape(detail)}</small></dd></div>"
        for title, value, detail in facts
    )
    notes = "".join(f"<p>{escape(note)}</p>" for note in results.notes)
    callout = f'<div class="callout" id="notes">{notes}</div>' if notes else ""
    return (
        f'<h1>{escape(name)}</h1><p class="lead">{asked}</p><dl class="facts">{cards}</dl>{callout}'
    )


def question(results: Results) -> str:
    """The sweep, the data with its protocol and fingerprint, the software and machine, and the full
    config.
    """
    environment = results.environment
    swept = [(axis.field, chips(axis.labels())) for axis in results.axes]
    swept.append((SEED, chips([value_label(seed) for seed in results.seeds])))

    # The recorded protocol holds the data fields, resolved; without it they are all there is.
    datasets = environment.get("dataset", {}) or {"data": results.config.get("data", {})}
    data = [
        (f"{source}.{name}" if len(datasets) > 1 else name, _mono(value))
        for source, facts in datasets.items()
        for name, value in (facts if isinstance(facts, dict) else {source: facts}).items()
    ]

    machine = []
    for name, value in environment.items():
        if name == "command" and isinstance(value, list):
            machine.append((name, f"<code>{escape(shlex.join(map(str, value)))}</code>"))
        elif name == "versions" and isinstance(value, dict):
            machine.append(
                (name, chips([f"{package} {version}" for package, version in value.items()]))
            )
        elif name == "devices" and isinstance(value, list):
            machine.append((name, chips([_words(device) for device in value])))
        elif name == "earlier" and isinstance(value, list):
            machine += [("begun with", chips(_otherwise(e, environment))) for e in value]
        elif name != "dataset":
            machine.append((name, _mono(value)))

    return f"""<h3>Swept</h3>
{pairs(swept)}
<div class="halves">
<div><h3>Data</h3>
{pairs(data) if data else "<p>Not recorded.</p>"}</div>
<div><h3>Software and machine</h3>
{pairs(machine) if machine else "<p>Not recorded.</p>"}</div>
</div>
<details><summary>Base configuration in full</summary>
<p class="note">Swept fields are <mark>marked</mark>: each run replaces them by its own value.
{_given(environment)}</p>
<pre>{_config_text(results)}</pre></details>"""


def _otherwise(earlier: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What an earlier execution was made with, where the last one was made with something else."""
    texts = []
    for name, value in earlier.items():
        if name == "versions" and isinstance(value, dict):
            same = now.get("versions", {})
            texts += [f"{p} {v}" for p, v in value.items() if same.get(p) != v]
        elif value != now.get(name):
            texts.append(f"{name} {_words(value)}")
    return texts


def results_tables(results: Results, groups: Sequence[Group]) -> str:
    """Main effects, the table of groups over seeds, and every run behind a fold."""
    return "\n".join([_effects(results), _group_table(results, groups), _run_table(results)])


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


def footer(results: Results) -> str:
    return (
        f"Built from <code>{escape(results.workdir.resolve())}</code>. Rebuild with <code>python "
        "-m experiments.report --workdir=DIR</code>. Units: nats, sums over dimensions, means "
        "over examples. PNG and PDF versions of the figures are in <code>figures/</code>."
    )


_STATUSES = ("ok", "diverged", "unfinished", "missing")


def _effects(results: Results) -> str:
    """One line per numeric axis: each metric from the lowest to the highest value."""
    metrics = [metric for metric in style.TABULATED if metric is not style.GAP]
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
            cells.append(f"<td>{style.fixed(low, 1)} → {style.fixed(high, 1)}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        "<h3>At a glance</h3><p class='note'>Each test metric at a field's lowest and highest "
        "value, averaged over everything else.</p>" + _table("effects-table", heads, rows)
    )


def _group_table(results: Results, groups: Sequence[Group]) -> str:
    """Mean ± standard error over seeds, the exact numbers in data-value, data-error, data-seeds."""
    metrics = style.TABULATED
    cells = {metric.key: [group.estimate(metric.key) for group in groups] for metric in metrics}
    places = {
        metric.key: style.decimals(
            [seen.error for seen in cells[metric.key]], 2 if metric.unit else 1
        )
        for metric in metrics
    }
    best = aggregate.best_group(groups)
    heads = [("word", "", "")] if len(groups) > 1 else []
    heads += [("" if axis.numeric else "word", axis.label, "") for axis in results.axes]
    heads.append(("", "seeds", "finished"))
    for metric in metrics:
        title = _nll_title(results.runs) if metric is style.NLL else metric.title
        heads.append(("", title, ", ".join(filter(None, (metric.unit, metric.direction)))))
    rows = []
    for i, group in enumerate(groups):
        is_best = group is best and len(groups) > 1
        row = [f'<td class="star">{"★" * is_best}</td>'] if len(groups) > 1 else []
        row += [
            _value_cell(axis.numeric, value)
            for axis, value in zip(results.axes, group.values, strict=True)
        ]
        finished = group.estimate("test/elbo").n
        of = f" of {len(group.runs)}" if finished < len(group.runs) else ""
        row.append(f'<td data-value="{finished}">{finished}{of}</td>')
        row += [
            _estimate_cell(metric.key, cells[metric.key][i], places[metric.key])
            for metric in metrics
        ]
        rows.append(f"<tr{' class=best' * is_best}>{''.join(row)}</tr>")
    reading = (
        "Mean ± standard error over seeds (s/√n, s with n − 1); one seed has no ±. Click a header "
        "to sort."
    )
    if best is not None and len(groups) > 1:
        reading += (
            " ★ marks the highest mean test ELBO; picked on the test set, it flatters itself when "
            "conditions are many."
        )
    return f"<h3>Over seeds</h3><p class='note'>{reading}</p>" + _table(
        "group-table", heads, rows, sortable=True
    )


def _run_table(results: Results) -> str:
    metrics = style.TABULATED
    heads = [("word", "run_id", ""), ("word", "status", "")]
    heads += [("" if axis.numeric else "word", axis.label, "") for axis in results.axes]
    heads += [("", "seed", ""), ("", "steps", ""), ("", "wall", "s")]
    for metric in metrics:
        title = _nll_title(results.runs) if metric is style.NLL else metric.title
        heads.append(("", title, metric.unit))
    rows = []
    for run in results.runs:
        row = [
            f'<td class="word mono">{escape(run.run_id)}</td>',
            f'<td class="word">{escape(run.status)}</td>',
        ]
        row += [_value_cell(axis.numeric, run.values[axis.field]) for axis in results.axes]
        row.append(_value_cell(True, run.seed if run.seed is not None else math.nan))
        row.append(_number_cell(run.number("steps"), 0))
        row.append(_number_cell(run.number("wall_s"), 1))
        row += [_number_cell(run.number(metric.key), 2) for metric in metrics]
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


def _spread(seen: Estimate, places: int) -> str:
    error = f" ± {style.fixed(seen.error, places)}" if seen.n > 1 else ""
    return style.fixed(seen.mean, places) + error


def _nll_title(runs: Sequence[Run]) -> str:
    return f"NLL ({style.samples_label([run.number('test/nll_samples') for run in runs])})"


def _config_text(results: Results) -> str:
    """The config as indented JSON, escaped, the swept fields' lines marked."""
    swept = {axis.field for axis in results.axes} | ({SEED} if len(results.seeds) > 1 else set())
    return _config_node(results.config, "", swept, 0)


def _config_node(node: Any, path: str, swept: set[str], depth: int) -> str:
    if not isinstance(node, dict):
        return escape(json.dumps(node, ensure_ascii=False, default=str))
    if not node:
        return "{}"
    lines = []
    for i, (name, value) in enumerate(node.items()):
        field = f"{path}{name}"
        key = escape(json.dumps(str(name), ensure_ascii=False))
        text = f"{key}: {_config_node(value, field + '.', swept, depth + 1)}"
        text = f"<mark>{text}</mark>" if field in swept else text
        lines.append("  " * (depth + 1) + text + "," * (i < len(node) - 1))
    return "{\n" + "\n".join(lines) + "\n" + "  " * depth + "}"


def _given(environment: dict[str, Any]) -> str:
    """The fields that the command line changed, for they are what differs from the config file."""
    command = environment.get("command", [])
    given = (
        [str(word) for word in command if str(word).startswith("--config.")]
        if isinstance(command, list)
        else []
    )
    return f" Changed on the command line: {chips(given)}" if given else ""


def _mono(value: Any) -> str:
    return f'<span class="mono">{escape(_words(value))}</span>'


def _words(value: Any) -> str:
    """A recorded fact on one line: train: 1438, test: 359."""
    if value in ("", None):
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_words(item)}" for name, item in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _seeds(results: Results) -> str:
    seeds = results.seeds
    if len(seeds) > 3 and all(b - a == 1 for a, b in zip(seeds, seeds[1:], strict=False)):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds)) or "not recorded"


def _count(value: float) -> str:
    return str(int(value)) if math.isfinite(value) else "not recorded"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
