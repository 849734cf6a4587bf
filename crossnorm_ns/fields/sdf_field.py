"""The networks of NeuS: signed distance, colour, and the sharpness of the density, with any norm in both networks.

Source: Totoro97/NeuS, models/fields.py and confs/wmask.conf.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from nerfstudio.configs.base_config import InstantiateConfig
from nerfstudio.field_components.encodings import HashEncoding
from nerfstudio.utils.external import TCNN_EXISTS
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from crossnorm_ns.functional.encodings import positional_encoding
from crossnorm_ns.limits import (
    MOST_LAYERS,
    Degrees,
    Fault,
    Layers,
    Positive,
    Width,
    between,
    check_fields,
    weights_fault,
)
from crossnorm_ns.networks import MLP
from crossnorm_ns.norms import NormChoice, initialize_identity, insert_norms, norms_of

NORM_DOMAIN = "render"  # the one set of statistics: of the render pass; samplers and meshes read it
_GRID_DIM = 32  # of the hash grid: 2 features of each of 16 levels
_GRID_REACH = 1.5  # half the side of the hash grid's cube: rays begin and end up to sqrt(2) from the centre


@dataclass
class SDFFieldConfig(InstantiateConfig):
    """Size and start of the networks of NeuS; the defaults are those of its wmask.conf."""

    _target: type = field(default_factory=lambda: SDFField)
    sdf_depth: Layers = 8
    """Hidden layers of the network of the signed distance."""
    sdf_width: Width = 256
    """Width of each of them."""
    sdf_skip: Annotated[int, between(1, MOST_LAYERS)] | None = 4
    """Hidden layer, counted from 0, that is given the encoded point again; None: no layer is."""
    num_features: Width = 256
    """Features that the network of the signed distance hands to that of the colour."""
    encoding: Literal["positional", "hash"] = "positional"
    """What the network of the signed distance sees beside the point itself: sines and cosines, or a multiresolution
    hash grid, which needs tiny-cuda-nn and a CUDA device."""
    point_degrees: Degrees = 6
    """Degrees of the positional encoding of the point, 2^0 to 2^(n-1), without a factor of pi."""
    color_depth: Layers = 4
    """Hidden layers of the network of the colour."""
    color_width: Width = 256
    """Width of each of them."""
    view_degrees: Degrees = 4
    """Degrees of the positional encoding of the view direction."""
    initial_radius: Positive = 0.5
    """Radius of the sphere that the surface is before training."""
    initial_variance: Annotated[float, between(-8, 8)] = 0.3
    """The sharpness s of NeuS's density around the surface begins at exp(10 times this). Unused by VolSDF."""
    weight_norm: bool = True
    """Makes length and direction of each weight vector parameters of their own."""

    @property
    def point_dim(self) -> int:
        """Values that the network of the signed distance is given of a point."""
        return 3 + (6 * self.point_degrees if self.encoding == "positional" else _GRID_DIM)

    @property
    def view_dim(self) -> int:
        """Values that the network of the colour is given of a view direction."""
        return 3 + 6 * self.view_degrees

    def faults(self) -> Iterator[Fault]:
        """A skip that leads to no layer or leaves it no room, networks that are too large."""
        skip, width = self.sdf_skip, self.sdf_width
        if skip is not None and skip >= self.sdf_depth:
            text = f"is {skip}, but the hidden layers behind another one are 1 to {self.sdf_depth - 1}"
            yield "sdf_skip", f"{text}: choose one of them or None"
        if skip is not None and width <= self.point_dim:
            text = f"is {width}, which leaves the layer before the skip no room beside the encoded point of"
            yield "sdf_width", f"{text} {self.point_dim} values: take a larger one, fewer point_degrees, or no sdf_skip"
        outputs = 1 + self.num_features
        yield from weights_fault("sdf_width", width, self.point_dim, *[width] * self.sdf_depth, outputs)
        inputs = 6 + self.view_dim + self.num_features
        yield from weights_fault("color_width", self.color_width, inputs, *[self.color_width] * self.color_depth, 3)


