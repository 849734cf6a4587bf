"""The notebooks run, and print what their committed outputs say."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the extra `docs` is not installed")
nbclient = pytest.importorskip("nbclient", reason="the extra `docs` is not installed")

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?"


def printed(notebook: "nbformat.NotebookNode") -> str:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")


def pictures(notebook: "nbformat.NotebookNode") -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_prints_what_its_committed_outputs_say(path: Path) -> None:
    """Rounding of another machine may move the last digits of a training."""
    stored, executed = nbformat.read(path, as_version=4), nbformat.read(path, as_version=4)
    for cell in executed.cells:
        cell["outputs"] = []
    nbclient.NotebookClient(executed, timeout=300, kernel_name="python3").execute()
    expected, found = printed(stored), printed(executed)
    assert re.sub(NUMBER, "", found) == re.sub(NUMBER, "", expected) != ""
    assert [float(n) for n in re.findall(NUMBER, found)] == pytest.approx(
        [float(n) for n in re.findall(NUMBER, expected)], rel=0.05
    )
    assert pictures(executed) == pictures(stored) > 0


def test_notebook_shows_the_gain_of_cross_normalization() -> None:
    text = printed(nbformat.read(FOLDER / "image_and_kernel.ipynb", as_version=4))
    psnr = {name: float(value) for name, value in re.findall(r"(\S+): (\S+) dB after", text)}
    median = {name: float(value) for name, value in re.findall(r"(\S+): largest.* median (\S+)", text)}
    assert psnr["pe+cn"] > psnr["pe"] + 3
    assert min(median["relu+bn"], median["relu+cn"]) > 1e3 * median["relu"]
