"""study.html: the verdicts first, then each study's claim, figure and numbers; opens offline."""

import base64
import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.report.markup import caption, escape, section
from experiments.report.page import document
from experiments.studies import STUDIES, verdicts
from experiments.studies.cases import Found
from experiments.studies.quantity import REPRODUCED, VERDICTS, Quantity
from experiments.studies.verdicts import Measured

_CLASSES = {verdict: verdict.replace(" ", "-") for verdict in VERDICTS}


def page(
    found: Mapping[str, Found],
    quantities: Measured,
    made: Mapping[str, Any],
    folder: pathlib.Path,
) -> str:
    """The whole study.html as text; figures are read from the studies' folders in `folder`."""
    sections = [("verdicts", "Verdicts", _verdicts(found, quantities))]
    sections += [
        (name, f"{STUDIES[name].ID} {name}", _study(name, found[name], of, folder))
        for name, of in quantities.items()
    ]
    title = folder.resolve().name
    seconds = sum(of.seconds for of in found.values())
    header = (
        f"<h1>{escape(title)}</h1>"
        f'<p class="lead">{len(quantities)} studies: {escape(verdicts.counts(quantities))}.</p>'
        f'<p class="muted">{escape(verdicts.machine(made))} '
        f"{escape(verdicts.duration(seconds))} of training and measuring.</p>"
    )
    contents = "".join(f'<li><a href="#{a}">{escape(t)}</a></li>' for a, t, _ in sections)
    body = "\n".join(section(anchor, name, content) for anchor, name, content in sections)
    return document(f"{title} · studies", title, f"<ol>{contents}</ol>", f"{header}\n{body}")


def _verdicts(found: Mapping[str, Found], quantities: Measured) -> str:
    """A row for each study; the rows that are not reproduced; all rows, folded."""
    _, *lines = verdicts.summary(found, quantities)
    studies = []
    for number, name, claim, *tally, seeds, time in lines:
        badges = "".join(
            f"<td>{_badge(verdict, count) if count else ''}</td>"
            for verdict, count in zip(VERDICTS, tally, strict=True)
        )
        studies.append(
            f'<tr><td class="word">{escape(number)}</td><td class="word">{_link(name)}</td>'
            f'<td class="wrap word">{escape(claim)}</td>{badges}<td>{escape(seeds)}</td>'
            f"<td>{escape(time)}</td></tr>"
        )
    parts = [
        "<p><b>Reproduced:</b> the 95% interval of what was measured lies within what is "
        "expected; <b>not reproduced:</b> outside of it; <b>inconclusive:</b> neither, or seeds "
        "are missing.</p>",
        _table(verdicts.SUMMARY, studies),
    ]
    asked = [(name, q) for name, of in quantities.items() for q in of if q.asked]
    but = [
        f'<tr><td class="word">{_link(name)}</td>{_cells(q, q.remark)}</tr>'
        for name, q in asked
        if q.verdict != REPRODUCED
    ]
    if but:
        parts.append("<h3>Not reproduced, or inconclusive</h3>")
        parts.append(_table(["study", *verdicts.HEADING[1:]], but))
    rows = [f'<tr><td class="word">{_link(name)}</td>{_cells(q)}</tr>' for name, q in asked]
    table = _table(["study", *verdicts.HEADING[1:]], rows)
    parts.append(f"<details><summary>Every verdict ({len(rows)})</summary>{table}</details>")
    return "\n".join(parts)


def _link(name: str) -> str:
    return f'<a href="#{escape(name)}">{escape(name)}</a>'


def _badge(verdict: str, text: str) -> str:
    return f'<span class="verdict {_CLASSES.get(verdict, "")}">{escape(text)}</span>'


def _cells(q: Quantity, remark: str = "") -> str:
    _, name, expected, measured, interval, seeds, verdict = verdicts.row("", q)
    below = f'<span class="remark">{escape(remark)}</span>' if remark else ""
    title = f' title="{escape(q.remark)}"' if q.remark else ""
    return (
        f'<td class="wrap word"{title}>{escape(name)}{below}</td><td>{escape(expected)}</td>'
        f"<td>{escape(measured)}</td><td>{escape(interval)}</td><td>{escape(seeds)}</td>"
        f'<td class="word">{_badge(verdict, verdict)}</td>'
    )


def _table(heading: list[str], rows: list[str]) -> str:
    words = ("", "study", "claim", "quantity", "verdict", "source")
    cells = "".join(
        f'<th scope="col"{" class=word" if name in words else ""}>{escape(name)}</th>'
        for name in heading
    )
    body = "".join(rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )


def _study(name: str, found: Found, of: list[Quantity], folder: pathlib.Path) -> str:
    first, rest = verdicts.claim(name)
    parts = [f'<p class="lead">{escape(first)}</p>']
    picture = folder / name / "figures" / f"{name}.png"
    if picture.is_file():
        data = base64.b64encode(picture.read_bytes()).decode()
        image = f'<img alt="{escape(first)}" src="data:image/png;base64,{data}">'
        where = f"{name}/figures/{name}.pdf"
        parts.append(caption(image, f"The same for print: <code>{escape(where)}</code>."))
    rows = [f'<tr>{_cells(q)}<td class="wrap word">{escape(q.source)}</td></tr>' for q in of]
    parts.append(_table([*verdicts.HEADING[1:], "source"], rows))
    remarks = [q for q in of if q.remark]
    if remarks:
        items = "".join(f"<li>{escape(q.name)}: {escape(q.remark)}.</li>" for q in remarks)
        parts.append(f"<ul>{items}</ul>")
    parts += [f"<p>{escape(paragraph)}</p>" for paragraph in rest]
    effort = escape(verdicts.effort(found))
    if found.results:
        link = f'<a href="{escape(name)}/report.html">report of its runs</a>'
        effort += f" The {link} has curves, layers and pictures."
    parts.append(f'<p class="note">{effort}</p>')
    return "\n".join(parts)
