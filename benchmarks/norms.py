"""What Cross Normalization costs beside batch normalization: the tables of docs/PERFORMANCE.md.

    python -m benchmarks.norms            # measures, prints and stores every figure
    python -m benchmarks.norms --check    # also fails if a figure is worse than it must be
    python -m benchmarks.norms --device cuda    # the same on a GPU
    python -m benchmarks.norms profile    # where a training step's time goes, on the CPU

Times are medians of paired ratios: both sides run one after the other in one loop, in alternating order, and each pair
gives a ratio, so that a change of the machine's speed meets both. A figure is measured for a fixed time. On a GPU a
side runs ten times in a row and is then waited for, as a training does not wait after each call either.

Memory is counted from the allocations and releases that torch's profiler records, in bytes and exactly (on a GPU as its
allocator rounds them, to 512). What the C++ kernels hold on their own stack and heap, a few values for each channel and
thread, is not among them.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from benchmarks.tables import conditions, store, table
from benchmarks.training_steps import mipnerf_presets, operator_table, operator_times, training_steps
from crossnorm_ns.functional.normalization import Variant, cross_norm, global_norm
from crossnorm_ns.functional.statistics import column_statistics
from crossnorm_ns.memory import keep_freed_memory
from crossnorm_ns.provenance import provenance

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]
Measurement = tuple[str, str, float]
"""Figure (a key of BOUNDS), case, measured value."""


@dataclass(frozen=True)
class Bound:
    """What a figure must reach, and what it should."""

    must: float
    goal: float
    per_channel: float = 0.0
    """Is divided by the number of channels and added to both: the size of row statistics beside x."""
    at_least: bool = False
    """Whether more is better."""


_TIME, _KEPT, _PEAK, _ERROR = Bound(1.5, 1.2), Bound(1.0, 1.0, 2.0), Bound(1.0, 1.0, 2.0), Bound(1.0, 1.0)
_GROWTH = "CN, time per element, largest / smallest"
BOUNDS = {
    "CN released, forward + backward / batch norm": _TIME,
    "CN paper, forward + backward / batch norm": _TIME,
    "GN, forward + backward / batch norm": _TIME,
    "CN released with ReLU, forward + backward / batch norm and ReLU": _TIME,
    "CN paper with ReLU, forward + backward / batch norm and ReLU": _TIME,
    "CN released, stored statistics, forward / batch norm in eval mode": Bound(1.5, 1.1),
    "CN paper, stored statistics, forward / batch norm in eval mode": Bound(1.5, 1.1),
    "CN, bytes kept for backward / batch norm": _KEPT,
    "CN, peak memory of forward in N x C values": _PEAK,
    "CN, peak memory of backward in N x C values": _PEAK,
    "CN, times faster than the released formula in eager PyTorch": Bound(8.0, 15.0, at_least=True),
    "CN released, error of y at mean 0 / batch norm": _ERROR,
    "CN released, error of dx at mean 0 / batch norm": _ERROR,
    "CN released, error of y at mean 1e4 / batch norm": _ERROR,
    "CN released, error of dx at mean 1e4 / batch norm": _ERROR,
    "CN paper, error of y at mean 0 / batch norm": _ERROR,
    "CN paper, error of dx at mean 0 / batch norm": _ERROR,
    "CN paper, error of y at mean 1e4 / batch norm": _ERROR,
    "CN paper, error of dx at mean 1e4 / batch norm": _ERROR,
    "training step of mipnerf-cn / mipnerf-ref": Bound(1.3, 1.15),
    _GROWTH: Bound(1.3, 1.0),
}


@dataclass(frozen=True)
class Row:
    """A measured figure beside its bounds."""

    figure: str
    case: str
    measured: float
    must: float
    goal: float
    at_least: bool

    @property
    def missed(self) -> bool:
        """Whether the figure is worse than it must be."""
        return not (self.measured >= self.must if self.at_least else self.measured <= self.must)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    shapes: tuple[tuple[int, int], ...] = ((65536, 256), (131072, 128), (262144, 28), (6144, 64))
    """(rows, channels)."""
    seconds: float = 1.0
    """For each figure of the norms alone."""
    step_seconds: float = 8.0
    """For each preset's training step."""
    growth: tuple[int, ...] = tuple(2**i for i in range(12, 21, 2))
    """Rows, at 64 channels."""
    tiny_rays: int = 256
    full_rays: int = 64
    """Of the published 4096, which need a GPU."""


