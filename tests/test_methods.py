"""The methods as a user meets them: nerfstudio's commands, without network and without optional packages."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.configs.dataparser_configs import all_dataparsers
from nerfstudio.configs.method_configs import all_descriptions, all_methods
from PIL import Image

from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig
from method_configs.mipnerf import mipnerf_cn, mipnerf_cn_tiny, mipnerf_ref

METHODS = {"mipnerf-cn": mipnerf_cn, "mipnerf-ref": mipnerf_ref, "mipnerf-cn-tiny": mipnerf_cn_tiny}

ABSENT = ("open3d", "trimesh", "tinycudann", "lpips", "wandb", "comet_ml")
OFFLINE = Path(__file__).parent / "offline" / "sitecustomize.py"
SITECUSTOMIZE = f"""
import runpy, sys

sys.modules.update(dict.fromkeys({ABSENT!r}))
runpy.run_path({str(OFFLINE)!r})
"""
"""Python runs this first: importing these packages fails, and so does reaching for another machine."""


REFUSED = """
import socket

try:
    socket.create_connection(("192.0.2.1", 80), timeout=1)
except OSError as error:
    print("no network:", "no other machine" in str(error))
try:
    import open3d
except ImportError:
    print("no package: True")
"""


class Shell(NamedTuple):
    """Runs commands as a user would who stands in a folder."""

    folder: Path
    first: Path
    """Holds the sitecustomize.py."""

    def __call__(self, command: str, *arguments: object) -> str:
        """Standard output and error of a command that was installed beside this Python."""
        path = os.pathsep.join([str(self.first), os.environ["PYTHONPATH"]])
        finished = subprocess.run(
            [Path(sys.executable).with_name(command), *map(str, arguments)],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stdout
        return finished.stdout


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    first = tmp_path_factory.mktemp("first")
    (first / "sitecustomize.py").write_text(SITECUSTOMIZE)
    return Shell(tmp_path_factory.mktemp("here"), first)


class Run(NamedTuple):
    config: Path
    said: str


@pytest.fixture(scope="module")
def run(shell: Shell, tiny_scene: Path) -> Run:
    """Three steps of the tiny preset."""
    output = shell.folder / "outputs"
    said = shell("ns-train", "mipnerf-cn-tiny", "--data", tiny_scene, "--max-num-iterations", 3, "--output-dir", output)
    (config,) = output.glob("tiny/mipnerf-cn-tiny/*/config.yml")
    return Run(config, said)


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_registered_under_their_names(name: str):
    (entry,) = entry_points(group="nerfstudio.method_configs", name=name)
    assert entry.load() is METHODS[name]
    assert METHODS[name].config.method_name == name
    assert all_methods[name] is METHODS[name].config
    assert all_descriptions[name] == METHODS[name].description


def test_dataparser_is_registered_and_the_default():
    assert isinstance(all_dataparsers["blender-cn"], BlenderCNDataParserConfig)
    for method in METHODS.values():
        datamanager: Any = method.config.pipeline.datamanager
        assert isinstance(datamanager.dataparser, BlenderCNDataParserConfig)


def test_training_needs_no_login():
    assert {method.config.vis for method in METHODS.values()} == {"tensorboard"}


def test_batches_have_the_published_number_of_rays():
    for name, rays in (("mipnerf-cn", 4096), ("mipnerf-ref", 4096), ("mipnerf-cn-tiny", 256)):
        datamanager: Any = METHODS[name].config.pipeline.datamanager
        assert datamanager.train_num_rays_per_batch == rays


def test_reference_differs_from_the_method_in_the_norm_alone():
    """And in the learning rate, which is tuned for each norm."""
    plain, cross = mipnerf_ref.config, mipnerf_cn.config
    plain_model, cross_model = plain.pipeline.model, cross.pipeline.model
    assert (plain_model.norm, cross_model.norm) == ("none", "cn")
    assert replace(plain_model, norm="cn") == cross_model
    assert plain.optimizers["fields"]["scheduler"] == cross.optimizers["fields"]["scheduler"]
    pipeline = replace(plain.pipeline, model=cross_model)
    assert replace(plain, method_name="mipnerf-cn", pipeline=pipeline, optimizers=cross.optimizers) == cross


@pytest.mark.parametrize("name", METHODS)
def test_configuration_survives_its_yaml_file(name: str):
    config = METHODS[name].config
    assert yaml.load(yaml.dump(config), Loader=yaml.Loader) == config


def test_commands_reach_no_other_machine_and_no_optional_package(shell: Shell):
    said = shell("python", "-c", REFUSED)
    assert said.splitlines() == ["no network: True", "no package: True"]


def test_package_alone_loads_torch_and_nothing_of_nerfstudio(shell: Shell):
    code = "import sys, torch; before = {*sys.modules}; import crossnorm_ns; print(*({*sys.modules} - before))"
    loaded = {name.split(".")[0] for name in shell("python", "-W", "ignore", "-c", code).split()}
    assert "crossnorm_ns" in loaded
    assert not loaded & {"nerfstudio", "torchvision", "scipy", "skimage", "matplotlib", "cv2", "PIL", "tyro", "rich"}


def test_help_lists_the_options_of_the_model_and_what_they_do(shell: Shell):
    said = " ".join(shell("ns-train", "mipnerf-cn", "--help").replace("│", " ").split())
    for option in ("norm", "norm-variant", "num-samples", "near", "coarse-loss-mult", "eval-lpips"):
        assert f"--pipeline.model.{option} " in said
    assert "Norm before each hidden ReLU: none, batch, layer, global or cross normalization." in said
    assert "--calibration-batches INT" in said
    assert "--optimizers.fields.scheduler.delay-steps INT" in said
    assert "(default: blender-cn)" in said


def test_training_shows_progress_and_where_it_runs(run: Run):
    assert "Step (% Done)" in run.said
    assert "Train Iter (time)" in run.said
    assert "ETA (time)" in run.said
    assert "Training Finished" in run.said
    place = "Training on " if torch.cuda.is_available() else "No CUDA device found: training on the CPU."
    assert run.said.count(place) == 1
    assert "Traceback" not in run.said


def test_trained_run_evaluates_from_another_folder(run: Run, shell: Shell, tmp_path: Path):
    result = tmp_path / "deeper" / "result.json"
    shell._replace(folder=tmp_path)("ns-eval", "--load-config", run.config, "--output-path", result)
    contents = json.loads(result.read_text())
    assert contents["method_name"] == "mipnerf-cn-tiny"
    assert Path(contents["checkpoint"]).name == "step-000000002.ckpt"
    assert 5 < contents["results"]["psnr"] < 40
    assert -1 <= contents["results"]["ssim"] <= 1
    assert "lpips" not in contents["results"]


def test_trained_run_renders_its_test_views(run: Run, shell: Shell, tmp_path: Path):
    shell(
        *("ns-render", "dataset", "--load-config", run.config, "--output-path", tmp_path),
        *("--rendered-output-names", "rgb", "rgba", "gt-rgb", "--image-format", "png"),
    )
    for index in range(2):
        pictures = {kind: Image.open(tmp_path / "test" / kind / f"r_{index}.png") for kind in ("rgb", "rgba", "gt-rgb")}
        assert {picture.size for picture in pictures.values()} == {(24, 24)}
        rgba, rgb = (np.asarray(pictures[kind], dtype=float) / 255 for kind in ("rgba", "rgb"))
        on_white = rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]
        np.testing.assert_allclose(on_white, rgb, atol=0.02)
