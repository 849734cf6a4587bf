"""Scenes in Blender format: their json files and pictures, in training and in evaluation."""

import copy
import json
import math
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from damage import Damage, changed_documents, chunk, drawn, nested, png, zeros_compressed
from eval_files import SIZE, write_renders, write_scene
from independent import read_png
from kinds import Kind
from nerfstudio.scripts import train as ns_train

import eval.blender
import method_configs.mipnerf
from crossnorm_ns.data.blender_scene import load_image


def train(config: Any) -> Any:
    """What ns-train does up to the training itself; returns the configuration."""
    config = copy.deepcopy(config)
    config.data, config.output_dir = Path("scene"), Path("outputs")
    ns_train.launch = lambda *_, **__: None
    ns_train.main(config)
    return config


def _train_mipnerf() -> dict[str, Any]:
    parser = train(method_configs.mipnerf.mipnerf_cn_tiny.config).pipeline.datamanager.dataparser.setup()
    outputs = parser.get_dataparser_outputs("train")
    return {
        "names": [path.name for path in outputs.image_filenames],
        "cameras": outputs.cameras.camera_to_worlds.numpy(),
        "focal": outputs.cameras.fx.numpy().ravel(),
        "picture": load_image(outputs.image_filenames[1]),
    }


def _make_scene(folder: Path) -> None:
    write_scene(folder / "scene")


def _true_scene(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "scene/transforms_train.json").read_text())
    frames = document["frames"]
    names = [Path(frame["file_path"]).name.removesuffix(".png") + ".png" for frame in frames]
    picture = folder / "scene" / (frames[1]["file_path"].removesuffix(".png") + ".png")
    return {
        "names": names,
        "cameras": np.array([np.array(frame["transform_matrix"], dtype=float)[:3] for frame in frames]),
        "focal": np.full(len(frames), SIZE / 2 / math.tan(document["camera_angle_x"] / 2)),
        "picture": read_png(picture.read_bytes()) / 255,
    }


