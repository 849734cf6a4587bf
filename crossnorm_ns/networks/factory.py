"""The networks of the paper's comparisons, and others of their kind, by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from torch import nn

from crossnorm_ns.networks.encoding import EncodedMLP, PositionalEncoding
from crossnorm_ns.networks.finer import FINER
from crossnorm_ns.networks.gaussian import GaussianMLP
from crossnorm_ns.networks.mfn import FourierNet, GaborNet
from crossnorm_ns.networks.mlp import MLP
from crossnorm_ns.networks.siren import SIREN
from crossnorm_ns.networks.wire import WIRE
from crossnorm_ns.norms import NormChoice

MethodName = Literal[
    "siren",
    "mfn",
    "wire",
    "relu",
    "relu+bn",
    "relu+ln",
    "relu+gn",
    "relu+cn",
    "pe",
    "pe+bn",
    "pe+ln",
    "pe+gn",
    "pe+cn",
    "relu+cn-paper",
    "pe+cn-paper",
    "mfn-fourier",
    "finer",
    "gaussian",
]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
"""All methods that `make_network` knows."""
PAPER_METHODS = METHODS[:13]
"""The 13 methods of the paper's tables, in their order; "cn" is the released form."""

_OTHERS: dict[str, Callable[..., nn.Module]] = {
    "siren": SIREN,
    "mfn": GaborNet,
    "mfn-fourier": FourierNet,
    "wire": WIRE,
    "finer": FINER,
    "gaussian": GaussianMLP,
}


def _relu(
    in_dim: int, hidden: Sequence[int], out_dim: int, *, norm: str, norm_options: dict[str, Any] | None = None
) -> MLP:
    name, _, variant = norm.partition("-")
    options = {**({"variant": variant} if variant else {}), **(norm_options or {})}
    choice: NormChoice = name or "none"  # type: ignore[assignment]
    return MLP(in_dim, hidden, out_dim, norm=choice, norm_options=options, linear=nn.Linear)


def _pe(
    in_dim: int,
    hidden: Sequence[int],
    out_dim: int,
    *,
    norm: str,
    norm_options: dict[str, Any] | None = None,
    num_frequencies: int = 10,
) -> EncodedMLP:
    encoding = PositionalEncoding(in_dim, num_frequencies)
    return EncodedMLP(encoding, _relu(encoding.out_dim, hidden, out_dim, norm=norm, norm_options=norm_options))


def make_network(method: str, in_dim: int, out_dim: int, hidden: Sequence[int], **options: Any) -> nn.Module:
    """A coordinate network (..., in_dim) -> (..., out_dim), initialised as its authors' code does.

    Coordinates are meant to lie in [-1, 1]. The random numbers are those of torch's global generator.

    Args:
        method: one of `METHODS`: relu and pe (positional encoding and ReLU) with an optional norm (+bn, +ln, +gn, +cn,
            +cn-paper), siren, mfn (GaborNet), mfn-fourier, wire, finer, gaussian.
        in_dim: number of coordinates.
        out_dim: number of outputs.
        hidden: width of each hidden layer.
        options: of the method: `norm_options` (relu, pe), `num_frequencies` (pe), `omega_0` (siren, finer, wire),
            `sigma_0` (wire), `input_scale` and `alpha` (mfn), `first_bias_scale` (finer), `scale` (gaussian).

    Raises:
        ValueError: no method has this name, it has no such option, or a size is less than 1.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    sizes = [in_dim, out_dim, *hidden]
    if not hidden or any(size < 1 for size in sizes):
        raise ValueError(
            f"a network needs at least one hidden layer and sizes of at least 1, got in_dim={in_dim}, "
            f"out_dim={out_dim}, hidden={tuple(hidden)}"
        )
    family, _, norm = method.partition("+")
    fixed: dict[str, Any] = {"norm": norm} if family in ("relu", "pe") else {}
    make = {"relu": _relu, "pe": _pe, **_OTHERS}[family]
    known = [name for name, p in inspect.signature(make).parameters.items() if p.kind == p.KEYWORD_ONLY]
    known = [name for name in known if name not in ("norm", "activation")]
    for name in options:
        if name not in known:
            raise ValueError(f"{method} has no option {name!r}: it knows {', '.join(known)}")
    return make(in_dim, tuple(hidden), out_dim, **fixed, **options)
