"""The site builds without warnings, and its pages of options say what the commands' own help says."""

import contextlib
import io
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from crossnorm_ns.data import make_scene
from eval.blender import Arguments as BlenderArguments
from method_configs.elsewhere import nerfacto_cn, vanilla_nerf_cn
from method_configs.mipnerf import mipnerf_cn
from method_configs.neus import neus_cn_tiny

sphinx = pytest.importorskip("sphinx", reason="the extra `docs` is not installed")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def generated(name: str) -> str:
    return (ROOT / "docs" / "generated" / f"{name}.md").read_text()


def options_on_page(text: str) -> set[str]:
    """Options in the tables of a page, with their section's prefix."""
    found, prefix = set(), "--"
    for line in text.splitlines():
        if line.startswith("## "):
            heading = re.fullmatch(r"## `(--.+)`", line)
            prefix = f"{heading[1]}." if heading else "--"
        elif row := re.match(r"\| `([\w-]+)` \|", line):
            found.add(prefix + row[1])
    return found


def options_in_help(config: object) -> set[str]:
    """Options that tyro prints, but the switches that turn something off and what cannot be changed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        if isinstance(config, type | types.FunctionType):
            tyro.cli(config, args=["--help"])
        else:
            tyro.cli(type(config), default=config, args=["--help"])
    plain = re.sub(r"\x1b\[[\d;]*m", "", printed.getvalue())
    names = set(re.findall(r"(?:^[│\s]*|, )(--[a-z][\w.-]*\w)(?=[ ,\n])", plain, flags=re.MULTILINE))
    return {name for name in names if "_target" not in name and not re.search(r"(--|\.)no-", name)} - {"--help"}


def test_site_builds_without_warnings_and_leads_to_every_page(site: Path) -> None:
    front = (site / "index.html").read_text()
    sources = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").glob("*.md")}
    for page in sources - {Path("index.html")}:
        assert f'href="{page}"' in front


@pytest.mark.parametrize(("page", "config"), [("mipnerf", mipnerf_cn.config), ("neus", neus_cn_tiny.config)])
def test_pages_of_methods_have_all_options_of_their_help(site: Path, page: str, config: object) -> None:
    assert options_on_page(generated(f"methods-{page}")) == options_in_help(config)


def test_page_of_two_methods_has_all_options_of_both(site: Path) -> None:
    both = options_in_help(vanilla_nerf_cn.config) | options_in_help(nerfacto_cn.config)
    assert options_on_page(generated("methods-elsewhere")) == both


def test_page_of_commands_has_all_options_of_their_help(site: Path) -> None:
    section = generated("commands").split("## python -m eval.blender\n")[1].split("\n## ")[0]
    assert options_on_page(section) == options_in_help(BlenderArguments)


@pytest.mark.parametrize("name", ["blender", "dtu"])
def test_page_of_commands_has_all_options_of_example_scenes(site: Path, name: str) -> None:
    section = generated("commands").split(f"## python -m crossnorm_ns.data.make_scene {name}\n")[1].split("\n## ")[0]
    assert options_on_page(section) - {"--out"} == options_in_help(make_scene.FORMATS[name])
    assert "| `resolution` | `int` | `" in section and "of the pictures in pixels" in section


def test_page_of_commands_names_torchruns_and_has_no_types_of_python(site: Path) -> None:
    page = generated("commands")
    assert "## python -m crossnorm_ns.engine.launch" in page
    assert not re.search(r"(tuple|list|Literal)\[", page)


def test_pages_of_results_have_one_heading(site: Path) -> None:
    pages = sorted((site / "results").glob("*.html"))
    assert {page.name: page.read_text().count("<h1>") for page in pages} == {page.name: 1 for page in pages}
    assert "<h1>ct table, quick preset" in (site / "results" / "ct-quick.html").read_text()


def test_every_method_and_dataparser_has_its_options_on_a_page(site: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    entry_points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "generated").glob("methods-*.md"))
    for method in entry_points["nerfstudio.method_configs"]:
        assert f"- **{method}**: " in pages
    for dataparser in entry_points["nerfstudio.dataparser_configs"]:
        assert f"\n## {dataparser}\n" in generated("dataparsers")


def test_defaults_that_differ_are_given_for_each_method(site: Path) -> None:
    (row,) = [line for line in generated("methods-mipnerf").splitlines() if line.startswith("| `norm` |")]
    assert "| `cn` (mipnerf-cn, mipnerf-cn-tiny)<br>`none` (mipnerf-ref) |" in row
    html = (site / "generated" / "methods-mipnerf.html").read_text()
    assert "Norm before each hidden ReLU" in html


@pytest.mark.parametrize("page", ["mipnerf", "neus", "volsdf"])
def test_options_of_nerfstudio_without_effect_say_so(site: Path, page: str) -> None:
    text = generated(f"methods-{page}")
    coefficients = [line for line in text.splitlines() if line.startswith("| `rgb-loss")]
    assert len(coefficients) == 2 and all("| Unused: " in line for line in coefficients)
    assert "| `prompt` | `str or None` | `None` | Unused. |" in text


def test_defaults_that_are_functions_are_named(site: Path) -> None:
    (row,) = [line for line in generated("methods-mipnerf").splitlines() if line.startswith("| `collate-fn` |")]
    assert "| `nerfstudio_collate` |" in row


def test_program_of_the_five_minute_start_leaves_a_function_of_one_point() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "start.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(program, names)
    net, points = names["net"], names["points"]
    torch.testing.assert_close(net(points)[:7], net(points[:7]))
