"""The stateless norms against brute force, textbook formulas, limits, symmetries and finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from crossnorm_ns import functional, kernels
from crossnorm_ns.functional import ColumnStatistics

EPS = 1e-5
NORMS = {
    "bn": functional.batch_norm,
    "ln": functional.layer_norm,
    "gn": functional.global_norm,
    "cn-released": lambda *args, **options: functional.cross_norm(*args, variant="released", **options),
    "cn-paper": lambda *args, **options: functional.cross_norm(*args, variant="paper", **options),
}
WITH_COLUMNS = [name for name in NORMS if name != "ln"]
VARIANTS = ["released", "paper"]


@pytest.fixture(params=["kernel", "plain"])
def path(request, monkeypatch):
    """Where there is a compiler, both the kernel and the plain formula."""
    if request.param == "plain":
        monkeypatch.setenv("CROSSNORM_KERNELS", "plain")
    elif not kernels.supports(torch.zeros(1, 1)):
        pytest.skip("no C++ compiler: the plain formula is all there is")


def batch(rows, channels, seed=0, dtype=torch.float64):
    """Features with unlike means and spreads, and an affine pair."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, channels, generator=generator, dtype=dtype)
    x = x * (0.5 + torch.arange(channels)) + torch.linspace(-2, 3, channels)
    weight, bias = torch.rand(2, channels, generator=generator, dtype=dtype) + 0.5
    return x, weight, bias


def stored(channels, rows=40, seed=7, dtype=torch.float64):
    """Column statistics that are not those of any batch at hand."""
    generator = torch.Generator().manual_seed(seed)
    mean, var = torch.rand(2, channels, generator=generator, dtype=dtype)
    return ColumnStatistics(rows, mean, var + 0.1)


def call(name, x, weight, bias, stats=None):
    return NORMS[name](x, weight, bias) if stats is None else NORMS[name](x, weight, bias, stats=stats)


def cross_by_loops(x, variant):
    """Each entry by the values of its row and its column, one by one."""
    rows, channels = x.shape
    y = np.empty_like(x)
    for i in range(rows):
        for j in range(channels):
            row, column = [x[i, k] for k in range(channels)], [x[k, j] for k in range(rows)]
            if variant == "released":
                mean = (sum(row) + sum(column) - x[i, j]) / (rows + channels)
                var = np.var(row, ddof=1) + np.var(column, ddof=1)
            else:
                cross = row + column[:i] + column[i + 1 :]
                assert len(cross) == rows + channels - 1
                mean, var = np.mean(cross), np.var(cross)
            y[i, j] = (x[i, j] - mean) / np.sqrt(var + EPS)
    return y


