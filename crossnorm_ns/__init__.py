"""Cross Normalization for coordinate networks. Loads torch and nothing heavier; nerfstudio only where it is used."""

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
