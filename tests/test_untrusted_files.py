"""Files that somebody else wrote: no command of ours runs what is in them, or reads what they name elsewhere."""

import copy
import importlib
import inspect
import io
import json
import os
import pickle
import pkgutil
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nerfstudio
import numpy as np
import pytest
import torch
import yaml
from chamfer_files import write_reference
from dtu_scans import write_scan
from eval_files import write_renders, write_scene
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.instant_ngp_dataparser import InstantNGPDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from option_cases import processor_time
from PIL import Image

import eval.blender
import eval.dtu_chamfer
import eval.extract_mesh
import eval.report
import method_configs.elsewhere
import method_configs.mipnerf
import method_configs.neus
from crossnorm_ns.data.blender_dataparser import BlenderCNDataParserConfig
from crossnorm_ns.data.dtu_dataparser import DTUCNDataParserConfig
from crossnorm_ns.data.dtu_scene import read_scene
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.engine.trainer import CrossNormTrainerConfig
from crossnorm_ns.reading import FileError, read_arrays, read_mesh
from crossnorm_ns.representation.command import main as crossnorm
from eval.errors import EvaluationError
from eval.run_config import ALLOWED_MODULES, REFUSED_MODULES, read_config
from eval.runs import read_run_config

METHODS = [
    specification.config
    for module in (method_configs.elsewhere, method_configs.mipnerf, method_configs.neus)
    for specification in vars(module).values()
    if type(specification).__name__ == "MethodSpecification"
]


class Intruder:
    """Makes a file when it is unpickled."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.witness}",)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The config.yml of a surface run with an untrained checkpoint, in a folder that has all that commands want."""
    monkeypatch.chdir(tmp_path)
    write_scan(tmp_path / "scene")
    write_reference(tmp_path / "dtu")
    config = method_configs.neus.tiny_config("neus-cn-tiny", "cn", steps=1)
    config.data = config.pipeline.datamanager.data = tmp_path / "scene"
    config.output_dir, config.experiment_name, config.timestamp = tmp_path / "outputs", "dtu_scan24", "now"
    config.save_config()
    config.get_checkpoint_dir().mkdir()
    save(config, {"step": 1, "pipeline": {}})
    return config.get_base_dir() / "config.yml"


def save(config: CrossNormTrainerConfig, content: dict[str, Any]) -> Path:
    path = config.get_checkpoint_dir() / "step-000000001.ckpt"
    torch.save(content, path)
    return path


COMMANDS: dict[str, tuple[Callable[[], None], Callable[[Path], list[str]]]] = {
    "blender": (eval.blender.run, lambda run: ["--load-config", str(run)]),
    "extract_mesh": (eval.extract_mesh.run, lambda run: ["--load-config", str(run), "--output", "out.ply"]),
    "dtu_chamfer": (
        eval.dtu_chamfer.run,
        lambda run: ["--load-config", str(run), "--dataset-dir", "dtu", "--scan", "24"],
    ),
    "dtu_chamfer of all": (eval.dtu_chamfer.run, lambda run: ["--all", "outputs", "--dataset-dir", "dtu"]),
}
"""Every command that reads runs, and its arguments for one."""


def refusal(command: Callable[[], None], arguments: list[str], monkeypatch, capsys) -> str:
    """The one line with which a command ends that refuses its input."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as end:
        command()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch {}']", "!!python/name:os.system ''"])
def test_no_command_runs_what_a_config_file_says(run: Path, name: str, text: str, monkeypatch, capsys) -> None:
    witness = run.parent / "witness"
    fields = run.read_text()
    run.write_text(fields.replace("method_name: neus-cn-tiny", f"method_name: {text.format(witness)}", 1))
    assert run.read_text() != fields
    command, arguments = COMMANDS[name]
    if name == "blender":
        write_scene(Path("blender"))
    assert "config.yml, line" in (error := refusal(command, arguments(run), monkeypatch, capsys)), error
    assert not witness.exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_runs_what_a_checkpoint_says(run: Path, name: str, monkeypatch, capsys, tmp_path) -> None:
    """Not even where the environment asks torch to run such things, as users of nerfstudio are told to set it."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    witness, config = run.parent / "witness", read_config(run)
    if name == "blender":
        config = method_configs.mipnerf.tiny_config("mipnerf-cn-tiny", "cn", 1e-3)
        config.data = config.pipeline.datamanager.data = write_scene(tmp_path / "blender")
        config.output_dir, config.timestamp = tmp_path / "other", "now"
        config.save_config()
        config.get_checkpoint_dir().mkdir()
        run = config.get_base_dir() / "config.yml"
    intruder = Intruder(witness)
    for content in ({"step": 1, "pipeline": {"weight": intruder}}, {"step": intruder, "pipeline": {}}):
        path = save(config, content)
        command, arguments = COMMANDS[name]
        assert f"{path.name} holds more than tensors" in refusal(command, arguments(run), monkeypatch, capsys)
        assert not witness.exists()
    with path.open("rb") as file, pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    torch.load(path)  # the proof: under this setting torch itself runs it
    assert witness.exists()


