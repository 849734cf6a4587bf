"""Builds the C++ kernels on first use and keeps them in the user's cache."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import warnings
from pathlib import Path

import torch

_SOURCE = Path(__file__).parent / "normalization.cpp"
_NAME = "crossnorm_cpu"
_LOCK = threading.Lock()
_loaded: bool | None = None
_OPENMP = "-fopenmp" if sys.platform.startswith("linux") else "-fopenmp-simd"
_FLAGS = ["-O3", "-march=native", _OPENMP, "-fno-math-errno", "-ffp-contract=fast"]


def _cached_library() -> Path:
    """Where the library for this source, torch and processor lies: shared homes serve unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.exists() else ""
    features = sorted(line for line in processor.splitlines() if line.startswith(("flags", "Features", "model name")))
    key = "\n".join([_SOURCE.read_text(), *_FLAGS, torch.__version__, sysconfig.get_platform(), *features])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "crossnorm_ns" / digest / f"{_NAME}.so"


def _build_and_load(library: Path) -> None:
    # Built aside and renamed into place: a build that is killed leaves nothing that a later one would wait for.
    from torch.utils import cpp_extension

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    library.parent.mkdir(parents=True, exist_ok=True)
    scripts, path = sysconfig.get_path("scripts"), os.environ.get("PATH", "")
    folder = tempfile.mkdtemp(dir=library.parent)
    try:
        os.environ["PATH"] = os.pathsep.join([scripts, path])  # ninja comes with the environment, active or not
        cpp_extension.load(
            _NAME,
            [str(_SOURCE)],
            extra_cflags=_FLAGS,
            extra_ldflags=[_OPENMP],
            build_directory=folder,
            is_python_module=False,
        )
        os.replace(next(Path(folder).glob("*.so")), library)
    finally:
        os.environ["PATH"] = path
        shutil.rmtree(folder, ignore_errors=True)


@torch.compiler.assume_constant_result
def load_cpu_kernels() -> bool:
    """Gives the operators of `crossnorm_ns.kernels` their C++ kernels; False where they cannot be built (said once)."""
    global _loaded  # noqa: PLW0603
    if _loaded is None:
        with _LOCK:  # a viewer's thread may come second
            _loaded = _load_cpu_kernels() if _loaded is None else _loaded
    return _loaded


def _load_cpu_kernels() -> bool:
    try:
        library = _cached_library()
        if library.exists():
            torch.ops.load_library(library)
        else:
            _build_and_load(library)
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"the C++ kernels of crossnorm-ns could not be built ({reason}): the slower plain formula is used",
            stacklevel=2,
        )
        return False
    return True