_QUICK = Plan(((512, 32), (256, 8)), 0.01, 0.01, (2**6, 2**8), tiny_rays=8, full_rays=4)
_LEAST_PAIRS = 3


@dataclass
class Options:
    """Measures the norms beside batch normalization, or profiles a training step."""

    what: Annotated[Literal["table", "profile"], tyro.conf.Positional] = "table"
    """Every figure of the table, or where a training step's time goes."""
    check: bool = False
    """Exits with 1 and names the figures that are worse than they must be."""
    quick: bool = False
    """Small shapes and few repetitions: to try the benchmark, not the norms. Name another folder for --docs."""
    docs: Path = Path("docs")
    """Where results/norms.json and .md (or norms-profile.md) go."""
    threads: int = os.cpu_count() or 1
    """Of torch and of the kernels."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Whose kernels are measured in the table."""


def main(options: Options) -> None:
    """Measures, stores, prints and, on request, judges."""
    torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    plan = _QUICK if options.quick else Plan(full_rays=4096) if on_gpu else Plan()
    if options.what == "profile":
        store(options.docs, "norms-profile", profile_tables(plan, steps=2 if options.quick else 20))
        return
    with torch.device(options.device):
        rows = [judged(*measurement) for measurement in _measurements(plan)]
    machine = conditions(options.device)
    store(options.docs, "norms", f"{machine}.\n\n{tables(rows)}")
    stored = {"conditions": machine, "seed": 0, **provenance(), "rows": [asdict(row) for row in rows]}
    (options.docs / "results" / "norms.json").write_text(json.dumps(stored, indent=1) + "\n")
    if options.check and (found := complaints(rows)):
        sys.exit("\n".join(found))  # status 1


def judged(figure: str, case: str, measured: float) -> Row:
    """The figure with its bounds; a case "rows x channels" gives the number of channels."""
    bound = BOUNDS[figure]
    extra = bound.per_channel / int(case.split("x")[1]) if bound.per_channel else 0.0
    return Row(figure, case, measured, bound.must + extra, bound.goal + extra, bound.at_least)


def complaints(rows: Sequence[Row]) -> list[str]:
    """A line for each figure that is worse than it must be."""
    return [
        f"worse than it must be: {row.figure}, {row.case}: {row.measured:.3g}, not {row.must:.3g}"
        for row in rows
        if row.missed
    ]


def _measurements(plan: Plan) -> Iterator[Measurement]:
    device = torch.get_default_device().type
    with Console(stderr=True).status("measuring") as status:
        for rows, channels in plan.shapes:
            status.update(f"norms at {rows}x{channels}")
            case = f"{rows}x{channels}"
            for measure in (_training, _evaluation, _memory, _speed_up, _accuracy):
                for figure, measured in measure(rows, channels, plan.seconds):
                    yield figure, case, measured
        status.update("growth")
        yield _growth(plan)
        status.update("training steps")
        for case, preset in mipnerf_presets(plan.tiny_rays, plan.full_rays).items():
            with torch.device("cpu"), training_steps(preset, device) as (theirs, ours):
                yield "training step of mipnerf-cn / mipnerf-ref", case, paired_ratio(ours, theirs, plan.step_seconds)


