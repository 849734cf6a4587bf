"""Signals that networks are fitted to: pictures, slices, shapes, volumes."""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import trimesh
from damage import Damage, archive, archive_of_zeros, nested, png, zeros_compressed
from independent import read_obj, read_ply, read_png
from kinds import Kind
from PIL import Image
from representation_files import ball, blob, write_image
from scans import damaged_archives, npy
from scenes import damaged_png

from crossnorm_ns.reading import read_mesh
from crossnorm_ns.representation.command import main as crossnorm
from crossnorm_ns.representation.inputs import read_gray_image, read_image, read_occupancy_grid, read_volume

SIDE = 24


def _fit(task: str, file: str, *options: str) -> None:
    """One step of a tiny network."""
    words = [task, "--input", file, "--steps", "1", "--network", "1x8", "--output", "results", "--device", "cpu"]
    crossnorm([*words, *options])


def _fit_image() -> dict[str, Any]:
    _fit("image", "picture.png", "--side", "12")
    return {"pixels": _thinned(read_image(Path("picture.png")).numpy())}


def _true_image(folder: Path) -> dict[str, Any]:
    pixels = _thinned(read_png((folder / "picture.png").read_bytes())) / 255
    return {"pixels": pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)}


def _thinned(pixels: np.ndarray) -> np.ndarray:
    """Of a large picture some pixels, of a small one all."""
    return pixels[:: max(1, len(pixels) // SIDE), :: max(1, pixels.shape[1] // SIDE)]


def _damaged_image(content: bytes) -> Iterator[Damage]:
    yield from damaged_png(content, SIDE, SIDE, 3)
    yield Damage("smaller than it is to become", png(8, 8, zlib.compress(bytes(8 * 25)), 8, 2), refused=True)
    yield Damage("33 million pixels of black", png(8192, 4096, zeros_compressed(4096 * 8193), 8, 0))
    for kind in ("TIFF", "GIF", "BMP", "WEBP", "PPM", "JPEG"):
        stream = io.BytesIO()
        Image.new("RGB", (SIDE, SIDE)).save(stream, kind)
        for title, (place, form) in _SIZES[kind].items():
            other = bytearray(stream.getvalue())
            if kind == "PPM":
                other = other.replace(b"24 24", b"99999 99999")
            else:
                struct.pack_into(form, other, place(other) if callable(place) else place, *([65_000] * (len(form) - 1)))
            yield Damage(f"a {kind} of {title}", bytes(other), refused=True)
    yield Damage("a page of PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", refused=True)
    yield Damage("an icon", b"\0\0\1\0\1\0\0\0\0\0\1\0\x20\0\xff\xff\xff\x7f\x16\0\0\0", refused=True)


def _tiff_width(content: bytes) -> int:
    """Where the value of a TIFF's width stands."""
    (start,) = struct.unpack_from("<I", content, 4)
    entries = range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12)
    return next(entry + 8 for entry in entries if struct.unpack_from("<H", content, entry) == (256,))


_SIZES: dict[str, dict[str, tuple[Any, str]]] = {
    "TIFF": {"another width": (_tiff_width, "<H")},
    "GIF": {"65,000 pixels a side": (6, "<HH")},
    "BMP": {"65,000 pixels a side": (18, "<II")},
    "WEBP": {"another length": (4, "<I")},
    "PPM": {"99,999 pixels a side": (0, "")},
    "JPEG": {"65,000 pixels a side": (lambda content: content.index(b"\xff\xc0") + 5, ">HH")},
}


def _make_slice(folder: Path) -> None:
    folder.mkdir()
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    Image.fromarray((255 * np.exp(-3 * x**2 - 5 * y**2)).astype(np.uint8)).save(folder / "slice.png")


def _fit_slice() -> dict[str, Any]:
    _fit("ct", "slice.png", "--num-angles", "5", "--downscale", "1")
    return {"values": read_gray_image(Path("slice.png")).numpy()}


def _true_slice(folder: Path) -> dict[str, Any]:
    pixels = read_png((folder / "slice.png").read_bytes()).astype(float)
    gray = pixels[..., min(1, pixels.shape[-1] - 1)]
    return {"values": (gray - gray.min()) / (gray.max() - gray.min())}


def _damaged_slice(content: bytes) -> Iterator[Damage]:
    yield from damaged_png(content, SIDE, SIDE, 1)
    yield Damage("black", png(SIDE, SIDE, zlib.compress(bytes(SIDE * (1 + SIDE))), 8, 0), refused=True)
    yield Damage("of one pixel", png(1, 1, zlib.compress(b"\0\1"), 8, 0), refused=True)
    yield Damage("a line of pixels", png(SIDE, 1, zlib.compress(bytes([0, *range(SIDE)])), 8, 0), refused=True)
    for title, values in {"NaN": np.nan, "infinity": np.inf}.items():
        stream = io.BytesIO()
        pixels = np.zeros((SIDE, SIDE), np.float32)
        pixels[3, 4] = values
        Image.fromarray(pixels).save(stream, "TIFF")
        yield Damage(f"a TIFF with {title}", stream.getvalue(), refused=True)


def _make_grid(folder: Path) -> None:
    folder.mkdir()
    inside = ball(12)
    np.savez(folder / "grid.npz", packed=np.packbits(inside), shape=np.array(inside.shape))


def _fit_grid() -> dict[str, Any]:
    _fit("shape", "grid.npz", "--resolution", "12", "--batch-size", "100")
    return {"inside": read_occupancy_grid(Path("grid.npz"))}


def _true_grid(folder: Path) -> dict[str, Any]:
    with np.load(folder / "grid.npz", allow_pickle=False) as file:
        shape = tuple(file["shape"].ravel())
        return {"inside": np.unpackbits(file["packed"])[: np.prod(shape)].reshape(shape)}


def _damaged_grid(content: bytes) -> Iterator[Damage]:
    yield from damaged_archives(content, "packed")
    with np.load(io.BytesIO(content)) as file:
        packed = file["packed"]
    for title, shape in {
        "of 10^30 voxels": np.array([10**10] * 3),
        "of fewer than no voxels": np.array([-12, -12, 12]),
        "whose number is beyond 64 bits": np.array([2**63 - 1, 2**63 - 1, 3]),
        "of no voxels": np.array([0, 12, 12]),
        "of two axes": np.array([12, 12]),
        "of half voxels": np.array([12.5, 12, 12]),
        "of more voxels than bits": np.array([13, 13, 13]),
        "no cube": np.array([6, 12, 24]),
        "of letters": np.array(["12", "12", "12"]),
        "without end": np.array([np.inf, 12, 12]),
    }.items():
        stream = io.BytesIO()
        np.savez(stream, packed=packed, shape=shape)
        yield Damage(f"a grid {title}", stream.getvalue(), refused=True)
    for title, array in {
        "of NaN": np.full((12, 12, 12), np.nan),
        "all inside": np.ones((12, 12, 12)),
        "all outside": np.zeros((12, 12, 12)),
        "of a line": np.zeros(12),
        "of complex numbers": np.ones((12, 12, 12), complex),
        "of dates": np.zeros((12, 12, 12), "datetime64[s]"),
        "of texts": np.full((12, 12, 12), "a"),
        "of records": np.zeros((12, 12, 12), "f4,i4"),
        "of one voxel": np.ones((1, 1, 1)),
        "of no voxel": np.zeros((0, 0, 0)),
    }.items():
        stream = io.BytesIO()
        np.savez(stream, grid=array)
        yield Damage(f"a grid {title}", stream.getvalue(), refused=True)
    bits = archive_of_zeros("packed.npy", npy((2**29 - 200,), b"", "|u1"), 2**29 - 200)
    yield Damage("4 billion voxels of zeros", bits, refused=True)
    yield Damage(
        "a grid of 1,024^3 zeros", archive_of_zeros("a.npy", npy((1024,) * 3, b"", "|b1"), 2**30), refused=True
    )


def _make_volume(folder: Path) -> None:
    folder.mkdir()
    np.save(folder / "volume.npy", blob(12).numpy())


def _fit_volume() -> dict[str, Any]:
    _fit("mri", "volume.npy", "--size", "12", "--num-draws", "50")
    return {"values": read_volume(Path("volume.npy")).numpy()}


def _true_volume(folder: Path) -> dict[str, Any]:
    values = np.load(folder / "volume.npy", allow_pickle=False)
    assert values.ndim == 3 and values.min() >= 0 and np.isfinite(values).all()
    if values.dtype == np.uint8:
        return {"values": values / 255}
    largest = values.max() if values.max() > 1 or values.dtype.kind in "iu" else 1
    return {"values": (values / np.float64(largest))}


def _damaged_volume(content: bytes) -> Iterator[Damage]:
    start, data = content[:128], content[128:]
    values = np.frombuffer(data, np.float32).reshape(12, 12, 12)

    def saved(array: np.ndarray, **options: Any) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array, **options)
        return stream.getvalue()

    for title, array in {
        "negative values": values - 1,
        "NaN": np.where(values == values.max(), np.nan, values),
        "infinity": np.where(values == values.max(), np.inf, values),
        "numbers near 0": values.astype(float) * 1e-310,
        "one value": np.full((12, 12, 12), 0.5),
        "four axes": values[None],
        "no axes": np.array(0.5),
        "no voxel": values[:0],
        "few voxels": values[:4, :4, :4],
        "complex values": values * 1j,
        "truth values of one kind": np.ones((12, 12, 12), bool),
    }.items():
        yield Damage(f"a volume of {title}", saved(array), refused=True)
    for title, array in {
        "numbers near the largest": (values * 1e38).astype(np.float32),
        "numbers beyond single precision": values.astype(float) * 1e300,
        "whole numbers": (values * 1000).astype(np.int64),
        "the largest whole numbers": np.full((12, 12, 12), 2**64 - 1, np.uint64) - np.arange(12, dtype=np.uint64),
        "Fortran's order": np.asfortranarray(values),
        "big-endian numbers": values.astype(">f4"),
        "half precision": values.astype(np.float16),
        "long numbers": values.astype(np.longdouble),
    }.items():
        yield Damage(f"a volume of {title}", saved(array))
    for title, header in {
        "10^12 voxels": {"descr": "<f4", "fortran_order": False, "shape": (10**4,) * 3},
        "voxels of 2 GiB": {"descr": f"|V{2**31 - 1}", "fortran_order": False, "shape": (12, 12, 12)},
        "subarrays": {"descr": ("<f4", (10**6, 10**6)), "fortran_order": False, "shape": (12,)},
    }.items():
        yield Damage(f"a header of {title}", b"\x93NUMPY\x01\0" + _header(repr(header)) + data, refused=True)
    for title, text in {
        "a list": "[1, 2]",
        "a call": "__import__('os').system('touch witness')",
        "brackets": nested(2000).decode(),
        "no shape": "{'descr': '<f4', 'fortran_order': False}",
        "a shape of letters": "{'descr': '<f4', 'fortran_order': False, 'shape': ('a',)}",
        "a power": "{'descr': '<f4', 'fortran_order': False, 'shape': (9**9**9,)}",
    }.items():
        yield Damage(f"a header that is {title}", b"\x93NUMPY\x01\0" + _header(text) + data, refused=True)
    yield Damage("its header twice", start + start + data, refused=True)
    yield Damage(
        "an archive of 1 GiB of zeros", archive_of_zeros("a.npy", npy((512,) * 3, b"", "<f8"), 2**30), refused=True
    )
    yield Damage("an archive of a text", archive({"volume.npy": b"text"}), refused=True)


