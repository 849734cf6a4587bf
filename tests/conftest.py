"""Shared fixtures: where the real test data lies, and one thread so that results repeat."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real test data: `CROSSNORM_DATA`, or `../shared/data` beside the checkout."""
    folder = Path(os.environ.get("CROSSNORM_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real test data not found at {folder}: set CROSSNORM_DATA to its folder")
    return folder
