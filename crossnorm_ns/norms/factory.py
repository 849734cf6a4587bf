"""Norms by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import nn

from crossnorm_ns.functional.normalization import Variant
from crossnorm_ns.norms.batch_norm import BatchNorm
from crossnorm_ns.norms.cross_norm import CrossNorm
from crossnorm_ns.norms.global_norm import GlobalNorm
from crossnorm_ns.norms.layer_norm import LayerNorm

NormChoice = Literal["none", "bn", "ln", "gn", "cn"]
_NORMS: dict[str, Callable[..., nn.Module]] = {"bn": BatchNorm, "ln": LayerNorm, "gn": GlobalNorm, "cn": CrossNorm}


def make_norm(name: NormChoice, num_channels: int, *, variant: Variant = "released", **options: Any) -> nn.Module:
    """The norm called `name`; "none" is the identity.

    Args:
        name: none, bn, ln, gn or cn.
        num_channels: size of the last dimension.
        variant: of the cross; the other norms have one form.
        options: those of `Norm`, and `eps`.

    Raises:
        ValueError: no norm has this name.
    """
    if name not in get_args(NormChoice):
        raise ValueError(f"unknown norm {name!r}: choose one of {', '.join(get_args(NormChoice))}")
    if name == "none":
        return nn.Identity()
    if name == "cn":
        options["variant"] = variant
    return _NORMS[name](num_channels, **options)
