"""The tasks against analytic shapes, brute force, scikit-image, numpy's FFT, and inputs that are not right."""

import itertools

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from representation_files import ball, blob, write_image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.transform import radon

from crossnorm_ns.networks import make_network
from crossnorm_ns.representation.coordinates import grid_coordinates, pixel_coordinates
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.evaluation import calibrate_on, outputs_of, outputs_with
from crossnorm_ns.representation.inputs import read_gray_image, read_image, read_occupancy_grid, read_volume
from crossnorm_ns.representation.occupancy import mesh_occupancy
from crossnorm_ns.representation.tasks import CTTask, ImageTask, MRITask, ShapeTask
from crossnorm_ns.representation.tasks.mri import frequency_mask


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_pixel_coordinates_are_those_of_the_released_code():
    expected = [[row / 2 * 2 - 1, column / 2 * 2 - 1] for row in range(3) for column in range(5)]
    torch.testing.assert_close(pixel_coordinates(3, 5), torch.tensor(expected))


def test_grid_coordinates_fill_the_cube_along_every_axis():
    points = grid_coordinates(3, 5, 2)
    expected = list(itertools.product(np.linspace(-1, 1, 3), np.linspace(-1, 1, 5), np.linspace(-1, 1, 2)))
    np.testing.assert_allclose(points.numpy(), expected, atol=1e-6)


# --- images


