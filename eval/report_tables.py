"""Figures in the shape of the paper's tables: a section for each setting, since only equal settings are comparable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal, NamedTuple

from crossnorm_ns.paper_tables import AVERAGE, PaperTable, Setting, TableName, paper_source, paper_table
from crossnorm_ns.representation.page import Cells
from eval.report_results import Figure

Origin = Literal["paper", "published", "measured", "difference"]
METRICS = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3), "iou": ("IoU", 3), "overall": ("chamfer distance (mm)", 2)}
"""Name and digits."""
LOWER_IS_BETTER = {"overall"}


class Value(NamedTuple):
    """One cell."""

    mean: float
    """Over seeds."""
    spread: float | None = None
    """Standard deviation over seeds; None where there is one figure."""
    seeds: int = 1


@dataclass(frozen=True)
class Series:
    """A method's values on the items of a table."""

    origin: Origin
    method: str
    """As it is called where the figures come from."""
    values: Mapping[str, Value]
    """By item."""


@dataclass(frozen=True)
class Section:
    """Everything of one setting and metric: comparable, and so one table."""

    table: PaperTable
    setting: Setting
    metric: str
    items: Sequence[str]
    series: Sequence[Series]

    def best(self) -> set[tuple[Origin, str, str]]:
        """Origin, method and item of the best figures, as printed.

        Where methods are rows, the best of each column; where they are columns, the best of each line.
        """
        digits, sign = METRICS[self.metric][1], -1 if self.metric in LOWER_IS_BETTER else 1
        groups: dict[tuple[str, ...], list[tuple[float, tuple[Origin, str, str]]]] = {}
        for series in self.series:
            if series.origin == "difference":
                continue
            for item, value in series.values.items():
                group = (item,) if self.table.methods_are_rows else (item, series.origin)
                rounded = sign * round(value.mean, digits)
                groups.setdefault(group, []).append((rounded, (series.origin, series.method, item)))
        return {key for group in groups.values() for value, key in group if value == max(group)[0]}

    def cells(self) -> Cells:
        """As a table of text."""
        lines = self._method_lines() if self.table.methods_are_rows else self._item_lines()
        heads = self.items if self.table.methods_are_rows else self._methods()
        best, rows, bold = self.best(), [], set()
        for label, cells in lines:
            for place, (series, item) in enumerate(cells, start=1):
                if series is not None and (series.origin, series.method, item) in best:
                    bold.add((len(rows), place))
            rows.append([label, *(self._text(series, item) for series, item in cells)])
        name = METRICS[self.metric][0]
        return Cells(f"{self.table.title}, {name}: {self.describe()}", ["", *heads], rows, frozenset(bold))

    def describe(self) -> str:
        """The setting in words."""
        where = "as the paper's table" if self.is_the_papers() else "not comparable with the paper's table"
        setting = self.setting
        return f"protocol {setting.protocol}; resolution {setting.resolution}; {setting.inputs}; {where}"

    def is_the_papers(self) -> bool:
        """Whether the paper's figures are among them."""
        return self.setting == self.table.setting

    def as_json(self) -> dict[str, Any]:
        """All values as JSON has them."""
        best = self.best()
        return {
            "metric": self.metric,
            "setting": self.setting._asdict(),
            "comparable with the paper": self.is_the_papers(),
            "items": list(self.items),
            "series": [
                {
                    "origin": series.origin,
                    "method": series.method,
                    "values": {
                        item: {**value._asdict(), "best": (series.origin, series.method, item) in best}
                        for item, value in series.values.items()
                    },
                }
                for series in self.series
            ],
        }

    def _method_lines(self) -> list[tuple[str, list[tuple[Series | None, str]]]]:
        return [(_label(series), [(series, item) for item in self.items]) for series in self.series]

    def _item_lines(self) -> list[tuple[str, list[tuple[Series | None, str]]]]:
        lines = []
        for item in self.items:
            for origin in ("paper", "measured", "difference"):
                by_method = {series.method: series for series in self.series if series.origin == origin}
                cells = [(by_method.get(method), item) for method in self._methods()]
                counts = {series.values[item].seeds for series, _ in cells if series and item in series.values}
                if counts:
                    seeds = f", {_seeds(counts)}" if origin == "measured" else ""
                    lines.append((f"{item}, {origin}{seeds}", cells))
        return lines

    def _methods(self) -> list[str]:
        return list(dict.fromkeys(series.method for series in self.series))

    def _text(self, series: Series | None, item: str) -> str:
        value = None if series is None else series.values.get(item)
        if series is None or value is None:
            return "-"
        digits = METRICS[self.metric][1]
        mean = f"{value.mean:+.{digits}f}" if series.origin == "difference" else f"{value.mean:.{digits}f}"
        return mean if value.spread is None else f"{mean} ± {value.spread:.{digits}f}"