class SDFField(nn.Module):
    """Signed distance, its gradient, and colour at points.

    All statistics of norms are those of the render pass: a training pass with gradients updates them; passes without
    gradients, and evaluation, only read them. A norm follows its linear layer, whose weight normalization stays.

    Args:
        config: size and start of the networks.
        sdf_norm: before each Softplus of the signed distance's network.
        color_norm: before each ReLU of the colour's network.
        norm_options: those of `make_norm`.
        learns_sharpness: has the sharpness of NeuS's density as a parameter.

    Raises:
        LimitError: a value that the configuration cannot have.
        ImportError: a hash grid is asked for, and there is no tiny-cuda-nn.
    """

    variance: nn.Parameter | None
    norms_initialized: Tensor
    """Whether `initialize_norms` is done or needless; part of checkpoints."""

    def __init__(
        self,
        config: SDFFieldConfig,
        sdf_norm: NormChoice = "none",
        color_norm: NormChoice = "none",
        norm_options: dict[str, Any] | None = None,
        learns_sharpness: bool = True,
    ) -> None:
        super().__init__()
        check_fields(config)
        self.config = config
        norm_options = norm_options or {}
        self.hash_grid = make_hash_grid() if config.encoding == "hash" else None
        point_dim = config.point_dim if self.hash_grid is None else 3 + self.hash_grid.get_out_dim()
        hidden, skips = _hidden_widths(config, point_dim)
        self.sdf_network = MLP(
            point_dim,
            hidden,
            out_dim=1 + config.num_features,
            skips=skips,
            skip_scale=1 / math.sqrt(2),
            activation=nn.Softplus(beta=100),
        )
        self._initialize_sphere()
        insert_norms(self.sdf_network, sdf_norm, **norm_options)
        self.color_network = MLP(
            3 + config.view_dim + 3 + config.num_features,
            (config.color_width,) * config.color_depth,
            out_dim=3,
            norm=color_norm,
            norm_options=norm_options,
        )
        for layer in self.color_network.layers:
            assert isinstance(layer, nn.Linear)
            layer.reset_parameters()
        if config.weight_norm:
            for layer in (*self.sdf_network.layers, *self.color_network.layers):
                parametrizations.weight_norm(layer)
        variance = nn.Parameter(torch.tensor(config.initial_variance)) if learns_sharpness else None
        self.register_parameter("variance", variance)
        self.register_buffer("norms_initialized", torch.tensor(not norms_of(self.sdf_network)))
        for norm in norms_of(self):
            norm.domain = NORM_DOMAIN

    def encode(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch encoded"]:
        """What the network of the signed distance sees: the point first, then its encoding."""
        if self.hash_grid is None:
            return positional_encoding(points, self.config.point_degrees, include_identity=True)
        in_unit_cube = (points.reshape(-1, 3) / (2 * _GRID_REACH) + 0.5).clamp(0, 1)
        return torch.cat([points, self.hash_grid(in_unit_cube).to(points.dtype).view(*points.shape[:-1], -1)], dim=-1)

    def forward_geonetwork(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch outputs"]:
        """Signed distance first, then the features for the colour; `ns-export` asks for it by this name."""
        return self.sdf_network(self.encode(points))

    def signed_distance(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 1"]:
        """Signed distance, positive outside."""
        return self.forward_geonetwork(points)[..., :1]

    def geometry(
        self, points: Float[Tensor, "*batch 3"]
    ) -> tuple[Float[Tensor, "*batch 1"], Float[Tensor, "*batch 3"], Float[Tensor, "*batch features"]]:
        """Signed distance, its gradient in space, and features, in one pass.

        Where gradients are enabled, all three are differentiable in the parameters (not in the points). Where they are
        not, norms use what they have stored for evaluation.
        """
        training_pass = torch.is_grad_enabled()
        with torch.enable_grad(), contextlib.nullcontext() if training_pass else _norms_in_evaluation(self):
            points = points.detach().requires_grad_()
            outputs = self.forward_geonetwork(points)
            signed_distance, features = outputs[..., :1], outputs[..., 1:]
            # Only a backward pass that builds a graph holds the column statistics of norms constant.
            (gradients,) = torch.autograd.grad(signed_distance.sum(), points, create_graph=training_pass)
        if training_pass:
            return signed_distance, gradients, features
        return signed_distance.detach(), gradients, features.detach()

    def colors(
        self,
        points: Float[Tensor, "*batch 3"],
        directions: Float[Tensor, "*batch 3"],
        gradients: Float[Tensor, "*batch 3"],
        features: Float[Tensor, "*batch features"],
    ) -> Float[Tensor, "*batch 3"]:
        """Colour in [0, 1] of points seen along unit directions (the form that IDR gave this network)."""
        view = positional_encoding(directions, self.config.view_degrees, include_identity=True)
        return torch.sigmoid(self.color_network(torch.cat([points, view, gradients, features], dim=-1)))

    def sharpness(self) -> Float[Tensor, ""]:
        """s, the inverse of the standard deviation of the logistic density around the surface."""
        assert self.variance is not None
        return torch.exp(10 * self.variance).clamp(1e-6, 1e6)

    def initialize_norms(self, points: Float[Tensor, "*batch 3"]) -> None:
        """Sets the norms of the signed distance's network so that on these points they change nothing, or little.

        In distributed training all processes call it, and go on with the norms of the first.
        """
        with torch.no_grad():
            encoded = self.encode(points)
        initialize_identity(self.sdf_network, encoded)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for norm in norms_of(self.sdf_network):
                for parameter in norm.parameters():
                    torch.distributed.broadcast(parameter.data, src=0)
        self.norms_initialized.fill_(True)

    def _initialize_sphere(self) -> None:
        """Geometric initialisation, then scale and offset of the signed distance fitted to what the draw should be.

        In the mean over directions the surface has its radius, and in the unit ball gradients are 1 long.
        """
        initialize_geometrically(self.sdf_network, self.config.initial_radius)
        radius = self.config.initial_radius
        directions = functional.normalize(torch.randn(4096, 3), dim=-1)
        in_ball = (directions * torch.rand(4096, 1).pow(1 / 3)).requires_grad_()
        along_radii = directions * 2 * radius * torch.linspace(0, 1, 4096)[:, None]
        last = self.sdf_network.layers[-1]
        assert isinstance(last, nn.Linear)

        def signed_distance(points: Tensor) -> Tensor:
            # Encodings begin without influence.
            return self.sdf_network(functional.pad(points, (0, self.sdf_network.in_dim - 3)))[:, 0]

        with torch.enable_grad():
            (gradients,) = torch.autograd.grad(signed_distance(in_ball).sum(), in_ball)
        with torch.no_grad():
            last.weight[0] /= gradients.norm(dim=-1).mean()
            last.bias[0] -= signed_distance(along_radii).median()


def make_hash_grid() -> HashEncoding:
    """16 levels of 2 features from 16 to 1024 cells along each axis, as tiny-cuda-nn computes them.

    Raises:
        ImportError: tiny-cuda-nn is not installed, or there is no CUDA device for it.
    """
    if not TCNN_EXISTS:
        raise ImportError(
            'the encoding "hash" needs a CUDA device and tiny-cuda-nn: '
            "pip install git+https://github.com/NVlabs/tiny-cuda-nn/#subdirectory=bindings/torch, "
            'or take the encoding "positional"'
        )
    return HashEncoding(implementation="tcnn")


def _hidden_widths(config: SDFFieldConfig, point_dim: int) -> tuple[list[int], list[int]]:
    """Widths of the hidden layers of the signed distance's network, and behind which one the point comes again."""
    hidden = [config.sdf_width] * config.sdf_depth
    if config.sdf_skip is None:
        return hidden, []
    hidden[config.sdf_skip - 1] -= point_dim
    return hidden, [config.sdf_skip - 1]


def initialize_geometrically(network: MLP, radius: float) -> None:
    """Random weights with which the outputs are roughly the distance from a sphere around the origin.

    As in IDR and NeuS (after Atzmon and Lipman, "SAL", CVPR 2020, section 5): the encoding's columns, all behind the
    point's three, begin at zero, also where the input is concatenated again. Radius and slope differ from draw to draw.
    """
    encoding_dim = network.in_dim - 3
    for i, layer in enumerate(network.layers):
        assert isinstance(layer, nn.Linear)
        nn.init.zeros_(layer.bias)
        nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / layer.out_features))
        if i == 0 or i - 1 in network.skips:
            layer.weight.data[:, layer.in_features - encoding_dim :] = 0
    last = network.layers[-1]
    assert isinstance(last, nn.Linear)
    nn.init.normal_(last.weight, math.sqrt(math.pi / last.in_features), 1e-4)
    nn.init.constant_(last.bias, -radius)


@contextlib.contextmanager
def _norms_in_evaluation(module: nn.Module) -> Iterator[None]:
    norms = [norm for norm in norms_of(module) if norm.training]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


@contextlib.contextmanager
def norms_set_aside(module: nn.Module) -> Iterator[None]:
    """Within it, the norms of `module` pass their inputs on; for passes without gradients."""
    handles = [norm.register_forward_hook(lambda _, inputs, __: inputs[0]) for norm in norms_of(module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
