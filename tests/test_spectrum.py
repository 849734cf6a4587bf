"""Which frequencies are learned first."""

import json
import math

import numpy as np
import pytest
import torch

from crossnorm_ns.representation.commands_analysis import SpectrumCommand
from crossnorm_ns.representation.spectrum import FrequencyHistory, band_errors, learn_frequencies, sum_of_sines


def test_the_signal_has_its_frequencies_and_no_others():
    signal = sum_of_sines(64, (1, 5, 20))
    power = np.abs(np.fft.rfft(signal.values[:, 0].double().numpy()))
    assert set(np.flatnonzero(power > 1e-3 * power.max())) == {1, 5, 20}
    np.testing.assert_allclose(power[[1, 5, 20]], 64 / 2 / 3, rtol=1e-5)
    assert float(signal.points.min()) == -1 and float(signal.points.max()) < 1


def test_errors_of_bands_are_relative_and_apart():
    """Doubling one sine and losing another leaves errors of 1 in their bands alone, whatever their amplitudes."""
    x = 2 * math.pi * torch.arange(128)[:, None] / 128
    parts = [3.0 * torch.sin(2 * x), 0.1 * torch.cos(9 * x), torch.sin(30 * x + 1)]
    prediction = 2 * parts[0] + parts[2]
    errors = band_errors(prediction, sum(parts), [(1, 4), (5, 16), (17, 64)])
    torch.testing.assert_close(errors, torch.tensor([1.0, 1.0, 0.0]).double(), rtol=0, atol=1e-4)


def test_errors_start_near_1_and_fall_with_the_low_frequencies_first():
    signal = sum_of_sines(128, (1, 16))
    history = learn_frequencies("relu", signal, (64, 64), steps=200, learning_rate=1e-3)
    assert history.errors[0] == pytest.approx([1, 1], abs=0.3)
    assert history.errors[-1][0] < 0.2
    assert history.errors[-1][1] > 0.8


def test_positional_encoding_and_cross_normalization_reach_high_frequencies():
    signal = sum_of_sines(128, (1, 15))
    history = learn_frequencies("pe+cn", signal, (32, 32), steps=150, learning_rate=1e-2, num_frequencies=5)
    assert (history.errors[-1] < 0.3).all()


def test_steps_are_recorded_at_equal_ratios_from_the_first_to_the_last():
    signal = sum_of_sines(16, (1,))
    history = learn_frequencies("relu", signal, (4,), steps=50, records=10)
    assert history.steps[0] == 0 and history.steps[-1] == 50
    assert len(history.steps) <= 10 and len(history.errors) == len(history.steps)
    gaps = np.diff(history.steps)
    assert gaps[-1] > gaps[0] and (gaps > 0).all()


def test_the_same_seed_gives_the_same_history():
    signal = sum_of_sines(32, (1, 4))
    first, again = (learn_frequencies("relu+cn", signal, (8,), steps=5, seed=3) for _ in range(2))
    other = learn_frequencies("relu+cn", signal, (8,), steps=5, seed=4)
    np.testing.assert_array_equal(first.errors, again.errors)
    assert not np.array_equal(first.errors, other.errors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_errors_on_a_gpu_are_those_of_the_cpu():
    signal = sum_of_sines(32, (1, 4))
    expected, found = (
        learn_frequencies("pe+cn", signal.to(device), (8,), steps=10, learning_rate=1e-2)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-3)


def test_a_band_is_learned_when_its_error_stays_low():
    errors = np.array([[1.0, 1.0, 0.01], [0.05, 0.9, 0.01], [0.2, np.nan, 0.01], [0.04, 0.5, 0.01]])
    history = FrequencyHistory("relu", ((1, 1), (2, 2), (3, 3)), (0, 10, 100, 1000), errors)
    assert history.steps_to(0.1) == [1000, None, 0]


@pytest.mark.parametrize("frequencies", [(), (0, 1), (3, 2), (1, 8)])
def test_frequencies_that_the_samples_cannot_hold_are_refused(frequencies):
    with pytest.raises(ValueError, match="less than half of the 16 samples"):
        sum_of_sines(16, frequencies)


def test_a_diverged_network_has_no_errors_in_the_file(tmp_path):
    SpectrumCommand(
        methods=("relu",), samples=16, network="1x4", frequencies=(1, 5), steps=9, learning_rate=1e30, output=tmp_path
    ).run()
    errors = json.loads((tmp_path / "spectrum.json").read_text())["methods"]["relu"]["errors"]
    assert errors[-1] == [None, None] and None not in errors[0]


def test_the_command_writes_curves_and_a_figure(tmp_path, capsys):
    SpectrumCommand(
        methods=("relu", "pe+cn"), samples=32, network="1x8", frequencies=(1, 5), steps=10, output=tmp_path
    ).run()
    results = json.loads((tmp_path / "spectrum.json").read_text())
    assert results["methods"]["pe+cn"]["steps"][-1] == 10
    assert len(results["methods"]["relu"]["errors"][0]) == 2
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")
    assert "5 cycles" in capsys.readouterr().out
