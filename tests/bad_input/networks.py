"""Files of networks: compressed images, checkpoints of fits and of trainings, and what lies beside them."""

import hashlib
import io
import json
import lzma
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh
import yaml
from damage import Damage, archive, changed_documents, drawn, nested
from dtu_scans import SCALE_MAT, write_scan
from kinds import Kind
from PIL import Image
from representation_files import write_image

import eval.extract_mesh
import method_configs.neus
from crossnorm_ns.representation import codec
from crossnorm_ns.representation.command import main as crossnorm

HEIGHT, WIDTH = 12, 10
FIT = ["image", "--image", "picture.png", "--side", "12", "--network", "1x8", "--method", "relu", "--device", "cpu"]


def _make_compressed(folder: Path) -> None:
    folder.mkdir()
    torch.manual_seed(0)
    spec = codec.ImageSpec("relu", (8, 8), HEIGHT, WIDTH)
    (folder / "image.cninr").write_bytes(codec.encode(spec.make().eval(), spec, "float32"))


def _decompress() -> dict[str, Any]:
    crossnorm(["decompress", "image.cninr", "results/image.png"])
    return {"pixels": np.asarray(Image.open("results/image.png"))}


def _contents(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and streams."""
    content = lzma.decompress(data[10:-32], lzma.FORMAT_RAW, filters=codec._FILTERS)
    (length,) = struct.unpack_from("<I", content)
    return json.loads(content[4 : 4 + length]), content[4 + length :]


def _true_image(folder: Path) -> dict[str, Any]:
    """Layers of numbers in float32, by numpy."""
    data = (folder / "image.cninr").read_bytes()
    assert data[:6] == b"CNINR\x01" and hashlib.sha256(data[:-32]).digest() == data[-32:]
    header, streams = _contents(data)
    assert header["method"] == "relu" and header["quantization"] == "float32"
    sizes = [int(np.prod(shape)) for _, shape, _ in header["tensors"]]
    planes = np.frombuffer(streams, np.uint8)
    tensors, start = {}, 0
    for (name, shape, _), size in zip(header["tensors"], sizes, strict=True):
        parts = [planes[sum(sizes) * plane + start :][:size] for plane in range(4)]
        tensors[name] = np.ascontiguousarray(np.stack(parts, axis=-1)).view("<f4").reshape(shape).astype(float)
        start += size
    height, width = header["height"], header["width"]
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    points = codec.pixel_coordinates(height, width).numpy().astype(float)
    assert len(points) == rows.size == columns.size
    names = list(tensors)
    for weight, bias in zip(names[::2], names[1::2], strict=True):
        points = points @ tensors[weight].T + tensors[bias]
        points = points if weight == names[-2] else np.maximum(points, 0)
    return {"pixels": np.round(255 * points.clip(0, 1)).reshape(height, width, 3)}


def _compressed(header: Any, streams: bytes) -> bytes:
    """A file with a right checksum, whatever it says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    packed = lzma.compress(struct.pack("<I", len(text)) + text + streams, lzma.FORMAT_RAW, filters=codec._FILTERS)
    body = struct.pack("<5sBI", b"CNINR", 1, len(packed)) + packed
    return body + hashlib.sha256(body).digest()


def _damaged_compressed(content: bytes) -> Iterator[Damage]:
    header, streams = _contents(content)
    for title, change in {
        "2^28 pixels": {"height": 2**14, "width": 2**14},
        "2^40 pixels": {"height": 2**20, "width": 2**20},
        "no pixels": {"height": 0},
        "half a pixel": {"height": 0.5},
        "pixels in letters": {"height": "12"},
        "another method": {"method": "mfn"},
        "no method": {"method": "none"},
        "a million layers": {"hidden": [8] * 10**6},
        "layers of a million": {"hidden": [2**20, 2**20]},
        "no layers": {"hidden": []},
        "layers of none": {"hidden": [0, 8]},
        "options of a million octaves": {"method": "pe", "options": {"num_frequencies": 10**6}},
        "options that are none": {"options": {"color": 1}},
        "options of letters": {"options": {"num_frequencies": "5"}},
        "no tensors": {"tensors": []},
        "a tensor twice": {"tensors": [header["tensors"][0], *header["tensors"]]},
        "a tensor of 2^80 numbers": {"tensors": [["a", [2**20] * 4, "f4"]]},
        "a tensor of an unknown code": {"tensors": [[name, shape, "f8"] for name, shape, _ in header["tensors"]]},
        "another quantisation": {"quantization": "int4"},
    }.items():
        yield Damage(f"a header of {title}", _compressed(header | change, streams), refused=True)
    yield Damage("a header of brackets", _compressed(nested(30_000), streams), refused=True)
    yield Damage("a header of NaN", _compressed(header | {"height": float("nan")}, streams), refused=True)
    yield Damage("too few weights", _compressed(header, streams[:-1]), refused=True)
    yield Damage("too many weights", _compressed(header, streams + b"\0"), refused=True)
    yield Damage("weights of NaN", _compressed(header, b"\xff" * len(streams)), refused=True)
    yield Damage("other weights", _compressed(header, streams[:-20] + bytes(20)))
    yield Damage("256 MiB of zeros", _compressed(header, bytes(2**28)), refused=True)
    for name, changed in drawn(changed_documents(header), 20):
        yield Damage(name, _compressed(changed, streams))


def _make_fit(folder: Path) -> None:
    folder.mkdir()
    write_image(folder / "picture.png", 12, 12)
    words = [*FIT, "--image", str(folder / "picture.png"), "--steps", "3"]
    crossnorm([*words, "--output", str(folder / "run"), "--max-seconds", "1e-9"])
    crossnorm([*words, "--output", str(folder / "undisturbed")])


def _resume() -> dict[str, Any]:
    crossnorm([*FIT, "--steps", "3", "--output", "run", "--resume"])
    return torch.load("run/checkpoint.pt", weights_only=True)["network"]


class _Sequence(list):
    """Refers to itself so often that nobody can print it."""


def _entangled(depth: int = 40) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found, found]
    return found


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _with_pickle(content: bytes, change: Callable[[bytes], bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch whose pickle is another, with right checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    return archive({n: change(m) if n.endswith("data.pkl") else m for n, m in members.items()}, kind)


def _damaged_tensors(content: bytes) -> Iterator[Damage]:
    """Files of torch that are whole, but not what is wanted."""
    for title, other in {
        "a tensor": torch.zeros(3),
        "a list": [1, 2],
        "nothing": None,
        "a text": "text",
        "no entries": {},
        "an object": _Sequence(),
        "what nobody can print": _entangled(),
    }.items():
        yield Damage(f"{title} in place of all", _saved(other), refused=True)
    for title, pickled in {
        "no opcodes": b"",
        "opcodes without end": b"\x80\x02" + b"(" * 1000,
        "a call of the system": b"cos\nsystem\n(S'touch witness'\ntR.",
        "brackets in brackets": b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
        "a text of 4 GiB": b"\x80\x02X\xff\xff\xff\xff.",
        "memory that is not there": b"\x80\x02h\x05.",
        "nothing to end with": b"\x80\x02.",
        "the newest protocol": b"\x80\xff}.",
    }.items():
        yield Damage(f"a pickle of {title}", _with_pickle(content, lambda _, p=pickled: p), refused=True)
    yield Damage("a bare pickle", pickle.dumps({"step": 1}), refused=True)
    yield Damage("the format before version 1.6", _legacy(), refused=True)
    yield Damage("packed", _with_pickle(content, lambda p: p, zipfile.ZIP_DEFLATED), refused=True)
    yield Damage("an archive of something else", archive({"a": b"b"}), refused=True)


def _legacy() -> bytes:
    stream = io.BytesIO()
    torch.save({"step": 1, "pipeline": {}}, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _damaged_fit(content: bytes) -> Iterator[Damage]:
    yield from _damaged_tensors(content)
    whole = torch.load(io.BytesIO(content), weights_only=True)
    for key in whole:
        yield Damage(f"without {key}", _saved({k: v for k, v in whole.items() if k != key}), refused=True)
        for title, value in {"None": None, "a text": "text", "a list": [1], "entangled": _entangled()}.items():
            yield Damage(f"{key} is {title}", _saved(whole | {key: value}), refused=True)
    state, network = whole["state"], whole["network"]
    first = next(iter(network))
    for title, change in {
        "another shape of a weight": {"network": network | {first: torch.zeros(3, 3)}},
        "a weight of another kind": {"network": network | {first: "text"}},
        "a weight more": {"network": network | {"other": torch.zeros(3)}},
        "a step of -1": {"state": state | {"step": -1}},
        "half a step": {"state": state | {"step": 0.5}},
        "an unknown entry": {"state": state | {"other": 1}},
        "best weights of another network": {"state": state | {"best_weights": {"a": torch.zeros(1)}}},
        "best metrics that are none": {"state": state | {"best_metrics": [1]}},
        "random numbers of another kind": {"generator": torch.zeros(3)},
        "an optimiser without groups": {"optimizer": {"state": {}, "param_groups": []}},
        "moments of another shape": {"optimizer": _other_moments(whole["optimizer"])},
    }.items():
        yield Damage(title, _saved(whole | change), refused=True)


def _other_moments(optimizer: dict[str, Any]) -> dict[str, Any]:
    state = {key: entry | {"exp_avg": torch.zeros(1)} for key, entry in optimizer["state"].items()}
    return optimizer | {"state": state}


def _true_fit(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "undisturbed/checkpoint.pt", weights_only=True)["network"]


RUN = Path("outputs/scene/neus-cn-tiny/now")
CHECKPOINT, TRANSFORM = RUN / "nerfstudio_models/step-000000001.ckpt", RUN / "dataparser_transforms.json"


def _make_run(folder: Path) -> None:
    """A surface run with an untrained checkpoint, and its mesh in the unit sphere."""
    write_scan(folder / "scene")
    config = method_configs.neus.tiny_config("neus-cn-tiny", "none")
    config.output_dir, config.experiment_name, config.timestamp = Path("outputs"), "scene", "now"
    config.data = config.pipeline.datamanager.data = Path("scene")
    (folder / CHECKPOINT).parent.mkdir(parents=True)
    (folder / RUN / "config.yml").write_text(yaml.dump(config))
    config.pipeline.datamanager.data = folder / "scene"
    torch.manual_seed(0)
    state = config.pipeline.setup(device="cpu", test_mode="inference").state_dict()
    torch.save({"step": 1, "pipeline": state}, folder / CHECKPOINT)
    scale = 1 / SCALE_MAT[0, 0]
    transform = np.column_stack([np.eye(3), -SCALE_MAT[:3, 3]]).tolist()
    (folder / TRANSFORM).write_text(json.dumps({"transform": transform, "scale": scale}))
    run = folder / RUN / "config.yml"
    mesh = eval.extract_mesh.extract_run_mesh(run, 8, "unit", data=folder / "scene", device="cpu")
    np.save(folder / "vertices.npy", mesh.vertices)


def _extract() -> dict[str, Any]:
    words = ["--load-config", str(RUN / "config.yml"), "--output", "results/mesh.ply", "--resolution", "8"]
    sys.argv = ["eval.extract_mesh", *words, "--device", "cpu"]
    eval.extract_mesh.run()
    return {"vertices": np.asarray(trimesh.load("results/mesh.ply", process=False).vertices)}


def _true_mesh(folder: Path) -> dict[str, Any]:
    recorded = json.loads((folder / TRANSFORM).read_text())
    transform, vertices = np.array(recorded["transform"], float), np.load(folder / "vertices.npy")
    return {"vertices": np.linalg.solve(transform[:, :3], (vertices / recorded["scale"] - transform[:, 3]).T).T}


def _damaged_checkpoint(content: bytes) -> Iterator[Damage]:
    yield from _damaged_tensors(content)
    whole = torch.load(io.BytesIO(content), weights_only=True)
    weights = whole["pipeline"]
    first = next(name for name, value in weights.items() if value.dim() == 2)
    for title, change in {
        "a step of -1": {"step": -1},
        "a step in letters": {"step": "1"},
        "an entangled step": {"step": _entangled()},
        "weights in a list": {"pipeline": [1]},
        "no weights": {"pipeline": {}},
        "entangled weights": {"pipeline": {"a": _entangled()}},
        "a weight of another shape": {"pipeline": weights | {first: torch.zeros(3, 3)}},
        "a weight in letters": {"pipeline": weights | {first: "text"}},
        "a weight of 10^12 numbers that are one": {"pipeline": weights | {first: torch.zeros(1).expand(10**6, 10**6)}},
        "names that are numbers": {"pipeline": {1: torch.zeros(3)}},
        "weights of NaN": {"pipeline": {name: value * float("nan") for name, value in weights.items()}},
    }.items():
        yield Damage(title, _saved(whole | change), refused=True)
    yield Damage("a weight more", _saved(whole | {"pipeline": weights | {"other": torch.zeros(3)}}))
    missing = {name: value for name, value in weights.items() if name != first}
    yield Damage("a weight less", _saved(whole | {"pipeline": missing}), refused=True)


def _damaged_transform(content: bytes) -> Iterator[Damage]:
    document = json.loads(content)
    for title, change in {
        "a scale of 0": {"scale": 0},
        "a scale of NaN": {"scale": float("nan")},
        "a scale without end": {"scale": float("inf")},
        "a scale of 400 digits": {"scale": 10**400},
        "a scale in letters": {"scale": "1"},
        "a transform of zeros": {"transform": [[0] * 4] * 3},
        "a transform of NaN": {"transform": [[float("nan")] * 4] * 3},
        "a transform of two rows": {"transform": [[1, 0, 0, 0]] * 2},
        "a transform of 400 digits": {"transform": [[10**400] * 4] * 3},
    }.items():
        yield Damage(title, json.dumps(document | change).encode(), refused=True)
    yield Damage("brackets", nested(100_000), refused=True)
    for name, changed in drawn(changed_documents(document), 15):
        yield Damage(name, json.dumps(changed).encode())


KINDS = [
    Kind("compressed image", "image.cninr", _make_compressed, _decompress, _true_image, _damaged_compressed),
    Kind("checkpoint of a fit, crossnorm image", "run/checkpoint.pt", _make_fit, _resume, _true_fit, _damaged_fit),
    Kind("checkpoint of a run, extract_mesh", str(CHECKPOINT), _make_run, _extract, _true_mesh, _damaged_checkpoint),
    Kind(
        "dataparser_transforms.json, extract_mesh",
        str(TRANSFORM),
        _make_run,
        _extract,
        _true_mesh,
        _damaged_transform,
        mutated=9,
    ),
]
