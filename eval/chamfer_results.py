"""What a comparison with DTU's scans found: for a JSON file and for people."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from crossnorm_ns.paper_tables import AVERAGE, paper_table
from crossnorm_ns.provenance import provenance
from eval.chamfer import Comparison
from eval.dtu_files import DTU_SCANS, Mode
from eval.mesh_cleaning import Cull

PROTOCOL = "DTUeval-python at 45b4fec: points 0.2 mm apart, distances below 20 mm, means in mm"


@dataclass(frozen=True)
class ChamferResult:
    """Chamfer distance of one surface."""

    comparison: Comparison
    scan: int
    source: dict[str, Any]
    """Where the surface comes from: a file, or a run."""
    mode: Mode
    cull: Cull
    culling: dict[str, Any] | None
    """Scene, image width and kernel size of the cleaning; None where there was none."""
    seed: int
    dataset_dir: str

    def as_dict(self) -> dict[str, Any]:
        """For JSON; distances in millimetres."""
        found = self.comparison
        return {
            "protocol": PROTOCOL,
            "scan": self.scan,
            "mode": self.mode,
            "cull": self.cull,
            "seed": self.seed,
            "accuracy": found.accuracy,
            "completeness": found.completeness,
            "overall": found.overall,
            "accuracy_median": found.data.median,
            "completeness_median": found.reference.median,
            "overall_median": found.overall_median,
            "num_points": found.num_points,
            "culling": self.culling,
            "source": self.source,
            "dataset_dir": self.dataset_dir,
            **provenance(),
        }

    def heading(self) -> str:
        """Scan, cleaning and the chamfer distance in a line."""
        return f"DTU scan {self.scan}, cull {self.cull}: {self.comparison.overall:.3f} mm"

    def summary(self) -> Group:
        """For the terminal."""
        found = self.comparison
        table = Table()
        for column in ("", "mean (mm)", "median (mm)", "points"):
            table.add_column(column, justify="right" if column else "left")
        count = found.num_points
        for name, mean, median, points in (
            ("accuracy", found.accuracy, found.data.median, f"{count['observed']:,}"),
            ("completeness", found.completeness, found.reference.median, f"{count['reference_above_plane']:,}"),
        ):
            table.add_row(name, f"{mean:.4f}", f"{median:.4f}", points)
        table.add_row("overall", f"{found.overall:.4f}", f"{found.overall_median:.4f}", "", style="bold")
        return Group(Text(self.heading(), style="bold"), table, Text(f"{PROTOCOL}; seed {self.seed}."))


def mean_overall(results: Sequence[ChamferResult]) -> float:
    """Mean chamfer distance over scans, millimetres."""
    return sum(result.comparison.overall for result in results) / len(results)


def all_as_dict(results: Sequence[ChamferResult]) -> dict[str, Any]:
    """For JSON: the mean over the scans that there are, and each of them."""
    found = [result.scan for result in results]
    return {
        "overall": mean_overall(results),
        "num_scans": len(results),
        "missing_scans": [scan for scan in DTU_SCANS if scan not in found],
        "scans": [result.as_dict() for result in results],
    }


def table_of_scans(results: Sequence[ChamferResult]) -> Group:
    """The paper's table VII, turned on its side, with the results as its last column."""
    by_scan = {result.scan: result.comparison.overall for result in results}
    table = Table(title="Chamfer distance on DTU (mm)", title_style="bold")
    table.add_column("scan", justify="right")
    paper = paper_table("dtu")
    figures = paper.values["overall"]
    for method in paper.methods:
        table.add_column(method, justify="right")
    table.add_column("this", justify="right", style="bold")
    for scan in DTU_SCANS:
        ours = f"{by_scan[scan]:.2f}" if scan in by_scan else "-"
        table.add_row(str(scan), *(f"{value:.2f}" for value in figures[str(scan)].values()), ours)
    table.add_section()
    averages = [f"{value:.2f}" for value in figures[AVERAGE].values()]
    if len(by_scan) < len(DTU_SCANS):
        means = [sum(figures[str(scan)][method] for scan in by_scan) / len(by_scan) for method in paper.methods]
        label, ours = f"mean of {len(by_scan)}", f"{mean_overall(results):.2f}"
        table.add_row(label, *(f"{mean:.2f}" for mean in means), ours, style="bold")
        table.add_row("mean of 15", *averages, "-")
    else:
        table.add_row("mean", *averages, f"{mean_overall(results):.2f}", style="bold")
    others = (f"{other.method} by {other.source}: {other.values['overall'][AVERAGE]}" for other in paper.others)
    notes = (
        f"Columns before the last: table {paper.number} of the paper on Cross Normalization (Ours is NeuS+CN). Means "
        f"elsewhere: {'; '.join(others)}.\n"
        f"This: {PROTOCOL}; cull {results[0].cull}, seed {results[0].seed}. Another cull is another metric."
    )
    return Group(table, Text(notes))
