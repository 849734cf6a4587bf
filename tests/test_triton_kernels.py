"""The Triton kernels against autograd through the plain formulas; in Triton's interpreter where there is no GPU."""

import importlib
import subprocess
import sys

import pytest
import torch

from crossnorm_ns.functional import ColumnStatistics
from crossnorm_ns.functional.normalization import Formula
from crossnorm_ns.kernels import operators

pytest.importorskip("triton")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

INTERPRETED = {} if DEVICE == "cuda" else {"TRITON_INTERPRET": "1"}

with pytest.MonkeyPatch.context() as patch:
    for variable, value in INTERPRETED.items():
        patch.setenv(variable, value)
    if INTERPRETED:  # Triton's own library came in with torch, made for a GPU
        importlib.reload(importlib.import_module("triton.language.standard"))
        importlib.reload(importlib.import_module("triton.language"))
    from crossnorm_ns.kernels import triton_kernels

FORMS = ["released", "paper", "bn", "gn"]
SHAPES = [(1, 7), (5, 1), (1, 1), (130, 28), (33, 100)]
EPS = 1e-5


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    for variable, value in INTERPRETED.items():
        monkeypatch.setenv(variable, value)


def inputs(rows, channels, dtype=torch.float64, offset=0.0):
    """x, weight, bias, upstream gradient, and a stored mean and variance."""
    generator = torch.Generator().manual_seed(rows + channels)
    x = torch.randn(rows, channels, generator=generator, dtype=torch.float64) * 2 + torch.arange(channels) / 30
    weight, bias, mean, var = torch.rand(4, channels, generator=generator, dtype=torch.float64) + 0.5
    upstream = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    bias = bias - 1
    return [t.to(DEVICE, dtype) for t in (x + offset, weight, bias, upstream, mean + offset, var)]


def statistics(x):
    var, mean = torch.var_mean(x, dim=0, correction=min(1, len(x) - 1))
    return ColumnStatistics(len(x), mean, var)


def formula(form):
    return Formula(form, eps=EPS) if form in ("bn", "gn") else Formula("cn", form, EPS)


def plain(x, weight, bias, upstream, stored, form, relu, source="batch"):
    """y, dx, dweight and dbias by the plain formula in float64; `stored` is (mean, var)."""
    x, upstream, *stored = (t.double() for t in (x, upstream, *stored))
    leaves = [x, *(torch.full_like(x[0], 1 - i) if t is None else t.double() for i, t in enumerate((weight, bias)))]
    x, weight, bias = leaves = [t.detach().requires_grad_() for t in leaves]
    batch, stats = statistics(x), ColumnStatistics(37.5, *stored)
    if source == "batch":
        stats = batch
    elif source == "renormalised":
        stats = ColumnStatistics(37.5, *(s + (b - b.detach()) for s, b in zip(stats[1:], batch[1:], strict=True)))
    center, inverse_std = formula(form).moments(x, stats)
    y = (x - center) * inverse_std * weight + bias
    y = torch.relu(y) if relu else y
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def by_kernel(x, weight, bias, upstream, stored, form, relu, source="batch", eps=EPS):
    count, batch_mean, batch_var = triton_kernels.column_statistics(x)
    assert count == len(x)
    rows, mean, var = (len(x), batch_mean, batch_var) if source == "batch" else (37.5, *stored)
    y = triton_kernels.forward(x, weight, bias, rows, mean, var, form, eps, relu)
    own_mean = None if source == "stored" else batch_mean
    gradients = triton_kernels.backward(upstream, x, weight, bias, rows, mean, var, own_mean, form, eps, relu)
    return [y, *gradients]


