"""Loading a finished nerfstudio run, from any working directory and without running code from its files."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from crossnorm_ns.data.blender_scene import read_split
from crossnorm_ns.data.errors import DataError
from crossnorm_ns.data.nerfstudio_scene import check_nerfstudio_scene
from crossnorm_ns.engine.checkpoints import missing_weights, read_checkpoint
from eval.errors import EvaluationError, first_line
from eval.run_config import read_config
from eval.run_options import changed_options

if TYPE_CHECKING:
    from nerfstudio.engine.trainer import TrainerConfig
    from nerfstudio.pipelines.base_pipeline import Pipeline

MOST_SAMPLES = 2**26
"""Of all rays that are rendered at a time."""
SPARE_BYTES = 2**28
"""What may be built beside a model's weights: nerfstudio's models load the whole network that LPIPS is part of."""


class Run(NamedTuple):
    """A trained model, ready to render."""

    config: "TrainerConfig"
    """Its configuration, with the data path resolved and `load_dir` set to the checkpoints beside the file."""
    pipeline: "Pipeline"
    """Model and test data, in eval mode."""
    checkpoint_path: Path
    step: int
    """Training step of the checkpoint, counted from 0."""
    options: dict[str, Any] | None
    """In which its configuration differs from its method's, see `eval.run_options.changed_options`."""


def load_run(
    config_path: Path,
    data: Path | None = None,
    device: str | None = None,
    load_images: bool = True,
    allow_outside: bool = False,
) -> Run:
    """Loads the latest checkpoint of a run, with the training and the test images.

    Args:
        config_path: `config.yml` as nerfstudio writes it, `<output>/<experiment>/<method>/<timestamp>/config.yml`. The
            checkpoints are looked for in the folder beside it, wherever that has been moved.
        data: Scene folder instead of the one in the file. That one, if relative, is looked for from the folder where
            the run was started (as far as the file's place tells), then from the working directory.
        device: "cpu", "cuda", "cuda:1", ...; none takes a GPU where there is one.
        load_images: Reads the images; without them the model is not fit for rendering the run's views.
        allow_outside: Reads pictures outside of the scene's folder where its files name such, whatever the file says.

    Raises:
        EvaluationError: the file is no run's configuration, its data or checkpoint is missing or unreadable, or
            does not fit.
        DataError: the checkpoint cannot be read, or the data cannot be used.
    """
    config = read_run_config(config_path, data, allow_outside)
    config.load_dir = config_path.resolve().parent / config.relative_model_dir
    checkpoint_path = _latest_checkpoint(config.load_dir)
    checkpoint = read_checkpoint(checkpoint_path)
    device = _choose_device(device)
    try:
        options = changed_options(config)  # before the pipeline changes some itself
        with _no_larger_than(checkpoint_path):
            pipeline = config.pipeline.setup(device=device, test_mode="test" if load_images else "inference")
    except (EvaluationError, DataError):
        raise
    except Exception as error:  # of whatever class the file names, given whatever values
        raise EvaluationError(f"{config_path}: its model cannot be built ({first_line(error)}).") from error
    try:
        pipeline.load_pipeline(checkpoint["pipeline"], checkpoint["step"])
    except RuntimeError as error:
        raise EvaluationError(
            f"{checkpoint_path} does not fit the model in {config_path} ({first_line(error)}): "
            "evaluate with the versions that trained the run."
        ) from error
    missing = missing_weights(pipeline.model, checkpoint["pipeline"])  # nerfstudio leaves them as they begin
    if missing:
        raise EvaluationError(f"{checkpoint_path} lacks {len(missing)} weights of the model, such as {missing[0]}.")
    pipeline.eval()
    return Run(config, pipeline, checkpoint_path, checkpoint["step"], options)


@contextlib.contextmanager
def _no_larger_than(checkpoint_path: Path) -> Iterator[None]:
    """Within it, no model is built whose weights are far more than a checkpoint's, before memory is taken for them."""
    most = SPARE_BYTES + 2 * checkpoint_path.stat().st_size  # twice: weight norm replaces weights
    taken = 0

    def add(module: torch.nn.Module, name: str, weight: torch.nn.Parameter | None) -> None:
        nonlocal taken
        taken += 0 if weight is None else weight.nbytes
        check(taken)

    def check(size: int) -> None:
        if size > most:
            raise EvaluationError(f"{checkpoint_path} holds far less than the weights of the model in its config.yml.")

    hook = register_module_parameter_registration_hook(add)
    try:
        with _CheckedSizes(check):
            yield
    finally:
        hook.remove()


class _CheckedSizes(TorchFunctionMode):
    """Within it, a function sees the bytes of each new tensor before memory is taken for it."""

    def __init__(self, check: Callable[[int], None]) -> None:
        super().__init__()
        self.check = check

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.full, torch.ones, torch.rand, torch.randn, torch.zeros):
            shape = {name: value for name, value in kwargs.items() if name in ("size", "fill_value", "dtype")}
            self.check(func(*args, **shape, device="meta").nbytes)
        return func(*args, **kwargs)


