"""Scans in the layout of IDR and NeuS: cameras, pictures and masks."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from damage import Damage, archive, archive_of_zeros, zeros_compressed
from dtu_scans import SIZE, write_scan
from independent import read_png
from kinds import Kind
from scenes import damaged_png, train

import method_configs.neus
from crossnorm_ns.data.dtu_scene import load_image, load_mask

VIEW = 1
"""Whose files are damaged."""


def _make_scan(folder: Path) -> None:
    write_scan(folder / "scene")


def _train_neus() -> dict[str, Any]:
    parser = train(method_configs.neus.neus_cn_tiny.config).pipeline.datamanager.dataparser.setup()
    outputs = parser.get_dataparser_outputs("train")
    cameras = outputs.cameras
    intrinsics = [cameras.fx, cameras.fy, cameras.cx - 0.5, cameras.cy - 0.5]
    return {
        "cameras": cameras.camera_to_worlds.numpy(),
        "intrinsics": np.concatenate([value.numpy() for value in intrinsics], axis=-1),
        "scale": outputs.metadata["scale_mat"].numpy(),
        "picture": load_image(outputs.image_filenames[VIEW]),
        "mask": load_mask(outputs.mask_filenames[VIEW]),
    }


def _true_scan(folder: Path) -> dict[str, Any]:
    """Cameras by an RQ decomposition of their matrices."""
    with np.load(folder / "scene/cameras_sphere.npz", allow_pickle=False) as file:
        arrays = dict(file)
    scale = arrays["scale_mat_0"].astype(float)
    count = sum(name.startswith("world_mat_") and "inv" not in name for name in arrays)
    cameras, intrinsics = [], []
    for view in range(count):
        world = arrays[f"world_mat_{view}"].astype(float)
        projection = (world / np.abs(world).max() @ scale)[:3]
        upper, lower = np.linalg.qr(np.flipud(projection[:, :3]).T)
        matrix, rotation = np.flipud(np.fliplr(lower.T)), np.flipud(upper.T)
        signs = np.sign(np.diag(matrix))
        matrix, rotation = matrix * signs, signs[:, None] * rotation
        assert np.linalg.det(rotation) > 0
        centre = -np.linalg.solve(projection[:, :3], projection[:, 3])
        cameras.append(np.column_stack([rotation.T * [1, -1, -1], centre]))
        matrix = matrix / matrix[2, 2]
        intrinsics.append([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]])
    picture, mask = ((folder / "scene" / name).read_bytes() for name in ("image/000001.png", "mask/001.png"))
    return {
        "cameras": np.array(cameras),
        "intrinsics": np.array(intrinsics),
        "scale": scale,
        "picture": read_png(picture)[..., :3] / 255,
        "mask": read_png(mask)[..., 0] / 255,
    }


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(shape: tuple[int, ...], data: bytes, descr: str = "<f8") -> bytes:
    """An array's file whose header says what it likes."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue() + data


