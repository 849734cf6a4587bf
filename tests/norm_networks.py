"""Small networks with each norm, for the tests of the norms' modules; and the same written out from the formulas."""

import torch
from torch import nn
from torch.nn import functional

from crossnorm_ns import make_norm, norm_domain

EPS = 1e-5
NORMS = ["bn", "ln", "gn", "cn-released", "cn-paper"]
WITH_COLUMNS = [name for name in NORMS if name != "ln"]


def norm(name, channels, dtype=torch.float64, **options):
    """One norm, its scale and shift drawn at random."""
    kind, _, variant = name.partition("-")
    made = make_norm(kind, channels, variant=variant or "released", dtype=dtype, **options)
    generator = torch.Generator().manual_seed(channels)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.rand(channels, generator=generator, dtype=torch.float64) + 0.5)
    return made


def network(name, width=6, dtype=torch.float64, seed=0, **options):
    """(n, 3) -> (n, 1) through two hidden layers with smooth activations."""
    torch.manual_seed(seed)
    sizes = [3, width, width]
    hidden = [
        layer
        for inputs, outputs in zip(sizes, sizes[1:], strict=False)
        for layer in (nn.Linear(inputs, outputs, dtype=dtype), norm(name, outputs, dtype, **options), nn.Softplus(3))
    ]
    return nn.Sequential(*hidden, nn.Linear(width, 1, dtype=dtype))


def points(rows, seed=0, dtype=torch.float64):
    return 2 * torch.rand(rows, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype) - 1


def buffers(module):
    """Copies of all stored statistics, by name."""
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def assert_same(before, after):
    """Equal bit for bit."""
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, msg=name)


def train(model, batches=3, rows=32, domain="default", dtype=torch.float64):
    """Lets the norms see a few training batches."""
    for seed in range(batches):
        with norm_domain(model, domain):
            model(points(rows, seed, dtype))
    return model


def textbook_norm(name, x, weight, bias, rows, mean, var):
    """A norm whose column has `rows` values of this mean and unbiased variance, as sums over the row and the column."""
    channels = x.shape[1]
    column_squares = (rows - 1) * var + rows * mean**2
    if name == "bn":
        center, variance = mean, var * (rows - 1) / rows
    elif name == "ln":
        center, variance = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    elif name == "gn":
        count = rows * channels
        center = mean.mean()
        variance = (column_squares.sum() - count * center**2) / (count - 1)
    elif name == "cn-released":
        center = (x.sum(1, keepdim=True) + rows * mean - x) / (rows + channels)
        variance = var + x.var(1, keepdim=True)
    else:
        count = rows + channels - 1
        center = (x.sum(1, keepdim=True) + rows * mean - x) / count
        variance = (x.square().sum(1, keepdim=True) + column_squares - x.square()) / count - center**2
    return (x - center) / torch.sqrt(variance + EPS) * weight + bias


def textbook_network(name, parameters, x, statistics):
    """`network` written out; `statistics(layer, features)` gives (rows, mean, var) of each hidden layer's features.

    Args:
        name: of the norm.
        parameters: those of `network`, in its order.
        x: points.
        statistics: called with the index of the hidden layer and what its norm is given.
    """
    w1, b1, g1, s1, w2, b2, g2, s2, w3, b3 = parameters
    for layer, (w, b, g, s) in enumerate([(w1, b1, g1, s1), (w2, b2, g2, s2)]):
        x = x @ w.T + b
        x = functional.softplus(textbook_norm(name, x, g, s, *statistics(layer, x)), 3)
    return x @ w3.T + b3


def batch_statistics(layer, features):
    return features.shape[0], features.mean(0), features.var(0)
