"""Several processes of torch.distributed (gloo) for the tests, forked so that nothing is imported twice."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed

from crossnorm_ns.models import mipnerf, neus, surface, volsdf

needs_gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch has no gloo"
)


def started(count: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[BaseProcess]:
    """Processes of one group, each of which does `work(rank, *arguments)`."""
    context = get_context("fork")
    processes = [context.Process(target=_member, args=(rank, count, folder, work, arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    return processes  # type: ignore[return-value]


def in_processes(count: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(rank, *arguments)` returns in each of `count` processes."""
    processes = started(count, folder, work, *arguments)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * count
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


def _member(rank: int, count: int, folder: Path, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=60),
    )
    torch.save(work(rank, *arguments), folder / f"{rank}.pt")
    distributed.destroy_process_group()


@contextlib.contextmanager
def samples_without_chance() -> Iterator[None]:
    """Samples without a random part, and no random turns: each ray's are the same in every process."""

    def regular(sampler: Callable[..., torch.Tensor], position: int) -> Callable[..., torch.Tensor]:
        return lambda *given: sampler(*given[:position], False, *given[position + 1 :])

    with pytest.MonkeyPatch.context() as patch:
        for module, name, position in [
            (mipnerf, "stratified_fenceposts", 4),
            (mipnerf, "resample_fenceposts", 3),
            (neus, "even_samples", 3),
            (volsdf, "stratified_fenceposts", 4),
        ]:
            patch.setattr(module, name, regular(getattr(module, name), position))
        bounded = volsdf.error_bounded_samples
        patch.setattr(
            volsdf, "error_bounded_samples", lambda *given, **options: bounded(*given, **options | {"perturb": False})
        )
        patch.setattr(surface, "_turned", lambda points: points)
        yield
