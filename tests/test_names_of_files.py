"""Names that are not UTF-8, or look like formulas: refused in options, and of what is found shown as far as can be."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from eval_files import write_renders, write_scene
from option_cases import refusal
from PIL import Image
from representation_files import write_image

import eval.blender
import eval.report
from crossnorm_ns.data import make_scene
from crossnorm_ns.representation.command import main as crossnorm
from method_configs.mipnerf import mipnerf_cn_tiny

ODD = os.fsdecode(b"odd\xff")
FIT = ["--steps", "2", "--network", "1x4"]
COMMANDS: dict[str, tuple[Callable[[], object], list[str]]] = {
    "eval.blender": (eval.blender.run, ["--renders", "renders", "--data", ODD]),
    "eval.blender, output": (eval.blender.run, ["--renders", "renders", "--data", "scene", "--output", f"{ODD}.json"]),
    "eval.blender, method": (eval.blender.run, ["--renders", "renders", "--data", "scene", "--method", ODD]),
    "eval.report": (eval.report.run, ["renders", ODD, "--table", "blender"]),
    "image": (lambda: crossnorm(["image", "--image", f"{ODD}.png", *FIT]), []),
    "compress": (lambda: crossnorm(["compress", "picture.png", f"{ODD}.cninr", *FIT]), []),
    "decompress": (lambda: crossnorm(["decompress", "picture.cninr", f"{ODD}/back.png"]), []),
    "table": (lambda: crossnorm(["table", "image", "--inputs", "picture.png", f"{ODD}.png"]), []),
    "make_scene": (make_scene.main, ["blender", f"{ODD}/scene"]),
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    try:
        write_scene(Path(ODD))
    except OSError:
        pytest.skip("this file system has no such names")
    shutil.copytree(ODD, "scene")
    write_renders(Path("renders"))
    write_image(Path("picture.png"), 16, 16)
    shutil.copy("picture.png", f"{ODD}.png")
    Path("picture.cninr").touch()
    return tmp_path


@pytest.mark.parametrize("name", COMMANDS)
def test_options_that_are_not_utf8_are_refused_before_anything_is_written(name: str, monkeypatch, capsys) -> None:
    command, words = COMMANDS[name]
    assert "UTF-8" in refusal(command, words, monkeypatch, capsys)


def test_a_training_with_such_a_name_is_refused_before_anything_is_written(monkeypatch, capsys) -> None:
    config = mipnerf_cn_tiny.config
    monkeypatch.setattr(config, "data", Path(ODD))
    assert "--data is 'odd" in refusal(config.save_config, [], monkeypatch, capsys)


def test_results_in_a_folder_with_such_a_name_are_printed(here: Path, monkeypatch, capsys) -> None:
    renders = write_renders(Path("others") / "renders")
    monkeypatch.chdir(ODD)
    for picture in (here / renders).iterdir():
        picture.rename(picture.with_name(f"{ODD}_{picture.name}"))
    words = ["--renders", str(here / renders), "--data", ".", "--output", "result.json"]
    monkeypatch.setattr(sys, "argv", ["eval.blender", *words])
    eval.blender.run()
    assert r"odd\udcff" in capsys.readouterr().out
    assert json.loads(Path("result.json").read_text())["scene"].endswith(ODD)


@pytest.mark.parametrize("name", [ODD, r"$\frac$"])
def test_names_that_cannot_be_drawn_stand_on_a_sheet_as_they_are(name: str, monkeypatch, capsys) -> None:
    scene = write_scene(Path("named") / name)
    monkeypatch.chdir(scene)
    words = ["--renders", "../../renders", "--data", ".", "--sheet", "sheet.png"]
    monkeypatch.setattr(sys, "argv", ["eval.blender", *words])
    eval.blender.run()
    with Image.open("sheet.png") as sheet:
        assert sheet.size > (100, 100)


def test_names_that_look_like_formulas_stand_in_tables_as_they_are() -> None:
    write_image(Path(r"$\frac$.png"), 128, 128)
    words = ["--inputs", r"$\frac$.png", "--methods", "relu", "--networks", "1x4", "--learning-rates", "1e-3"]
    crossnorm(["table", "image", *words, "--steps", "2", "--workers", "1", "--output", "table"])
    assert r"$\frac$" in Path("table/table.md").read_text()
