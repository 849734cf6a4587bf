"""What is to be submitted to nerfstudio, held against the installed nerfstudio and this package."""

import re
import runpy
from pathlib import Path

import pytest
from nerfstudio.configs import external_methods

tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "nerfology"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
METHODS = set(PROJECT["entry-points"]["nerfstudio.method_configs"])


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> external_methods.ExternalMethod:
    """What the snippet adds to nerfstudio's list."""
    monkeypatch.setattr(external_methods, "external_methods", [])
    runpy.run_path(str(FOLDER / "external_method.py"))
    (method,) = external_methods.external_methods
    assert isinstance(method, external_methods.ExternalMethod)
    return method


def test_snippet_names_all_methods_and_no_other(entry: external_methods.ExternalMethod) -> None:
    assert {slug for slug, _ in entry.configurations} == METHODS
    assert all(description for _, description in entry.configurations)


def test_nerfstudio_offers_the_methods_of_the_snippet(entry: external_methods.ExternalMethod) -> None:
    offered, descriptions = external_methods.get_external_methods()
    assert set(offered) == set(descriptions) == METHODS
    assert descriptions["mipnerf-cn"].startswith("[External")


def test_snippet_installs_this_package_and_leads_to_its_page(entry: external_methods.ExternalMethod) -> None:
    assert entry.pip_package == PROJECT["name"]
    assert f"pip install {PROJECT['name']}" in entry.instructions
    (page,) = re.findall(r"https://docs\.nerf\.studio/nerfology/methods/(\w+)\.html", entry.instructions)
    assert (FOLDER / "methods" / f"{page}.md").is_file()


def test_page_names_methods_and_an_installation_that_exist() -> None:
    page = (FOLDER / "methods" / "crossnorm.md").read_text()
    assert set(re.findall(r"^\| `([\w-]+)` \|", page, flags=re.MULTILINE)) == METHODS
    assert set(re.findall(r"ns-train ([\w-]+)", page)) <= METHODS
    assert set(re.findall(r"pip install (\S+)", page)) == {PROJECT["name"]}
