"""A page that needs nothing beside it: tables and pictures in one HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Sequence
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
    bold: frozenset[tuple[int, int]] = frozenset()
    """Row and column of the cells that stand out."""

    def markdown(self) -> str:
        """As a table in Markdown."""
        rows = self._written(lambda cell: cell.replace("|", "\\|"), "**{}**")
        lines = [self.heads, ["---"] * len(self.heads), *rows]
        return "\n".join([f"{self.title}:", "", *(f"| {' | '.join(line)} |" for line in lines)])

    def html(self) -> str:
        """As a table in HTML."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.heads)
        rows = self._written(html.escape, "<b>{}</b>")
        body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
        title = html.escape(self.title)
        return f"<h2>{title}</h2><div class='wide'><table><tr>{head}</tr>{body}</table></div>"

    def tex(self) -> str:
        """As a table in LaTeX, for the package booktabs."""
        rows = [" & ".join(row) + r" \\" for row in self._written(escape_tex, r"\textbf{{{}}}")]
        head = " & ".join(map(escape_tex, self.heads)) + r" \\"
        columns = "l" + "r" * (len(self.heads) - 1)
        begin = [r"\begin{table}", r"\centering", rf"\caption{{{escape_tex(self.title)}}}"]
        lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([*begin, *lines, r"\end{tabular}", r"\end{table}"])

    def _written(self, escape: Callable[[str], str], bold: str) -> list[list[str]]:
        return [
            [bold.format(escape(cell)) if (i, j) in self.bold else escape(cell) for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]


def escape_tex(text: str) -> str:
    """Text as LaTeX shows it."""
    special = {character: f"\\{character}" for character in "&%$#_{}"}
    others = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    return "".join((special | others).get(character, character) for character in text)


def write_page(
    path: Path, title: str, paragraphs: Sequence[str], tables: Sequence[Cells], pictures: Sequence[tuple[str, Path]]
) -> None:
    """Writes `page` into a file."""
    with atomic_file(path) as file:
        file.write(page(title, paragraphs, tables, pictures).encode())


def page(
    title: str, paragraphs: Sequence[str], tables: Sequence[Cells], pictures: Sequence[tuple[str, Path]] = ()
) -> str:
    """Text, tables and pictures as one HTML page.

    Args:
        title: its heading.
        paragraphs: text above the tables.
        tables: in their order.
        pictures: what each shows, and its PNG file.
    """
    parts = [f"<p>{html.escape(text)}</p>" for text in paragraphs] + [table.html() for table in tables]
    for description, picture in pictures:
        text, data = html.escape(description), base64.b64encode(picture.read_bytes()).decode()
        parts.append(f"<h2>{text}</h2><p><img alt='{text}' src='data:image/png;base64,{data}'></p>")
    return (
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>{''.join(parts)}</html>\n"
    )
