"""The measurements as Markdown: sections of a file, of which the rest is written by hand."""

import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.benchmark.measure import Row, cells
from vae import writers
from vae.errors import UserError

BEGIN = "<!-- measured: begin; written by python -m experiments.benchmark --markdown -->"
END = "<!-- measured: end -->"


def section(
    name: str, title: str, rows: Sequence[Row], machine: Mapping[str, Any], command: str
) -> str:
    """One benchmark's heading, circumstances and table."""
    versions = ", ".join(
        f"{package} {version}"
        for package, version in machine["versions"].items()
        if version != "not installed" and package != "vae-lab"
    )
    commit = (machine["git_commit"] or "unknown")[:12]
    commit += " with changes" if machine["git_dirty"] else ""
    lines = [
        f"### {name}",
        "",
        title,
        "",
        f"`{command}`",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['devices'])}; {versions}; "
        f"commit {commit}; {machine['time']}; load average at the start "
        f"{machine['load_average']:.1f}.",
        "",
        "| what | measured | least to most | target | met | note |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        _, what, measured, between, target, met, note = cells(row)
        row_cells = (what, measured, between.replace("..", " to "), target, met, note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row_cells) + " |")
    return "\n".join(lines) + "\n"


def update(file: pathlib.Path, sections: Mapping[str, str], order: Sequence[str]) -> None:
    """Puts sections into the measured part of a file; the other sections and the rest stay.

    Args:
      sections: benchmark -> its text. order: of the sections in the file.

    Raises:
      UserError: a file without that part: it may be anything.
    """
    text = _read(file)
    before, rest = text.split(BEGIN)
    old, after = rest.split(END)
    kept = dict(re.findall(r"<!-- (\w+) -->\n(.*?)(?=\n<!-- \w+ -->|\Z)", old.strip(), re.DOTALL))
    kept = {name: body.strip() + "\n" for name, body in kept.items()} | dict(sections)
    names = [name for name in order if name in kept]
    names += [name for name in kept if name not in order]
    body = "\n".join(f"<!-- {name} -->\n{kept[name]}" for name in names)
    writers.write_text(file, f"{before}{BEGIN}\n\n{body}\n{END}{after}")


def check(file: pathlib.Path) -> None:
    """Raises the `UserError` of `update` before anything is measured."""
    _read(file)


def _read(file: pathlib.Path) -> str:
    if not file.exists():
        return f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    text = file.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(
            f"--markdown: {file} has no part to be written by this command. Give a new file, or "
            f"put these two lines where the measurements are to stand:\n{BEGIN}\n{END}"
        )
    return text