def test_no_resumed_training_runs_what_a_checkpoint_says(run: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    witness, config = run.parent / "witness", read_config(run)
    save(config, {"step": 1, "pipeline": {}, "optimizers": Intruder(witness)})
    for loading in ({"load_dir": config.get_checkpoint_dir()}, {"load_checkpoint": next(run.parent.rglob("*.ckpt"))}):
        again = read_config(run)
        again.timestamp = "again"
        for name, value in loading.items():
            setattr(again, name, value)
        with pytest.raises(SystemExit) as end:
            again.save_config()  # what ns-train does first
        assert end.value.code == 2 and "holds more than tensors" in capsys.readouterr().err
        trainer = again.setup(local_rank=0, world_size=1)
        with pytest.raises(DataError, match="holds more than tensors"):
            trainer._resume(again.checkpoint_to_load())
        assert not witness.exists()
    assert not (run.parents[1] / "again" / "config.yml").exists()


def test_no_resumed_fit_runs_what_a_checkpoint_says(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    picture, witness, folder = tmp_path / "picture.png", tmp_path / "witness", tmp_path / "run"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(picture)
    folder.mkdir()
    torch.save({"state": Intruder(witness)}, folder / "checkpoint.pt")
    arguments = ["image", "--image", str(picture), "--side", "16", "--steps", "1", "--output", str(folder), "--resume"]
    assert "checkpoint.pt holds more than tensors" in refusal(lambda: crossnorm(arguments), [], monkeypatch, capsys)
    assert not witness.exists()


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    objects = np.array([Intruder(witness)], dtype=object)
    np.save(tmp_path / "a.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "b.npz", volume=objects)
    (tmp_path / "c.npy").write_bytes(pickle.dumps(Intruder(witness)))
    for name in ("a.npy", "b.npz", "c.npy"):
        with pytest.raises(FileError, match=name):
            read_arrays(tmp_path / name)
    assert not witness.exists()


DANGEROUS = re.compile(
    r"allow_pickle\s*=\s*True|pickle\.loads?\(|joblib|dill\.|yaml\.load\(|torch\.load\(|"
    r"run_command|subprocess|os\.system|popen|shell\s*=\s*True|os\.(?:exec|spawn)|"
    r"torch\.hub|from_pretrained|huggingface|gdown|urllib|urlopen|urlretrieve|requests|http\.client|ftplib|"
    r"\bsocket\b|wget|curl|"
    r"nerfstudio\.(?:exporter|generative|plugins|process_data|scripts|viewer|viewer_legacy|utils\.(?:scripts|install_checks))\b",
    re.IGNORECASE,
)
"""What unpickles, runs commands or fetches something, and the modules of nerfstudio that do such things for others."""
HARMLESS = {
    "nerfstudio.cameras.camera_paths": "takes a formula of the viewer's",
    "nerfstudio.configs.dataparser_configs": "collects what plug-ins register",
    "nerfstudio.configs.method_configs": "collects what plug-ins register",
    "nerfstudio.data.dataparsers.nerfstudio_dataparser": "asks before it converts points, which only reads",
    "nerfstudio.engine.trainer": "is set up by no command",
}
"""Modules in which such words stand all the same, and why no class of theirs does it for a command."""


def test_every_class_of_nerfstudio_that_unpickles_runs_commands_or_downloads_is_refused(tmp_path: Path) -> None:
    """Found by the text of its modules. Weights of LPIPS come by torchmetrics, as in nerfstudio's own trainings."""
    found = set()
    for module in pkgutil.walk_packages(nerfstudio.__path__, "nerfstudio."):
        if any(f"{module.name}.".startswith(f"{name}.") for name in ALLOWED_MODULES) and not module.ispkg:
            source = importlib.util.find_spec(module.name).loader.get_source(module.name)
            if DANGEROUS.search(source):
                found.add(module.name)
    assert found - set(HARMLESS) == set(REFUSED_MODULES)
    assert set(HARMLESS) <= found
    for name in REFUSED_MODULES:
        classes = {found.__name__ for _, found in inspect.getmembers(importlib.import_module(name), inspect.isclass)}
        for config_class in classes:
            for tag in ("object:{} {{}}", "name:{} ''"):
                (tmp_path / "config.yml").write_text(f"!!python/{tag.format(f'{name}.{config_class}')}")
                with pytest.raises(EvaluationError, match="refused to load"):
                    read_config(tmp_path / "config.yml")


@pytest.mark.parametrize(
    "name",
    [
        "crossnorm_ns.kernels.extension.Path",
        "crossnorm_ns.jobs.JobError",
        "crossnorm_ns.provenance.git_state",
        "crossnorm_ns.data.make_scene.main",
        "crossnorm_ns.representation.command.main",
        "method_configs.mipnerf.tiny_config",
        "nerfstudio.data.utils.data_utils.get_image_mask_tensor_from_path",
    ],
)
def test_what_no_configuration_consists_of_is_refused_in_our_own_package_too(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(f"!!python/name:{name} ''")
    with pytest.raises(EvaluationError, match="refused to load"):
        read_config(tmp_path / "config.yml")


DEPTH_DATASET = "nerfstudio.data.datasets.depth_dataset.DepthDataset"


def test_no_run_fetches_code_for_pictures_without_depth(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(torch.hub, "load", lambda *_, **__: pytest.fail("it was fetched"))
    config = method_configs.mipnerf.tiny_config("mipnerf-cn-tiny", "cn", 1e-3)
    config.data = config.pipeline.datamanager.data = write_scene(tmp_path / "blender")
    text = yaml.dump(config)
    changed = text.replace("crossnorm_ns.data.blender_dataset.BlenderDataset", DEPTH_DATASET)
    assert changed != text
    (tmp_path / "config.yml").write_text(changed)
    arguments = ["--load-config", str(tmp_path / "config.yml")]
    assert "DepthDataset': it may run" in refusal(eval.blender.run, arguments, monkeypatch, capsys)


def write_instant_ngp_scene(folder: Path, picture: str) -> Path:
    matrices = [[[1, 0, 0, index], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]] for index in range(4)]
    frames = [{"file_path": picture, "transform_matrix": matrix} for matrix in matrices]
    camera = {"fl_x": 20, "fl_y": 20, "cx": 8, "cy": 8, "w": 16, "h": 16, "camera_angle_x": 0.6, "aabb_scale": 1}
    (folder / "transforms.json").write_text(json.dumps({**camera, "frames": frames}))
    return folder


@pytest.mark.parametrize("name", ["blender", "extract_mesh", "dtu_chamfer"])
def test_pictures_of_other_dataparsers_are_read_only_where_that_is_allowed(run, name, monkeypatch, capsys) -> None:
    config = read_config(run)
    write_instant_ngp_scene(write_scene(Path("scene")) if name == "blender" else Path("scene"), "../outside.png")
    Image.new("RGB", (16, 16)).save("outside.png")
    config.pipeline.datamanager.dataparser = InstantNGPDataParserConfig()
    run.write_text(yaml.dump(config))
    opened: list[str] = []
    sys.addaudithook(lambda event, what: opened.append(str(what[0])) if event == "open" else None)
    command, arguments = COMMANDS[name]
    assert "give --allow-outside" in refusal(command, arguments(run), monkeypatch, capsys)
    assert any("config.yml" in name for name in opened) and not any("outside.png" in name for name in opened)
    read_run_config(run, allow_outside=True)


def test_pictures_of_nerfstudios_blender_dataparser_lie_in_the_scene(run, monkeypatch, capsys) -> None:
    scene, config = write_scene(Path("blender")), read_config(run)
    config.data = config.pipeline.datamanager.data = scene.absolute()
    config.pipeline.datamanager.dataparser = BlenderDataParserConfig()
    run.write_text(yaml.dump(config))
    read_run_config(run)
    for split in ("train", "test"):
        path = scene / f"transforms_{split}.json"
        before = path.read_text()
        content = json.loads(before)
        Image.new("RGB", (16, 16)).save("outside.png")
        content["frames"][0]["file_path"] = "../outside"
        path.write_text(json.dumps(content))
        command, arguments = COMMANDS["extract_mesh"]
        assert "lies outside" in refusal(command, arguments(run), monkeypatch, capsys)
        path.write_text(before)


def test_dataparser_is_the_one_that_its_configuration_says(run, monkeypatch, capsys) -> None:
    """Else the checks of one would be passed, and the pictures read by another."""
    config = read_config(run)
    config.pipeline.datamanager.dataparser._target = InstantNGPDataParserConfig()._target
    run.write_text(yaml.dump(config))
    command, arguments = COMMANDS["extract_mesh"]
    assert "the _target of a DTUCNDataParserConfig is" in refusal(command, arguments(run), monkeypatch, capsys)


@pytest.mark.parametrize("tag", ["object", "name"])
@pytest.mark.parametrize(
    "place",
    [
        "method_configs.GenerfactoModelConfig",
        "method_configs.DepthDataset",
        "dataparser_configs.ColmapDataParserConfig",
        "dataparser_configs.MinimalDataParserConfig",
        "method_configs.ExternalMethodDummyTrainerConfig",
    ],
)
def test_refused_classes_are_refused_under_other_names_too(tag: str, place: str, tmp_path: Path) -> None:
    module, name = f"nerfstudio.configs.{place}".rsplit(".", 1)
    assert getattr(importlib.import_module(module), name).__module__ in REFUSED_MODULES
    (tmp_path / "config.yml").write_text(f"!!python/{tag}:{module}.{name} {'{}' if tag == 'object' else ''}")
    with pytest.raises(EvaluationError, match="refused to load"):
        read_config(tmp_path / "config.yml")


def test_no_model_is_built_that_is_far_larger_than_the_checkpoint(run: Path, monkeypatch, capsys) -> None:
    config = read_config(run)
    field = config.pipeline.model.sdf_field
    field.sdf_width = field.color_width = 8192
    field.sdf_depth = field.color_depth = 4
    field.sdf_skip = None
    run.write_text(yaml.dump(config))
    command, arguments = COMMANDS["extract_mesh"]
    with processor_time(5):
        assert "holds far less than the weights" in refusal(command, arguments(run), monkeypatch, capsys)


def test_no_hash_grid_is_made_that_is_far_larger_than_the_checkpoint(tmp_path: Path, monkeypatch, capsys) -> None:
    config = copy.deepcopy(method_configs.elsewhere.nerfacto_cn.config)
    config.data = config.pipeline.datamanager.data = write_scene(tmp_path / "blender")
    config.pipeline.datamanager.dataparser = BlenderCNDataParserConfig()
    config.pipeline.model.log2_hashmap_size = 27
    config.output_dir, config.timestamp = tmp_path / "outputs", "now"
    config.save_config()
    config.get_checkpoint_dir().mkdir()
    save(config, {"step": 1, "pipeline": {}})
    arguments = ["--load-config", str(config.get_base_dir() / "config.yml")]
    capsys.readouterr()
    assert "holds far less than the weights" in refusal(eval.blender.run, arguments, monkeypatch, capsys)


def test_no_command_waits_for_an_answer(run: Path, monkeypatch, capsys) -> None:
    """nerfstudio's own dataparser asks whether it may convert a point cloud that it finds."""
    config = read_config(run)
    config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(load_3D_points=True, train_split_fraction=0.5)
    run.write_text(yaml.dump(config))
    matrices = [[[1, 0, 0, index], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]] for index in range(4)]
    frames = [{"file_path": f"image/{i:06}.png", "transform_matrix": matrix} for i, matrix in enumerate(matrices)]
    camera = {"fl_x": 20, "fl_y": 20, "cx": 8, "cy": 8, "w": 16, "h": 16}
    Path("scene/transforms.json").write_text(json.dumps({**camera, "frames": frames}))
    Path("scene/colmap/sparse/0").mkdir(parents=True)
    answers = io.StringIO("n\n" * 10)
    monkeypatch.setattr(sys, "stdin", answers)
    command, arguments = COMMANDS["extract_mesh"]
    assert "its model cannot be built (EOF" in refusal(command, arguments(run), monkeypatch, capsys)
    assert answers.tell() == 0 and sys.stdin is answers


@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.method_name)
def test_viewer_listens_to_this_machine_alone(config: CrossNormTrainerConfig) -> None:
    assert config.viewer.websocket_host == "127.0.0.1"


def test_methods_are_all_looked_at() -> None:
    assert len(METHODS) == 8


@pytest.mark.parametrize("place", ["image", "mask", "image/000001.png", "mask/001.png", "cameras_sphere.npz"])
def test_links_out_of_a_scan_are_followed_only_where_that_is_allowed(tmp_path: Path, place: str) -> None:
    scan = tmp_path / "scan"
    write_scan(scan)
    elsewhere = tmp_path / f"elsewhere{Path(place).suffix}"
    shutil.move(scan / place, elsewhere)
    (scan / place).symlink_to(elsewhere)
    config = DTUCNDataParserConfig(data=scan)
    for read in (lambda: read_scene(scan), config.check_data, lambda: config.setup().get_dataparser_outputs("train")):
        with pytest.raises(DataError, match=r"scan/.* lies outside .*--allow-outside"):
            read()
    config.allow_outside = True
    config.check_data()
    (tmp_path / "link").symlink_to(scan)
    read_scene(tmp_path / "link", allow_outside=True)


def test_scan_behind_a_link_is_read(tmp_path: Path) -> None:
    write_scan(tmp_path / "scan")
    (tmp_path / "link").symlink_to(tmp_path / "scan")
    (tmp_path / "scan/image/000000.png").rename(tmp_path / "scan/picture.png")
    (tmp_path / "scan/image/000000.png").symlink_to("../picture.png")
    assert len(read_scene(tmp_path / "link").image_paths) == 4


def test_meshes_do_not_read_the_files_that_they_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.mtl").write_text("newmtl a\nmap_Kd secret.png\n")
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    triangle = "v 0 0 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nusemtl a\nf 1/1 2/1 3/1\n"
    (tmp_path / "mesh.obj").write_text(f"mtllib secret.mtl\n{triangle}")
    opened: list[str] = []
    monkeypatch.setattr(
        "builtins.open", lambda file, *rest, real=open, **more: (opened.append(str(file)), real(file, *rest, **more))[1]
    )
    assert len(read_mesh(tmp_path / "mesh.obj").faces) == 1
    assert not [name for name in opened if "secret" in name]


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("extract_mesh", "outputs/dtu_scan24/neus-cn-tiny/now/nerfstudio_models/step-000000002.ckpt"),
        ("extract_mesh", "scene/image/000001.png"),
        ("extract_mesh", "scene/mask/001.png"),
        ("extract_mesh", "scene/cameras_sphere.npz"),
        ("dtu_chamfer of all", "outputs/dtu_scan24/config.yml"),
    ],
)
def test_no_command_waits_for_a_pipe_in_a_run_or_its_scene(run: Path, name: str, place: str, monkeypatch, capsys):
    pipe(Path(place))
    command, arguments = COMMANDS[name]
    assert Path(place).name in refusal(command, arguments(run), monkeypatch, capsys)
    assert not Path("out.ply").exists()


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("place", ["renders/r_1.png", "scene/test/r_1.png", "scene/transforms_test.json"])
def test_no_command_waits_for_a_pipe_among_renders(tmp_path: Path, place: str, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_renders(Path("renders"))
    write_scene(Path("scene"))
    pipe(Path(place))
    arguments = ["--renders", "renders", "--data", "scene"]
    assert Path(place).name in refusal(eval.blender.run, arguments, monkeypatch, capsys)


@pytest.mark.usefixtures("no_waiting")
def test_no_command_waits_for_a_pipe_among_results(tmp_path: Path, monkeypatch, capsys) -> None:
    pipe(tmp_path / "results" / "a.json")
    arguments = [str(tmp_path / "results"), "--table", "blender"]
    assert "a.json cannot be read" in refusal(eval.report.run, arguments, monkeypatch, capsys)
    with pytest.raises(EvaluationError, match="a.json cannot be read"):
        eval.extract_mesh._world_from_unit(tmp_path / "results" / "a.json")


@pytest.mark.usefixtures("no_waiting")
def test_no_training_waits_for_a_pipe(run: Path, capsys) -> None:
    for place, option in (("step-000000007.ckpt", "load_dir"), ("scene/mask/001.png", "data")):
        config = read_config(run)
        config.timestamp = "again"
        if option == "load_dir":
            config.load_dir = config.get_checkpoint_dir()
            config.load_dir.mkdir(parents=True)
            pipe(config.load_dir / place)
        else:
            pipe(Path(place))
        with pytest.raises(SystemExit) as end:
            config.save_config()
        error = capsys.readouterr().err
        assert end.value.code == 2 and error.count("\n") == 1 and "it is no file, but a named pipe" in error
