"""What importing the package costs, and which of its parts may know nerfstudio."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import crossnorm_ns

ROOT = Path(crossnorm_ns.__file__).parent
HEAVY = ["nerfstudio", "open3d", "trimesh", "cv2", "tinycudann", "torchvision", "matplotlib", "scipy", "skimage"]
WITHOUT_NERFSTUDIO = ["functional", "norms", "networks", "kernels", "representation"]


def test_importing_the_package_loads_torch_and_nothing_heavier():
    program = f"import sys, crossnorm_ns; print([name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize(
    "path", sorted([*ROOT.glob("*.py"), *(p for part in WITHOUT_NERFSTUDIO for p in (ROOT / part).rglob("*.py"))])
)
def test_the_mathematics_does_not_know_nerfstudio(path):
    above = ("nerfstudio", "crossnorm_ns.models", "crossnorm_ns.fields", "crossnorm_ns.engine", "crossnorm_ns.data")
    assert not [name for name in imported_modules(path) if name.startswith(above)]


def test_every_public_name_exists():
    for name in crossnorm_ns.__all__:
        assert hasattr(crossnorm_ns, name)
    for part in (crossnorm_ns.functional, crossnorm_ns.norms):
        assert all(hasattr(part, name) for name in part.__all__)
