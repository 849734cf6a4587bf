"""python -m eval.blender: known scores, files of any system, refusals in one line, results on disk."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from eval_files import SIZE, picture, write_renders, write_scene
from PIL import Image
from provenance_files import assert_provenance
from skimage.metrics import structural_similarity

from eval import blender, views
from eval.errors import EvaluationError
from eval.files import write_atomically
from eval.renders import load_render, match_renders
from eval.results import Subject
from eval.scoring import evaluate
from eval.sheet import spread
from eval.views import View, Views, views_of_renders

EXPECTED_PSNR = -20 * math.log10(26 / 255)


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return write_scene(tmp_path / "scene")


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """Runs the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["eval.blender", *map(str, arguments)])
    blender.run()


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs the command line, which must exit with code 2 and one line of error."""
    with pytest.raises(SystemExit) as exit_:
        command(monkeypatch, *arguments)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("pattern", ["r_{}.png", "{:03d}.png", "rgb_{:03d}.png", "{:04d}.png", "lego2_{:02d}.PNG"])
def test_files_are_matched_by_the_number_in_their_names(tmp_path: Path, scene: Path, pattern: str) -> None:
    """12 frames, so that the order of names (r_0, r_1, r_10, r_11, r_2) is not that of frames."""
    names = [f"r_{index}" for index in range(12)]
    scene = write_scene(tmp_path / "long", names)
    evaluation = evaluate(views_of_renders(write_renders(tmp_path / "renders", pattern, 12), scene))
    assert [image.name for image in evaluation.images] == names
    for image in evaluation.images:
        assert image.psnr == pytest.approx(EXPECTED_PSNR, abs=1e-5)


def test_frames_without_numbers_are_counted_in_the_order_of_the_json(tmp_path: Path) -> None:
    folder = write_renders(tmp_path / "renders", "{:03d}.png", 3)
    assert [file.name for file in match_renders(folder, ["left", "top", "right"])] == ["000.png", "001.png", "002.png"]


def test_json_holds_means_and_each_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scene: Path) -> None:
    renders, output = write_renders(tmp_path / "renders"), tmp_path / "new folder" / "out.json"
    Image.fromarray(picture(1)[..., :3] + np.uint8(52)).save(renders / "r_1.png")
    command(monkeypatch, "--renders", renders, "--data", scene, "--method", "DVGO", "--output", output)
    result = json.loads(output.read_text())
    psnrs = [EXPECTED_PSNR, -20 * math.log10(52 / 255), EXPECTED_PSNR, EXPECTED_PSNR]
    assert [image["psnr"] for image in result["per_image"]] == pytest.approx(psnrs, abs=1e-5)
    assert result["psnr"] == pytest.approx(sum(psnrs) / 4, abs=1e-5)
    ssims = []
    for index, image in enumerate(result["per_image"]):
        render = np.asarray(Image.open(renders / f"r_{index}.png"), dtype=np.float64) / 255
        ssim = structural_similarity(
            render,
            picture(index)[..., :3] / 255.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1,
            channel_axis=-1,
        )
        assert image["ssim"] == pytest.approx(ssim, abs=1e-5)
        ssims.append(ssim)
    assert result["ssim"] == pytest.approx(sum(ssims) / 4, abs=1e-5)
    assert [image["name"] for image in result["per_image"]] == ["r_0", "r_1", "r_2", "r_3"]
    assert result["protocol"] == "mipnerf"
    assert (result["num_images"], result["every"], result["resolution"]) == (4, 1, [SIZE, SIZE])
    assert result["scene"] == str(scene)
    assert result["official_scene"] is None
    assert result["source"] == {"renders": str(renders), "method": "DVGO"}
    assert {"crossnorm_ns", "torch", "nerfstudio", "python"} <= result["versions"].keys()
    assert_provenance(result)


def test_table_names_scene_protocol_and_means(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, scene: Path
) -> None:
    renders = write_renders(tmp_path / "renders")
    command(monkeypatch, "--renders", renders, "--data", scene, "--protocol", "nerfbaselines", "--every", 3)
    shown = capsys.readouterr().out
    for text in ("scene: 2 of 4 test images (every 3)", "16x16", "protocol nerfbaselines", f"{EXPECTED_PSNR:.3f}"):
        assert text in shown
    assert "not comparable" in " ".join(shown.split())


def test_works_from_any_working_directory(tmp_path: Path, scene: Path) -> None:
    """As a command of its own, with relative paths."""
    write_renders(tmp_path / "elsewhere" / "renders")
    arguments = ["--renders", "renders", "--data", "../scene", "--output", "out.json"]
    subprocess.run(
        [sys.executable, "-m", "eval.blender", *arguments], cwd=tmp_path / "elsewhere", check=True, capture_output=True
    )
    assert json.loads((tmp_path / "elsewhere" / "out.json").read_text())["num_images"] == 4


def test_downscaled_truth_is_the_block_mean(tmp_path: Path, scene: Path) -> None:
    renders = tmp_path / "renders"
    renders.mkdir()
    for index in range(4):
        blocks = picture(index)[..., :3].reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean(axis=(1, 3))
        Image.fromarray(np.rint(blocks).astype(np.uint8)).save(renders / f"{index}.png")
    opened = views_of_renders(renders, scene, downscale_factor=2)
    assert (opened.subject.width, opened.subject.height) == (SIZE // 2, SIZE // 2)
    for view in opened.frames:
        np.testing.assert_allclose(view.render, view.truth, atol=0.51 / 255)


def test_every_nth_view_needs_only_those_renders(tmp_path: Path, scene: Path) -> None:
    renders = write_renders(tmp_path / "renders")
    (renders / "r_1.png").unlink()
    evaluation = evaluate(views_of_renders(renders, scene, every=2))
    assert [image.name for image in evaluation.images] == ["r_0", "r_2"]
    assert (evaluation.as_dict()["every"], evaluation.as_dict()["num_test_images"]) == (2, 4)


def test_renders_with_alpha_are_laid_on_white(tmp_path: Path) -> None:
    rgba = np.array([[[100, 50, 0, 51], [255, 0, 0, 0]]], dtype=np.uint8)
    Image.fromarray(rgba).save(tmp_path / "0.png")
    expected = [[np.array([100, 50, 0]) / 255 * 0.2 + 0.8, [1, 1, 1]]]
    np.testing.assert_allclose(load_render(tmp_path / "0.png"), expected, atol=1e-6)


def test_renders_of_16_bits_keep_them(tmp_path: Path) -> None:
    blue_green_red = np.array([[[1, 1000, 65535]]], dtype=np.uint16)
    cv2.imwrite(str(tmp_path / "0.png"), blue_green_red)
    np.testing.assert_allclose(load_render(tmp_path / "0.png")[0, 0], np.array([65535, 1000, 1]) / 65535, rtol=1e-6)


def test_equal_render_has_null_psnr_in_valid_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scene: Path) -> None:
    renders = write_renders(tmp_path / "renders")
    write_renders(renders, count=1, offset=0)
    command(monkeypatch, "--renders", renders, "--data", scene, "--output", tmp_path / "out.json")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    result = json.loads((tmp_path / "out.json").read_text(), parse_constant=refuse)
    assert result["psnr"] is None
    assert result["per_image"][0] == {"name": "r_0", "psnr": None, "ssim": pytest.approx(1)}


def break_missing(renders: Path) -> None:
    (renders / "r_2.png").unlink()


def break_extra(renders: Path) -> None:
    (renders / "r_2.png").rename(renders / "r_7.png")
    write_renders(renders)


def break_ambiguous(renders: Path) -> None:
    write_renders(renders, "{:03d}.png", 1)


def break_nameless(renders: Path) -> None:
    Image.fromarray(picture(0)).save(renders / "overview.png")


def break_size(renders: Path) -> None:
    Image.fromarray(picture(0)[:8]).save(renders / "r_0.png")


def break_truncated(renders: Path) -> None:
    (renders / "r_3.png").write_bytes((renders / "r_3.png").read_bytes()[:80])


def break_not_a_picture(renders: Path) -> None:
    (renders / "r_3.png").write_text("rendered")


def break_grey(renders: Path) -> None:
    Image.fromarray(picture(0)[..., 0]).save(renders / "r_0.png")


def break_empty(renders: Path) -> None:
    for file in renders.iterdir():
        file.unlink()


def break_into_sub_folder(renders: Path) -> None:
    break_empty(renders)
    write_renders(renders / "pictures")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (break_missing, ["no render for 1 of 4 frames (r_2)", "0 to 3"]),
        (break_extra, ["r_7.png", "0 to 3"]),
        (break_ambiguous, ["000.png", "r_0.png", "names of different kinds"]),
        (break_nameless, ["overview.png"]),
        (break_size, ["r_0.png is 16x8", "16x16"]),
        (break_truncated, ["r_3.png", "cannot be read"]),
        (break_not_a_picture, ["r_3.png", "cannot be read"]),
        (break_grey, ["r_0.png", "not a colour picture"]),
        (break_empty, ["No pictures"]),
        (break_into_sub_folder, ["No pictures", "There are some in pictures"]),
    ],
)
def test_unusable_renders_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], scene: Path, damage, words
) -> None:
    renders, output = write_renders(scene.parent / "renders"), scene.parent / "out.json"
    damage(renders)
    error = refusal(monkeypatch, capfd, "--renders", renders, "--data", scene, "--output", output)
    missing = [word for word in words if word not in error]
    assert not missing, f"{missing} not in: {error}"
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--load-config", "--renders"]),
        (["--renders", "renders", "--load-config", "empty.yml"], ["either"]),
        (["--renders", "renders"], ["--data"]),
        (["--renders", "renders", "--data", "scene", "--save-renders", "copy"], ["--save-renders"]),
        (["--renders", "renders", "--data", "scene", "--every", "0"], ["--every"]),
        (["--renders", "renders", "--data", "scene", "--sheet", "sheet.jpg"], [".png"]),
        (["--renders", "renders", "--data", "scene", "--output", "scene"], ["--output is scene", "must be a file"]),
        (["--renders", "nowhere", "--data", "scene"], ["nowhere"]),
        (["--renders", "renders", "--data", "nowhere"], ["nowhere"]),
        (["--renders", "renders", "--data", "scene", "--downscale-factor", "3"], ["downscale_factor 3"]),
        (["--renders", "renders", "--data", "scene", "--downscale-factor", "0"], ["--downscale-factor is 0"]),
        (["--load-config", "empty.yml", "--downscale-factor", "2"], ["--downscale-factor"]),
        (["--load-config", "empty.yml", "--method", "DVGO"], ["--method"]),
        (["--load-config", "config.yml"], ["config.yml"]),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scene: Path, arguments, words
) -> None:
    write_renders(scene.parent / "renders")
    (scene.parent / "empty.yml").touch()
    monkeypatch.chdir(scene.parent)
    error = refusal(monkeypatch, capsys, *arguments)
    assert all(word in error for word in words), error


def test_true_pictures_outside_of_the_scene_need_leave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scene: Path
) -> None:
    renders, path = write_renders(scene.parent / "renders"), scene / "transforms_test.json"
    shutil.move(scene / "test", scene.parent / "elsewhere")
    path.write_text(path.read_text().replace("./test/", "../elsewhere/"))
    error = refusal(monkeypatch, capsys, "--renders", renders, "--data", scene)
    assert "../elsewhere/" in error and "--allow-outside" in error
    command(monkeypatch, "--renders", renders, "--data", scene, "--allow-outside")


def in_memory(*renders: np.ndarray) -> Views:
    """Views of white truth."""
    truth = np.ones((SIZE, SIZE, 3), dtype=np.float32)
    subject = Subject(Path("white"), None, SIZE, SIZE, len(renders), 1, {})
    return Views(subject, (View(index, f"r_{index}", render, truth) for index, render in enumerate(renders)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_render_that_is_not_finite_is_refused_by_name(value: float) -> None:
    good = np.full((SIZE, SIZE, 3), 0.5, dtype=np.float32)
    bad = good.copy()
    bad[3, 4, 1] = value
    with pytest.raises(EvaluationError, match="r_1.*NaN"):
        evaluate(in_memory(good, bad))


def test_images_too_small_for_ssim_are_refused_by_name() -> None:
    tiny = np.zeros((8, 8, 3), dtype=np.float32)
    subject = Subject(Path("tiny"), None, 8, 8, 1, 1, {})
    with pytest.raises(EvaluationError, match="r_0.*11x11"):
        evaluate(Views(subject, iter([View(0, "r_0", tiny, tiny)])))


def test_sheet_shows_renders_beside_truth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scene: Path) -> None:
    sheet = tmp_path / "pictures" / "sheet.png"
    renders = write_renders(tmp_path / "renders")
    Image.new("RGB", (SIZE, SIZE), (255, 0, 255)).save(renders / "r_3.png")
    command(monkeypatch, "--renders", renders, "--data", scene, "--sheet", sheet)
    pixels = np.asarray(Image.open(sheet).convert("RGB"))
    rows, columns = np.nonzero((pixels == (255, 0, 255)).all(axis=-1))
    height, width = pixels.shape[:2]
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.05), "the magenta render is a square"
    assert np.ptp(columns) > 0.2 * width
    assert columns.max() < width / 2, "in the first column"
    assert rows.min() > 0.7 * height, "in the last row"


@pytest.mark.parametrize(("indices", "expected"), [(range(0, 200, 10), {0, 60, 130, 190}), (range(2), {0, 1})])
def test_sheet_rows_are_spread_over_the_views(indices: range, expected: set[int]) -> None:
    assert spread(indices, 4) == expected


def test_interrupted_write_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    write_atomically(file, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("crossnorm_ns.files.os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.json"]


def test_official_test_images_are_recognised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scene: Path) -> None:
    monkeypatch.setattr(views, "official_scene", lambda paths: "lego")
    evaluation = evaluate(views_of_renders(write_renders(tmp_path / "renders"), scene))
    assert evaluation.as_dict()["official_scene"] == "lego"
