"""What belongs to a release says one version, and its files are well-formed."""

import json
import re
from pathlib import Path

import pytest
import yaml

import crossnorm_ns

ROOT = Path(__file__).parents[1]
VERSION = crossnorm_ns.__version__


def test_the_package_takes_its_version_from_the_module() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    content = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert content["project"]["dynamic"] == ["version"] and "version" not in content["project"]
    assert content["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "crossnorm_ns.__version__"}


def test_citation_and_changelog_have_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == VERSION
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[:2] == ["Unreleased", f"{VERSION} - {citation['date-released']}"]


def test_the_paper_is_cited_by_its_authors_and_number() -> None:
    (paper,) = yaml.safe_load((ROOT / "CITATION.cff").read_text())["references"]
    names = [author["family-names"] for author in paper["authors"]]
    source = json.loads((ROOT / "crossnorm_ns" / "data" / "paper_tables.json").read_text())["source"]
    authors, _, rest = source.partition(": ")
    assert authors.split(", ") == names
    assert paper["identifiers"][0]["value"] in rest and paper["title"].lower() in rest.lower()
    for page in ("README.md", "docs/index.md", "docs/nerfology/methods/crossnorm.md"):
        assert paper["url"] in (ROOT / page).read_text()


def test_no_dependency_is_an_address_which_package_indices_refuse() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extra in (project["dependencies"], *project["optional-dependencies"].values()):
        assert not [name for name in extra if "@" in name]


@pytest.mark.parametrize("path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda p: p.stem)
def test_issue_templates_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"]
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids) > 0
    assert all(field["type"] in ("textarea", "input") and field["attributes"]["label"] for field in form["body"])
