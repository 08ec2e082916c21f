"""The few pieces of markup that every section is made of."""

import html
from collections.abc import Sequence
from typing import Any


def escape(value: Any) -> str:
    """Text for an element or a quoted attribute."""
    return html.escape(str(value), quote=True)


def section(anchor: str, title: str, content: str) -> str:
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>\n{content}\n</section>'


def caption(content: str, text: str) -> str:
    """A figure with its caption; `text` is markup, escaped by who wrote it."""
    return f"<figure>{content}<figcaption>{text}</figcaption></figure>"


def chips(values: list[str]) -> str:
    return " ".join(f'<span class="chip">{escape(value)}</span>' for value in values)


def pairs(rows: list[tuple[str, str]]) -> str:
    """A two-column table of names (text) and values (markup)."""
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{value}</td></tr>' for name, value in rows
    )
    return f'<div class="scroll"><table class="pairs"><tbody>{body}</tbody></table></div>'


def plot(anchor: str, figure: dict[str, Any]) -> str:
    """Where plotly draws a figure; its height is reserved, so the page does not jump under the
    reader.
    """
    height = figure["layout"]["height"]
    return f'<div class="plot" data-figure="{escape(anchor)}" style="height:{height}px"></div>'


def select(anchor: str, label: str, options: Sequence[tuple[str, str]], chosen: int) -> str:
    """A control: pairs of a value and its text, of which the `chosen`-th is selected at first."""
    items = "".join(
        f'<option value="{escape(value)}"{" selected" * (i == chosen)}>{escape(text)}</option>'
        for i, (value, text) in enumerate(options)
    )
    return f'<label for="{anchor}">{escape(label)} <select id="{anchor}">{items}</select></label>'
