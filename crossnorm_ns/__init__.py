"""Cross Normalization for coordinate networks. Loads torch where a name is first used, nerfstudio where it must."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crossnorm_ns import functional
    from crossnorm_ns.norms import (
        BatchNorm,
        CrossNorm,
        GlobalNorm,
        LayerNorm,
        calibrate,
        convert_sync,
        initialize_identity,
        insert_norms,
        make_norm,
        norm_domain,
    )

__version__ = "0.1.0"

__all__ = [
    "BatchNorm",
    "CrossNorm",
    "GlobalNorm",
    "LayerNorm",
    "calibrate",
    "convert_sync",
    "functional",
    "initialize_identity",
    "insert_norms",
    "make_norm",
    "norm_domain",
]


def __getattr__(name: str) -> Any:
    """Imports what is asked for: the commands of this package answer --help without torch."""
    if name == "functional":
        return import_module("crossnorm_ns.functional")
    if name in __all__:
        return getattr(import_module("crossnorm_ns.norms"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """All public names."""
    return [*__all__, "__version__"]
