"""The benchmark that trains an image beside the released layer."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.released_image import Options, ReleasedCrossNorm, compare, main, with_released_norms
from crossnorm_ns.networks import make_network


def test_first_steps_follow_the_released_layer_in_float64(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    noise = tmp_path / "noise.png"
    Image.fromarray(pixels).save(noise)
    options = Options(noise, steps=4, dtype="float64", docs=tmp_path, threads=torch.get_num_threads())
    levels, seconds = compare(options)
    assert len(levels) == len(seconds) == 4
    for ours, released, control in levels:
        assert abs(ours - released) < 1e-7 and abs(control - released) < 1e-7
    assert levels[0][0] != levels[3][0], "it trains"
    main(options)
    assert "| 1 |" in (tmp_path / "results" / "released-image-float64.md").read_text()


def test_every_cross_norm_is_replaced_and_nothing_else() -> None:
    torch.manual_seed(0)
    network = make_network("pe+cn", in_dim=2, out_dim=3, hidden=(8, 8))
    weights = [p.clone() for p in network.parameters()]
    with_released_norms(network)
    assert sum(isinstance(module, ReleasedCrossNorm) for module in network.modules()) == 2
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))
