"""What trainings of methods with CN and without one come to: best against best, and tables."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.mipnerf import seconds_to_reach
from benchmarks.processes import Result
from benchmarks.tables import table

SIDES = ("none", "cn")


@dataclass
class Verdict:
    """Both sides of a method at the learning rates that were best for them; means over seeds."""

    method: str
    rates: dict[str, float]
    """Learning rates by side."""
    at_edge: dict[str, bool]
    """Whether that was the lowest or the highest of those that were tried, by side."""
    plain: dict[str, float]
    """Scores."""
    equal_steps: dict[str, float]
    """CN's scores at the end."""
    equal_seconds: dict[str, float]
    """CN's scores when the plain side had finished; NaN where CN had not been looked at by then."""
    step_ratio: float
    """Seconds of a CN step over those of a plain one."""
    to_plain: float | None
    """Seconds until CN had the plain side's last PSNR over the plain side's; None where it never had it."""


def verdict(results: Sequence[Result]) -> Verdict | None:
    """Of the results of one method; None where a side broke off at all its learning rates."""
    best: dict[str, list[Result]] = {}
    at_edge: dict[str, bool] = {}
    for side in SIDES:
        groups = [group for group in _groups(results) if group[0]["run"]["norm"] == side]
        whole = [group for group in groups if not any("error" in result for result in group)]
        if not whole:
            return None
        best[side] = max(whole, key=lambda group: _mean(group, "validation_psnr"))
        at_edge[side] = best[side] in (groups[0], groups[-1])
    plain, cross = best["none"], best["cn"]
    pairs = list(zip(plain, cross, strict=True))
    at_time = [scores_after(cn["curve"], none["seconds"]) for none, cn in pairs]
    reached = [seconds_to_reach(cn, none["psnr"]) for none, cn in pairs]
    shares = [seconds / none["seconds"] for seconds, none in zip(reached, plain, strict=True) if seconds is not None]
    scores = [name for name in ("psnr", "ssim", "chamfer") if all(name in r for r in (*plain, *cross))]
    return Verdict(
        method=plain[0]["run"]["method"],
        rates={side: group[0]["learning_rate"] for side, group in best.items()},
        at_edge=at_edge,
        plain={name: _mean(plain, name) for name in scores},
        equal_steps={name: _mean(cross, name) for name in scores},
        equal_seconds={name: statistics.mean(found[name] for found in at_time) for name in ("psnr", "ssim")},
        step_ratio=_mean(cross, "seconds") / _mean(plain, "seconds"),
        to_plain=statistics.mean(shares) if len(shares) == len(pairs) else None,
    )


def scores_after(curve: Sequence[Mapping[str, float]], seconds: float) -> dict[str, float]:
    """PSNR and SSIM after so many seconds of training, interpolated; NaN before the first moment of the curve."""
    times = [point["seconds"] for point in curve]
    return {
        name: float(np.interp(seconds, times, [point[name] for point in curve], left=np.nan))
        for name in ("psnr", "ssim")
    }


def _groups(results: Sequence[Result]) -> list[list[Result]]:
    """The seeds of each side at each rate, in the order of the rates."""
    keys = {(r["run"]["rate"], r["run"]["norm"]) for r in results}
    order = sorted(keys, key=lambda key: (key[0], SIDES.index(key[1])))
    return [[r for r in results if (r["run"]["rate"], r["run"]["norm"]) == key] for key in order]


def _mean(results: Sequence[Result], name: str) -> float:
    return statistics.mean(result[name] for result in results)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """Best against best, a row for each method."""
    rows = []
    for found in verdicts:
        rates = [f"{found.rates[side]:.2g}{' (edge)' if found.at_edge[side] else ''}" for side in SIDES]
        plain, steps, seconds = found.plain, found.equal_steps, found.equal_seconds
        rows.append(
            [
                found.method,
                *rates,
                f"{plain['psnr']:.2f}",
                *(_with_gain(scores["psnr"], plain["psnr"]) for scores in (steps, seconds)),
                " / ".join(_known(scores["ssim"], ".3f") for scores in (plain, steps, seconds)),
                " / ".join(f"{scores['chamfer']:.2f}" for scores in (plain, steps)) if "chamfer" in plain else "-",
                f"{found.step_ratio:.2f}",
                "not reached" if found.to_plain is None else f"{found.to_plain:.2f}",
            ]
        )
    heads = [
        "method",
        "rate: none",
        "rate: CN",
        "PSNR: none",
        "CN, equal steps",
        "CN, equal seconds",
        "SSIM: none / CN, steps / CN, seconds",
        "chamfer (mm): none / CN",
        "CN's step / none's",
        "seconds to none's PSNR / none's",
    ]
    return table(heads, rows)


def _known(score: float, form: str) -> str:
    return "-" if np.isnan(score) else f"{score:{form}}"


def _with_gain(psnr: float, plain: float) -> str:
    return "-" if np.isnan(psnr) else f"{psnr:.2f} ({psnr - plain:+.2f})"


def grid_table(results: Sequence[Result]) -> str:
    """All sides and rates of one method."""
    rows = []
    for group in _groups(results):
        run = group[0]["run"]
        cells = [_cell(group, name, digits) for name, digits in _GRID_CELLS.items()]
        rows.append([run["norm"], f"{group[0]['learning_rate']:.2g}", f"{run['rate']:.3g}", *cells])
    broken = dict.fromkeys(r["error"] for r in results if "error" in r)
    lost = dict.fromkeys(r["surface_error"] for r in results if "surface_error" in r)
    notes = "".join(f"\n\n{reason}" for reason in (*broken, *lost))
    heads = ["norm", "learning rate", "of the preset's", "PSNR", "SSIM", "validation PSNR", "chamfer (mm)", "seconds"]
    return table(heads, rows) + notes


_GRID_CELLS = {"psnr": 2, "ssim": 3, "validation_psnr": 2, "chamfer": 2, "seconds": 1}


def _cell(group: Sequence[Result], name: str, digits: int) -> str:
    if any("error" in result for result in group):
        return "broke off"
    return f"{_mean(group, name):.{digits}f}" if all(name in result for result in group) else "-"
