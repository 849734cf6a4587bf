"""Damaged files end in one line that names them and exit code 2, or in a right result: no traceback, no hang, no file.

The short form takes a part of the cases; CROSSNORM_FAULTS=long takes all and writes docs/results/bad_input.{json,md}.
"""

import importlib
import os
import shutil
from pathlib import Path

import fits
import networks
import pytest
import scans
import scenes
import surfaces
import tables
from figures import store
from kinds import Kind, Outcome, tried

LONG = os.environ.get("CROSSNORM_FAULTS") == "long"
SHARE = 1.0 if LONG else 0.15
KINDS = [*scenes.KINDS, *scans.KINDS, *fits.KINDS, *surfaces.KINDS, *networks.KINDS, *tables.KINDS]
NEEDED = (
    "crossnorm_ns.representation.progress",
    "crossnorm_ns.representation.runs",
    "embreex",
    "eval.chamfer",
    "eval.chamfer_results",
    "eval.renders",
    "eval.runs",
    "crossnorm_ns.functional.marching_cubes",
    "eval.scoring",
    "eval.sheet",
    "eval.views",
    "matplotlib.backends.backend_agg",
    "rich.progress",
    "scipy.io",
    "skimage.measure",
    "trimesh.exchange.load",
)
"""What commands import late: once here instead of in each process."""
outcomes: list[Outcome] = []
pytestmark = pytest.mark.usefixtures("own_writers")  # commands are forked


@pytest.fixture(scope="module", autouse=True)
def everything_imported() -> None:
    for name in NEEDED:
        importlib.import_module(name)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damaged_files_end_in_one_line_or_a_right_result(kind: Kind, tmp_path: Path) -> None:
    valid = tmp_path / "valid"
    kind.make(valid)
    content = (valid / kind.file).read_bytes()
    for number, damage in enumerate(kind.cases(content, SHARE)):
        folder = shutil.copytree(valid, tmp_path / str(number))
        outcomes.append(tried(kind, damage, folder))
        shutil.rmtree(folder)
    mine = [outcome for outcome in outcomes if outcome.kind == kind.name]
    assert not [f"{outcome.case}: {outcome.wrong}" for outcome in mine if outcome.wrong is not None]
    assert any(outcome.refused for outcome in mine)
    assert not any(str(tmp_path) in outcome.ending.err for outcome in mine), "it would be in the stored figures"


@pytest.mark.skipif(not LONG, reason="figures are those of the long form: CROSSNORM_FAULTS=long")
def test_figures_of_all_cases_are_stored() -> None:
    assert len(outcomes) >= 400 and not any(outcome.wrong for outcome in outcomes)
    store(outcomes, Path(__file__).parents[2] / "docs" / "results")
