"""The top of the page: what was asked, with which data, software and machine, and the answer in a
few numbers.
"""

import json
import shlex
from collections.abc import Sequence
from typing import Any

from experiments.report import aggregate, style
from experiments.report.aggregate import Group
from experiments.report.axes import value_label
from experiments.report.markup import chips, escape, pairs
from experiments.report.results import FOLD, SEED, Results
from experiments.report.tables import nll_title, spread


def header(results: Results, groups: Sequence[Group], name: str) -> str:
    """Title, the question in one sentence, and the few numbers one asks for first."""
    swept = [f"<code>{escape(axis.field)}</code>" for axis in results.swept]
    source = escape(results.config.get("data", {}).get("source", "the data"))
    runs = len(results.runs)
    noun = "VAE"
    if runs and all(run.setting("objective.name") == "autoencoder" for run in results.runs):
        noun = "autoencoder"
    model = f"{'an' if noun == 'autoencoder' else 'a'} {noun}"
    if swept:
        verb = "changes" if len(swept) == 1 else "change"
        asked = f"How {_and(swept)} {verb} what {model} learns on <code>{source}</code>."
    elif len(results.folds or results.seeds) > 1:
        count = results.counted(len(results.folds or results.seeds))
        asked = f"One {noun} on <code>{source}</code>, {count}."
    else:
        asked = f"One {noun} on <code>{source}</code>."
    counts = {status: sum(run.status == status for run in results.runs) for status in _STATUSES}
    states = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    facts = [
        ("Runs", str(runs), states),
        ("Conditions", str(len(groups)), _repeats(results)),
    ]
    best = aggregate.best_group(results, groups)
    if not any(group.estimate("test/elbo").n for group in groups):
        facts += _distortion(results, groups)
    if best is not None:
        elbo = best.estimate("test/elbo")
        places = style.decimals([elbo.error], 2)
        facts.append(
            (
                "Best test ELBO (nats)",
                spread(elbo, places),
                best.label.replace(" = ", "\u00a0=\u00a0") if len(groups) > 1 else "",
            )
        )
        bpd = best.estimate("test/bpd")
        if bpd.n:
            shown = spread(bpd, style.decimals([bpd.error], style.BPD.places))
            facts.append(("Bits/dim, there", shown, "bits"))
        nll = best.estimate("test/nll")
        if nll.n:
            facts.append(
                (
                    nll_title(best.runs) + ", there",
                    spread(nll, style.decimals([nll.error], 2)),
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


def _distortion(results: Results, groups: Sequence[Group]) -> list[tuple[str, str, str]]:
    """Of autoencoders, which have no ELBO."""
    scored = [(seen, group) for group in groups if (seen := group.estimate("test/distortion")).n]
    if not scored or not aggregate.comparable(results):
        return []
    seen, group = min(scored, key=lambda pair: pair[0].mean)
    shown = spread(seen, style.decimals([seen.error], 2))
    where = group.label.replace(" = ", "\u00a0=\u00a0") if len(groups) > 1 else ""
    return [("Lowest test distortion (nats)", shown, where)]


def question(results: Results) -> str:
    """The sweep, the data with its protocol and fingerprint, the software and machine, and the full
    config.
    """
    environment = results.environment
    swept = [(axis.field, chips(axis.labels())) for axis in results.axes]
    for name, values in ((FOLD, results.folds), (SEED, results.seeds)):
        if values or name == SEED:
            swept.append((name, chips([value_label(value) for value in values])))

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


_STATUSES = ("ok", "diverged", "unfinished", "missing")


def _config_text(results: Results) -> str:
    """The config as indented JSON, escaped, the swept fields' lines marked."""
    swept = {axis.field for axis in results.axes} | ({SEED} if len(results.seeds) > 1 else set())
    swept |= {FOLD} if len(results.folds) > 1 else set()
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


def _repeats(results: Results) -> str:
    """seeds: 0 to 4; or folds: 0 to 4, seeds: 0, 1."""
    folds = f"folds: {_listed(results.folds)}, " if results.folds else ""
    return f"{folds}seeds: {_listed(results.seeds)}"


def _listed(values: Sequence[int]) -> str:
    if len(values) > 3 and all(b - a == 1 for a, b in zip(values, values[1:], strict=False)):
        return f"{values[0]} to {values[-1]}"
    return ", ".join(map(str, values)) or "not recorded"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
