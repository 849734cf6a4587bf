"""Builds the C++ kernels on first use and keeps them in the user's cache."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import shutil
import subprocess
import sysconfig
import tempfile
import types
import warnings
from pathlib import Path

import torch

_SOURCE = Path(__file__).parent / "cross_norm.cpp"
_NAME = "crossnorm_cpu"
_FLAGS = ["-O3", "-march=native", "-fopenmp-simd", "-fno-math-errno", "-ffp-contract=fast"]


def _cached_library() -> Path:
    """Where the library for this source, torch, Python and processor lies: shared homes serve unlike machines."""
    cpuinfo = Path("/proc/cpuinfo")
    processor = cpuinfo.read_text().split("\n\n")[0] if cpuinfo.exists() else ""
    features = sorted(line for line in processor.splitlines() if line.startswith(("flags", "Features", "model name")))
    key = "\n".join([_SOURCE.read_text(), *_FLAGS, torch.__version__, sysconfig.get_platform(), *features])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "crossnorm_ns" / digest / f"{_NAME}{sysconfig.get_config_var('EXT_SUFFIX')}"


def _build(library: Path) -> None:
    # Built aside and renamed into place: a build that is killed leaves nothing that a later one would wait for.
    from torch.utils import cpp_extension

    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    library.parent.mkdir(parents=True, exist_ok=True)
    scripts, path = sysconfig.get_path("scripts"), os.environ.get("PATH", "")
    folder = tempfile.mkdtemp(dir=library.parent)
    try:
        os.environ["PATH"] = os.pathsep.join([scripts, path])  # ninja comes with the environment, active or not
        cpp_extension.load(_NAME, [str(_SOURCE)], extra_cflags=_FLAGS, build_directory=folder)
        os.replace(next(Path(folder).glob("*.so")), library)
    finally:
        os.environ["PATH"] = path
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def cpu_extension() -> types.ModuleType | None:
    """The compiled kernels; None where they cannot be built (said once) or `CROSSNORM_KERNELS=plain` is set."""
    if os.environ.get("CROSSNORM_KERNELS") == "plain":
        return None
    try:
        library = _cached_library()
        if not library.exists():
            _build(library)
        spec = importlib.util.spec_from_file_location(_NAME, library)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except (RuntimeError, OSError, ImportError, subprocess.SubprocessError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"the C++ kernels of crossnorm-ns could not be built ({reason}): the slower plain formula is used",
            stacklevel=2,
        )
        return None
    return module
