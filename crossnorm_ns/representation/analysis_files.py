"""Files of results: JSON and figures."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossnorm_ns.files import atomic_file
from crossnorm_ns.representation.run_folder import finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def write_json(content: Any, path: Path) -> None:
    """Writes JSON; NaN and infinity, which it has not, are null."""
    with atomic_file(path) as file:
        file.write((json.dumps(finite(content), indent=1, allow_nan=False) + "\n").encode())


def write_figure(figure: Figure, path: Path) -> None:
    """Writes a figure as PNG."""
    contents = io.BytesIO()
    figure.savefig(contents, format="png")
    with atomic_file(path) as file:
        file.write(contents.getvalue())
