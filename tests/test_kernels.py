"""The C++ kernel against its plain twin, which one runs, and what a norm keeps in memory."""

import subprocess

import pytest
import torch

from crossnorm_ns import functional, kernels
from crossnorm_ns.functional import ColumnStatistics, normalization
from crossnorm_ns.kernels import dispatch, extension

VARIANTS = ["released", "paper"]
SHAPES = [(1, 1), (1, 5), (2, 1), (3, 2), (7, 16), (63, 8), (64, 3), (65, 33), (130, 10), (1000, 64)]
TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 2e-4, "atol": 2e-5}}


@pytest.fixture
def compiled():
    if kernels.dispatch.cpu_extension() is None:
        pytest.skip("no C++ compiler: the plain formula is all there is")


@pytest.fixture
def plain(monkeypatch):
    """Call it to switch to the plain formula for the rest of the test."""
    return lambda: monkeypatch.setattr(kernels, "supports", lambda x: False)


@pytest.fixture
def forget_extension():
    """The next call looks for a compiler again, in this test and after it."""
    extension.cpu_extension.cache_clear()
    yield
    extension.cpu_extension.cache_clear()


def inputs(rows, channels, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=generator, dtype=torch.float64) * 2 + torch.arange(channels) / 3
    weight, bias, mean, var = torch.rand(4, channels, generator=generator, dtype=torch.float64) + 0.5
    upstream = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    return [t.to(dtype) for t in (x, weight, bias, upstream, mean, var)]


