"""Coordinate networks in plain torch. Never imports nerfstudio."""

from crossnorm_ns.networks.encoding import EncodedMLP, PositionalEncoding
from crossnorm_ns.networks.factory import METHODS, PAPER_METHODS, MethodName, make_network
from crossnorm_ns.networks.finer import FINER
from crossnorm_ns.networks.gaussian import GaussianMLP
from crossnorm_ns.networks.mfn import FourierNet, GaborNet
from crossnorm_ns.networks.mlp import MLP, glorot_linear
from crossnorm_ns.networks.siren import SIREN
from crossnorm_ns.networks.storage import load_stored, num_stored_values, stored_tensors
from crossnorm_ns.networks.wire import WIRE

__all__ = [
    "FINER",
    "METHODS",
    "MLP",
    "PAPER_METHODS",
    "SIREN",
    "WIRE",
    "EncodedMLP",
    "FourierNet",
    "GaborNet",
    "GaussianMLP",
    "MethodName",
    "PositionalEncoding",
    "glorot_linear",
    "load_stored",
    "make_network",
    "num_stored_values",
    "stored_tensors",
]