def _inputs(rows: int, channels: int, mean: float = 0.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias and the gradient of y."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    x = torch.randn(rows, channels, generator=generator) + mean
    weight, bias = 0.5 + torch.rand(channels, generator=generator), torch.randn(channels, generator=generator)
    dy = torch.randn(rows, channels, generator=generator)
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_(), dy


def _batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.batch_norm(x, None, None, weight, bias, training=True)


def _batch_norm_and_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.relu(_batch_norm(x, weight, bias))


def released_cross_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The released formula as it reads, each operation a pass over memory."""
    rows, channels = x.shape
    mean = (x.sum(1, keepdim=True) + x.sum(0, keepdim=True) - x) / (rows + channels)
    var = x.var(0, keepdim=True) + x.var(1, keepdim=True)
    return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias


def _forward_backward(norm: Norm, x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> None:
    torch.autograd.grad(norm(x, weight, bias), (x, weight, bias), dy)


def _seconds(work: Callable[[], object]) -> float:
    """Of one call; on a GPU of one among ten in a row."""
    on_gpu = torch.cuda.is_initialized()
    calls = 10 if on_gpu else 1
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        work()
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def paired_ratio(ours: Callable[[], object], theirs: Callable[[], object], seconds: float) -> float:
    """Median over pairs of our time over theirs, measured for this long and for three pairs at least."""
    ours()
    theirs()
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while len(ratios) < _LEAST_PAIRS or time.perf_counter() < end:
        if len(ratios) % 2:
            their_time, our_time = _seconds(theirs), _seconds(ours)
        else:
            our_time, their_time = _seconds(ours), _seconds(theirs)
        ratios.append(our_time / their_time)
    return statistics.median(ratios)


def _training(rows: int, channels: int, seconds: float) -> Iterator[tuple[str, float]]:
    inputs = _inputs(rows, channels)
    pairs: dict[str, tuple[Norm, Norm]] = {"GN, forward + backward / batch norm": (global_norm, _batch_norm)}
    variants: tuple[Variant, ...] = ("released", "paper")
    for variant in variants:
        cross, fused = partial(cross_norm, variant=variant), partial(cross_norm, variant=variant, relu=True)
        pairs[f"CN {variant}, forward + backward / batch norm"] = cross, _batch_norm
        pairs[f"CN {variant} with ReLU, forward + backward / batch norm and ReLU"] = fused, _batch_norm_and_relu
    for figure, norms in pairs.items():
        ours, theirs = (partial(_forward_backward, norm, *inputs) for norm in norms)
        yield figure, paired_ratio(ours, theirs, seconds)


@torch.no_grad()
def _evaluation(rows: int, channels: int, seconds: float) -> Iterator[tuple[str, float]]:
    x, weight, bias, _ = _inputs(rows, channels)
    stats = column_statistics(x.detach())
    theirs = partial(functional.batch_norm, x, stats.mean, stats.var, weight, bias)
    variants: tuple[Variant, ...] = ("released", "paper")
    for variant in variants:
        ours = partial(cross_norm, x, weight, bias, stats=stats, variant=variant)
        yield f"CN {variant}, stored statistics, forward / batch norm in eval mode", paired_ratio(ours, theirs, seconds)


def _speed_up(rows: int, channels: int, seconds: float) -> Iterator[tuple[str, float]]:
    inputs = _inputs(rows, channels)
    released, ours = (partial(_forward_backward, norm, *inputs) for norm in (released_cross_norm, cross_norm))
    figure = "CN, times faster than the released formula in eager PyTorch"
    yield figure, paired_ratio(released, ours, seconds)


@contextlib.contextmanager
def _allocations() -> Iterator[list[int]]:
    """Fills the list, at the end, with the device's allocations (> 0) and releases (< 0), in bytes and in order."""
    kind = 1 if torch.get_default_device().type == "cuda" else 0  # of torch's DeviceType
    changes: list[int] = []
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        yield changes
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = [event for event in json.loads(path.read_text())["traceEvents"] if event["name"] == "[memory]"]
        events = [event for event in events if event["args"]["Device Type"] == kind]
    changes += [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]


def _peak(changes: Sequence[int]) -> int:
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    return peak


def memory_of(norm: Norm, rows: int, channels: int) -> tuple[int, int, int]:
    """Bytes kept for the backward pass, and the peaks of forward and of backward above what was there before.

    Kept are the saved inputs (and the output if it is saved), and all that forward made and left alive but the output.
    """
    x, weight, bias, dy = _inputs(rows, channels)
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), _allocations() as forward:
        y = norm(x, weight, bias)
    with _allocations() as backward:
        gradients = torch.autograd.grad(y, (x, weight, bias), dy)
    del gradients
    kept = sum(saved.get(tensor.data_ptr(), 0) for tensor in (x, weight, bias, y))
    return kept + sum(forward) - y.nbytes, _peak(forward), _peak(backward)


def _memory(rows: int, channels: int, _: float) -> Iterator[tuple[str, float]]:
    kept, forward, backward = memory_of(cross_norm, rows, channels)
    yield "CN, bytes kept for backward / batch norm", kept / memory_of(_batch_norm, rows, channels)[0]
    yield "CN, peak memory of forward in N x C values", forward / (rows * channels * 4)
    yield "CN, peak memory of backward in N x C values", backward / (rows * channels * 4)