def assert_close(found, expected, tolerance):
    """Within a share of the largest entry."""
    assert found.shape == expected.shape
    scale = max(float(expected.abs().max()), 1.0)
    torch.testing.assert_close(found.double() / scale, expected / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("source", "relu"), [("batch", False), ("batch", True), ("stored", True), ("renormalised", False)]
)
@pytest.mark.parametrize("form", FORMS)
def test_values_and_gradients_equal_the_plain_formula(form, relu, source):
    for shape in SHAPES:
        x, weight, bias, upstream, *stored = inputs(*shape)
        case = (x, weight, bias, upstream, stored, form, relu, source)
        for ours, theirs in zip(by_kernel(*case), plain(*case), strict=True):
            assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_more_channels_than_a_tile_holds_give_the_plain_formulas_gradients(form):
    x, weight, bias, upstream, *stored = inputs(2, 1500)
    case = (x, weight, bias, upstream, stored, form, True, "renormalised")
    for ours, theirs in zip(by_kernel(*case), plain(*case), strict=True):
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("affine", [(True, False), (False, True), (False, False)])
@pytest.mark.parametrize("form", FORMS)
def test_scale_or_shift_may_be_left_out(form, affine):
    x, weight, bias, upstream, *stored = inputs(9, 5)
    weight, bias = (t if used else None for t, used in zip((weight, bias), affine, strict=True))
    case = (x, weight, bias, upstream, stored, form, True)
    for ours, theirs in zip(by_kernel(*case), plain(*case), strict=True):
        assert_close(ours, theirs, 1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.float16, 1e-3), (torch.bfloat16, 1.6e-2)],  # the interpreter truncates to bfloat16
)
def test_lower_precision_rounds_only_what_has_the_type_of_x(dtype, tolerance, form):
    x, weight, bias, upstream, *stored = inputs(70, 30)
    x, upstream = x.to(dtype), upstream.to(dtype)
    weight, bias = weight.float(), bias.float()
    found = by_kernel(x, weight, bias, upstream, stored, form, True)
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]
    expected = plain(x, weight, bias, upstream, stored, form, True)
    for ours, theirs, error in zip(found, expected, [tolerance, tolerance, 1e-5, 1e-5], strict=True):
        assert_close(ours, theirs, error)


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 300])
def test_column_statistics_are_accurate_far_from_zero(rows):
    x = inputs(rows, 12, torch.float32, offset=1e4)[0]
    found, expected = triton_kernels.column_statistics(x)[1:], statistics(x.double())
    torch.testing.assert_close(found[0], expected.mean.float(), rtol=1e-7, atol=0)
    torch.testing.assert_close(found[1], expected.var.float(), rtol=1e-5, atol=0)


def test_column_statistics_do_not_depend_on_which_row_is_first():
    x = inputs(300, 12, torch.float32, offset=1e4)[0]
    x[0] = 0
    found, expected = triton_kernels.column_statistics(x)[1:], statistics(x.double())
    torch.testing.assert_close(found, expected[1:], rtol=1e-6, atol=0, check_dtype=False)


@pytest.mark.parametrize("shape", [(130, 28), (33, 100)])
@pytest.mark.parametrize("form", FORMS)
def test_a_large_mean_costs_no_accuracy(form, shape):
    x, weight, bias, upstream, *stored = inputs(*shape, torch.float32, offset=1e4)
    case = (x, weight, bias, upstream, stored, form, False)
    for ours, theirs in zip(by_kernel(*case), plain(*case), strict=True):
        assert_close(ours, theirs, 1e-3)


