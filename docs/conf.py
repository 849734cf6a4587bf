"""The documentation site: `make docs`, or `sphinx-build -W docs docs/_build`. It needs the extra `docs`."""

import sys
from pathlib import Path

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
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the committed outputs are shown; a test executes the notebooks

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True

html_theme = "furo"
html_title = f"crossnorm-ns {release}"
html_extra_path = ["results"]