def _largest_errors(norm: Norm, inputs: Sequence[Tensor]) -> tuple[float, float]:
    """Of y and of dx: the largest difference between the norm in float32 and the same norm in float64.

    That the norms in float64 are the formulas is what the tests hold.
    """

    def results(x: Tensor, weight: Tensor, bias: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        y = norm(x, weight, bias)
        return y.detach(), torch.autograd.grad(y, x, dy)[0]

    exact = results(*(tensor.detach().double().requires_grad_() for tensor in inputs))
    y, dx = (float((a - b).abs().max()) for a, b in zip(results(*inputs), exact, strict=True))
    return y, dx


def _accuracy(rows: int, channels: int, _: float) -> Iterator[tuple[str, float]]:
    variants: tuple[Variant, ...] = ("released", "paper")
    for mean in ("0", "1e4"):
        inputs = _inputs(rows, channels, float(mean))
        theirs = _largest_errors(_batch_norm, inputs)
        for variant in variants:
            ours = _largest_errors(partial(cross_norm, variant=variant), inputs)
            for name, our_error, their_error in zip(("y", "dx"), ours, theirs, strict=True):
                yield f"CN {variant}, error of {name} at mean {mean} / batch norm", our_error / their_error


def _growth(plan: Plan) -> Measurement:
    """Batch normalization's is shown beside it: what the caches and the calls themselves do, they do to both."""
    seconds = plan.seconds * len(plan.growth)
    ours, theirs = (_nanoseconds(norm, plan.growth, seconds) for norm in (cross_norm, _batch_norm))
    shown = [", ".join(f"{value:.2f}" for value in values) for values in (ours, theirs)]
    spread = max(theirs) / min(theirs)
    case = f"C = 64, N = {', '.join(map(str, plan.growth))}: {shown[0]} ns; batch norm {shown[1]} ns ({spread:.2f})"
    return _GROWTH, case, max(ours) / min(ours)


def _nanoseconds(norm: Norm, sizes: Sequence[int], seconds: float) -> list[float]:
    """Of forward + backward for each of rows x 64 entries: medians, sizes in turn so that all see the same machine."""
    works = [partial(_forward_backward, norm, *_inputs(rows, 64)) for rows in sizes]
    times: list[list[float]] = [[] for _ in sizes]
    end = time.perf_counter() + seconds
    while len(times[0]) < _LEAST_PAIRS or time.perf_counter() < end:
        for own, work in zip(times, works, strict=True):
            work()  # brings its own numbers back into the caches
            own += [_seconds(work) for _ in range(3)]
    return [statistics.median(own) / (rows * 64) * 1e9 for own, rows in zip(times, sizes, strict=True)]


def profile_tables(plan: Plan, steps: int, shown: int = 12) -> str:
    """Where the time of a step of both presets goes, without a norm and with CN."""
    parts = [f"Mean of {steps} steps; {conditions()}."]
    for case, preset in mipnerf_presets(plan.tiny_rays, plan.full_rays).items():
        with training_steps(preset) as both:
            plain, cross = (operator_times(step, steps) for step in both)
        parts.append(f"{case.capitalize()}.\n\n{operator_table(plain, cross, shown)}")
    return "\n\n".join(parts)


def tables(rows: Sequence[Row]) -> str:
    """One table with a column for each shape, and one for figures that have no shape; what is missed is bold."""
    groups: dict[str, list[Row]] = {}
    for figure in BOUNDS:
        groups[figure] = [row for row in rows if row.figure == figure]
    cases = [row.case for row in next(iter(groups.values()))]
    shaped = [group for group in groups.values() if [row.case for row in group] == cases]
    others = [row for group in groups.values() if group not in shaped for row in group]
    by_shape = table(
        ["figure", *cases, "must", "goal"],
        [[group[0].figure, *(_measured(row) for row in group), *_bounds(group)] for group in shaped],
    )
    by_case = table(
        ["figure", "case", "measured", "must", "goal"],
        [[row.figure, row.case, _measured(row), *_bounds([row])] for row in others],
    )
    return f"{by_shape}\n\n{by_case}"


def _measured(row: Row) -> str:
    text = f"{row.measured:.2f}" if row.measured >= 0.1 else f"{row.measured:.1g}"
    return f"**{text}**" if row.missed else text


def _bounds(group: Sequence[Row]) -> list[str]:
    bound = BOUNDS[group[0].figure]
    extra = f" + {bound.per_channel:g}/C" if bound.per_channel else ""
    return [f"{value:g}{extra}" for value in (bound.must, bound.goal)]


if __name__ == "__main__":
    keep_freed_memory()
    main(tyro.cli(Options))
