"""What the demos share: a table for the terminal, and a page that needs nothing beside it."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:1150px;margin:2em auto;padding:0 1em}img{max-width:100%}"
    "table{border-collapse:collapse}td,th{padding:.3em 1em;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """One row for each method, its name first."""
    result = Table(title=title)
    for i, head in enumerate(heads):
        result.add_column(head, justify="right" if i else "left")
    for row in rows:
        result.add_row(*row)
    return result


def write_page(
    path: Path,
    title: str,
    caption: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    picture: Path,
    description: str,
) -> None:
    """Writes caption, table and picture as one HTML file.

    Args:
        path: the file to write.
        title: its heading.
        caption: what the numbers are.
        heads: of the table's columns.
        rows: of the table.
        picture: PNG file to embed.
        description: of the picture, for those who do not see it.
    """
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    image = base64.b64encode(picture.read_bytes()).decode()
    path.write_text(
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(caption)}</p>"
        f"<table><tr>{head}</tr>{body}</table><p><img alt='{html.escape(description)}' "
        f"src='data:image/png;base64,{image}'></p></html>\n",
        encoding="utf-8",
    )
