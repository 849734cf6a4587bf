"""Normalization layers for coordinate networks, with right training and evaluation semantics."""

from crossnorm_ns.norms.base import Norm, norm_domain, norms_of
from crossnorm_ns.norms.batch_norm import BatchNorm
from crossnorm_ns.norms.calibration import calibrate, initialize_identity
from crossnorm_ns.norms.cross_norm import CrossNorm
from crossnorm_ns.norms.distributed import convert_sync
from crossnorm_ns.norms.factory import NormChoice, make_norm
from crossnorm_ns.norms.global_norm import GlobalNorm
from crossnorm_ns.norms.insertion import NormalizedLinear, insert_norms
from crossnorm_ns.norms.layer_norm import LayerNorm

__all__ = [
    "BatchNorm",
    "CrossNorm",
    "GlobalNorm",
    "LayerNorm",
    "Norm",
    "NormChoice",
    "NormalizedLinear",
    "calibrate",
    "convert_sync",
    "initialize_identity",
    "insert_norms",
    "make_norm",
    "norm_domain",
    "norms_of",
]
