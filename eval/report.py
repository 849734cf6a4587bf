"""Writes measured figures as the paper's tables, beside its own: python -m eval.report --help"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from crossnorm_ns.limits import NOT_EMPTY, InputPath, OutputFile
from eval.command import run_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eval.report_tables import Section

Format = Literal["md", "tex", "html", "json"]


@dataclass
class Arguments:
    """The paper's tables II to VII with measured figures beside its own, and their difference.

    Figures of another protocol, resolution or input than the paper's stand in tables of their own.
    """

    results: tyro.conf.Positional[Annotated[tuple[InputPath, ...], NOT_EMPTY]]
    """JSON files of eval.blender and eval.dtu_chamfer (--output) and of crossnorm table (results.json), or folders that
    hold such files, of any number of runs and seeds."""
    table: Literal["blender", "dtu", "image", "shape", "ct", "mri"]
    """blender: table VI. dtu: VII. image, shape, ct, mri: II to V."""
    format: Format = "md"
    """Markdown, LaTeX (with booktabs), one HTML page, or JSON with unrounded values."""
    output: OutputFile | None = None
    """File to write. By default the terminal."""


def main(arguments: Arguments) -> None:
    """Reads the results and writes the tables.

    Raises:
        EvaluationError: results cannot be read, or there are none for the table.
        OSError: the file cannot be written.
    """
    from eval.files import write_atomically
    from eval.report_results import read_figures
    from eval.report_tables import make_sections

    figures = read_figures(arguments.results, arguments.table)
    text = write_tables(make_sections(figures, arguments.table), arguments.format)
    if arguments.output is None:
        print(text, end="")
        return
    write_atomically(arguments.output, text.encode())
    print(f"wrote {arguments.output}")


def write_tables(sections: Sequence[Section], format: Format) -> str:
    """The tables of all sections, with what they are."""
    import json

    from crossnorm_ns.provenance import provenance, provenance_line
    from crossnorm_ns.representation.page import page
    from eval.report_tables import notes

    table = sections[0].table
    title, remarks = f"Table {table.number}: {table.title}", notes(table.name, sections)
    cells = [section.cells() for section in sections]
    if format == "json":
        content = {"table": table.name, "number": table.number, "notes": remarks, **provenance()}
        content["sections"] = [section.as_json() for section in sections]
        return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    remarks = [*remarks, f"Tables made on {provenance_line()}."]
    if format == "html":
        return page(title, remarks, cells)
    if format == "tex":
        remarks = [f"% {line}" for line in (title, *remarks)]
        return "\n\n".join([*remarks, *(one.tex() for one in cells)]) + "\n"
    return "\n\n".join([f"# {title}", *remarks, *(one.markdown() for one in cells)]) + "\n"


def run() -> None:
    """The command."""
    run_command(Arguments, main, "python -m eval.report")


if __name__ == "__main__":
    run()
