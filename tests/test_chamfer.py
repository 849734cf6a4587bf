"""The rules of DTU's chamfer distance, one by one, and all of them beside loops over points."""

from dataclasses import replace

import chamfer_reference
import numpy as np
import pytest

from benchmarks import chamfer as benchmark
from eval import chamfer
from eval.chamfer import Reference, compare, is_above_plane, is_inbound, is_observed, sample_triangles, thin
from eval.errors import EvaluationError


def reference(points: np.ndarray | None = None, **changes) -> Reference:
    """A box from 0 to 10 mm with cells of 1 mm, all observed, above the plane z = -100."""
    usual = Reference(
        points=np.array([[5.0, 5, 5]]) if points is None else np.array(points, dtype=np.float64),
        observed=np.ones((11, 11, 11), dtype=bool),
        bounding_box=np.array([[0, 0, 0], [10, 10, 10]], dtype=np.float32),
        resolution=1.0,
        plane=np.array([0.0, 0, 1, 100]),
    )
    return replace(usual, **changes)


def triangle(*corners: tuple[float, float, float]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(corners, dtype=np.float64), np.array([[0, 1, 2]])


def rows(points: np.ndarray) -> list[list[float]]:
    return sorted(np.round(points, 9).tolist())


def test_all_vertices_come_first_even_those_of_no_triangle() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [7, 7, 7]], dtype=np.float64)
    points = sample_triangles(vertices, np.array([[0, 1, 2]]))
    np.testing.assert_array_equal(points[:4], vertices)
    assert len(points) > 4


def test_right_triangle_has_a_grid_of_cell_centres_below_its_diagonal() -> None:
    """Legs of 0.65: 3 steps, shares 1/6, 3/6, 5/6 (and 7/6), of which those with a sum below 1 count."""
    points = sample_triangles(*triangle((1, 1, 1), (1.65, 1, 1), (1, 1.65, 1)))[3:]
    expected = [[1 + 0.65 * u / 6, 1 + 0.65 * v / 6, 1] for u, v in ((1, 1), (1, 3), (3, 1))]
    np.testing.assert_allclose(rows(points), sorted(expected), atol=1e-9)


def test_share_sum_of_exactly_one_is_left_out() -> None:
    """Legs of 0.5: 2 steps, shares 1/4 and 3/4, whose sum is 1."""
    points = sample_triangles(*triangle((0, 0, 0), (0.5, 0, 0), (0, 0.5, 0)))[3:]
    np.testing.assert_allclose(points, [[0.125, 0.125, 0]])


def test_oblique_triangles_have_longer_steps() -> None:
    """At 30 degrees area2 is half the product of the edges, so the step is 0.2 * sqrt(2): 7 for 2 mm, not 10."""
    points = sample_triangles(*triangle((0, 0, 0), (2, 0, 0), (2 * np.cos(np.pi / 6), 1, 0)))[3:]
    second = np.unique(np.round(points[:, 1] * 14, 9))
    np.testing.assert_allclose(second, np.arange(1, 13, 2))


def test_triangles_without_area_or_smaller_than_a_step_have_their_vertices_alone() -> None:
    assert len(sample_triangles(*triangle((0, 0, 0), (5, 0, 0), (9, 0, 0)))) == 3
    assert len(sample_triangles(*triangle((0, 0, 0), (0.1, 0, 0), (0, 0.1, 0)))) == 3


def test_sampling_in_blocks_keeps_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vertices, faces = rng.normal(size=(40, 3)), rng.integers(0, 40, (200, 3))
    whole = sample_triangles(vertices, faces)
    np.testing.assert_allclose(whole, chamfer_reference.sample_triangles(vertices, faces), atol=1e-12)
    monkeypatch.setattr(chamfer, "_BLOCK", 700)
    np.testing.assert_array_equal(sample_triangles(vertices, faces), whole)


def test_mesh_in_wrong_units_is_refused_before_memory_is_spent() -> None:
    with pytest.raises(EvaluationError, match="millimetres"):
        sample_triangles(*triangle((0, 0, 0), (1e6, 0, 0), (0, 1e6, 0)))


def test_first_in_order_drops_its_neighbours() -> None:
    line = np.array([[0.0, 0, 0], [0.15, 0, 0], [0.3, 0, 0]])
    assert sorted(thin(line)) == [0, 2]
    assert sorted(thin(line[[1, 0, 2]])) == [0]


def test_thinning_radius_is_included() -> None:
    assert sorted(thin(np.array([[0.0, 0, 0], [0.2, 0, 0]]))) == [0]
    assert sorted(thin(np.array([[0.0, 0, 0], [np.nextafter(0.2, 1) + 1e-15, 0, 0]]))) == [0, 1]