def _header(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\n"


def _make_mesh(suffix: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        trimesh.creation.icosphere(1).export(folder / f"mesh{suffix}")

    return make


def _fit_mesh(suffix: str) -> Callable[[], dict[str, Any]]:
    def fit() -> dict[str, Any]:
        _fit("shape", f"mesh{suffix}", "--resolution", "8", "--batch-size", "100")
        return {"triangles": np.asarray(read_mesh(Path(f"mesh{suffix}")).triangles)}

    return fit


def _true_ply(folder: Path) -> dict[str, Any]:
    vertices, faces = read_ply(folder / "mesh.ply")
    return {"triangles": vertices[faces]}


def _true_obj(folder: Path) -> dict[str, Any]:
    vertices, faces = read_obj((folder / "mesh.obj").read_text(errors="replace"))
    return {"triangles": vertices[faces]}


def _true_off(folder: Path) -> dict[str, Any]:
    words = (folder / "mesh.off").read_text().split()
    assert words[0] == "OFF"
    count, faces = int(words[1]), int(words[2])
    vertices = np.array(words[4 : 4 + 3 * count], float).reshape(-1, 3)
    table = np.array(words[4 + 3 * count :], int).reshape(faces, 4)
    assert (table[:, 0] == 3).all() and table.min() >= 0
    return {"triangles": vertices[table[:, 1:]]}


def _true_stl(folder: Path) -> dict[str, Any]:
    content = (folder / "mesh.stl").read_bytes()
    (count,) = struct.unpack_from("<I", content, 80)
    assert len(content) == 84 + 50 * count
    table = np.frombuffer(content, np.dtype([("normal", "<3f4"), ("corners", "<(3,3)f4"), ("rest", "<u2")]), offset=84)
    return {"triangles": table["corners"]}


def damaged_ply(content: bytes) -> Iterator[Damage]:
    """Headers that promise more than there is, or something else."""
    head, _, body = content.partition(b"end_header\n")
    count, faces = (int(head.split(name)[1].split()[0]) for name in (b"element vertex", b"element face"))
    for title, (old, new) in {
        "10^12 vertices": (f"vertex {count}", f"vertex {10**12}"),
        "10^12 faces": (f"face {faces}", f"face {10**12}"),
        "10^30 vertices": (f"vertex {count}", f"vertex {10**30}"),
        "-1 vertices": (f"vertex {count}", "vertex -1"),
        "half a vertex": (f"vertex {count}", "vertex 0.5"),
        "a vertex too many": (f"vertex {count}", f"vertex {count + 1}"),
        "a face too many": (f"face {faces}", f"face {faces + 1}"),
        "no vertices": (f"vertex {count}", "vertex 0"),
        "the other byte order": ("binary_little_endian", "binary_big_endian"),
        "numbers as text": ("binary_little_endian", "ascii"),
        "an unknown format": ("binary_little_endian", "binary_middle_endian"),
        "numbers of an unknown type": ("float x", "quad x"),
        "double numbers": ("float x", "double x"),
        "a vertex without z": ("property float z\n", ""),
        "lists for vertices": ("property float z\n", "property list uchar float z\n"),
    }.items():
        changed = head.replace(old.encode(), new.encode(), 1)
        assert changed != head, title
        yield Damage(title, changed + b"end_header\n" + body, refused=True)
    yield Damage(
        "100,000 elements", head + b"element a 1\nproperty int a\n" * 100_000 + b"end_header\n" + body, refused=True
    )
    yield Damage("a header without end", head + b"comment a\n" * 100_000, refused=True)
    yield Damage("a comment", head + b"comment of no meaning\nend_header\n" + body)


def _damaged_ply_fit(content: bytes) -> Iterator[Damage]:
    yield from damaged_ply(content)
    head, _, body = content.partition(b"end_header\n")
    vertices = int(head.split(b"element vertex")[1].split()[0])
    start = len(head) + len(b"end_header\n")
    for title, (place, value) in {
        "a vertex of NaN": (start + 12, struct.pack("<f", np.nan)),
        "a vertex at infinity": (start + 12, struct.pack("<f", np.inf)),
        "a face of vertex 2 billion": (start + 12 * vertices + 1, struct.pack("<i", 2**31 - 1)),
        "a face of vertex -1": (start + 12 * vertices + 1, struct.pack("<i", -1)),
        "a hole": (start + 12 * vertices + 1, struct.pack("<iii", 0, 0, 0)),
        "a face of 255 corners": (start + 12 * vertices, b"\xff"),
        "a face of no corners": (start + 12 * vertices, b"\0"),
    }.items():
        yield Damage(title, content[:place] + value + content[place + len(value) :], refused=True)
    corner = struct.pack("<f", 3e38)
    yield Damage("a vertex near the largest number", content[: start + 12] + corner + content[start + 16 :])
    flat = np.frombuffer(body, np.float32, 3 * vertices).reshape(-1, 3) * np.float32([1, 1, 0])
    yield Damage("a flat mesh", content[:start] + flat.tobytes() + body[12 * vertices :], refused=True)
    point = np.zeros((vertices, 3), np.float32)
    yield Damage("all vertices in one place", content[:start] + point.tobytes() + body[12 * vertices :], refused=True)


def damaged_obj(content: bytes) -> Iterator[Damage]:
    """Lines that say what cannot be."""
    for title, line in {
        "a face of vertex 10^12": b"f 1 2 1000000000000\n",
        "a face of vertex 0": b"f 0 1 2\n",
        "a face of vertex -10^6": b"f -1000000 1 2\n",
        "a face of letters": b"f a b c\n",
        "a face of half a vertex": b"f 1 2 0.5\n",
        "a vertex of letters": b"v a b c\n",
        "a vertex of NaN": b"v nan 0 0\nf 1 2 43\n",
        "a vertex at infinity": b"v 1e999 0 0\nf 1 2 43\n",
        "a vertex of two numbers": b"v 1 2\n",
        "a word that is none of OBJ": b"vertex 1 2 3\n",
        "zeros": bytes(100),
        "a vertex beyond single precision": b"v 1e308 0 0\nf 1 2 43\n",
        "100,000 spaces and a letter": b" " * 10**5 + b"x\n",
        "a number behind 100,000 spaces": b" " * 10**5 + b"v 1 2" + b" " * 10**5 + b"x\n",
    }.items():
        yield Damage(title, content + line, refused=True)
    yield Damage("a comment behind 100,000 spaces", content + b" " * 10**5 + b"# a\n")
    yield Damage("a million lines of no meaning", content + b"# a\n" * 10**6)
    yield Damage("one line of a million numbers", content + b"v" + b" 1" * 10**6 + b"\n", refused=True)
    yield Damage("a face of 100,000 corners", content + b"f" + b" 1" * 10**5 + b"\n", refused=True)
    yield Damage("other files named", b"mtllib ../../secret.mtl\nusemtl a\n" + content)
    yield Damage("vertices alone", b"\n".join(line for line in content.splitlines() if line[:1] == b"v"), refused=True)
    yield Damage("lines that end as on Windows", content.replace(b"\n", b"\r\n"))
    yield Damage("no line end at its end", content.rstrip())
    yield Damage("numbers with signs and exponents", content.replace(b"v 0.", b"v +0.").replace(b"00000000", b"00e00"))


def _damaged_off(content: bytes) -> Iterator[Damage]:
    first, rest = content.split(b"\n", 2)[1], content.split(b"\n", 2)[2]
    vertices, faces, _ = map(int, first.split())
    for title, counts in {
        "10^12 vertices": (10**12, faces),
        "10^12 faces": (vertices, 10**12),
        "-1 vertices": (-1, faces),
        "a vertex too few": (vertices - 1, faces),
        "a face too few": (vertices, faces - 1),
    }.items():
        yield Damage(title, b"OFF\n%d %d 0\n" % counts + rest, refused=True)


def _damaged_stl(content: bytes) -> Iterator[Damage]:
    for title, count in {
        "2 billion faces": 2**31 - 1,
        "4 billion faces": 2**32 - 1,
        "no faces": 0,
        "a face less": 79,
    }.items():
        yield Damage(title, content[:80] + struct.pack("<I", count) + content[84:], refused=True)
    corner = struct.pack("<f", np.nan)
    yield Damage("a corner of NaN", content[:96] + corner + content[100:], refused=True)
    yield Damage("as text that is none", b"solid a\n" + b"facet normal 0 0 1\n" * 1000, refused=True)


KINDS = [
    Kind(
        "PNG, crossnorm image",
        "picture.png",
        lambda folder: (folder.mkdir(), write_image(folder / "picture.png", SIDE, SIDE)),
        _fit_image,
        _true_image,
        _damaged_image,
    ),
    Kind("PNG, crossnorm ct", "slice.png", _make_slice, _fit_slice, _true_slice, _damaged_slice),
    Kind("voxels (.npz), crossnorm shape", "grid.npz", _make_grid, _fit_grid, _true_grid, _damaged_grid),
    Kind("volume (.npy), crossnorm mri", "volume.npy", _make_volume, _fit_volume, _true_volume, _damaged_volume),
    Kind("PLY, crossnorm shape", "mesh.ply", _make_mesh(".ply"), _fit_mesh(".ply"), _true_ply, _damaged_ply_fit),
    Kind("OBJ, crossnorm shape", "mesh.obj", _make_mesh(".obj"), _fit_mesh(".obj"), _true_obj, damaged_obj),
    Kind("OFF, crossnorm shape", "mesh.off", _make_mesh(".off"), _fit_mesh(".off"), _true_off, _damaged_off, mutated=9),
    Kind("STL, crossnorm shape", "mesh.stl", _make_mesh(".stl"), _fit_mesh(".stl"), _true_stl, _damaged_stl, mutated=9),
]