def damaged_archives(content: bytes, name: str) -> Iterator[Damage]:
    """Archives of arrays that promise more than they hold, or hold more than anybody reads.

    Args:
        content: of the valid archive.
        name: of an array in it.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {member: file.read(member) for member in file.namelist()}
    for title, member in {
        "10^12 numbers in a header": npy((10**12,), bytes(128)),
        "2^63 numbers in a header": npy((2**40, 2**23), bytes(128)),
        "fewer than no numbers": npy((-4, -4), bytes(128)),
        "a header that is code": b"\x93NUMPY\x01\0\x46\0"
        + b"__import__('os').system('touch witness')".ljust(69)
        + b"\n",
        "a header of 60,000 brackets": b"\x93NUMPY\x01\0\x60\xea" + b"[" * 60_000,
        "version 9": members[f"{name}.npy"].replace(b"NUMPY\x01", b"NUMPY\x09"),
        "objects": npy((4, 4), b"cos\nsystem\n(S'touch witness'\ntR.", "|O"),
        "texts": npy((4, 4), "abcd".encode("utf-32-le") * 4, "<U1"),
        "no array": b"not an array",
        "nothing": b"",
    }.items():
        yield Damage(title, archive(members | {f"{name}.npy": member}), refused=True)
    big = npy((2**26,), b"")
    for title, said in (("packed", None), ("said to be 208 bytes", 208)):
        bomb = archive_of_zeros(f"{name}.npy", big, 2**29, said)
        yield Damage(f"512 MiB of zeros, {title}", bomb, refused=True)
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield Damage(f"members packed in way {kind}", archive(members, kind), refused=True)
    yield Damage("no member", archive({}), refused=True)
    yield Damage("20,000 members", archive({f"a{i}": b"" for i in range(20_000)}), refused=True)
    yield Damage("an archive in another", archive({"a.npz": content}), refused=True)
    yield Damage("zeros of zlib", zeros_compressed(2**20), refused=True)


def _damaged_cameras(content: bytes) -> Iterator[Damage]:
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    yield from damaged_archives(content, f"world_mat_{VIEW}")
    world = arrays[f"world_mat_{VIEW}"]
    mirror, skewed = np.diag([1.0, 1, -1, 1]), np.eye(4)
    skewed[0, 1] = 0.5
    holed, endless = world.copy(), world.copy()
    holed[1, 1], endless[2, 3] = np.nan, np.inf
    for title, matrix in {
        "NaN": holed,
        "infinity": endless,
        "zeros": np.zeros((4, 4)),
        "3 rows": world[:3],
        "complex numbers": world.astype(complex),
        "truth values": world.astype(bool),
        "a mirrored camera": world @ mirror,
        "a skewed camera": skewed @ world,
        "a camera that looks away": np.diag([-1.0, -1, -1, 1]) @ world,
        "numbers beyond single precision": world * 1e300,
        "numbers near 0": world * 1e-320,
        "a camera at infinity": world + np.array([[0, 0, 0, 1e308]] * 4),
        "no axis": np.array(1.0),
        "an axis without end": np.zeros((0, 4)),
    }.items():
        yield Damage(f"world_mat: {title}", _npz(arrays | {f"world_mat_{VIEW}": matrix}))
    scale = arrays["scale_mat_0"]
    for title, matrix in {
        "uneven": scale * [[1], [2], [1], [1]],
        "negative": np.diag([-1.0, -1, -1, 1]) @ scale,
        "of 0": np.diag([0.0, 0, 0, 1]),
        "of 1e-300": np.diag([1e-300, 1e-300, 1e-300, 1]),
        "of 1e300": np.diag([1e300, 1e300, 1e300, 1]),
    }.items():
        changed = {f"scale_mat_{view}": matrix for view in range(len(arrays) // 2)}
        yield Damage(f"scale_mat {title}", _npz(arrays | changed), refused=True)
    for title, changed in {
        "another sphere for one view": arrays | {f"scale_mat_{VIEW}": 2 * scale},
        "a camera too many": arrays | {"world_mat_4": world, "scale_mat_4": scale},
        "a camera of number 10^30": arrays | {f"world_mat_{10**30}": world},
        "a camera of a number of 5,000 digits": arrays | {f"world_mat_{'1' * 5000}": world},
        "a camera of number 01 for 1": {name.replace("world_mat_1", "world_mat_01"): a for name, a in arrays.items()},
        "no camera of a view": {name: array for name, array in arrays.items() if name != "world_mat_2"},
        "other names": {f"a{name}": array for name, array in arrays.items()},
    }.items():
        yield Damage(title, _npz(changed), refused=True)
    yield Damage("other arrays beside", _npz(arrays | {"camera_mat_0": world, "note": np.array("text")}))
    yield Damage("in single precision", _npz({name: array.astype(np.float32) for name, array in arrays.items()}))


def _damaged_picture(content: bytes) -> Iterator[Damage]:
    return damaged_png(content, *SIZE, 3)


def _damaged_mask(content: bytes) -> Iterator[Damage]:
    yield from damaged_png(content, *SIZE, 1)


KINDS = [
    Kind(
        "cameras_sphere.npz, training",
        "scene/cameras_sphere.npz",
        _make_scan,
        _train_neus,
        _true_scan,
        _damaged_cameras,
        mutated=36,
    ),
    Kind(
        "PNG of a scan, training",
        "scene/image/000001.png",
        _make_scan,
        _train_neus,
        _true_scan,
        _damaged_picture,
    ),
    Kind("mask of a scan, training", "scene/mask/001.png", _make_scan, _train_neus, _true_scan, _damaged_mask),
]
