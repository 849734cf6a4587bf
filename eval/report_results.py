"""Reading what eval.blender, eval.dtu_chamfer and `crossnorm table` have written, as figures with their settings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from crossnorm_ns.paper_tables import Setting, TableName, paper_table
from crossnorm_ns.reading import FileError, read_json
from eval.dtu_files import DTU_SCANS
from eval.errors import EvaluationError

KODAK = {f"kodim{number:02}" for number in range(1, 25)}
NOT_THE_PUBLISHED = ("mipnerf", "neus")
"""Methods of nerfstudio that are other than the published ones of this name."""
FULL_GRID = 512
"""Points along each axis for marching cubes, as published."""
LARGEST = 1e300
"""Beyond it lies no figure, and no mean of figures that a float can hold."""
OWN_REFERENCE = "reference points of one's own"


@dataclass(frozen=True)
class Figure:
    """What one run of a method came to on one item of a table."""

    setting: Setting
    method: str
    """With what else tells apart whose figures may be averaged over seeds: changed options and steps of training."""
    item: str
    seed: int | None
    values: Mapping[str, float]
    """By metric."""
    file: Path


def read_figures(paths: Sequence[Path], table: TableName) -> list[Figure]:
    """All figures for a table in files, and in the JSON files of folders.

    Files of other tables are left out. A figure that is there twice counts once.

    Raises:
        EvaluationError: a file that was named is unreadable or no result, there is nothing for the table, or two
            results of the same run differ.
    """
    contents = [(file, found) for path in paths for file in _files(path) for found in _results(file, file == path)]
    results = [(file, result) for file, result in contents if _table_of(result) == table]
    if not results:
        others = sorted({str(_table_of(result)) for _, result in contents})
        hint = f" They hold results for: {', '.join(others)}." if others else ""
        raise EvaluationError(f"No results for the table {table} in {', '.join(map(str, paths))}.{hint}")
    figures: dict[tuple[Setting, str, str, int | None], Figure] = {}
    for figure in _figures(results, table):
        _check(figure)
        key = (figure.setting, figure.method, figure.item, figure.seed)
        other = figures.setdefault(key, figure)
        if other.values != figure.values:
            raise EvaluationError(
                f"{other.file} and {figure.file} both have {figure.method} on {figure.item}, seed {figure.seed}, with "
                "different figures: leave one, or tell the systems apart by --method when they are evaluated."
            )
    return list(figures.values())


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.rglob("*.json"))
    if not path.is_file():
        raise EvaluationError(f"There is no file or folder {path}.")
    return [path]


def _results(file: Path, named: bool) -> list[dict[str, Any]]:
    """Results in a file; one that is none is refused where it was named, and left out where its folder was."""
    try:
        content = read_json(file)
    except FileError as error:
        raise EvaluationError(str(error)) from error
    listed = content.get("scans", [content]) if isinstance(content, dict) else content
    found = [one for one in listed if isinstance(one, dict) and _table_of(one)] if isinstance(listed, list) else []
    if named and not found:
        raise EvaluationError(f"{file} holds no result of eval.blender, eval.dtu_chamfer or crossnorm table.")
    return found


def _table_of(result: dict[str, Any]) -> TableName | None:
    if "per_image" in result:
        return "blender"
    if "completeness" in result:
        return "dtu"
    spec = result.get("spec")
    return spec.get("task") if isinstance(spec, dict) else None


def _figures(results: Sequence[tuple[Path, dict[str, Any]]], table: TableName) -> Iterator[Figure]:
    try:
        if table == "blender":
            yield from (_blender(file, result) for file, result in results)
        elif table == "dtu":
            yield from (_dtu(file, result) for file, result in results)
        else:
            yield from _representation(results, table)
    except EvaluationError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        files = ", ".join(sorted({str(file) for file, _ in results})[:3])
        raise EvaluationError(f"A result in {files} is incomplete or of another version ({error!r}).") from error


def _check(figure: Figure) -> None:
    words = (figure.method, figure.item, *figure.setting)
    if not all(isinstance(word, str) and word.isprintable() for word in words):
        raise EvaluationError(f"{figure.file}: a name in this result is no readable text: {words!r}.")
    if figure.seed is not None and type(figure.seed) is not int:
        raise EvaluationError(f"{figure.file}: the seed of this result is no whole number: {figure.seed!r}.")
    for metric, value in figure.values.items():
        if type(value) not in (int, float) or not abs(value) < LARGEST:
            raise EvaluationError(f"{figure.file}: the {metric} of this result is no finite number: {value!r}.")


def _blender(file: Path, result: dict[str, Any]) -> Figure:
    width, height = result["resolution"]
    official, count, every = result["official_scene"], result["num_test_images"], result["every"]
    inputs = paper_table("blender").setting.inputs
    if official is None:
        inputs = f"{count} test images, not those of an official scene"
    if every > 1:
        inputs = f"every {every}th: {inputs}"
    return Figure(
        setting=Setting(result["protocol"], f"{width}x{height}", inputs),
        method=_method(result["source"], "renders"),
        item=official or Path(result["scene"]).name,
        seed=result["source"].get("seed"),
        values=_numbers(result, ("psnr", "ssim")),
        file=file,
    )


def _dtu(file: Path, result: dict[str, Any]) -> Figure:
    source, scan = result["source"], result["scan"]
    protocol = f"cull {result['cull']}" + (", points as they are" if result["mode"] == "pointcloud" else "")
    size = source.get("image_size")
    resolution = "x".join(map(str, size)) if size else "size of the pictures not said"
    if source.get("resolution", FULL_GRID) != FULL_GRID:
        resolution += f", surface on a grid of {source['resolution']}"
    return Figure(
        setting=Setting(
            protocol, resolution, paper_table("dtu").setting.inputs if scan in DTU_SCANS else OWN_REFERENCE
        ),
        method=_method(source, "surface"),
        item=str(scan),
        seed=source.get("seed"),
        values=_numbers(result, ("overall",)),
        file=file,
    )


def _method(source: dict[str, Any], place: str) -> str:
    name = source.get("method") or Path(source.get(place) or source["config"]).name
    if "config" in source and name in NOT_THE_PUBLISHED:
        name += " of nerfstudio"
    if options := source.get("options"):
        name += f" ({', '.join(f'{option} {value}' for option, value in sorted(options.items()))})"
    return f"{name}, {source['step'] + 1:,} steps" if "step" in source else name


def _representation(results: Sequence[tuple[Path, dict[str, Any]]], table: TableName) -> Iterator[Figure]:
    """Those at the presets' learning rates; where others were tried, all of them as another protocol, too."""
    by_protocol: dict[str, list[tuple[Path, dict[str, Any]]]] = defaultdict(list)
    for file, result in results:
        by_protocol[_protocol(result, table)].append((file, result))
    for protocol, runs in by_protocol.items():
        untuned = [(file, result) for file, result in runs if _has_presets_rate(result)]
        yield from _at_best_rates(untuned, protocol, table)
        if len(untuned) < len(runs):
            rates = [f"{rate:g}" for rate in sorted({result["spec"]["learning_rate"] for _, result in runs})]
            words = "learning rate" if len(rates) == 1 else "each method's best of learning rates"
            yield from _at_best_rates(runs, f"{protocol}, {words} {', '.join(rates)}", table)