@pytest.mark.parametrize("form", FORMS)
def test_non_contiguous_inputs_give_the_same_result(form):
    x, weight, bias, upstream, *stored = inputs(40, 12)
    expected = by_kernel(x, weight, bias, upstream, stored, form, True)
    strided = torch.cat([x, -x], dim=1)[:, :12]
    transposed = upstream.t().contiguous().t()
    weight, bias, *stored = (torch.stack([t, t], dim=1).flatten()[::2] for t in (weight, bias, *stored))
    found = by_kernel(strided, weight, bias, transposed, stored, form, True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_no_rows_give_no_values_and_gradients_of_zero(form):
    x, weight, bias, upstream, *stored = inputs(0, 4)
    y, dx, dweight, dbias = by_kernel(x, weight, bias, upstream, stored, form, True, "renormalised")
    assert y.shape == dx.shape == (0, 4)
    assert dweight.tolist() == dbias.tolist() == [0.0] * 4


@pytest.mark.parametrize("form", FORMS)
def test_results_repeat_exactly(form):
    x, weight, bias, upstream, *stored = inputs(200, 9, torch.float32)
    first, second = (by_kernel(x, weight, bias, upstream, stored, form, True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_rectification_lets_nan_pass(form):
    x, weight, bias, upstream, *stored = inputs(6, 4)
    x[2, 1] = float("nan")
    case = (x, weight, bias, upstream, stored, form, True, "stored")
    rectified, dx, *_ = by_kernel(*case)
    y = by_kernel(x, weight, bias, upstream, stored, form, False, "stored")[0]
    assert y[2, 1].isnan() and y[0].isfinite().all()
    torch.testing.assert_close(rectified, torch.relu(y), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(dx, plain(*case)[1], equal_nan=True)


def test_a_statistic_that_is_nan_is_not_hidden():
    x, weight, bias, upstream, *stored = inputs(6, 4)
    stored[1][2] = float("nan")
    y = by_kernel(x, weight, bias, upstream, stored, "paper", True, "stored")[0]
    assert y[:, 2].isnan().all() and y[:, 0].isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_constant_features_give_finite_results(form):
    x = torch.full((70, 3), 0.7, device=DEVICE)
    case = (x, None, None, torch.ones_like(x), [x[0], torch.zeros_like(x[0])], form, False)
    assert all(t.isfinite().all() for source in ("batch", "stored") for t in by_kernel(*case, source))


@pytest.mark.parametrize("form", FORMS)
def test_an_outlier_among_stored_statistics_gives_finite_results(form):
    x, _, _, upstream, mean, var = inputs(64, 4, torch.float32)
    x[:, 0] = torch.linspace(1e3, 1e4, 64)
    x[:, 1:] *= 0.01
    case = (x, None, None, upstream, [torch.zeros_like(mean), torch.full_like(var, 1e-4)], form, False, "stored")
    assert all(t.isfinite().all() for t in by_kernel(*case))


@pytest.mark.filterwarnings("ignore:divide by zero")  # the interpreter's, outside of x
def test_a_constant_row_needs_no_epsilon():
    x, *others, mean, var = inputs(6, 5)
    x[2] = 0.7
    assert all(t.isfinite().all() for t in by_kernel(x, *others, [mean, var], "released", False, eps=0.0))


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from crossnorm_ns.kernels import triton_kernels

LAYOUT = {"BLOCK_C": 32, "TILE": 256}
ADDING = {"BLOCK_P": 64, "BLOCK_C": 4}
CASES = [
    (triton_kernels._moments_kernel, {**LAYOUT, "SINGLE": True}, "*fp64"),
    (triton_kernels._merge_kernel, ADDING, "*fp64"),
]
for form, kinds in (("released", 4), ("paper", 5), ("bn", 2), ("gn", 2)):
    constants = {**LAYOUT, "FORM": form, "RELU": True}
    CASES.append((triton_kernels._forward_kernel, constants, None))
    CASES.append((triton_kernels._sums_kernel, {**constants, "SUMS": kinds}, "*fp32"))
    CASES.append((triton_kernels._gradient_kernel, {**constants, "FLOW": True}, None))
    CASES.append((triton_kernels._columns_kernel, {**ADDING, "FORM": form, "SUMS": kinds}, "*fp32"))
SIZES = ("count", "chunk", "channels", "programs")
for kernel, constants, partials in CASES:
    names = kernel.arg_names
    types = {"partials": partials, **{name: "i32" for name in SIZES}, **{name: "constexpr" for name in constants}}
    types |= {p.name: p.annotation_type for p in kernel.params if p.annotation_type}
    signature = {name: types.get(name, "*fp32") for name in names}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()})
    assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["ptx"]
"""


@pytest.mark.skipif(DEVICE == "cuda", reason="the other tests run compiled kernels")
def test_kernels_compile_for_a_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    process = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr


def test_operators_of_cuda_devices_hand_their_arguments_to_these_kernels():
    x, weight, bias, upstream, mean, var = inputs(33, 6)
    count, batch_mean, batch_var = operators.column_statistics_by_triton(x)
    assert count == 33 and count.device == x.device
    expected_statistics = statistics(x)
    torch.testing.assert_close([batch_mean, batch_var], list(expected_statistics[1:]))
    columns, options = (torch.tensor(40.0), mean, var), ("paper", EPS, True)
    y = operators.normalize_by_triton(x, weight, bias, *columns, *options)
    gradients = operators.normalize_backward_by_triton(upstream, x, weight, bias, *columns, batch_mean, *options)
    torch.testing.assert_close(y, triton_kernels.forward(x, weight, bias, 40.0, mean, var, "paper", EPS, True))
    by_hand = triton_kernels.backward(upstream, x, weight, bias, 40.0, mean, var, batch_mean, "paper", EPS, True)
    torch.testing.assert_close(gradients, by_hand)
