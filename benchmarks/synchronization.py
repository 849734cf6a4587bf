"""What several processes exchange in a training step: `python -m benchmarks.synchronization`.

Counts the payload of every reduction of one process in a group of its own: it is the same in a group of any size. A
ring of N processes sends 2 (N - 1) / N times the payload from each of them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, distributed

from benchmarks.tables import store, table

_METHODS = ("mipnerf-cn", "neus-cn", "volsdf-cn")


@dataclass
class Options:
    """How much is counted, and where the tables go."""

    docs: Path = Path("docs")
    """Gets results/synchronization.md."""
    rays: tuple[int, int] = (4, 16)
    """Two numbers of rays of a process, to see that they do not matter."""
    channels: tuple[int, ...] = (64, 128, 256)
    """Widths of a single norm."""


@contextlib.contextmanager
def single_member_group() -> Iterator[None]:
    """A group of torch.distributed with this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        try:
            yield
        finally:
            distributed.destroy_process_group()


@contextlib.contextmanager
def counted_messages() -> Iterator[list[int]]:
    """Bytes of each tensor that is reduced by `torch.distributed.all_reduce` within it."""
    sizes: list[int] = []
    reduce = distributed.all_reduce

    def counting(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        sizes.append(tensor.numel() * tensor.element_size())
        return reduce(tensor, *arguments, **options)

    distributed.all_reduce = counting
    try:
        yield sizes
    finally:
        distributed.all_reduce = reduce


def norm_messages(name: str, channels: int, rows: int, second_order: bool) -> list[int]:
    """Bytes of the messages of one norm in a training step, or in one whose loss holds a spatial gradient."""
    from crossnorm_ns import convert_sync, make_norm

    layer = convert_sync(make_norm(name, channels))  # type: ignore[arg-type]
    x = torch.randn(rows, channels, requires_grad=True)
    with counted_messages() as sizes:
        y = layer(x)
        if second_order:
            y = torch.autograd.grad(y.square().sum(), x, create_graph=True)[0]
        y.square().sum().backward()
    return sizes


def method_messages(method: str, rays: int) -> tuple[list[int], int]:
    """Bytes of the messages of a step's norms and losses, and of the parameters whose gradients are averaged."""
    from nerfstudio.cameras.rays import RayBundle
    from nerfstudio.data.scene_box import SceneBox

    from crossnorm_ns.engine.pipeline import shared_model
    from method_configs import mipnerf, neus, volsdf

    methods = {"mipnerf-cn": mipnerf.mipnerf_cn, "neus-cn": neus.neus_cn, "volsdf-cn": volsdf.volsdf_cn}
    config = methods[method].config.pipeline.model
    module = config.setup(scene_box=SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), num_train_data=1).train()
    model = shared_model(module)
    origins = 3 * torch.nn.functional.normalize(torch.randn(rays, 3), dim=-1)
    bundle = RayBundle(
        origins=origins,
        directions=-origins / 3,
        pixel_area=torch.full((rays, 1), 1e-4),
        metadata={"directions_norm": torch.ones(rays, 1)},
    )
    batch = {"image": torch.rand(rays, 3), "mask": torch.ones(rays, 1)}

    def step() -> list[int]:
        with counted_messages() as sizes:
            losses = module.get_loss_dict(model(bundle), batch)
            torch.stack(list(losses.values())).sum().backward()
        return sizes

    step()  # the first one of NeuS and VolSDF also sets up their norms
    return step(), sum(p.numel() * p.element_size() for p in module.get_param_groups()["fields"])


def method_row(method: str, rays: tuple[int, int]) -> list[str]:
    """A line of the table of methods."""
    (few, parameters), (many, _) = (method_messages(method, count) for count in rays)
    assert few == many, "what is exchanged depends on the number of rays"
    of_losses = [size for size in few if size == torch.float32.itemsize]
    of_norms = [size for size in few if size != torch.float32.itemsize]
    return [
        f"`{method}`",
        f"{sum(of_norms):,}",
        f"{len(of_norms)}",
        f"{sum(of_losses)}",
        f"{parameters:,}",
        f"{100 * sum(of_norms) / parameters:.1f} %",
    ]


def norm_rows(name: str, channels: tuple[int, ...]) -> list[list[str]]:
    """Lines of the table of single norms."""
    rows = []
    for width in channels:
        orders = []
        for second_order in (False, True):
            few, many = (norm_messages(name, width, count, second_order) for count in (10, 1000))
            assert few == many, "what is exchanged depends on the number of rows"
            orders.append(f"{sum(few):,} in {len(few)}")
        rows.append([f"`{name}`", str(width), *orders])
    return rows


def main(options: Options) -> None:
    """Counts, prints and stores."""
    torch.manual_seed(0)
    with single_member_group():
        norms = [row for name in ("bn", "gn", "cn", "ln") for row in norm_rows(name, options.channels)]
        methods = [method_row(method, options.rays) for method in _METHODS]
    columns = ["norm", "channels", "bytes of a step, in messages", "with a spatial gradient"]
    heads = ["method", "bytes of norms", "messages", "bytes of losses", "bytes of gradients", "norms / gradients"]
    text = (
        "Bytes that each process gives to the reductions of a training step (float32, seed 0), whatever the number of "
        f"processes; the same with {options.rays[0]} and {options.rays[1]} rays:\n\n{table(heads, methods)}\n\n"
        f"Of a single norm, the same with 10 and 1000 rows:\n\n{table(columns, norms)}"
    )
    store(options.docs, "synchronization", text)


if __name__ == "__main__":
    main(tyro.cli(Options))