def _has_presets_rate(result: dict[str, Any]) -> bool:
    from crossnorm_ns.representation.presets import PRESETS, family

    spec = result["spec"]
    return spec["learning_rate"] == PRESETS[spec["preset"]][spec["task"]].learning_rates[family(spec["method"])]


def _at_best_rates(
    results: Sequence[tuple[Path, dict[str, Any]]], protocol: str, table: TableName
) -> Iterator[Figure]:
    """Means over inputs, but for shapes; each method with its best learning rate by the first metric."""
    metrics = tuple(paper_table(table).values)
    groups: dict[tuple[str, str], list[tuple[Path, dict[str, Any]]]] = defaultdict(list)
    for file, result in results:
        groups[_item_of(result, table)].append((file, result))
    for (item, shapes), group in groups.items():
        stems = {Path(result["spec"]["input"]).stem for _, result in group}
        sizes = {"x".join(map(str, result["size"])) for _, result in group}
        of_paper = (table, stems) == ("image", KODAK)
        inputs = shapes or (paper_table(table).setting.inputs if of_paper else _listed(stems))
        setting = Setting(protocol, " or ".join(sorted(sizes, reverse=True)), inputs)
        for method in {result["spec"]["method"]: None for _, result in group}:
            runs = [(file, result) for file, result in group if result["spec"]["method"] == method]
            rates = sorted({result["spec"]["learning_rate"] for _, result in runs})
            best = max(rates, key=lambda rate: _score(runs, rate, metrics[0], stems))
            at_best = [(file, result) for file, result in runs if result["spec"]["learning_rate"] == best]
            for seed in sorted({result["spec"]["seed"] for _, result in at_best}):
                mine = [(file, result) for file, result in at_best if result["spec"]["seed"] == seed]
                values = {metric: _mean(mine, metric, stems) for metric in metrics}
                kept = {metric: value for metric, value in values.items() if value is not None}
                yield Figure(setting, method, item, seed, kept, mine[0][0])


def _protocol(result: dict[str, Any], table: TableName) -> str:
    spec = result["spec"]
    if spec["preset"] == "paper" and spec["steps"] is None and not spec["changes"]:
        protocol = "paper preset"
    else:
        protocol = f"{spec['preset']} preset, {result['options']['steps']:,} steps"
    changes = ", ".join(f"{name} {value}" for name, value in sorted(spec["changes"].items()))
    network = f"network {spec['network']}" if table == "shape" and spec["network"] != "2x256" else ""
    return ", ".join(part for part in (protocol, changes, network) if part)


def _item_of(result: dict[str, Any], table: TableName) -> tuple[str, str]:
    """The line of the table, and what was represented where that is part of it."""
    if table != "shape":
        return result["spec"]["network"], ""
    from crossnorm_ns.representation.table_results import paper_shape

    stem = Path(result["spec"]["input"]).stem
    shape = paper_shape(stem)
    return (stem, "shapes of one's own") if shape is None else (shape, paper_table(table).setting.inputs)


def _score(runs: Sequence[tuple[Path, dict[str, Any]]], rate: float, metric: str, stems: set[str]) -> float:
    mine = [(file, result) for file, result in runs if result["spec"]["learning_rate"] == rate]
    mean = _mean(mine, metric, stems)
    return float("-inf") if mean is None else mean


def _mean(runs: Sequence[tuple[Path, dict[str, Any]]], metric: str, stems: set[str]) -> float | None:
    """Over all inputs; None where one is missing or has diverged."""
    values = {}
    for file, result in runs:
        key, value = (Path(result["spec"]["input"]).stem, result["spec"]["seed"]), result["metrics"].get(metric)
        if values.setdefault(key, value) != value:
            raise EvaluationError(f"{file} and another file have different results of one run: leave one.")
    if {stem for stem, _ in values} != stems or None in values.values():
        return None
    return fmean(values.values())


def _numbers(result: dict[str, Any], metrics: Sequence[str]) -> dict[str, float]:
    return {metric: result[metric] for metric in metrics if result[metric] is not None}


def _listed(names: set[str], most: int = 6) -> str:
    shown = sorted(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
