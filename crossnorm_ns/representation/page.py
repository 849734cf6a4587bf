"""A page that needs nothing beside it: tables and pictures in one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from crossnorm_ns.files import atomic_file

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:1500px;margin:2em auto;padding:0 1em}img{max-width:100%}"
    "table{border-collapse:collapse;margin:1em 0}td,th{padding:.25em .6em;border-bottom:1px solid #ccc;"
    "text-align:right;white-space:nowrap}td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto}"
)


class Cells(NamedTuple):
    """A table of text: one head for each column, first column left."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """As a table in Markdown."""
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        return "\n".join([f"{self.title}:", "", *(f"| {' | '.join(line)} |" for line in lines)])

    def html(self) -> str:
        """As a table in HTML."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.heads)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self.rows)
        title = html.escape(self.title)
        return f"<h2>{title}</h2><div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def write_page(
    path: Path, title: str, paragraphs: Sequence[str], tables: Sequence[Cells], pictures: Sequence[tuple[str, Path]]
) -> None:
    """Writes text, tables and pictures as one HTML file.

    Args:
        path: the file to write.
        title: its heading.
        paragraphs: text above the tables.
        tables: in their order.
        pictures: what each shows, and its PNG file.
    """
    parts = [f"<p>{html.escape(text)}</p>" for text in paragraphs] + [table.html() for table in tables]
    for description, picture in pictures:
        text, data = html.escape(description), base64.b64encode(picture.read_bytes()).decode()
        parts.append(f"<h2>{text}</h2><p><img alt='{text}' src='data:image/png;base64,{data}'></p>")
    with atomic_file(path) as file:
        file.write(
            f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
            f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n".encode()
        )