def _damaged_json(content: bytes) -> Iterator[Damage]:
    document = json.loads(content)
    for name, change in {
        "a file elsewhere": {"file_path": "/etc/passwd"},
        "a file above": {"file_path": "../../train/r_0"},
        "a name of 5,000 letters": {"file_path": "a" * 5000},
        "a name of zeros": {"file_path": "\0"},
        "half a pair of code points": {"file_path": "\ud800"},
        "a matrix of 400 digits": {"transform_matrix": [[10**400] * 4] * 4},
        "a matrix without a row": {"transform_matrix": [[1, 0, 0, 0]] * 2},
        "a matrix with a long row": {"transform_matrix": [[1, 0, 0, 0]] * 3 + [[0] * 5]},
        "a matrix of letters": {"transform_matrix": [["a"] * 4] * 4},
        "a matrix of zeros": {"transform_matrix": [[0] * 4] * 4},
        "a matrix that mirrors": {"transform_matrix": np.diag([1, 1, -1, 1]).tolist()},
        "a matrix without end": {
            "transform_matrix": [[1, 0, 0, float("inf")], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
        },
    }.items():
        changed = copy.deepcopy(document)
        changed["frames"][1] |= change
        yield Damage(name, json.dumps(changed).encode(), refused=True)
    for angle in (0, -1, math.pi, 4, 1e400, float("nan"), "0.7", None, True, [0.7], 10**400):
        yield Damage(
            f"an angle of {angle!r:.12}", json.dumps(document | {"camera_angle_x": angle}).encode(), refused=True
        )
    for frames in ([], {}, None, "frames", [None], [[]], [{}], 4):
        yield Damage(f"frames are {frames!r}", json.dumps(document | {"frames": frames}).encode(), refused=True)
    yield Damage("100,000 brackets", nested(100_000), refused=True)
    yield Damage("100,000 braces", nested(100_000, '{"frames":', "}"), refused=True)
    yield Damage("a number of 5,000 digits", content.replace(b"0.7", b"7" * 5000), refused=True)
    yield Damage("in UTF-16", content.decode().encode("utf-16"), refused=True)
    yield Damage(
        "a million empty frames", b'{"camera_angle_x": 0.7, "frames": [' + b"{}," * 10**6 + b"{}]}", refused=True
    )
    yield Damage("50 million brackets", b'{"frames": [' + b"[]," * (50 * 10**6 // 3), refused=True)
    yield Damage("twice the same key", content[:-1] + b', "frames": ' + json.dumps(document["frames"]).encode() + b"}")
    for name, changed in drawn(changed_documents(document), 40):
        yield Damage(name, json.dumps(changed).encode())


def damaged_png(content: bytes, width: int, height: int, channels: int) -> Iterator[Damage]:
    """Pictures that are none, or promise more than they hold, of a kind that has this size otherwise."""
    color = {1: 0, 3: 2, 4: 6}[channels]
    lines = bytes(height * (1 + width * channels))
    whole = zlib.compress(lines)
    for name, damaged in {
        "2 billion pixels a side": png(2**31 - 1, 2**31 - 1, whole, 8, color),
        "100,000 pixels a side": png(100_000, 100_000, whole, 8, color),
        "no width": png(0, height, whole, 8, color),
        "wider than its lines": png(width + 1, height, whole, 8, color),
        "half of its lines": png(width, height, zlib.compress(lines[: len(lines) // 2]), 8, color),
        "lines that are no stream": png(width, height, lines, 8, color),
        "lines with a wrong sum": png(width, height, whole[:-1] + b"\0", 8, color),
        "lines without their end": png(width, height, whole[:-6], 8, color),
        "lines of an unknown filter": png(width, height, zlib.compress(b"\x09" + lines[1:]), 8, color),
        "a depth of 7": png(width, height, whole, 7, color),
        "a colour of kind 9": png(width, height, whole, 8, 9),
        "no lines": png(width, height, b"", 8, color),
        "64 MiB of zeros for lines": png(20_000, 20_000, zeros_compressed(2**26), 1, 0),
        "another kind of picture": b"P6 5 5 255\n" + bytes(3 * 5 * 5),
        "no more than a signature": content[:8],
        "no header": content[:8] + content[33:],
    }.items():
        yield Damage(name, damaged, refused=True)
    yield Damage("64 MiB after its lines", png(width, height, zeros_compressed(2**26), 8, color))
    bomb = zeros_compressed(2**28)
    for kind, head in ((b"zTXt", b"note\0\0"), (b"iCCP", b"profile\0\0"), (b"iTXt", b"note\0\1\0\0\0")):
        extra = chunk(kind, head + bomb)
        yield Damage(f"256 MiB of zeros in {kind.decode()}", content[:33] + extra + content[33:])


def _damaged_rgba(content: bytes) -> Iterator[Damage]:
    yield from damaged_png(content, SIZE, SIZE, 4)
    yield Damage("no alpha", png(SIZE, SIZE, zlib.compress(bytes(SIZE * (1 + 3 * SIZE))), 8, 2), refused=True)


def _make_renders(folder: Path) -> None:
    write_scene(folder / "scene")
    write_renders(folder / "renders")


def _evaluate() -> dict[str, Any]:
    sys.argv = ["eval.blender", "--renders", "renders", "--data", "scene", "--output", "results/scores.json"]
    eval.blender.run()
    result = json.loads(Path("results/scores.json").read_text())
    return {"psnr": [image["psnr"] for image in result["per_image"]]}


def _true_scores(folder: Path) -> dict[str, Any]:
    scores = []
    for index in range(4):
        pair = [read_png((folder / place / f"r_{index}.png").read_bytes()) / 255 for place in ("renders", "scene/test")]
        render, truth = (p[..., :3] * p[..., 3:] + 1 - p[..., 3:] if p.shape[-1] == 4 else p for p in pair)
        scores.append(-10 * math.log10(np.mean((render - truth) ** 2)))
    return {"psnr": np.array(scores)}


def _damaged_render(content: bytes) -> Iterator[Damage]:
    return damaged_png(content, SIZE, SIZE, 3)


KINDS = [
    Kind(
        "transforms_train.json, training",
        "scene/transforms_train.json",
        _make_scene,
        _train_mipnerf,
        _true_scene,
        _damaged_json,
        mutated=27,
    ),
    Kind(
        "PNG of a scene, training",
        "scene/train/r_1.png",
        _make_scene,
        _train_mipnerf,
        _true_scene,
        _damaged_rgba,
    ),
    Kind(
        "PNG of a scene, eval.blender",
        "scene/test/r_1.png",
        _make_renders,
        _evaluate,
        _true_scores,
        _damaged_rgba,
    ),
    Kind(
        "PNG of a render, eval.blender",
        "renders/r_1.png",
        _make_renders,
        _evaluate,
        _true_scores,
        _damaged_render,
    ),
]
