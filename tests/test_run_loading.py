"""Loading finished nerfstudio runs: from anywhere, with the right weights, and without running what files contain."""

import copy
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from eval_files import SIZE, picture, write_scene
from nerfstudio.configs.external_methods import ExternalMethodDummyTrainerConfig
from nerfstudio.configs.method_configs import all_methods
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.vanilla_nerf import NeRFModel, VanillaModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig

from crossnorm_ns.data.dtu_dataparser import DTUCNDataParserConfig
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.engine.checkpoints import read_checkpoint
from eval.errors import EvaluationError
from eval.renders import save_render
from eval.run_config import read_config
from eval.run_options import changed_options
from eval.runs import load_run, read_run_config
from eval.scoring import evaluate
from eval.views import views_of_renders, views_of_run


def nerf_config(data: Path, output_dir: Path) -> TrainerConfig:
    """nerfstudio's own vanilla NeRF on its own Blender dataparser, made small."""
    return TrainerConfig(
        method_name="vanilla-nerf",
        experiment_name="scene",
        timestamp="now",
        output_dir=output_dir,
        data=data,
        pipeline=VanillaPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                data=data, dataparser=BlenderDataParserConfig(), train_num_rays_per_batch=8
            ),
            model=VanillaModelConfig(
                _target=NeRFModel, num_coarse_samples=3, num_importance_samples=3, eval_num_rays_per_chunk=100
            ),
        ),
    )


def save_checkpoint(config: TrainerConfig, step: int, seed: int) -> torch.nn.Module:
    """Writes an untrained model as nerfstudio's trainer writes a trained one."""
    torch.manual_seed(seed)
    pipeline = config.pipeline.setup(device="cpu", test_mode="test")
    folder = config.get_checkpoint_dir()
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({"step": step, "pipeline": pipeline.state_dict()}, folder / f"step-{step:09d}.ckpt")
    return pipeline.eval()


@pytest.fixture(autouse=True)
def no_lpips_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """nerfstudio's model holds LPIPS, whose weights come from the network."""
    monkeypatch.setattr(
        "torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", lambda **_: torch.nn.Identity()
    )


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, torch.nn.Module]:
    """A run that was started in tmp_path/work with relative paths; its config.yml and its pipeline."""
    work = tmp_path / "work"
    write_scene(work / "data" / "scene")
    monkeypatch.chdir(work)
    config = nerf_config(Path("data/scene"), Path("outputs"))
    config.save_config()
    save_checkpoint(config, step=3, seed=1)
    pipeline = save_checkpoint(config, step=12, seed=2)
    monkeypatch.chdir(tmp_path)
    return work / config.get_base_dir() / "config.yml", pipeline


def render(pipeline: torch.nn.Module, index: int) -> torch.Tensor:
    camera = pipeline.datamanager.eval_dataset.cameras[index : index + 1]
    return pipeline.model.get_outputs_for_camera(camera)["rgb_fine"]


def test_run_loads_from_another_working_directory_with_its_latest_weights(trained) -> None:
    config_path, pipeline = trained
    run = load_run(config_path, device="cpu")
    assert run.step == 12
    assert run.checkpoint_path == config_path.parent / "nerfstudio_models" / "step-000000012.ckpt"
    assert run.config.method_name == "vanilla-nerf"
    assert not run.pipeline.training
    torch.testing.assert_close(render(run.pipeline, 2), render(pipeline, 2), rtol=0, atol=0)


def test_run_renders_test_images(trained) -> None:
    dataset = load_run(trained[0], device="cpu").pipeline.datamanager.eval_dataset
    assert [path.parent.name for path in dataset.image_filenames] == ["test"] * 4