def results(x, weight, bias, upstream, variant, stats):
    """Value, first and second gradients."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = functional.cross_norm(*leaves, stats=stats, variant=variant)
    first = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    spatial = torch.autograd.grad(y, leaves, upstream, create_graph=True)
    second = torch.autograd.grad(sum(g.cos().sum() for g in spatial), leaves[:2])
    return [y.detach(), *first, *spatial, *second]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("source", ["batch", "stored"])
def test_kernel_equals_the_plain_twin_in_value_and_both_gradients(compiled, plain, dtype, variant, source):
    cases = []
    for shape in SHAPES:
        x, weight, bias, upstream, mean, var = inputs(*shape, dtype)
        stats = ColumnStatistics(37.5, mean, var) if source == "stored" else None
        case = (x, weight, bias, upstream, variant, stats)
        cases.append((case, results(*case)))
    plain()
    for case, by_kernel in cases:
        for ours, theirs in zip(by_kernel, results(*case), strict=True):
            scale = max(1.0, float(theirs.detach().abs().max()))
            torch.testing.assert_close(ours / scale, theirs / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)])
def test_kernel_equals_the_plain_twin_without_scale_or_shift(compiled, plain, affine):
    x, weight, bias, upstream, *_ = inputs(70, 5, torch.float64)
    weight, bias = (t if used else None for t, used in zip((weight, bias), affine, strict=True))
    x.requires_grad_()

    def value_and_gradient():
        y = functional.cross_norm(x, weight, bias)
        return [y.detach(), *torch.autograd.grad(y, x, upstream)]

    by_kernel = value_and_gradient()
    plain()
    torch.testing.assert_close(by_kernel, value_and_gradient())


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_through_renormalised_statistics_equal_the_plain_twin(compiled, plain, variant):
    x, weight, bias, upstream, mean, var = inputs(150, 6, torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    running = ColumnStatistics(90.0, mean, var)

    def value_and_gradients():
        batch = functional.column_statistics(x.detach())
        formula = normalization.Formula("cn", variant)
        y = normalization.normalize(formula, x, weight, bias, stats=running, batch=batch)
        return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]

    by_kernel = value_and_gradients()
    plain()
    torch.testing.assert_close(by_kernel, value_and_gradients())


@pytest.mark.parametrize("variant", VARIANTS)
def test_non_contiguous_inputs_give_the_same_result(compiled, variant):
    x, weight, bias, upstream, *_ = inputs(66, 12, torch.float64)
    expected = results(x, weight, bias, upstream, variant, None)
    strided = torch.cat([x, -x], dim=1)[:, :12]
    transposed = upstream.t().contiguous().t()
    every_other = [torch.stack([t, t], dim=1).flatten()[::2] for t in (weight, bias)]
    assert not any(t.is_contiguous() for t in (strided, transposed, *every_other))
    y = functional.cross_norm(strided, *every_other, variant=variant)
    torch.testing.assert_close(y, expected[0])
    leaf = strided.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_norm(leaf, *every_other, variant=variant), leaf, transposed)
    torch.testing.assert_close(gradient, expected[1])


def test_a_gradient_that_is_expanded_from_a_scalar_is_read_right(compiled, plain):
    x, weight, bias, *_ = inputs(66, 12, torch.float64)
    x.requires_grad_()
    (by_kernel,) = torch.autograd.grad(functional.cross_norm(x, weight, bias).sum(), x)
    plain()
    (expected,) = torch.autograd.grad(functional.cross_norm(x, weight, bias).sum(), x)
    torch.testing.assert_close(by_kernel, expected)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_several_threads_give_the_same_result(compiled, threads, dtype):
    x, weight, bias, upstream, *_ = inputs(1003, 24, dtype)
    before = torch.get_num_threads()
    expected = {variant: results(x, weight, bias, upstream, variant, None) for variant in VARIANTS}
    try:
        torch.set_num_threads(threads)
        found = {variant: results(x, weight, bias, upstream, variant, None) for variant in VARIANTS}
    finally:
        torch.set_num_threads(before)
    for variant in VARIANTS:
        for ours, theirs in zip(found[variant], expected[variant], strict=True):
            torch.testing.assert_close(ours, theirs, **TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 129, 1000])
@pytest.mark.parametrize("threads", [1, 3])
def test_column_statistics_of_the_kernel_equal_float64(compiled, rows, threads):
    x = torch.randn(rows, 7, generator=torch.Generator().manual_seed(rows)) * 0.5 + 300
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        mean, var = kernels.column_statistics(x)
    finally:
        torch.set_num_threads(before)
    exact = x.double()
    torch.testing.assert_close(mean, exact.mean(0).float(), rtol=1e-7, atol=0)
    expected_var = exact.var(0) if rows > 1 else torch.zeros(7)
    torch.testing.assert_close(var, expected_var.float(), rtol=1e-5, atol=1e-9)


def test_the_environment_switches_kernels_off(compiled, monkeypatch, forget_extension):
    x, weight, bias, upstream, *_ = inputs(100, 9, torch.float64)
    by_kernel = results(x, weight, bias, upstream, "released", None)
    monkeypatch.setenv("CROSSNORM_KERNELS", "plain")
    extension.cpu_extension.cache_clear()
    assert not kernels.supports(x)
    for ours, theirs in zip(results(x, weight, bias, upstream, "released", None), by_kernel, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "failure", [RuntimeError("Error building extension"), subprocess.CalledProcessError(1, "c++"), OSError("read-only")]
)
def test_without_a_compiler_one_warning_and_the_plain_formula(
    monkeypatch, forget_extension, tmp_path, failure, recwarn
):
    def fail(library):
        raise failure

    monkeypatch.delenv("CROSSNORM_KERNELS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where no library lies
    monkeypatch.setattr(extension, "_build", fail)
    x, weight, bias, *_ = inputs(20, 4, torch.float64)
    for _ in range(3):
        y = functional.cross_norm(x, weight, bias)
    total = x.sum(0) + x.sum(1, keepdim=True) - x
    expected = (x - total / 24) / torch.sqrt(x.var(0) + x.var(1, keepdim=True) + 1e-5) * weight + bias
    torch.testing.assert_close(y, expected)
    (warning,) = [w for w in recwarn if "C++ kernels" in str(w.message)]
    assert "slower plain formula" in str(warning.message)


def test_kernels_take_float32_and_float64_of_the_cpu_alone(compiled):
    assert kernels.supports(torch.zeros(2, 2)) and kernels.supports(torch.zeros(2, 2, dtype=torch.float64))
    assert not kernels.supports(torch.zeros(2, 2, dtype=torch.float16))
    assert not kernels.supports(torch.zeros(2, 2, device="meta"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("path", ["kernel", "plain"])
def test_backward_needs_the_input_and_nothing_else_of_its_size(plain, variant, path):
    if path == "plain":
        plain()
    rows, channels = 512, 32
    x, weight, bias, *_ = inputs(rows, channels, torch.float32)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    kept = {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        functional.cross_norm(*leaves, variant=variant)
    assert x.untyped_storage().data_ptr() in kept
    assert sum(kept.values()) == 4 * (rows * channels + 2 * channels)


def test_the_backward_pass_of_training_runs_the_kernel(compiled, monkeypatch):
    calls = []
    backward = dispatch.cross_norm_backward
    monkeypatch.setattr(kernels, "cross_norm_backward", lambda *args: calls.append(1) or backward(*args))
    x = torch.randn(8, 4, requires_grad=True)
    functional.cross_norm(x, None, None).sum().backward()
    assert calls == [1]