def test_thinning_radius_is_included_between_batches() -> None:
    """The partners, at exactly 0.2, come after the first batch."""
    first = np.zeros((1100, 3))
    first[:, 0] = 10.0 * np.arange(1100)
    assert sorted(thin(np.concatenate([first, first + [0, 0.2, 0]]))) == list(range(1100))


@pytest.mark.parametrize("edge", [0.3, 1.5, 4.0, 50.0], ids=lambda edge: f"within {edge} mm")
def test_thinning_in_batches_is_the_sequential_one(edge: float) -> None:
    """5000 points are three batches."""
    points = np.random.default_rng(1).uniform(-edge / 2, edge / 2, (5000, 3))
    assert sorted(thin(points)) == chamfer_reference.thin(points)


def test_thinning_is_exact_for_grids_copies_and_points_in_the_order_of_space() -> None:
    axis = np.arange(14) * 0.1
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    clustered = np.concatenate([grid, grid[::-1], np.zeros((50, 3))])
    assert sorted(thin(clustered)) == chamfer_reference.thin(clustered)


def test_thinning_looks_at_few_pairs_also_where_copies_come_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the points, which a file can choose: the copies are all of one batch."""
    looked_at, first_come = [], chamfer._first_come
    monkeypatch.setattr(
        chamfer, "_first_come", lambda turns, pairs: (looked_at.append(len(pairs)), first_come(turns, pairs))[1]
    )
    spread = np.zeros((16_384, 3))
    spread[:, 0], spread[:, 1] = np.arange(16_384) % 128, np.arange(16_384) // 128
    points = np.concatenate([spread, np.full((9_000, 3), 500.0)])
    assert sorted(thin(points)) == list(range(16_385))
    assert max(looked_at) <= 2**24


@pytest.mark.parametrize("edge", [0.3, 1.5, 4.0])
def test_thinning_in_halved_batches_is_the_sequential_one(monkeypatch: pytest.MonkeyPatch, edge: float) -> None:
    monkeypatch.setattr(chamfer, "_MOST_PAIRS", 1000)
    points = np.random.default_rng(1).uniform(-edge / 2, edge / 2, (5000, 3))
    assert sorted(thin(points)) == chamfer_reference.thin(points)


@pytest.mark.parametrize("rounds", [1, 2])
def test_what_rounds_leave_of_near_points_is_gone_through_in_order(
    monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    monkeypatch.setattr(chamfer, "_ROUNDS", rounds)
    row = np.arange(900)[:, None] * np.array([0.15, 0, 0])
    dense = np.random.default_rng(1).uniform(0, 1.5, (3000, 3))
    for points in (row, row[::-1], row[np.random.default_rng(0).permutation(900)], dense):
        assert sorted(thin(points)) == chamfer_reference.thin(points)


def test_equal_reference_points_are_measured_each_but_searched_as_one() -> None:
    """A tree cannot divide them: every query would go through all."""
    lonely = np.array([[5.0, 5, 5], [6, 5, 5]])
    copies = np.repeat(lonely, [3000, 1], axis=0)
    points, tree = chamfer._sorted_tree(copies)
    assert len(points) == 3001 and tree.n < 30
    found = compare(np.array([[5.0, 5, 6], [5, 5, 9]]), reference(copies))
    assert found.num_points["reference"] == 3001
    assert found.accuracy == pytest.approx((1 + 4) / 2)
    assert found.completeness == pytest.approx((3000 * 1 + np.sqrt(2)) / 3001)


def test_seed_orders_points_as_numpy_shuffles_them() -> None:
    """The reference tool shuffles with numpy's default generator: the same seed gives the same points."""
    points = np.random.default_rng(2).uniform(4, 6, (3000, 3))
    shuffled = points.copy()
    np.random.default_rng(7).shuffle(shuffled, axis=0)
    expected = shuffled[chamfer_reference.thin(shuffled)]
    assert rows(compare(points, reference(), 7).data.points) == rows(expected)
    assert rows(compare(points, reference(), 8).data.points) != rows(expected)


def test_margin_of_the_bounding_box_is_60_below_and_120_above() -> None:
    for axis in range(3):
        points = np.full((4, 3), 5.0)
        points[:, axis] = (-60, -60.001, 129.999, 130)
        assert is_inbound(points, reference()).tolist() == [True, False, True, False]


