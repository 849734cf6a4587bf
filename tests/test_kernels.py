"""The C++ kernel against its plain twin, which one runs, and what a norm keeps in memory."""

import subprocess

import pytest
import torch

from crossnorm_ns import functional, kernels
from crossnorm_ns.functional import ColumnStatistics, normalization
from crossnorm_ns.kernels import dispatch, extension

VARIANTS = ["released", "paper"]
FORMULAS = [
    normalization.Formula(name, variant, relu=relu)
    for name, variant in [("cn", "released"), ("cn", "paper"), ("bn", "released"), ("gn", "released")]
    for relu in (False, True)
]
RELEASED = FORMULAS[0]
SHAPES = [(1, 1), (1, 5), (2, 1), (3, 2), (7, 16), (63, 8), (64, 3), (65, 33), (130, 10), (1000, 64)]
TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-11}, torch.float32: {"rtol": 2e-4, "atol": 2e-5}}


@pytest.fixture
def compiled():
    if not extension.load_cpu_kernels():
        pytest.skip("no C++ compiler: the plain formula is all there is")


@pytest.fixture
def plain(monkeypatch):
    """Call it to switch to the plain formula for the rest of the test."""
    return lambda: monkeypatch.setenv("CROSSNORM_KERNELS", "plain")


@pytest.fixture
def forget_extension(monkeypatch):
    """The next call looks for a compiler again; after the test what was loaded before counts again."""
    monkeypatch.setattr(extension, "_loaded", None)


def inputs(rows, channels, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=generator, dtype=torch.float64) * 2 + torch.arange(channels) / 3
    weight, bias, mean, var = torch.rand(4, channels, generator=generator, dtype=torch.float64) + 0.5
    upstream = torch.randn(rows, channels, generator=generator, dtype=torch.float64)
    return [t.to(dtype) for t in (x, weight, bias, upstream, mean, var)]


