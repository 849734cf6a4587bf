"""The figures of the paper's tables II to VII, and other published ones of the same kind.

All are in `data/paper_tables.json`, with their sources.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

TableName = Literal["image", "shape", "ct", "mri", "blender", "dtu"]
Values = Mapping[str, Mapping[str, float]]
"""By item (network, shape, scene or scan) and method."""


class Setting(NamedTuple):
    """How figures came about. Only figures of one setting are comparable."""

    protocol: str
    """How was measured."""
    resolution: str
    """Of what was represented: pixels, voxels."""
    inputs: str
    """What was represented."""


class Published(NamedTuple):
    """Figures of a method from another publication."""

    method: str
    source: str
    setting: Setting
    values: Mapping[str, Mapping[str, float]]
    """By metric and item."""


@dataclass(frozen=True)
class PaperTable:
    """One table of the paper.

    Attributes:
        name: ours.
        number: the paper's.
        title: what it shows.
        items: networks, shapes, scenes or scans; the last of shapes, scenes and scans is their average, as printed.
        methods: as the paper has them.
        methods_are_rows: and items columns; else the other way round.
        setting: what figures must share to be comparable.
        values: by metric.
        counterparts: the paper's method for names of methods and systems, in lower case.
        ours: what the paper's method "Ours" is.
        others: from other publications.
    """

    name: TableName
    number: str
    title: str
    items: tuple[str, ...]
    methods: tuple[str, ...]
    methods_are_rows: bool
    setting: Setting
    values: Mapping[str, Values]
    counterparts: Mapping[str, str]
    ours: str | None
    others: tuple[Published, ...]


AVERAGE = "average"
"""The item that is the mean of the others."""


@cache
def paper_table(name: TableName) -> PaperTable:
    """The table called so here."""
    table, others = _contents()["tables"][name], _contents()["others"].get(name, ())
    items, by_rows = table["items"], table["lines"] == "methods"
    values = {metric: _by_item(table, rows, by_rows) for metric, rows in table["values"].items()}
    return PaperTable(
        name=name,
        number=table["number"],
        title=table["title"],
        items=tuple(items),
        methods=tuple(table["methods"]),
        methods_are_rows=by_rows,
        setting=Setting(**table["setting"]),
        values=values,
        counterparts={method.lower(): method for method in table["methods"]} | table.get("counterparts", {}),
        ours=table.get("ours"),
        others=tuple(_published(other, items) for other in others),
    )


def paper_source() -> str:
    """Authors, title and number of the paper."""
    return _contents()["source"]


def paper_row(task: TableName, metric: str, network: str, scene: str | None = None) -> Mapping[str, float] | None:
    """What the paper reports for each method on a representation task, or None where it has no such row.

    Args:
        task: image (means over the 24 Kodak images), shape, ct or mri.
        metric: psnr, ssim or iou.
        network: layers x width.
        scene: of the shapes, an item of their table; None is their average.
    """
    item = network
    if task == "shape":
        item = scene or AVERAGE
        if network != _contents()["tables"]["shape"]["network"]:
            return None
    return paper_table(task).values.get(metric, {}).get(item)


@cache
def _contents() -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "data" / "paper_tables.json").read_text(encoding="utf-8"))


def _by_item(table: dict[str, Any], rows: dict[str, list[float]], by_rows: bool) -> Values:
    items, methods = table["items"], table["methods"]
    if by_rows:
        return {item: {method: rows[method][place] for method in methods} for place, item in enumerate(items)}
    return {item: dict(zip(methods, rows[item], strict=True)) for item in items}


def _published(other: dict[str, Any], items: list[str]) -> Published:
    values = {
        metric: {item: value for item, value in zip(items, row, strict=True) if value is not None}
        for metric, row in other["values"].items()
    }
    return Published(other["method"], other["source"], Setting(**other["setting"]), values)