def test_bounding_box_counts_in_single_precision() -> None:
    """float32(0.1) - 60 in float32 is -59.900002, a little below -59.9."""
    box = np.array([[0.1, 0, 0], [10, 10, 10]], dtype=np.float32)
    lower = float(np.float32(0.1) - np.float32(60))
    assert lower < float(np.float32(0.1)) - 60
    points = np.array([[lower, 5, 5], [np.nextafter(lower, -100), 5, 5]])
    assert is_inbound(points, reference(bounding_box=box)).tolist() == [True, False]


def test_observed_is_the_nearest_cell_and_halves_go_to_even_ones() -> None:
    observed = np.zeros((11, 11, 11), dtype=bool)
    observed[2, 5, 5] = True
    x = np.array([1.499, 1.5, 2.499, 2.5, 2.501, 3.0])
    points = np.stack([x, np.full(6, 5.0), np.full(6, 5.0)], axis=-1)
    assert is_observed(points, reference(observed=observed)).tolist() == [False, True, True, True, False, False]


def test_cells_start_at_the_box_and_have_the_files_resolution() -> None:
    observed = np.zeros((11, 11, 11), dtype=bool)
    observed[4, 0, 1] = True
    box = np.array([[100, -7, 3], [110, 3, 13]], dtype=np.float32)
    scan = reference(observed=observed, bounding_box=box, resolution=0.5)
    points = np.array([[102.0, -7, 3.5], [102.0, -7, 4.0], [104.0, -7, 3.5]])
    assert is_observed(points, scan).tolist() == [True, False, False]


def test_nothing_outside_the_grid_is_observed() -> None:
    """-0.5 rounds to the cell 0; -1 must not be taken for the last cell."""
    points = np.array([[-0.5, 5, 5], [-0.51, 5, 5], [-1.0, 5, 5], [10.49, 5, 5], [10.5, 5, 5], [11.0, 5, 5]])
    assert is_observed(points, reference()).tolist() == [True, False, False, True, True, False]


def test_only_points_strictly_above_the_plane_count() -> None:
    points = np.array([[0.0, 0, 2], [0, 0, 2.001], [0, 0, 1.999]])
    assert is_above_plane(points, reference(plane=np.array([0.0, 0, 1, -2]))).tolist() == [False, True, False]


def test_accuracy_is_over_observed_points_and_all_reference_points() -> None:
    """The second point is not observed; the reference point next to the first lies below the plane."""
    observed = np.ones((11, 11, 11), dtype=bool)
    observed[8] = False
    scan = reference([[2.0, 5, 1], [8, 5, 9]], observed=observed, plane=np.array([0.0, 0, 1, -5]))
    found = compare(np.array([[2.0, 5, 2], [8, 5, 5]]), scan)
    assert found.accuracy == pytest.approx(1)


def test_completeness_is_over_points_above_the_plane_to_all_inbound_points() -> None:
    """The nearest point is inbound, but not observed: it counts. The reference point below the plane does not."""
    observed = np.ones((11, 11, 11), dtype=bool)
    observed[8] = False
    scan = reference([[2.0, 5, 1], [8, 5, 9]], observed=observed, plane=np.array([0.0, 0, 1, -5]))
    found = compare(np.array([[2.0, 5, 2], [8, 5, 6]]), scan)
    assert found.completeness == pytest.approx(3)
    far_away = np.array([[2.0, 5, 2], [8, 5, -61]])
    assert compare(far_away, scan).completeness == pytest.approx(np.hypot(6, 7)), "out of bounds: does not count"


def test_distances_from_20_mm_on_do_not_count() -> None:
    scan = reference([[5.0, 5, 5], [5, 5, 30]])
    points = np.array([[5.0, 5, 8], [5, 5, 4]])
    found = compare(points, scan)
    assert found.accuracy == pytest.approx((3 + 1) / 2)
    assert found.completeness == pytest.approx(1), "30 is 22 from 8"
    exactly = compare(np.array([[5.0, 5, 10]]), reference([[5.0, 5, 9], [5, 5, 30]]))
    assert exactly.completeness == pytest.approx(1), "20 is not below 20"
    assert np.isinf(exactly.reference.distances).sum() == 1