def results(x, weight, bias, upstream, formula, stats):
    """Value, first gradients, spatial ones, and what follows from the spatial gradient of x, and from all of them."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    y = normalization.normalize(formula, *leaves, stats=stats)
    first = torch.autograd.grad(y, leaves, upstream, retain_graph=True)
    spatial = torch.autograd.grad(y, leaves, upstream, create_graph=True)
    scaled = [g / g.detach().abs().max().clamp_min(1) for g in spatial]  # cosines of large numbers lose their digits
    second, of_all = (
        torch.autograd.grad(loss, leaves[:2], retain_graph=True, materialize_grads=True)
        for loss in (scaled[0].cos().sum(), sum(g.cos().sum() for g in scaled))
    )
    return [y.detach(), *first, *spatial, *second, *of_all]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("formula", FORMULAS, ids=str)
@pytest.mark.parametrize("source", ["batch", "stored"])
def test_kernel_equals_the_plain_twin_in_value_and_both_gradients(compiled, plain, dtype, formula, source):
    cases = []
    for shape in SHAPES:
        if formula.name == "bn" and dtype == torch.float32 and shape[0] == 1 and source == "batch":
            continue  # gradients of zero: differences of terms that are 316 times as large as x
        x, weight, bias, upstream, mean, var = inputs(*shape, dtype)
        stats = ColumnStatistics(37.5, mean, var) if source == "stored" else None
        case = (x, weight, bias, upstream, formula, stats)
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


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_gradients_through_renormalised_statistics_equal_the_plain_twin(compiled, plain, formula):
    x, weight, bias, upstream, mean, var = inputs(150, 6, torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    running = ColumnStatistics(90.0, mean, var)

    def value_and_gradients():
        batch = functional.column_statistics(x.detach())
        y = normalization.normalize(formula, x, weight, bias, stats=running, batch=batch)
        return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]

    by_kernel = value_and_gradients()
    plain()
    torch.testing.assert_close(by_kernel, value_and_gradients())


@pytest.mark.parametrize("values_of", ["batch", "running"])
@pytest.mark.parametrize("shape", [(1, 7), (2, 1), (5, 33), (150, 6)])
@pytest.mark.parametrize("formula", FORMULAS, ids=str)
def test_derivatives_of_the_spatial_gradient_in_closed_form_equal_the_plain_twin(
    compiled, plain, monkeypatch, formula, shape, values_of
):
    x, weight, bias, upstream, mean, var = inputs(*shape, torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, upstream)]
    calls = []
    closed = kernels.spatial_backward
    monkeypatch.setattr(kernels, "spatial_backward", lambda *arguments: calls.append(1) or closed(*arguments))

    def spatial_gradient_and_derivatives():
        batch = functional.column_statistics(x.detach())
        stats = batch if values_of == "batch" else ColumnStatistics(90.0, mean, var)
        y = normalization.normalize(formula, x, weight, bias, stats=stats, batch=batch, coupled_gradients=False)
        (spatial,) = torch.autograd.grad(y, x, upstream, create_graph=True)
        return [spatial.detach(), *torch.autograd.grad(spatial.cos().sum(), leaves)]

    by_kernel = spatial_gradient_and_derivatives()
    assert len(calls) == 1
    plain()
    by_formula = spatial_gradient_and_derivatives()
    assert len(calls) == 1
    for ours, theirs in zip(by_kernel, by_formula, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_third_derivatives_go_through_the_plain_formula(compiled, plain):
    x, weight, bias, upstream, *_ = inputs(12, 5, torch.float64)
    x.requires_grad_()

    def third():
        batch = functional.column_statistics(x.detach())
        y = normalization.normalize(RELEASED, x, weight, bias, stats=batch, batch=batch, coupled_gradients=False)
        (first,) = torch.autograd.grad(y, x, upstream, create_graph=True)
        (second,) = torch.autograd.grad(first.cos().sum(), x, create_graph=True)
        return torch.autograd.grad(second.sin().sum(), x)

    by_kernel = third()
    plain()
    torch.testing.assert_close(by_kernel, third())


@pytest.mark.parametrize("variant", VARIANTS)
def test_non_contiguous_inputs_give_the_same_result(compiled, variant):
    x, weight, bias, upstream, *_ = inputs(66, 12, torch.float64)
    expected = results(x, weight, bias, upstream, normalization.Formula("cn", variant), None)
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


# A thread gets 2^15 entries at least; borders between threads fall into rows that are read past their end.
@pytest.mark.parametrize(("rows", "channels"), [(4099, 24), (98_311, 1), (3, 40_000)])
def test_several_threads_give_the_same_result(compiled, rows, channels):
    threads, dtype = 3, torch.float64
    x, weight, bias, upstream, *_ = inputs(rows, channels, dtype)
    before = torch.get_num_threads()
    expected = [results(x, weight, bias, upstream, formula, None) for formula in FORMULAS]
    try:
        torch.set_num_threads(threads)
        found = [results(x, weight, bias, upstream, formula, None) for formula in FORMULAS]
    finally:
        torch.set_num_threads(before)
    for case, reference in zip(found, expected, strict=True):
        for ours, theirs in zip(case, reference, strict=True):
            scale = max(1.0, float(theirs.detach().abs().max()))
            torch.testing.assert_close(ours / scale, theirs / scale, **TOLERANCE[dtype])


@pytest.mark.parametrize("rows", [1, 2, 63, 64, 65, 129, 1000, 14_050])
@pytest.mark.parametrize("threads", [1, 3])
def test_column_statistics_of_the_kernel_equal_float64(compiled, rows, threads):
    x = torch.randn(rows, 7, generator=torch.Generator().manual_seed(rows)) * 0.5 + 300
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        count, mean, var = kernels.column_statistics(x)
    finally:
        torch.set_num_threads(before)
    assert count == rows
    exact = x.double()
    torch.testing.assert_close(mean, exact.mean(0).float(), rtol=1e-7, atol=0)
    expected_var = exact.var(0) if rows > 1 else torch.zeros(7)
    torch.testing.assert_close(var, expected_var.float(), rtol=1e-5, atol=1e-9)


@pytest.fixture
def operator_calls(monkeypatch):
    """Names of the operators called."""
    calls = []
    for name in ("normalize", "normalize_backward"):
        operator = getattr(kernels, name)
        monkeypatch.setattr(kernels, name, lambda *args, n=name, f=operator: calls.append(n) or f(*args))
    return calls


def train(**options):
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = functional.cross_norm(x, None, None, **options)
    y.square().sum().backward()
    return y, x.grad


def test_training_runs_the_kernels_forward_and_backward(compiled, monkeypatch, operator_calls):
    monkeypatch.delenv("CROSSNORM_KERNELS", raising=False)
    train()
    assert operator_calls == ["normalize", "normalize_backward"]


@pytest.mark.parametrize("switch", ["environment", "argument"])
def test_environment_and_argument_switch_the_kernels_off(compiled, monkeypatch, operator_calls, switch):
    expected = train(kernel="compiled")
    operator_calls.clear()
    if switch == "environment":
        monkeypatch.setenv("CROSSNORM_KERNELS", "plain")
    torch.testing.assert_close(train(kernel="auto" if switch == "environment" else "plain"), expected)
    assert operator_calls == []


def test_insisting_on_a_kernel_that_cannot_be_had_says_why(compiled):
    with pytest.raises(ValueError, match="no compiled kernel for torch.float32 on meta with 3 channels"):
        functional.cross_norm(torch.zeros(2, 3, device="meta"), None, None, kernel="compiled")


def test_an_unknown_choice_in_the_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("CROSSNORM_KERNELS", "fast")
    with pytest.raises(ValueError, match="unknown kernels 'fast': choose one of auto, compiled, plain"):
        train()


@pytest.mark.parametrize("formula", [f for f in FORMULAS if f.relu], ids=str)
def test_a_fused_relu_hides_no_nan(compiled, formula):
    x = torch.randn(70, 20)
    x[5, 3] = float("nan")
    stats = ColumnStatistics(70.0, torch.zeros(20), torch.ones(20))
    assert normalization.normalize(formula, x, None, None, stats=stats, kernel="compiled")[5, 3].isnan()


@pytest.mark.parametrize("formula", FORMULAS, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_padding_of_a_row_never_reaches_another_row(compiled, formula, value):
    # rows that do not fill whole vectors are read past their end
    x = torch.randn(40, 7, dtype=torch.float64)
    x[11] = value
    stats = ColumnStatistics(40.0, torch.zeros(7, dtype=torch.float64), torch.ones(7, dtype=torch.float64))
    x.requires_grad_()
    y = normalization.normalize(formula, x, None, None, stats=stats, kernel="compiled")
    (gradient,) = torch.autograd.grad(y.sum(), x)
    others = torch.arange(40) != 11
    assert y[others].isfinite().all() and gradient[others].isfinite().all()


def test_an_outlier_in_the_next_row_leaves_a_gradient_finite_without_epsilon(compiled):
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[11] *= 1000
    stats = ColumnStatistics(40.0, torch.zeros(7, dtype=torch.float64), torch.ones(7, dtype=torch.float64))
    x.requires_grad_()
    gradients = []
    for kernel in ("compiled", "plain"):
        y = functional.cross_norm(x, None, None, stats=stats, variant="paper", eps=0.0, kernel=kernel)
        gradients.append(torch.autograd.grad(y[:11].sum(), x)[0])
    assert gradients[1][:11].isfinite().all()
    torch.testing.assert_close(gradients[0][:11], gradients[1][:11])


def test_operators_refuse_what_does_not_fit_x(compiled):
    x, columns, rows = torch.zeros(8, 4), torch.ones(4), torch.tensor(8.0)
    options = ("released", 1e-5, False)
    with pytest.raises(RuntimeError, match="one entry for each channel"):
        kernels.normalize(x, torch.ones(2), None, rows, columns, columns, *options)
    with pytest.raises(RuntimeError, match="one entry for each channel"):
        kernels.normalize_backward(x, x, None, None, rows, columns, columns, columns[:3], *options)
    with pytest.raises(RuntimeError, match="another size than x"):
        kernels.normalize_backward(x[:5], x, None, None, rows, columns, columns, columns, *options)


def test_numbers_of_rows_do_not_follow_the_default_device(compiled):
    x = torch.randn(8, 4)
    expected = functional.cross_norm(x, None, None)
    with torch.device("meta"):
        torch.testing.assert_close(functional.cross_norm(x, None, None), expected)


def test_operators_pass_torch_s_own_checks(compiled):
    x, weight, bias, upstream, mean, var = inputs(33, 6, torch.float64)
    rows, options = torch.tensor(33.0, dtype=torch.float64), ("paper", 1e-5, True)
    for operator, arguments in [
        (kernels.column_statistics, (x,)),
        (kernels.normalize, (x, weight, bias, rows, mean, var, *options)),
        (kernels.normalize_backward, (upstream, x, weight, bias, rows, mean, var, mean, *options)),
    ]:
        torch.library.opcheck(operator, arguments)


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
    monkeypatch.setattr(extension, "_build_and_load", fail)
    x, weight, bias, *_ = inputs(20, 4, torch.float64)
    for _ in range(3):
        y = functional.cross_norm(x, weight, bias)
    total = x.sum(0) + x.sum(1, keepdim=True) - x
    expected = (x - total / 24) / torch.sqrt(x.var(0) + x.var(1, keepdim=True) + 1e-5) * weight + bias
    torch.testing.assert_close(y, expected)
    (warning,) = [w for w in recwarn if "C++ kernels" in str(w.message)]
    assert "slower plain formula" in str(warning.message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine where Triton finds no device")
def test_where_triton_cannot_run_one_warning_and_the_plain_formula(recwarn):
    dispatch._triton_works.cache_clear()
    assert not dispatch.load_cuda_kernels() and not dispatch.load_cuda_kernels()
    (warning,) = [w for w in recwarn if "Triton kernels" in str(w.message)]
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


