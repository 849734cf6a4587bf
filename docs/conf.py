"""The documentation site: `make docs`, or `sphinx-build -W docs docs/_build`. It needs the extra `docs`."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

import crossnorm_ns

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "crossnorm-ns"
author = "The crossnorm-ns developers"
copyright = f"2026, {author}"  # noqa: A001 (the name Sphinx gives it)
release = crossnorm_ns.__version__

extensions = [
    "myst_nb",
    "option_pages",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "nerfology"]  # the latter is written for nerfstudio's own site
highlight_language = "text"  # of blocks that do not name theirs: commands
smartquotes = False  # two dashes are those of an option
default_role = "code"  # docstrings have names in single backticks

myst_heading_anchors = 3
nb_execution_mode = "off"  # the committed outputs are shown; a test executes the notebooks

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"crossnorm-ns {release}"


def title_of_results(app: Sphinx, name: str, source: list[str]) -> None:
    """What benchmarks have written is reached by links alone, and has its file's name as heading where it has none."""
    if name.startswith("results/"):
        heading = "" if source[0].startswith("# ") else f"# {name.removeprefix('results/')}\n\n"
        source[0] = f"---\norphan: true\n---\n\n{heading}{source[0]}"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", title_of_results)