def test_overall_is_half_the_sum_and_medians_are_of_the_same_distances() -> None:
    points = np.array([[5.0, 5, 5], [5, 5, 6], [5, 5, 9]])
    found = compare(points, reference([[5.0, 5, 5]]))
    assert (found.accuracy, found.data.median) == (pytest.approx(5 / 3), pytest.approx(1))
    assert (found.completeness, found.reference.median) == (0, 0)
    assert (found.overall, found.overall_median) == (pytest.approx(5 / 6), pytest.approx(0.5))


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, Reference]:
    """Triangles and a scan at which every rule leaves out some points, away from the origin."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-300, 600, 3)
    corners = centre + rng.uniform([-4, -64, -4], [13, 4, 13], (30, 1, 3)) + rng.normal(0, 0.7, (30, 3, 3))
    corners[0, :, 0] += 140
    corners[1, 2] = corners[1, 1]
    points = corners[rng.integers(0, 28, 400), rng.integers(0, 3, 400)] + rng.normal(0, 1, (400, 3))
    points[:5] += 25
    observed = rng.random((15, 52, 15)) < 0.7
    box = (centre + [[0.0, 0, 0], [10, 10, 10]]).astype(np.float32)
    box[0, 1] -= 40
    plane = np.array([0.1, 0.2, 1, -(np.array([0.1, 0.2, 1]) @ (centre + [5, -30, 2]))])
    vertices, faces = corners.reshape(-1, 3), np.arange(90).reshape(30, 3)
    return vertices, faces, Reference(points, observed, box, 0.9, plane)


@pytest.mark.parametrize("seed", range(6))
def test_all_rules_together_agree_with_loops_over_points(seed: int) -> None:
    vertices, faces, scan = random_case(seed)
    expected = chamfer_reference.chamfer(vertices, faces, scan, seed)
    found = compare(sample_triangles(vertices, faces), scan, seed)
    assert found.accuracy == pytest.approx(expected["accuracy"], rel=1e-12)
    assert found.completeness == pytest.approx(expected["completeness"], rel=1e-12)
    assert found.data.median == pytest.approx(expected["accuracy_median"], rel=1e-12)
    assert found.reference.median == pytest.approx(expected["completeness_median"], rel=1e-12)
    for key in ("sampled", "thinned", "inbound", "observed", "reference_above_plane"):
        assert found.num_points[key] == expected[key], key
    assert expected["inbound"] < expected["thinned"] < expected["sampled"], "every rule is at work"
    assert expected["observed"] < expected["inbound"] and expected["reference_above_plane"] < 400


@pytest.mark.parametrize(
    ("points", "scan", "words"),
    [
        ([[500.0, 5, 5]], reference(), "bounding box"),
        ([[11.0, 5, 5]], reference(), "ObsMask"),
        ([[5.0, 5, 5]], reference(plane=np.array([0.0, 0, 1, -100])), "plane"),
        ([[5.0, 5, 5]], reference([[5.0, 5, 50]]), "20 mm"),
    ],
)
def test_means_over_nothing_are_refused(points: list[list[float]], scan: Reference, words: str) -> None:
    with pytest.raises(EvaluationError, match=words):
        compare(np.array(points), scan)


@pytest.fixture(scope="module")
def both_sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[benchmark.Measurement, benchmark.Measurement]:
    """The benchmark's measurements of ours and of the straightforward form, on a small case."""
    pytest.importorskip("sklearn", reason="the straightforward form needs scikit-learn")
    path = tmp_path_factory.mktemp("benchmark") / "case.npz"
    np.savez(path, **benchmark.make_case(2000, 3000))
    return benchmark.measure("ours", path), benchmark.measure("straightforward", path)


def test_benchmark_measures_the_same_distances_on_both_sides(both_sides) -> None:
    ours, theirs = both_sides
    assert ours.accuracy == pytest.approx(theirs.accuracy, rel=1e-12)
    assert ours.completeness == pytest.approx(theirs.completeness, rel=1e-12)
    assert ours.num_points["observed"] < ours.num_points["inbound"], "the case has unobserved points"
    assert ours.seconds.keys() == theirs.seconds.keys() == set(benchmark.STAGES)


def test_benchmark_complains_of_what_is_worse_than_it_must_be(both_sides) -> None:
    ours, theirs = replace(both_sides[0], memory=1.9), both_sides[1]  # this process's counts earlier tests
    slow = replace(theirs, seconds={stage: 7.9 / 8 * seconds for stage, seconds in ours.seconds.items()})
    fast = replace(theirs, seconds={stage: 8.1 * seconds for stage, seconds in ours.seconds.items()})
    assert not benchmark.complaints(ours, fast)
    assert "times faster" in benchmark.complaints(ours, slow)[0]
    assert "GiB" in benchmark.complaints(replace(ours, memory=2.1), fast)[0]
    assert "difference" in benchmark.complaints(replace(ours, accuracy=1.001 * ours.accuracy), fast)[0]
    assert "**8.1**" in benchmark.report(ours, fast, "conditions")