def test_a_transparent_image_is_laid_on_white(tmp_path):
    pixels = np.zeros((12, 12, 4), dtype=np.uint8)
    pixels[:6] = (255, 0, 0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image[0, 0].tolist() == [1, 0, 0]
    assert image[11, 0].tolist() == [1, 1, 1]


def test_an_image_is_shrunk_by_averaging_the_square_in_its_middle(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = (pixels[:, 8:32] / 255).reshape(12, 2, 12, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(read_image(tmp_path / "a.png", 12).numpy(), expected, atol=1e-6)


def test_metrics_of_an_image_are_those_of_skimage(tmp_path):
    task = ImageTask.open(write_image(tmp_path / "a.png", 20, 26))
    outputs = task.signal + 0.1 * torch.randn(20 * 26, 3, generator=generator())
    found, truth = outputs.reshape(20, 26, 3).double().numpy(), task.signal.reshape(20, 26, 3).double().numpy()
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": -1}
    metrics = task.metrics(outputs)
    assert metrics["psnr"] == pytest.approx(peak_signal_noise_ratio(truth, found, data_range=1), abs=1e-4)
    expected = structural_similarity(truth, found.clip(0, 1), data_range=1, **options)
    assert metrics["ssim"] == pytest.approx(expected, abs=1e-5)
    assert metrics["loss"] == pytest.approx(((found - truth) ** 2).mean(), rel=1e-5)


def test_bits_per_pixel_count_parameters_and_stored_statistics(tmp_path):
    task = ImageTask.open(write_image(tmp_path / "a.png", 16, 20))
    parameters = (2 * 5 + 5) + (5 * 4 + 4) + (4 * 3 + 3) + 2 * (5 + 4)
    # BN: mean and variance of each channel, and each norm's number of rows. GN: mean and variance of all entries.
    for method, statistics in (("relu+bn", 2 * (5 + 4) + 2), ("relu+gn", 2 * 2), ("relu+ln", 0)):
        network = make_network(method, 2, 3, (5, 4))
        calibrate_on(network, task, seed=0)
        expected = {"parameters": parameters, "bits_per_pixel": 32 * (parameters + statistics) / 320}
        assert task.costs(network) == expected


def test_pixels_that_are_drawn_have_their_own_coordinates_and_colours(tmp_path):
    task = ImageTask.open(write_image(tmp_path / "a.png", 12, 15), batch_size=50)
    batch = task.batch(generator())
    rows = ((batch.points[:, 0] + 1) / 2 * 11).round().long()
    columns = ((batch.points[:, 1] + 1) / 2 * 11).round().long()
    assert batch.points.shape == (50, 2)
    torch.testing.assert_close(batch.target, task.signal.reshape(12, 15, 3)[rows, columns])


def test_a_saved_image_is_the_clipped_and_rounded_output(tmp_path):
    task = ImageTask.open(write_image(tmp_path / "a.png", 12, 13))
    outputs = 3 * task.signal - 1
    saved = np.asarray(Image.open(task.save(outputs, tmp_path)))
    expected = np.rint(outputs.reshape(12, 13, 3).numpy().clip(0, 1) * 255)
    np.testing.assert_array_equal(saved, expected)


# --- shapes


def test_occupancy_of_a_ball_is_analytic(tmp_path):
    sphere = trimesh.creation.icosphere(subdivisions=5, radius=3.0)
    sphere.apply_translation([5, -2, 1]).export(tmp_path / "ball.ply")
    inside = mesh_occupancy(tmp_path / "ball.ply", 32)
    radius = 1 / 1.05
    certain = ball(32, radius * 0.995) | ~ball(32, radius * 1.005)
    np.testing.assert_array_equal(inside[certain], ball(32, radius)[certain])
    assert certain.mean() > 0.97


def shells(resolution, centers, radii, tmp_path, inward=()):
    """Occupancy of several spheres in one mesh, and each grid point's distance from each centre over its radius."""
    meshes = [trimesh.creation.icosphere(subdivisions=5, radius=radius) for radius in radii]
    for index, (mesh, center) in enumerate(zip(meshes, centers, strict=True)):
        mesh.apply_translation(center)
        if index in inward:
            mesh.invert()
    whole = trimesh.util.concatenate(meshes)
    whole.export(tmp_path / "mesh.ply")
    half = 1.05 * whole.extents.max() / 2
    points = grid_coordinates(*(resolution,) * 3).double().numpy() * half + whole.bounds.mean(axis=0)
    distances = [np.linalg.norm(points - c, axis=1) / r for c, r in zip(centers, radii, strict=True)]
    return mesh_occupancy(tmp_path / "mesh.ply", resolution).flatten(), np.stack(distances)


def test_closed_shells_that_overlap_fill_their_union(tmp_path):
    inside, distances = shells(32, [[0, 0, 0], [0.8, 0, 0], [0.3, 0.5, 0.1]], [1, 1, 0.7], tmp_path)
    sure = (np.abs(distances - 1) > 0.005).all(axis=0)
    np.testing.assert_array_equal(inside[sure], (distances < 1).any(axis=0)[sure])
    assert sure.mean() > 0.95


def test_a_shell_of_the_other_orientation_is_a_cavity(tmp_path):
    inside, distances = shells(32, [[0, 0, 0], [0.1, 0, 0]], [1, 0.5], tmp_path, inward=[1])
    sure = (np.abs(distances - 1) > 0.01).all(axis=0)
    np.testing.assert_array_equal(inside[sure], ((distances[0] < 1) & (distances[1] > 1))[sure])


@pytest.mark.parametrize("flipped", [slice(None), slice(None, None, 3)])
def test_a_mesh_turned_inside_out_or_in_parts_has_the_same_inside(tmp_path, flipped):
    mesh = trimesh.creation.torus(1.0, 0.4)
    mesh.export(tmp_path / "as_it_was.ply")
    mesh.faces[flipped] = mesh.faces[flipped][:, ::-1]
    mesh.export(tmp_path / "turned.ply")
    inside = [mesh_occupancy(tmp_path / name, 24) for name in ("as_it_was.ply", "turned.ply")]
    np.testing.assert_array_equal(*inside)


@pytest.mark.parametrize("shape", ["torus", "box", "capsule"])
def test_occupancy_agrees_with_a_point_by_point_test(tmp_path, shape):
    meshes = {
        "torus": trimesh.creation.torus(1.0, 0.4),
        "box": trimesh.creation.box((1, 2, 3)),  # grid lines along its axes, beams through its edges
        "capsule": trimesh.creation.capsule(2.0, 0.5),
    }
    mesh = meshes[shape]
    if shape != "box":
        mesh.apply_transform(trimesh.transformations.random_rotation_matrix(np.array([0.2, 0.5, 0.7])))
    mesh.export(tmp_path / "mesh.ply")
    half = 1.05 * np.ptp(mesh.bounds, axis=0).max() / 2
    points = grid_coordinates(24, 24, 24).double().numpy() * half + mesh.bounds.mean(axis=0)
    distances = trimesh.proximity.signed_distance(mesh, points)
    sure = np.abs(distances) > 1e-5
    np.testing.assert_array_equal(mesh_occupancy(tmp_path / "mesh.ply", 24).flatten()[sure], (distances > 0)[sure])


def test_packed_voxel_grids_are_read(tmp_path):
    grid = np.random.default_rng(0).random((5, 6, 7)) > 0.5
    np.savez(tmp_path / "a.npz", packed=np.packbits(grid), shape=np.array(grid.shape))
    np.testing.assert_array_equal(read_occupancy_grid(tmp_path / "a.npz"), grid)


def test_a_voxel_grid_is_coarsened_by_majority(tmp_path):
    grid = np.random.default_rng(0).random((6, 6, 6)) > 0.5
    np.save(tmp_path / "a.npy", grid)
    task = ShapeTask.open(tmp_path / "a.npy", resolution=3)
    for i, j, k in itertools.product(range(3), repeat=3):
        block = grid[2 * i : 2 * i + 2, 2 * j : 2 * j + 2, 2 * k : 2 * k + 2]
        assert bool(task.signal[9 * i + 3 * j + k]) == (block.sum() >= 4)


def test_iou_is_that_of_sets_of_voxels():
    task = ShapeTask(torch.from_numpy(ball(9)))
    outputs = torch.randn(729, 1, generator=generator())
    found = {i for i in range(729) if outputs[i] >= 0}
    truth = {i for i in range(729) if task.signal[i]}
    assert task.metrics(outputs)["iou"] == pytest.approx(len(found & truth) / len(found | truth))


def test_cross_entropy_is_that_of_the_definition():
    task = ShapeTask(torch.from_numpy(ball(9)))
    outputs = torch.randn(729, 1, generator=generator()).double()
    probability = 1 / (1 + np.exp(-outputs[:, 0].numpy()))
    expected = -np.log(np.where(task.signal.numpy(), probability, 1 - probability)).mean()
    assert task.metrics(outputs)["loss"] == pytest.approx(expected, rel=1e-6)


def test_voxels_that_are_drawn_have_their_own_coordinates():
    task = ShapeTask(torch.from_numpy(ball(16)), batch_size=400)
    batch = task.batch(generator())
    expected = batch.points.square().sum(-1) < 0.36
    torch.testing.assert_close(batch.target, expected)
    torch.testing.assert_close(task.coordinates(7, 500), grid_coordinates(16, 16, 16)[7:500])


def test_the_mesh_of_a_ball_is_closed_and_has_its_volume(tmp_path):
    task = ShapeTask(torch.from_numpy(ball(32)))
    outputs = 20 * (0.6 - task.coordinates().norm(dim=-1, keepdim=True))
    mesh = trimesh.load(task.save(outputs, tmp_path), force="mesh")
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * 0.6**3, rel=0.01)


def test_real_voxel_grids_and_meshes_are_read(shared_data):
    task = ShapeTask.open(shared_data / "occupancy" / "lucy_50k_512.npz", resolution=64)
    assert task.size == (64, 64, 64)
    assert 0.005 < float(task.signal.float().mean()) < 0.2
    assert mesh_occupancy(shared_data / "meshes" / "armadillo_43k.ply", 32).mean() > 0.03


def test_shapes_are_seen_upright_and_not_as_in_a_mirror():
    """From small z an eye sees large x on its left, large y above; from small x large y on its left, large z above."""
    inside = torch.zeros(8, 8, 8, dtype=torch.bool)
    inside[1:4, 1:7, 3] = True
    inside[4, 1, 3] = True  # a foot at larger x
    inside[2, 6, 4] = True  # a nose at larger z and y
    task = ShapeTask(inside)
    panels = task.views(torch.where(task.signal, 1.0, -1.0)[:, None])
    for panel in panels:
        np.testing.assert_array_equal(panel.reconstruction, panel.truth)
    backgrounds = (1, 1, 0)  # white, white; black
    along_z, along_x, section = (
        ["".join(" #"[value] for value in row) for row in (panel.truth != background).astype(int)]
        for panel, background in zip(panels, backgrounds, strict=True)
    )
    blank = " " * 8
    assert along_z == [blank, *["    ### "] * 5, "   #### ", blank]
    assert along_x == [blank, blank, blank, " #      ", " ###### ", blank, blank, blank]
    assert section == [blank, "  #     ", *[blank] * 6], "through the nose, x to the right"


def test_shapes_are_shaded_by_the_slope_of_their_near_side():
    inside = torch.zeros(12, 12, 12, dtype=torch.bool)
    inside[1:11, 1:11, 4:8] = True
    inside[3, 3, 2] = inside[8, 8, 9] = True  # a bump in front, and one behind
    seen = ShapeTask(inside).views(torch.zeros(12**3, 1))[0].truth[::-1, ::-1].T
    assert max(seen[2, 3], seen[3, 4]) < 0.7, "slopes of the bump are dark"
    assert (seen[6:10, 6:10] == seen[5, 7]).all() and seen[5, 7] > 0.85, "nothing is seen of what is behind"


# --- tomography and magnetic resonance


def test_the_sinogram_is_that_of_skimage():
    density = blob(25)[12].contiguous()
    task = CTTask(density, num_angles=7, detector="diagonal")
    expected = radon(density.double().numpy(), np.linspace(0, 180, 7), circle=False)
    np.testing.assert_allclose(task.sinogram.T.numpy(), expected, atol=1e-3)


def test_gray_images_of_16_bits_fill_the_range(tmp_path):
    pixels = np.arange(1000, 1000 + 144 * 7, 7, dtype=np.uint16).reshape(12, 12)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = (pixels - 1000.0) / (143 * 7)
    np.testing.assert_allclose(read_gray_image(tmp_path / "a.png").numpy(), expected, atol=1e-6)


def test_the_slice_of_a_colour_image_is_its_green_channel(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    pixels[0, :2, 1] = (0, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_gray_image(tmp_path / "a.png").numpy(), pixels[..., 1] / 255, atol=1e-6)


def test_measurements_of_a_volume_are_its_fft_at_the_mask():
    volume = blob(12)
    task = MRITask(volume, num_draws=300)
    expected = np.fft.fftn(volume.numpy())[task.mask.numpy()] / np.sqrt(12**3)
    np.testing.assert_allclose(task.samples.numpy(), expected, atol=1e-4)


def test_frequencies_are_gaussian_around_zero():
    mask = np.fft.fftshift(frequency_mask((64, 64, 64), 2000))
    frequencies = np.argwhere(mask) - 32
    assert 1800 < len(frequencies) <= 2000
    np.testing.assert_allclose(frequencies.mean(axis=0), 0, atol=1)
    np.testing.assert_allclose(frequencies.std(axis=0), np.sqrt(192) * 64 / 96, rtol=0.1)


def test_the_spectrum_is_covered_alike_at_every_size():
    coverage = {}
    for size in (48, 96):
        mask = frequency_mask((size,) * 3, round(200_000 * (size / 96) ** 3))
        frequencies = np.fft.fftfreq(size)
        radius = np.sqrt(sum(axis**2 for axis in np.meshgrid(*[frequencies] * 3)))
        shells = [(0, 0.05), (0.05, 0.15), (0.15, 0.25), (0.25, 0.35), (0.35, 0.5)]
        coverage[size] = [mask[(radius >= low) & (radius < high)].mean() for low, high in shells]
    assert coverage[96][0] > 0.97
    np.testing.assert_allclose(coverage[48], coverage[96], atol=0.02)


def test_the_full_volume_is_sampled_as_by_fourier_features():
    draws = np.rint(np.random.default_rng(3).normal(size=(500, 3)) * np.sqrt(2 * 96)).astype(int)
    expected = {tuple(draw % 96) for draw in draws if (draw >= -48).all() and (draw < 48).all()}
    assert {tuple(index) for index in np.argwhere(frequency_mask((96, 96, 96), 500, seed=3))} == expected


@pytest.mark.parametrize("task", [CTTask(blob(16)[8].contiguous(), 5), MRITask(blob(12))], ids=["ct", "mri"])
def test_the_truth_has_no_loss_and_a_change_has(task):
    outputs = task.signal.reshape(-1, 1)
    outputs = torch.logit(outputs) if task.name == "mri" else outputs
    assert task.metrics(outputs)["loss"] < 1e-9
    assert task.metrics(outputs)["psnr"] > 90
    assert task.metrics(outputs + 0.1)["loss"] > 1e-5


def test_volumes_are_shrunk_by_averaging(tmp_path):
    volume = np.random.default_rng(0).integers(0, 256, (24, 24, 24), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", volume=volume, other=np.zeros(3))
    expected = (volume / 255).reshape(12, 2, 12, 2, 12, 2).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(read_volume(tmp_path / "a.npz", 12).numpy(), expected, atol=1e-6)


def test_the_real_slice_and_volume_are_read(shared_data):
    task = CTTask.open(shared_data / "ct" / "chest.png", downscale=4, num_angles=4)
    assert task.size == (81, 108) and float(task.signal.max()) <= 1
    assert MRITask.open(shared_data / "mri" / "mni152_t1_icbm2009a_96.npz", 24).size == (24, 24, 24)


# --- statistics at evaluation


@pytest.mark.parametrize("method", ["pe+cn", "relu+bn", "relu+gn", "pe+ln", "siren"])
def test_stored_statistics_are_the_full_batch_and_do_not_depend_on_blocks(tmp_path, method):
    task = ImageTask.open(write_image(tmp_path / "a.png", 16, 16))
    network = make_network(method, 2, 3, (8, 8))
    calibrate_on(network, task, seed=0)
    network.train()
    released = network(task.points).detach()
    for outputs in (outputs_of(network, task, 37), outputs_with(network, task, "batch")):
        torch.testing.assert_close(outputs, released, atol=1e-4, rtol=1e-4)


def test_statistics_of_chunks_are_those_of_each_chunk_alone(tmp_path):
    task = ImageTask.open(write_image(tmp_path / "a.png", 16, 16))
    network = make_network("pe+cn", 2, 3, (8, 8))
    calibrate_on(network, task, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    outputs = outputs_with(network, task, "chunks", 64)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    network.train()
    expected = torch.cat([network(points).detach() for points in task.points.split(64)])
    torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)
    assert (outputs - outputs_of(network, task)).abs().max() > 1e-2


def test_statistics_of_drawn_points_approach_those_of_all():
    task = ShapeTask(torch.from_numpy(ball(16)), batch_size=2000)
    network = make_network("relu+cn", 3, 1, (16, 16))
    calibrate_on(network, task, seed=0)
    stored, batch = outputs_with(network, task, "stored"), outputs_with(network, task, "batch")
    assert 0 < (stored - batch).abs().max() < 0.05


# --- inputs that are not right


def sphere_with_a_hole():
    sphere = trimesh.creation.icosphere(subdivisions=2)
    sphere.update_faces(np.arange(len(sphere.faces)) > 0)
    return sphere


BAD_VOLUMES = {
    "1 values that are NaN or infinite, the first at (1, 2, 3)": lambda: np.where(
        np.arange(1728).reshape(12, 12, 12) == 144 + 24 + 3, np.nan, 0.5
    ),
    "a volume has three axes": lambda: np.zeros((12, 12)),
    "values from -1 to 0.5": lambda: 0.5 - 1.5 * np.eye(12)[:, :, None] * np.ones(12),
    "values from 0 to 0": lambda: np.zeros((12, 12, 12)),
    "at least 11 along each side": lambda: np.random.default_rng(0).random((12, 12, 4)),
    "real numbers": lambda: np.ones((12, 12, 12), dtype=complex),
}


@pytest.mark.parametrize("message", BAD_VOLUMES)
def test_wrong_volumes_are_refused(tmp_path, message):
    np.save(tmp_path / "a.npy", BAD_VOLUMES[message]())
    with pytest.raises(RepresentationError) as caught:
        MRITask.open(tmp_path / "a.npy")
    assert message in str(caught.value)


def test_open_meshes_are_refused(tmp_path):
    sphere_with_a_hole().export(tmp_path / "a.ply")
    with pytest.raises(RepresentationError, match="is not closed .3 of its edges"):
        mesh_occupancy(tmp_path / "a.ply", 8)


def test_meshes_without_faces_are_refused(tmp_path):
    trimesh.PointCloud(np.eye(3)).export(tmp_path / "a.ply")
    with pytest.raises(RepresentationError, match="has no faces"):
        mesh_occupancy(tmp_path / "a.ply", 8)


@pytest.mark.parametrize(
    ("grid", "message"),
    [(np.ones((4, 4, 4)), "all voxels of the grid are inside"), (ball(8)[:5], "is no cube")],
)
def test_grids_without_a_shape_are_refused(tmp_path, grid, message):
    np.save(tmp_path / "a.npy", grid)
    with pytest.raises(RepresentationError, match=message):
        ShapeTask.open(tmp_path / "a.npy")


def test_gray_images_of_16_bits_are_fitted_with_all_their_levels(tmp_path):
    pixels = np.linspace(0, 65535, 144).round().astype(np.uint16).reshape(12, 12)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "b.tif")
    for name in ("a.png", "b.tif"):
        expected = np.repeat(pixels[..., None] / 65535, 3, axis=-1)
        np.testing.assert_allclose(read_image(tmp_path / name).numpy(), expected, atol=1e-6)


def test_pictures_of_real_numbers_are_read_where_white_is_known(tmp_path):
    values = np.linspace(0, 1, 144, dtype=np.float32).reshape(12, 12)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", 12)[..., 1].numpy(), values, atol=1e-6)
    for number, wrong in enumerate((300 * values, values - 0.5, np.full_like(values, np.nan))):
        Image.fromarray(wrong).save(tmp_path / f"{number}.tif")
        with pytest.raises(RepresentationError, match="white is not known"):
            read_image(tmp_path / f"{number}.tif")
    Image.fromarray((200 * values).astype(np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(RepresentationError, match="from 0 to 200 in I"):
        read_image(tmp_path / "i.tif")


def test_a_slice_with_transparency_is_its_gray_value(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 2), dtype=np.uint8)
    pixels[0, :2, 0] = (0, 255)
    Image.fromarray(pixels, "LA").save(tmp_path / "a.png")
    np.testing.assert_allclose(read_gray_image(tmp_path / "a.png").numpy(), pixels[..., 0] / 255, atol=1e-6)


def test_pictures_in_lab_are_converted(tmp_path):
    lightness = np.linspace(0, 255, 144).astype(np.uint8).reshape(12, 12)
    neutral = np.zeros_like(lightness)  # a and b are signed bytes
    picture = Image.merge("LAB", [Image.fromarray(some) for some in (lightness, neutral, neutral)])
    picture.save(tmp_path / "a.tif")
    expected = np.asarray(picture.convert("RGB")) / 255
    np.testing.assert_allclose(read_image(tmp_path / "a.tif").numpy(), expected, atol=1e-6)
    green = expected[..., 1]
    slice_ = read_gray_image(tmp_path / "a.tif")
    np.testing.assert_allclose(slice_.numpy(), (green - green.min()) / np.ptp(green), atol=1e-6)


def test_slices_that_are_not_finite_are_refused(tmp_path):
    values = np.linspace(0, 1, 144, dtype=np.float32).reshape(12, 12)
    values[3, 4] = np.nan
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(RepresentationError, match="NaN or infinite"):
        read_gray_image(tmp_path / "a.tif")


BAD_GRIDS = {
    "values of type <U1": {"packed": np.full((4, 4, 4), "x")},
    "has the shape (-1, 4, 4)": {"packed": np.zeros(8, dtype=np.uint8), "shape": np.array([-1, 4, 4])},
    "has the shape (4, 4)": {"packed": np.zeros(8, dtype=np.uint8), "shape": np.array([4, 4])},
    "has the shape ('a', 'b', 'c')": {"packed": np.zeros(8, dtype=np.uint8), "shape": np.array(["a", "b", "c"])},
    "packs fewer bits": {"packed": np.zeros(8, dtype=np.uint8), "shape": np.array([2**31, 2**31, 2**31])},
}


@pytest.mark.parametrize("message", BAD_GRIDS)
def test_wrong_voxel_grids_are_refused(tmp_path, message):
    np.savez(tmp_path / "a.npz", **BAD_GRIDS[message])
    with pytest.raises(RepresentationError) as caught:
        read_occupancy_grid(tmp_path / "a.npz")
    assert message in str(caught.value)


def test_damaged_arrays_are_refused_in_one_line(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", volume=np.random.default_rng(0).random((12, 12, 12)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[200:400] = bytes(200)
    (tmp_path / "a.npz").write_bytes(data)
    description = {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**7, 10**5)}
    with (tmp_path / "huge.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, description)
    for name in ("a.npz", "huge.npy"):
        with pytest.raises(RepresentationError) as caught:
            read_volume(tmp_path / name)
        assert f"{name} cannot be read" in str(caught.value) and "\n" not in str(caught.value)


def test_too_small_images_are_refused(tmp_path):
    with pytest.raises(RepresentationError, match="5x24, but at least 11"):
        ImageTask.open(write_image(tmp_path / "a.png", 5, 24))
    with pytest.raises(RepresentationError, match="24x12 pixels and cannot be shrunk to 16x16: give a side of 12"):
        ImageTask.open(write_image(tmp_path / "b.png", 12, 24), side=16)


def test_a_batch_of_more_points_than_a_pass_can_hold_is_refused(monkeypatch):
    monkeypatch.setattr("crossnorm_ns.representation.evaluation._LARGEST_BATCH", 500)
    task, network = ShapeTask(torch.from_numpy(ball(8))), make_network("relu+bn", 3, 1, (4,))
    with pytest.raises(RepresentationError, match="512 points together need one pass"):
        outputs_with(network, task, "batch")
