"""Scenes in nerfstudio's own format, as nerfacto-cn reads them: what is wrong is told before anything is written."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.nerfstudio_scene import check_nerfstudio_scene
from eval.runs import read_run_config
from method_configs.elsewhere import nerfacto_cn

VALID = {
    "fl_x": 30.0,
    "fl_y": 30.0,
    "cx": 12.0,
    "cy": 12.0,
    "w": 24,
    "h": 24,
    "frames": [
        {"file_path": f"images/{i}.png", "transform_matrix": (np.eye(4) + i * np.eye(4, k=3)).tolist()}
        for i in range(3)
    ],
}


def write(folder: Path, contents: Any) -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i in range(3):
        Image.new("RGB", (24, 24)).save(folder / "images" / f"{i}.png")
    (folder / "transforms.json").write_text(contents if isinstance(contents, str) else json.dumps(contents))
    return folder


def test_what_is_accepted_is_read_by_nerfstudio(tmp_path: Path) -> None:
    per_frame = copy.deepcopy(VALID)
    for frame in per_frame["frames"]:
        frame["fl_x"] = 31.0
    del per_frame["fl_x"]
    all_keys = copy.deepcopy(VALID) | {
        "w": 24.0,
        "camera_model": "OPENCV",
        "k1": 0.1,
        "k2": 0,
        "applied_transform": np.eye(3, 4).tolist(),
        "applied_scale": 2,
        "orientation_override": "none",
        "fisheye_crop_radius": None,
    }
    for name, contents in (("one", VALID), ("two", per_frame), ("three", all_keys)):
        scene = write(tmp_path / name, contents)
        check_nerfstudio_scene(scene)
        check_nerfstudio_scene(scene / "transforms.json")
        parser = copy.deepcopy(nerfacto_cn.config.pipeline.datamanager.dataparser)
        parser.data = scene
        assert len(parser.setup().get_dataparser_outputs("train").image_filenames) > 0


def changed(act: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    contents = copy.deepcopy(VALID)
    act(contents)
    return contents


WRONG = {
    "broken": ("{", "is not valid json"),
    "a list": ("[]", "frames"),
    "no frames": (changed(lambda c: c.update(frames=[])), "at least one frame"),
    "a frame of text": (changed(lambda c: c.update(frames=["a"])), "at least one frame"),
    "no name": (changed(lambda c: c["frames"][1].pop("file_path")), "frame 1: no file_path"),
    "no picture": (changed(lambda c: c["frames"][1].update(file_path="images/9.png")), "there is no file"),
    "a name that no system has": (changed(lambda c: c["frames"][1].update(file_path="a\0b")), "is no name of a file"),
    "no pose": (changed(lambda c: c["frames"][2].pop("transform_matrix")), "frame 2 (images/2.png): transform_matrix"),
    "NaN": (changed(lambda c: c["frames"][0]["transform_matrix"][0].__setitem__(3, float("nan"))), "finite"),
    "a ragged pose": (changed(lambda c: c["frames"][0].update(transform_matrix=[[1], [1, 2]])), "4x4"),
    "no focal length": (changed(lambda c: c.pop("fl_x")), "fl_x is None"),
    "an endless focal length": (changed(lambda c: c.update(fl_x=10**400)), "but must be a positive number"),
    "infinity": (changed(lambda c: c.update(cx=float("inf"))), "cx is inf"),
    "no width": (changed(lambda c: c.update(w=0)), "w is 0"),
    "a focal length of text": (changed(lambda c: c.update(fl_y="30")), "fl_y is '30'"),
    "half a pixel": (changed(lambda c: c.update(w=24.5)), "w is 24.5, but must be pixels"),
    "an endless height": (changed(lambda c: c.update(h=1e30)), "h is 1e+30, but must be pixels"),
    "half a pair of code points": (changed(lambda c: c["frames"][1].update(file_path="\ud800")), "is no name of"),
    "a number for a mask": (changed(lambda c: c["frames"][1].update(mask_path=5)), "mask_path is no name of a file"),
    "a pose of texts": (changed(lambda c: c["frames"][0].update(transform_matrix=[["1"] * 4] * 4)), "4x4"),
    "distortion of text": (changed(lambda c: c.update(k1="x")), "k1 is 'x'"),
    "distortion of a frame": (changed(lambda c: c["frames"][2].update(p1=None)), "frame 2 (images/2.png): p1 is None"),
    "two distortions": (changed(lambda c: c.update(distortion_params=[0, 1])), "distortion_params is [0, 1]"),
    "a numbered model": (changed(lambda c: c.update(camera_model=5)), "camera_model is 5"),
    "an unknown model": (changed(lambda c: c.update(camera_model="LEICA")), "camera_model is 'LEICA'"),
    "a transform of text": (changed(lambda c: c.update(applied_transform="q")), "applied_transform is 'q'"),
    "a transform of 4 rows": (changed(lambda c: c.update(applied_transform=np.eye(4).tolist())), "must be a 3x4"),
    "an endless scale": (changed(lambda c: c.update(applied_scale=float("inf"))), "applied_scale is inf"),
    "an unknown orientation": (changed(lambda c: c.update(orientation_override="left")), "orientation_override is"),
}


@pytest.mark.parametrize(("contents", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(tmp_path: Path, contents: Any, words: str) -> None:
    with pytest.raises(DataError, match="transforms.json") as error:
        check_nerfstudio_scene(write(tmp_path / "scene", contents))
    assert words in str(error.value) and "\n" not in str(error.value)


def leading_out(folder: Path) -> dict[str, Path]:
    """Scenes each of which has something that leads out of it."""
    (folder / "secret").mkdir()
    Image.new("RGB", (24, 24)).save(folder / "secret" / "1.png")
    up = "../secret/1.png"
    scenes = {
        "name": write(folder / "name", changed(lambda c: c["frames"][1].update(file_path=up))),
        "mask": write(folder / "mask", changed(lambda c: c["frames"][1].update(mask_path=up))),
        "points": write(folder / "points", VALID | {"ply_file_path": "../secret/points.ply"}),
    }
    for name in ("link", "smaller", "json"):
        scenes[name] = write(folder / name, VALID)
    (folder / "link" / "images" / "1.png").unlink()
    (folder / "link" / "images" / "1.png").symlink_to(folder / "secret" / "1.png")
    (folder / "smaller" / "images_2").symlink_to(folder / "secret")
    (folder / "json" / "transforms.json").rename(folder / "secret" / "transforms.json")
    (folder / "json" / "transforms.json").symlink_to(folder / "secret" / "transforms.json")
    return scenes


@pytest.mark.parametrize("name", ["name", "mask", "points", "link", "smaller", "json"])
def test_what_leads_out_of_the_scene_is_read_with_allow_outside_alone(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = leading_out(tmp_path)[name]
    check_nerfstudio_scene(scene, allow_outside=True)
    config = copy.deepcopy(nerfacto_cn.config)
    config.output_dir, config.pipeline.datamanager.data = tmp_path / "outputs", scene
    config.timestamp, config.experiment_name = "now", "scene"
    with pytest.raises(SystemExit) as end:
        config.save_config()
    error = capsys.readouterr().err
    assert end.value.code == 2 and "lies outside of the scene's folder" in error and error.count("\n") == 1
    assert not config.output_dir.exists()
    config.allow_outside = True
    config.save_config()
    written = next(config.output_dir.rglob("config.yml"))
    with pytest.raises(DataError, match="lies outside"):
        read_run_config(written)
    read_run_config(written, allow_outside=True)


def test_names_are_checked_also_where_they_may_lead_out_of_the_scene(tmp_path: Path) -> None:
    for name in ("\ud800.png", "a\0b", 5):
        scene = write(tmp_path / "scene", changed(lambda c, name=name: c["frames"][1].update(mask_path=name)))
        with pytest.raises(DataError, match="is no name of a file"):
            check_nerfstudio_scene(scene, downscale_factor=2, allow_outside=True)


def test_a_scene_without_its_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ns-process-data"):
        check_nerfstudio_scene(tmp_path)


def test_a_training_on_a_wrong_scene_ends_in_one_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = copy.deepcopy(nerfacto_cn.config)
    config.output_dir = tmp_path / "outputs"
    config.pipeline.datamanager.data = tmp_path / "nowhere"
    with pytest.raises(SystemExit) as end:
        config.save_config()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: No file ") and error.count("\n") == 1
    assert not config.output_dir.exists()