class ReleasedNorm(torch.nn.Module):
    """The published code's layer, as PROTOCOLS writes it: sums, not means."""

    def forward(self, x, weight, bias):
        total = x.sum(1, keepdim=True) + x.sum(0, keepdim=True) - x
        mean = total / (x.shape[0] + x.shape[1])
        var = x.var(0, keepdim=True) + x.var(1, keepdim=True)
        return (x - mean) / torch.sqrt(var + EPS) * weight + bias


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 2), (5, 3), (3, 6), (9, 4)])
def test_cross_norm_equals_loops_over_the_cross(variant, shape, path):
    x, weight, bias = batch(*shape)
    expected = cross_by_loops(x.numpy(), variant) * weight.numpy() + bias.numpy()
    np.testing.assert_allclose(functional.cross_norm(x, weight, bias, variant=variant), expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_released_form_equals_the_published_layer_with_its_gradient(dtype, path):
    x, weight, bias = (t.requires_grad_() for t in batch(50, 8, dtype=dtype))
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    ours, theirs = functional.cross_norm(x, weight, bias), ReleasedNorm()(x, weight, bias)
    torch.testing.assert_close(ours, theirs, **tolerance)
    upstream = torch.cos(torch.arange(400.0, dtype=dtype)).reshape(50, 8)
    for mine, published in zip(
        torch.autograd.grad(ours, (x, weight, bias), upstream),
        torch.autograd.grad(theirs, (x, weight, bias), upstream),
        strict=True,
    ):
        torch.testing.assert_close(mine, published, **tolerance)


def test_released_form_has_the_gradient_of_the_closed_formula(path):
    x, weight, _ = batch(12, 5)
    x.requires_grad_()
    upstream = torch.sin(torch.arange(60.0, dtype=torch.float64)).reshape(12, 5)
    (gradient,) = torch.autograd.grad(functional.cross_norm(x, weight, None), x, upstream)

    x, (n, c) = x.detach(), x.shape
    g, a = upstream * weight, 1 / (n + c)
    r = (x.var(0) + x.var(1, keepdim=True) + EPS).rsqrt()
    centered = x - (x.sum(1, keepdim=True) + x.sum(0) - x) / (n + c)
    expected = (
        (1 + a) * g * r
        - a * (g * r).sum(1, keepdim=True)
        - a * (g * r).sum(0)
        - (x - x.mean(0)) * (g * centered * r**3).sum(0) / (n - 1)
        - (x - x.mean(1, keepdim=True)) * (g * centered * r**3).sum(1, keepdim=True) / (c - 1)
    )
    torch.testing.assert_close(gradient, expected)


def test_batch_norm_equals_torch():
    x, weight, bias = batch(20, 6)
    expected = torch.nn.functional.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    torch.testing.assert_close(functional.batch_norm(x, weight, bias), expected)


def test_layer_norm_equals_numpy():
    x, weight, bias = batch(20, 6)
    mean, std = x.numpy().mean(1, keepdims=True), np.sqrt(x.numpy().var(1, keepdims=True) + EPS)
    expected = (x.numpy() - mean) / std * weight.numpy() + bias.numpy()
    np.testing.assert_allclose(functional.layer_norm(x, weight, bias), expected)


def test_global_norm_equals_numpy():
    x, weight, bias = batch(20, 6)
    expected = (x.numpy() - x.numpy().mean()) / np.sqrt(x.numpy().var(ddof=1) + EPS) * weight.numpy() + bias.numpy()
    np.testing.assert_allclose(functional.global_norm(x, weight, bias), expected)


@pytest.mark.parametrize("name", WITH_COLUMNS)
def test_stored_statistics_of_the_batch_itself_give_the_same_values(name):
    x, weight, bias = batch(30, 4)
    stats = ColumnStatistics(30, x.mean(0), x.var(0))
    torch.testing.assert_close(call(name, x, weight, bias, stats), call(name, x, weight, bias))


@pytest.mark.parametrize("name", list(NORMS))
def test_leading_dimensions_are_rows(name):
    x, weight, bias = batch(24, 5)
    expected = call(name, x, weight, bias).reshape(2, 3, 4, 5)
    torch.testing.assert_close(call(name, x.reshape(2, 3, 4, 5), weight, bias), expected)


def test_paper_form_tends_to_batch_norm_with_many_rows():
    distances = []
    for rows in (1_000, 10_000, 100_000):
        x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        difference = functional.cross_norm(x, None, None, variant="paper") - functional.batch_norm(x, None, None)
        distances.append(float(difference.abs().mean()))
    assert distances[2] < 1e-4
    assert distances[0] > 8 * distances[1] > 64 * distances[2]  # falls as C / N


def test_released_form_tends_to_the_column_mean_and_the_summed_variance_with_many_rows():
    x, _, _ = batch(100_000, 4)
    limit = (x - x.mean(0)) / torch.sqrt(x.var(0) + x.var(1, keepdim=True) + EPS)
    assert (functional.cross_norm(x, None, None) - limit).abs().max() < 2e-3
    assert (functional.cross_norm(x, None, None) - functional.batch_norm(x, None, None)).abs().max() > 0.1


@pytest.mark.parametrize("name", list(NORMS))
def test_permuting_rows_permutes_the_result(name):
    x, weight, bias = batch(17, 5)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(call(name, x[order], weight, bias), call(name, x, weight, bias)[order])


@pytest.mark.parametrize("name", list(NORMS))
def test_permuting_channels_with_their_weights_permutes_the_result(name):
    x, weight, bias = batch(17, 5)
    order = torch.tensor([3, 0, 4, 1, 2])
    permuted = call(name, x[:, order], weight[order], bias[order])
    torch.testing.assert_close(permuted, call(name, x, weight, bias)[:, order])


@settings(max_examples=60, deadline=None)
@given(
    x=hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 7)), elements=st.floats(-1e3, 1e3, width=32)),
    shift=st.floats(-100, 100),
)
def test_norms_are_finite_and_those_of_differences_ignore_a_shift(x, shift):
    x = torch.from_numpy(x)
    for name in NORMS:
        y = call(name, x, None, None)
        assert torch.isfinite(y).all()
        if name != "cn-released":  # whose mean divides N + C - 1 values by N + C
            torch.testing.assert_close(call(name, x + shift, None, None), y, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(2, 8), st.integers(0, 1000), st.sampled_from(VARIANTS))
