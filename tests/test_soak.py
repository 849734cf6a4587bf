"""The judgement of long trainings, and a short one."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.soak import Options, judged, soak, trend

STEPS = list(range(10, 2001, 10))


def test_noise_is_flat_and_a_small_leak_in_it_is_not() -> None:
    noise = np.random.default_rng(0).normal(300, 0.5, len(STEPS))
    assert trend(STEPS, noise.tolist(), 100, 0).flat
    leaking = noise + 2e-3 * np.array(STEPS)
    found = trend(STEPS, leaking.tolist(), 100, 0.5)
    assert not found.flat and found.low < 2 < found.high


def test_states_that_change_from_block_to_block_are_no_trend() -> None:
    levels = np.array([0, 35, 0, 35, 35, 0, 0, 35, 0, 35])
    noise = np.random.default_rng(0).normal(1060, 0.5, len(STEPS))
    values = noise + levels[(np.array(STEPS) - 1) // 200]
    assert trend(STEPS, values.tolist(), 200, 2.0).flat
    assert not trend(STEPS, (values + 0.5 * np.array(STEPS)).tolist(), 200, 2.0).flat


def test_what_happens_while_a_training_warms_up_does_not_count() -> None:
    values = [min(step, 1000) / 10 for step in STEPS]
    assert trend(STEPS, values, 100, 0).flat


def test_a_rise_that_is_negligible_counts_as_none() -> None:
    values = [300 + 1e-3 * step for step in STEPS]
    assert trend(STEPS, values, 100, 2.0).flat and not trend(STEPS, values, 100, 0.5).flat


@pytest.mark.slow
@pytest.mark.usefixtures("own_writers")
def test_memory_and_open_files_of_a_short_training_are_flat(tmp_path: Path) -> None:
    looks = soak("mipnerf-cn-tiny", Options(steps=120, every=12, rays=16), tmp_path)
    assert len(looks["step"]) == 10
    found = judged(looks, 12, ("memory_mib", "python_blocks", "open_files"))
    assert all(one.flat for one in found.values()), found