def read_run_config(config_path: Path, data: Path | None = None, allow_outside: bool = False) -> "TrainerConfig":
    """The configuration of a run, with its data where it is now; see `load_run`.

    Raises:
        EvaluationError: the file is no run's configuration, or its data is missing.
    """
    config = read_config(config_path)
    from nerfstudio.engine.trainer import TrainerConfig  # noqa: PLC0415 (slow to import)

    if not isinstance(config, TrainerConfig):
        raise EvaluationError(f"{config_path} holds a {type(config).__name__}, not a run: give a run's config.yml.")
    _check_samples(config.pipeline.model, config_path)
    _set_data(config, config_path.resolve(), data, allow_outside)
    return config


def _check_samples(model: Any, config_path: Path) -> None:
    """Refuses more samples at a time than any method has; their numbers have such names in all of nerfstudio."""
    names = [field.name for field in dataclasses.fields(model) if "samples" in field.name or "importance" in field.name]
    values = [getattr(model, name) for name in names]
    numbers = [number for value in values for number in (value if isinstance(value, tuple) else (value,))]
    samples = sum(number for number in numbers if isinstance(number, int | float))
    if not samples * model.eval_num_rays_per_chunk <= MOST_SAMPLES:
        raise EvaluationError(
            f"{config_path}: pipeline.model.eval_num_rays_per_chunk is {model.eval_num_rays_per_chunk:,}, but so many "
            f"rays have {samples * model.eval_num_rays_per_chunk:,} samples, more than {MOST_SAMPLES:,}."
        )


def _set_data(config: "TrainerConfig", config_path: Path, data: Path | None, allow_outside: bool) -> None:
    datamanager: Any = config.pipeline.datamanager
    dataparser = getattr(datamanager, "dataparser", None)
    if dataparser is not None and hasattr(dataparser, "allow_outside"):
        dataparser.allow_outside = allow_outside
    recorded = datamanager.data or getattr(dataparser, "data", None)
    if data is None:
        if recorded is None:
            return
        data = _find_data(config, config_path, Path(recorded))
    if not data.exists():
        raise EvaluationError(f"No data at {data.absolute()}: give the scene's folder with --data.")
    config.data = datamanager.data = data.resolve()
    if dataparser is not None:
        dataparser.data = datamanager.data
        _check_places(dataparser, data, config_path, allow_outside)


def _check_places(dataparser: Any, data: Path, config_path: Path, allow_outside: bool) -> None:
    """Refuses pictures outside of the scene, of dataparsers that look at no places, before they open any."""
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig  # noqa: PLC0415
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig  # noqa: PLC0415

    name = type(dataparser).__name__
    if dataparser._target is not type(dataparser)()._target:
        raise EvaluationError(f"{config_path}: the _target of a {name} is {dataparser._target}, a class of another.")
    if isinstance(dataparser, NerfstudioDataParserConfig):
        check_nerfstudio_scene(data, dataparser.downscale_factor, allow_outside)
    elif isinstance(dataparser, BlenderDataParserConfig):
        for split in ("train", "test"):
            read_split(data, split, allow_outside=allow_outside)
    elif not hasattr(dataparser, "allow_outside") and not allow_outside:
        raise EvaluationError(
            f"{config_path}: a {name} may read pictures outside of the scene {data}. If you trust its files, "
            "give --allow-outside."
        )


def _find_data(config: "TrainerConfig", config_path: Path, recorded: Path) -> Path:
    if recorded.is_absolute():
        return recorded
    start = _start_folder(config, config_path)
    candidates = [folder / recorded for folder in (start, Path.cwd()) if folder is not None]
    for candidate in candidates:
        if candidate.exists():
            return candidate
    tried = " nor ".join(str(candidate) for candidate in dict.fromkeys(candidates))
    raise EvaluationError(
        f"{config_path} was trained on {recorded}, but there is no {tried}: give the scene's folder with --data."
    )


def _start_folder(config: "TrainerConfig", config_path: Path) -> Path | None:
    """Working directory of the training, if its output folder was relative to it and has not been renamed since."""
    inside = (config.get_base_dir() / config_path.name).parts
    if config.output_dir.is_absolute() or ".." in inside or config_path.parts[-len(inside) :] != inside:
        return None
    return config_path.parents[len(inside) - 1]


def _latest_checkpoint(folder: Path) -> Path:
    steps = {
        int(match[1]): file for file in folder.glob("*.ckpt") if (match := re.fullmatch(r"step-(\d+)\.ckpt", file.name))
    }
    if not steps:
        raise EvaluationError(f"No checkpoint (step-*.ckpt) in {folder}: has the training saved one yet?")
    return steps[max(steps)]


def _choose_device(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise EvaluationError(f"--device {device} is no device: give cpu, cuda, or cuda:1 and so on.") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise EvaluationError(
            f"--device {device}: torch finds {torch.cuda.device_count() or 'no'} GPU here; leave the option out or "
            "give another."
        )
    return device
