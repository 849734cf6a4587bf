"""What a result depends on beside its own options: versions, machine, commit. Stored in every file of results."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("crossnorm-ns", "nerfstudio", "torch", "torchmetrics", "numpy", "scipy", "trimesh")
_CHECKOUT = Path(__file__).parents[1]


def provenance() -> dict[str, Any]:
    """Where a result comes from, as plain JSON values.

    Returns:
        `versions` (Python's and packages', None for what is not installed), `machine`, `git_commit` of this package's
        checkout and `git_dirty`, whether tracked files but those of docs/ (where results go) differ from it; both are
        None where it is no checkout.
    """
    commit, dirty = git_state(_CHECKOUT)
    return {"versions": versions(), "machine": machine(), "git_commit": commit, "git_dirty": dirty}


def provenance_line() -> str:
    """The same in words, for tables."""
    found = provenance()
    names = ", ".join(f"{name} {number}" for name, number in found["versions"].items() if number is not None)
    commit = f"commit {found['git_commit']}" if found["git_commit"] else "no commit"
    return f"{found['machine']}; {names}; {commit}{' with changes' if found['git_dirty'] else ''}"


def versions() -> dict[str, str | None]:
    """Versions that a number depends on; None for what is not installed."""
    installed = {package.replace("-", "_"): _version(package) for package in _PACKAGES}
    return {"python": platform.python_version()} | installed


def machine() -> str:
    """Architecture, processor, number of cores, and the GPU where this process has used one."""
    parts = [platform.machine(), processor(), f"{os.cpu_count()} cores"]
    torch = sys.modules.get("torch")  # a process that has not imported it has used no GPU
    if torch is not None and torch.cuda.is_initialized():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


@functools.cache
def git_state(checkout: Path) -> tuple[str | None, bool | None]:
    """Commit of a checkout when first asked for, and whether files outside docs/ differ; None where there is none."""
    if not (checkout / ".git").exists():  # the folder of an installation may lie in another project's checkout
        return None, None
    try:
        commit = _git(checkout, "rev-parse", "HEAD").strip()
        return commit, bool(_git(checkout, "status", "--porcelain", "--untracked-files=no", "--", ":!docs").strip())
    except (OSError, subprocess.SubprocessError):
        return None, None


def _git(checkout: Path, *arguments: str) -> str:
    command = ["git", "-C", str(checkout), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