def test_any_shape_equals_loops_over_the_cross(rows, channels, seed, variant):
    x, _, _ = batch(rows, channels, seed)
    y = functional.cross_norm(x, None, None, variant=variant)
    np.testing.assert_allclose(y, cross_by_loops(x.numpy(), variant), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rows", [64, 5_000])
@pytest.mark.parametrize("source", ["train", "stored"])
def test_a_large_mean_keeps_its_precision_in_float32(variant, rows, source, path):
    x = (torch.randn(rows, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1e4).float()
    exact = x.double()
    expected = functional.cross_norm(
        exact, None, None, variant=variant, stats=ColumnStatistics(rows, exact.mean(0), exact.var(0))
    )
    stats = None
    if source == "stored":
        stats = ColumnStatistics(rows, exact.mean(0).float(), exact.var(0).float())
    y = functional.cross_norm(x, None, None, variant=variant, stats=stats)
    assert y.dtype == torch.float32
    assert (y.double() - expected).abs().max() < 1e-3 * expected.abs().max()


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_outlier_among_stored_statistics_stays_finite(variant, path):
    x = 0.01 * torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    x[:, 0] = torch.linspace(1e3, 1e4, 64)
    stats = ColumnStatistics(10, torch.zeros(4), torch.full((4,), 1e-4))
    assert torch.isfinite(functional.cross_norm(x, None, None, variant=variant, stats=stats)).all()


@pytest.mark.parametrize("name", list(NORMS))
@pytest.mark.parametrize("affine", [True, False])
def test_first_and_second_gradients_equal_finite_differences(name, affine):
    x, weight, bias = (t.requires_grad_() for t in batch(5, 3))
    inputs = (x, weight, bias) if affine else (x, None, None)
    assert torch.autograd.gradcheck(NORMS[name], inputs)
    assert torch.autograd.gradgradcheck(NORMS[name], inputs)


@pytest.mark.parametrize("name", WITH_COLUMNS)
def test_gradients_with_stored_statistics_equal_finite_differences(name):
    inputs = tuple(t.requires_grad_() for t in batch(5, 3))
    stats = stored(3)
    assert torch.autograd.gradcheck(lambda *args: NORMS[name](*args, stats=stats), inputs)
    assert torch.autograd.gradgradcheck(lambda *args: NORMS[name](*args, stats=stats), inputs)


@pytest.mark.parametrize("name", list(NORMS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(name, dtype, path):
    x = (20 + 5 * torch.randn(8192, 8, generator=torch.Generator().manual_seed(0))).to(dtype)
    assert x.float().sum(0).min() > torch.finfo(torch.float16).max  # sums that overflow where they are kept in half
    weight, bias = torch.full((8,), 1.5), torch.full((8,), 0.25)
    x.requires_grad_()
    y = call(name, x, weight, bias)
    y.sum().backward()
    assert y.dtype == dtype and x.grad is not None and x.grad.dtype == dtype
    assert torch.isfinite(x.grad).all()
    expected = call(name, x.detach().double(), weight.double(), bias.double())
    torch.testing.assert_close(y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", list(NORMS))
@pytest.mark.parametrize("weight_dtype", [torch.float16, torch.float32, torch.float64])
def test_weights_of_another_type_are_converted(name, weight_dtype):
    x, weight, bias = batch(9, 4)
    weight, bias = weight.half().double(), bias.half().double()
    expected = call(name, x, weight, bias)
    weight, bias = weight.to(weight_dtype).requires_grad_(), bias.to(weight_dtype)
    y = call(name, x, weight, bias)
    y.sum().backward()
    torch.testing.assert_close(y, expected)
    assert weight.grad is not None and weight.grad.dtype == weight_dtype


@pytest.mark.parametrize(
    "name, source", [(name, "train") for name in NORMS] + [(name, "stored") for name in WITH_COLUMNS]
)
@pytest.mark.parametrize("shape", [(1, 4), (6, 1), (1, 1), (0, 4), (0, 1), (2, 0, 4)])
def test_degenerate_shapes_have_finite_values_and_gradients(name, source, shape, path):
    channels = shape[-1]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight, bias = torch.ones(channels).requires_grad_(), torch.zeros(channels).requires_grad_()
    stats = stored(channels, dtype=torch.float32) if source == "stored" else None
    y = call(name, x, weight, bias, stats)
    assert y.shape == x.shape and torch.isfinite(y).all()
    alone = torch.autograd.grad(y.square().sum(), (x, weight, bias), retain_graph=True)
    first = torch.autograd.grad(y.square().sum(), (x, weight, bias), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, weight))
    for gradient in (*alone, *first, *second):
        assert torch.isfinite(gradient).all()


def test_a_single_row_is_normalized_by_its_row_alone_in_the_released_form():
    x = torch.tensor([[1.0, 2.0, 6.0]], dtype=torch.float64)
    expected = (x - 9 / 4) / np.sqrt(7 + EPS)  # the column's sum is x itself; the row's variance is 7
    torch.testing.assert_close(functional.cross_norm(x, None, None), expected)


def test_weights_and_statistics_of_another_size_or_device_are_refused():
    x, weight, bias = batch(6, 4)
    with pytest.raises(ValueError, match=r"mean has shape \(2,\) on cpu, but x has 4 channels"):
        functional.cross_norm(x, weight, bias, stats=stored(2))
    with pytest.raises(ValueError, match=r"weight has shape \(4,\) on meta, but x .* on cpu"):
        functional.cross_norm(x, weight.to("meta"), bias)


def test_an_unknown_variant_is_refused():
    with pytest.raises(Exception, match="variant|Literal"):
        functional.cross_norm(torch.zeros(2, 2), None, None, variant="other")


def test_statistics_of_half_precision_are_summed_in_float32():
    rows = torch.full((70_000, 2), 2.0, dtype=torch.float16)
    rows[::2] = 4.0
    stats = functional.column_statistics(rows)
    assert stats.mean.dtype == torch.float32
    torch.testing.assert_close(stats.mean, torch.full((2,), 3.0))
    torch.testing.assert_close(stats.var, torch.full((2,), 70_000 / 69_999))