def make_sections(figures: Sequence[Figure], name: TableName) -> list[Section]:
    """The paper's setting first, then each other setting of the figures; in each, one section for each metric."""
    table = paper_table(name)
    settings = dict.fromkeys([table.setting, *(figure.setting for figure in figures)])
    sections = []
    for setting in settings:
        mine = [figure for figure in figures if figure.setting == setting]
        items = list(table.items) if setting == table.setting else _items(mine, table)
        for metric in table.values:
            series = [*_published(table, setting, metric), *_measured(mine, table, items, metric)]
            if any(one.values for one in series):
                sections.append(Section(table, setting, metric, items, series))
    return sections


def notes(name: TableName, sections: Sequence[Section]) -> list[str]:
    """What the tables are."""
    table = paper_table(name)
    ours = f" Ours is {table.ours}." if table.ours else ""
    lines = [
        f"Paper: table {table.number} of {paper_source()}.{ours}",
        "Measured: means over seeds ± standard deviation, where there are several. Difference: measured minus the "
        f"paper's. Bold: the best of each {'column' if table.methods_are_rows else 'line'}.",
        *(f"{other.method}: {other.source}." for other in table.others),
    ]
    compared = any(section.is_the_papers() and _has(section, "measured") for section in sections)
    if not compared:
        lines.append("No figure here was measured as the paper's were, so there is no difference from them.")
    return lines


def _has(section: Section, origin: Origin) -> bool:
    return any(series.origin == origin for series in section.series)


def _items(figures: Sequence[Figure], table: PaperTable) -> list[str]:
    """In the paper's order, then by name; with their average, if there are several that it makes sense for."""
    names = {figure.item for figure in figures}
    known = [item for item in table.items if item in names]
    items = known + sorted(names - set(known))
    return [*items, AVERAGE] if len(items) > 1 and table.items[-1] == AVERAGE else items


def _published(table: PaperTable, setting: Setting, metric: str) -> list[Series]:
    """Figures of the paper and of other publications under this setting."""
    series = []
    if setting == table.setting:
        for method in table.methods:
            values = {item: Value(row[method]) for item, row in table.values[metric].items()}
            series.append(Series("paper", method, values))
    for other in table.others:
        if other.setting == setting and metric in other.values:
            values = {item: Value(value) for item, value in other.values[metric].items()}
            series.append(Series("published", other.method, values))
    return series


def _measured(figures: Sequence[Figure], table: PaperTable, items: Sequence[str], metric: str) -> list[Series]:
    """Each method's means over seeds, and their differences from the paper's where it has the method."""
    series, differences = [], []
    order = {method: place for place, method in enumerate(table.methods)}
    methods = sorted({figure.method for figure in figures}, key=lambda method: (order.get(method, len(order)), method))
    for method in methods:
        mine = [figure for figure in figures if figure.method == method and metric in figure.values]
        values = {}
        for item in items:
            found = _averages(mine, items, metric) if item == AVERAGE else _of_item(mine, item, metric)
            if found:
                values[item] = Value(fmean(found), stdev(found) if len(found) > 1 else None, len(found))
        series.append(Series("measured", method, values))
        counterpart = table.counterparts.get(method.partition(",")[0].lower())
        if figures and figures[0].setting == table.setting and counterpart is not None:
            paper = {item: row[counterpart] for item, row in table.values[metric].items()}
            shared = {item: Value(value.mean - paper[item]) for item, value in values.items() if item in paper}
            differences.append(Series("difference", method, shared))
    return [*series, *differences]


def _of_item(figures: Sequence[Figure], item: str, metric: str) -> list[float]:
    return [figure.values[metric] for figure in figures if figure.item == item]


def _averages(figures: Sequence[Figure], items: Sequence[str], metric: str) -> list[float]:
    """For each seed that has all items, their mean."""
    wanted = set(items) - {AVERAGE}
    means = []
    for seed in dict.fromkeys(figure.seed for figure in figures):
        values = {figure.item: figure.values[metric] for figure in figures if figure.seed == seed}
        if values.keys() == wanted:
            means.append(fmean(values.values()))
    return means


def _label(series: Series) -> str:
    if series.origin == "difference":
        return f"{series.method}: difference from the paper"
    if series.origin == "measured":
        counts = {value.seeds for value in series.values.values()}
        return f"{series.method}, measured" + (f", {_seeds(counts)}" if counts else "")
    return f"{series.method} ({series.origin})"


def _seeds(counts: set[int]) -> str:
    least, most = min(counts), max(counts)
    number = str(most) if least == most else f"{least} to {most}"
    return f"{number} seed{'s' if most > 1 else ''}"