def test_data_is_found_from_where_the_run_was_started_before_the_working_directory(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scene(tmp_path / "other" / "data" / "scene")
    monkeypatch.chdir(tmp_path / "other")
    run = load_run(trained[0], device="cpu")
    assert run.config.data == tmp_path / "work" / "data" / "scene"
    assert run.pipeline.datamanager.eval_dataset.image_filenames[0].is_relative_to(run.config.data)


def test_data_of_a_moved_run_is_found_from_the_working_directory(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = shutil.move(trained[0].parent, tmp_path / "archive")
    monkeypatch.chdir(tmp_path / "work")
    assert load_run(Path(moved) / "config.yml", device="cpu").config.data == tmp_path / "work" / "data" / "scene"


def test_missing_data_names_what_was_tried_and_the_option(trained, tmp_path: Path) -> None:
    shutil.move(tmp_path / "work" / "data" / "scene", tmp_path / "elsewhere")
    with pytest.raises(EvaluationError, match=r"data/scene.*--data"):
        load_run(trained[0], device="cpu")
    with pytest.raises(EvaluationError, match=r"No data at .*nowhere"):
        load_run(trained[0], data=Path("nowhere"), device="cpu")
    run = load_run(trained[0], data=Path("elsewhere"), device="cpu")
    assert run.config.data == tmp_path / "elsewhere"


def test_unfinished_saves_are_not_taken_for_checkpoints(trained) -> None:
    folder = trained[0].parent / "nerfstudio_models"
    for name in (".step-000000099.ckpt.x.tmp", "step-000000099.ckpt.tmp", "notes.ckpt"):
        (folder / name).write_bytes(b"half")
    assert load_run(trained[0], device="cpu").step == 12


def test_run_without_checkpoints_is_refused(trained) -> None:
    shutil.rmtree(trained[0].parent / "nerfstudio_models")
    with pytest.raises(EvaluationError, match=r"No checkpoint .*nerfstudio_models"):
        load_run(trained[0], device="cpu")


class Intruder:
    """Runs a command when it is unpickled."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.witness}",)


def test_checkpoint_cannot_run_code(trained, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    path = trained[0].parent / "nerfstudio_models" / "step-000000020.ckpt"
    torch.save({"step": 20, "pipeline": {}, "scheduler": Intruder(witness)}, path)
    with pytest.raises(DataError, match=r"step-000000020\.ckpt holds more than tensors"):
        load_run(trained[0], device="cpu")
    assert not witness.exists()


def test_numbers_of_numpy_in_the_state_of_a_scheduler_are_read(trained) -> None:
    """As nerfstudio's ExponentialDecayScheduler leaves them in the checkpoints of its own methods."""
    folder = trained[0].parent / "nerfstudio_models"
    checkpoint = torch.load(folder / "step-000000012.ckpt", weights_only=True)
    state = {"fields": {"_last_lr": [np.float64(0.01)]}}
    torch.save({**checkpoint, "step": 20, "schedulers": state}, folder / "step-000000020.ckpt")
    assert load_run(trained[0], device="cpu").step == 20


class KindOfManyBytes:
    """Pickled as numpy's type of numbers of so many bytes."""

    def __reduce__(self):
        return np.dtype, (f"V{2**28}",)


class NumberOfManyBytes:
    """Pickled as a number of numpy of this type, without content."""

    def __reduce__(self):
        return np.float64(0).__reduce__()[0], (KindOfManyBytes(),)


def test_a_number_of_numpy_is_not_made_of_a_size_that_a_checkpoint_only_tells(trained) -> None:
    path = trained[0].parent / "nerfstudio_models" / "step-000000020.ckpt"
    torch.save({"step": 20, "pipeline": {}, "schedulers": NumberOfManyBytes()}, path)
    with pytest.raises(DataError, match=r"step-000000020\.ckpt"):
        read_checkpoint(path)


@pytest.mark.parametrize("keep", [0, 1000])
def test_truncated_checkpoint_is_refused(trained, keep: int) -> None:
    path = trained[0].parent / "nerfstudio_models" / "step-000000012.ckpt"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"step-000000012\.ckpt"):
        load_run(trained[0], device="cpu")


def test_weights_of_another_network_are_refused(trained) -> None:
    path = trained[0].parent / "nerfstudio_models" / "step-000000012.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["pipeline"] = {name: value[..., :1] for name, value in checkpoint["pipeline"].items()}
    torch.save(checkpoint, path)
    with pytest.raises(EvaluationError, match="does not fit"):
        load_run(trained[0], device="cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_device_that_is_not_there_is_refused(trained) -> None:
    with pytest.raises(EvaluationError, match="no GPU"):
        load_run(trained[0], device="cuda")


def test_evaluating_a_run_equals_evaluating_its_saved_renders(
    trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = views_of_run(trained[0], device="cpu")
    evaluation = evaluate(
        views, on_view=lambda view, _: save_render(tmp_path / "saved" / f"{view.name}.png", view.render)
    )
    again = evaluate(views_of_renders(tmp_path / "saved", tmp_path / "work" / "data" / "scene"))
    assert [image.name for image in evaluation.images] == ["r_0", "r_1", "r_2", "r_3"]
    assert evaluation.psnr == pytest.approx(again.psnr, abs=0.05)
    result = evaluation.as_dict()
    assert result["source"]["method"] == "vanilla-nerf"
    assert result["source"]["options"]["model.num-coarse-samples"] == 3
    assert result["source"]["step"] == 12
    assert result["source"]["seed"] == 42
    assert result["resolution"] == [SIZE, SIZE]


def test_views_of_a_run_pair_each_render_with_its_own_truth(trained) -> None:
    config_path, pipeline = trained
    views = list(views_of_run(config_path, device="cpu", every=3).frames)
    assert [view.index for view in views] == [0, 3]
    for view in views:
        np.testing.assert_array_equal(view.render, render(pipeline, view.index).numpy())
        np.testing.assert_allclose(view.truth, picture(view.index)[..., :3] / 255, atol=1e-6)


def test_run_on_pictures_that_nerfstudio_made_smaller_is_evaluated_at_their_size(tmp_path: Path) -> None:
    config = nerf_config(write_scene(tmp_path / "scene"), tmp_path / "out")
    config.pipeline.datamanager.camera_res_scale_factor = 0.5
    config.save_config()
    save_checkpoint(config, step=3, seed=1)
    views = views_of_run(config.get_base_dir() / "config.yml", device="cpu")
    frames = list(views.frames)
    assert (views.subject.width, views.subject.height) == (SIZE // 2, SIZE // 2)
    averaged = picture(2)[..., :3].reshape(SIZE // 2, 2, SIZE // 2, 2, 3).mean((1, 3)) / 255
    np.testing.assert_allclose(frames[2].truth, averaged, atol=1e-6)
    assert frames[2].render.shape == frames[2].truth.shape


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), 2.0])
def test_run_with_a_size_of_pictures_that_is_none_is_refused(tmp_path: Path, scale: float) -> None:
    config = nerf_config(write_scene(tmp_path / "scene"), tmp_path / "out")
    config.pipeline.datamanager.camera_res_scale_factor = scale
    config.save_config()
    with pytest.raises(EvaluationError, match="camera_res_scale_factor is"):
        views_of_run(config.get_base_dir() / "config.yml", device="cpu")


def test_scene_that_is_not_the_one_of_the_run_is_refused(trained, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises((ValueError, OSError), match="empty"):
        views_of_run(trained[0], data=tmp_path / "empty", device="cpu")


TRAINABLE = sorted(name for name, config in all_methods.items() if type(config) is not ExternalMethodDummyTrainerConfig)
"""Others stand for plug-ins that are not installed, and have no runs."""
FETCHING = ("depth-nerfacto", "generfacto")
"""Those whose pictures or model fetch others from the network."""


@pytest.mark.parametrize("name", TRAINABLE)
def test_configurations_of_all_methods_survive(name: str, tmp_path: Path) -> None:
    """What ns-train writes and nerfstudio's own (unsafe) loader reads is what the safe loader reads."""
    file = tmp_path / "config.yml"
    file.write_text(yaml.dump(all_methods[name]))
    if name in FETCHING:
        with pytest.raises(EvaluationError, match="fetches from the network"):
            read_config(file)
        return
    assert read_config(file) == yaml.load(file.read_text(), Loader=yaml.Loader)


def test_registered_methods_differ_in_no_option_from_themselves(tmp_path: Path) -> None:
    """nerfstudio's nerfacto-big calls itself nerfacto."""
    file = tmp_path / "config.yml"
    for name in (name for name in TRAINABLE if all_methods[name].method_name == name and name not in FETCHING):
        file.write_text(yaml.dump(all_methods[name]))
        assert changed_options(read_config(file)) == {}, name


def test_samples_of_registered_methods_are_within_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    for name in (name for name in TRAINABLE if name not in FETCHING):
        config = copy.deepcopy(all_methods[name])
        config.data = config.pipeline.datamanager.data = tmp_path / "nowhere"
        file.write_text(yaml.dump(config))
        with pytest.raises(EvaluationError, match="No data at"):
            read_run_config(file)


def test_options_that_were_changed_are_named_but_for_places_steps_and_seeds() -> None:
    config = copy.deepcopy(all_methods["mipnerf-cn"])
    config.max_num_iterations, config.machine.seed, config.data = 7, 3, Path("lego")
    datamanager: Any = config.pipeline.datamanager
    datamanager.data = datamanager.dataparser.data = Path("lego")
    datamanager.dataparser.downscale_factor = 2
    assert changed_options(config) == {}
    config.pipeline.model.norm = "none"
    (group,) = config.optimizers
    config.optimizers[group]["optimizer"].lr = 0.25
    datamanager.train_num_rays_per_batch = 77
    assert changed_options(config) == {
        "model.norm": "none",
        f"optimizers.{group}.optimizer.lr": 0.25,
        "datamanager.train-num-rays-per-batch": 77,
    }


def test_another_dataparser_is_no_change_but_its_options_are() -> None:
    config = copy.deepcopy(all_methods["nerfacto"])
    datamanager: Any = config.pipeline.datamanager
    datamanager.dataparser = DTUCNDataParserConfig(data=Path("scan1"))
    assert changed_options(config) == {}
    datamanager.dataparser.eval_mode = "interval"
    assert changed_options(config) == {"datamanager.dataparser.eval-mode": "interval"}
    config.method_name = "a method that is gone"
    assert changed_options(config) is None
    assert changed_options(all_methods["nerfacto-huge"])["model.hidden-dim"] > 64


MALICIOUS = {
    "a function of os": "!!python/object/apply:os.system ['touch {witness}']",
    "a process": "!!python/object/apply:subprocess.Popen [['touch', '{witness}']]",
    "builtins": '!!python/object/apply:builtins.exec [\'open("{witness}", "w")\']',
    "builtins of yaml": '!!python/object/apply:eval [\'open("{witness}", "w")\']',
    "new": "!!python/object/new:os.system ['touch {witness}']",
    "a list's extend": (
        "!!python/object/new:type\nargs: [exp, !!python/tuple [], {{extend: !!python/name:exec }}]\n"
        'listitems: \'open("{witness}", "w")\''
    ),
    "a name": "!!python/name:os.system ''",
    "a module": "!!python/module:os ''",
    "a function that runs commands": "!!python/object/apply:nerfstudio.utils.scripts.run_command ['touch {witness}']",
    "a function of an allowed module": (
        "!!python/object/apply:nerfstudio.data.utils.data_utils.get_image_mask_tensor_from_path ['{witness}']"
    ),
    "what an allowed module imports": "!!python/name:nerfstudio.engine.trainer.os ''",
    "a function that an allowed module imports": "!!python/name:nerfstudio.data.utils.data_utils.cast ''",
    "a deeper name": "!!python/object/apply:nerfstudio.engine.trainer.os.system ['touch {witness}']",
    "a class that is no configuration": "!!python/object:nerfstudio.engine.trainer.Trainer {{}}",
    "a class called": "!!python/object/apply:nerfstudio.engine.trainer.TrainerConfig ['{witness}']",
    "a subscription": "!!python/object/apply:operator.getitem [[1], 0]",
    "a function as target": (
        "!!python/object:nerfstudio.engine.trainer.TrainerConfig\n"
        "_target: !!python/name:nerfstudio.scripts.train.main ''"
    ),
    "a package with a similar name": "!!python/object:nerfstudio_extra.models.Config {{}}",
}


@pytest.mark.parametrize("text", MALICIOUS.values(), ids=MALICIOUS.keys())
def test_config_file_cannot_run_code(text: str, tmp_path: Path) -> None:
    file, witness = tmp_path / "config.yml", tmp_path / "witness"
    file.write_text(text.format(witness=witness))
    with pytest.raises(EvaluationError, match=r"config\.yml, line"):
        read_config(file)
    assert not witness.exists()


def test_refusal_of_a_foreign_class_says_how_to_evaluate_it(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("a: 1\nb: !!python/object:other_plugin.configs.OtherConfig {x: 1}\n")
    with pytest.raises(EvaluationError, match=r"line 2: refused to load 'other_plugin.*--renders"):
        read_config(file)


def test_field_that_the_class_gained_later_has_its_default(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("!!python/object:nerfstudio.models.vanilla_nerf.VanillaModelConfig\nnum_coarse_samples: 5\n")
    config = read_config(file)
    assert config.num_coarse_samples == 5
    assert config.num_importance_samples == VanillaModelConfig().num_importance_samples
    assert config.loss_coefficients == VanillaModelConfig().loss_coefficients


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("!!python/object:nerfstudio.models.vanilla_nerf.VanillaModelConfig {samples: 5}", "no field samples"),
        ("!!python/object:nerfstudio.models.vanilla_nerf.GoneConfig {}", "cannot be found"),
        ("!!python/object:nerfstudio.models.gone.GoneConfig {}", "cannot be found"),
        ("!!python/object/apply:nerfstudio.utils.writer.EventName [gone]", "gone"),
        ("{a: [1, 2", "line 1"),
        ("\x00", "no YAML"),
    ],
)
def test_unusable_config_files_are_refused(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text(text)
    with pytest.raises(EvaluationError, match=words):
        read_config(file)


def test_yaml_file_that_is_no_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yml"
    file.write_text("lr: 0.1\n")
    with pytest.raises(EvaluationError, match="holds a dict"):
        load_run(file)
