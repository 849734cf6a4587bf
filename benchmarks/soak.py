"""Long trainings of the tiny methods: memory, Python's objects, open files and time of a step have to stay flat.

Trains each method in a process of its own on a small generated scene, writes docs/results/soak.json and .md. Flat means
that over the second half of the training the slope is not different from zero: the 95 % interval of Theil and Sen's
estimate over means of blocks holds zero, or the whole rise is below what the system itself hands out (`_NEGLIGIBLE`).
A block is the time from one evaluation to the next, which leaves the allocator in another state: within it looks depend
on each other. Times are processor times, over those of a fixed computation at the same look: the machine's own pace
does not count. Memory is what is allocated, where glibc says so: what it keeps of what was freed goes up and down by
tens of MiB. It counts freed blocks that a thread keeps for itself (its tcache) as allocated, so trainings run without
those. Python's own small objects are counted besides. Both are read behind a collection of cycles. Exit code 1
where one is not flat.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from scipy.stats import theilslopes

from benchmarks.tables import table
from crossnorm_ns.provenance import provenance

METHODS = ("mipnerf-cn-tiny", "neus-cn-tiny", "volsdf-cn-tiny")
_NEGLIGIBLE = {"memory_mib": 2.0, "python_blocks": 5000, "open_files": 0.0, "step_over_control": 0.0}
_WARM_UP = 0.5


@dataclass(frozen=True)
class Options:
    """What is trained and how often it is looked at."""

    methods: tuple[str, ...] = METHODS
    """Names of methods."""
    steps: int = 5000
    """Of each training."""
    every: int = 50
    """Steps between two looks."""
    period: int = 500
    """Steps of a block: those between two evaluations."""
    rays: int = 64
    """Of a step."""
    seed: int = 0
    """Of the trainings."""
    docs: Path = Path("docs")
    """Where results/soak.json and .md go."""


@dataclass(frozen=True)
class Trend:
    """How a quantity went over the second half of a training."""

    first: float
    """Mean of its first block."""
    last: float
    """Mean of its last block."""
    low: float
    """Of the 95 % interval of the slope, per 1,000 steps."""
    high: float
    flat: bool


def trend(steps: Sequence[int], values: Sequence[float], period: int, negligible: float) -> Trend:
    """Judges a quantity over the second half of the steps, by means of blocks.

    Args:
        steps: of the looks.
        values: at them.
        period: steps of a block.
        negligible: rise over all blocks that counts as none.
    """
    blocks: dict[int, list[float]] = {}
    for step, value in zip(steps, values, strict=True):
        if step > _WARM_UP * steps[-1]:
            blocks.setdefault((step - 1) // period, []).append(value)
    times, means = period / 1000 * np.array(list(blocks)), np.array([np.mean(block) for block in blocks.values()])
    slope = theilslopes(means, times, alpha=0.95)
    rise = float(slope.slope * (times[-1] - times[0]))
    flat = bool(slope.low_slope <= 0 <= slope.high_slope) or abs(rise) <= negligible
    return Trend(float(means[0]), float(means[-1]), float(slope.low_slope), float(slope.high_slope), flat)


def soak(method: str, options: Options, folder: Path) -> dict[str, list[float]]:
    """Trains a method in this process; looks at it every so many steps, evaluations and saves on the way as ever."""
    from nerfstudio.configs.method_configs import all_methods
    from nerfstudio.scripts.train import _set_random_seed

    from crossnorm_ns.data import make_scene

    scene = folder / "scene"
    if method.startswith(("neus", "volsdf")):
        make_scene.dtu(scene, resolution=24, views=6)
    else:
        make_scene.blender(scene, resolution=24, train=6, val=1, test=2)
    config: Any = copy.deepcopy(all_methods[method])
    config.data = config.pipeline.datamanager.data = scene
    config.output_dir, config.timestamp, config.max_num_iterations = folder / "outputs", "soak", options.steps
    config.machine.device_type, config.machine.seed = "cpu", options.seed
    config.pipeline.datamanager.train_num_rays_per_batch = options.rays
    _set_random_seed(options.seed)
    config.save_config()
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    names = ("step", *_NEGLIGIBLE)
    looks = np.zeros((options.steps // options.every, len(names)))  # lists would grow, and count themselves
    times, train_iteration = [], trainer.train_iteration

    def watched(step: int) -> Any:
        start = time.process_time()
        outputs = train_iteration(step)
        times.append(time.process_time() - start)
        if len(times) == options.every:
            gc.collect()  # cycles that wait for it are no leak
            files = len(os.listdir("/proc/self/fd"))
            look = (step + 1, _memory(), sys.getallocatedblocks(), files, float(np.median(times)) / _control())
            looks[step // options.every] = look
            times.clear()
        return outputs

    trainer.train_iteration = watched
    trainer.train()
    return dict(zip(names, looks.T.tolist(), strict=True))


def judged(
    looks: dict[str, list[float]], period: int, quantities: Sequence[str] = tuple(_NEGLIGIBLE)
) -> dict[str, Trend]:
    """A trend for each quantity, over blocks of so many steps."""
    steps = [int(step) for step in looks["step"]]
    return {name: trend(steps, looks[name], period, _NEGLIGIBLE[name]) for name in quantities}


def _control() -> float:
    """Processor seconds of a computation that is always the same."""
    matrix, times = torch.ones(256, 256), []
    for _ in range(5):
        start = time.process_time()
        for _ in range(4):
            torch.relu(matrix @ matrix)
        times.append(time.process_time() - start)
    return float(np.median(times))


class _Mallinfo(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def _memory() -> float:
    """MiB that are allocated; without glibc 2.33 or later those that are resident."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return (found.uordblks + found.hblkhd) / 2**20


def _in_own_process(method: str, options: Options) -> dict[str, list[float]]:
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.tcache_count=0"  # read by glibc as the process starts
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_soak_alone, method, options, Path(folder)).result()


def _soak_alone(method: str, options: Options, folder: Path) -> dict[str, list[float]]:
    torch.set_num_threads(1)
    return soak(method, options, folder)


def main(options: Options) -> None:
    """Trains, stores, prints and judges."""
    found = {method: _in_own_process(method, options) for method in options.methods}
    trends = {method: judged(looks, options.period) for method, looks in found.items()}
    rows = []
    for method, quantities in trends.items():
        for name, one in quantities.items():
            interval = f"{one.low:.3g} to {one.high:.3g}"
            rows.append([method, name, f"{one.first:.4g}", f"{one.last:.4g}", interval, "yes" if one.flat else "NO"])
    heads = ["method", "quantity", "first block", "last block", "slope per 1,000 steps, 95 %", "flat"]
    asked = {name: value for name, value in asdict(options).items() if name != "docs"}
    origin = provenance()
    text = f"{options.steps} steps, seed {options.seed}; {origin['machine']}, 1 thread.\n\n{table(heads, rows)}\n"
    results = options.docs / "results"
    results.mkdir(parents=True, exist_ok=True)
    (results / "soak.md").write_text(text)
    judgements = {method: {name: vars(one) for name, one in some.items()} for method, some in trends.items()}
    content = {**asked, **origin, "trends": judgements, "looks": found}
    (results / "soak.json").write_text(json.dumps(content) + "\n")
    print(text)
    if not all(one.flat for some in trends.values() for one in some.values()):
        sys.exit("not flat")  # status 1


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
