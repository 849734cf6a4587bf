"""Images as files of network weights: `.cninr`.

A file is MAGIC, a byte for the version, the length of the content (4 bytes, little endian), the content compressed by
LZMA, and the SHA-256 of all that. The content is the length of the header (4 bytes), the header as JSON, and the
streams of all tensors (see `quantization`), in the header's order, tensor by tensor within each kind of stream. The
header says which network it is, the size of the image, and name, shape and code of each tensor; no code is stored, and
nothing in a file is executed.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from crossnorm_ns.networks import load_stored, make_network, stored_tensors
from crossnorm_ns.networks.encoding import EncodedMLP
from crossnorm_ns.norms import norms_of
from crossnorm_ns.representation.coordinates import pixel_coordinates
from crossnorm_ns.representation.errors import RepresentationError
from crossnorm_ns.representation.pictures import to_8_bits
from crossnorm_ns.representation.quantization import Code, Quantization, choose_code, pack, packed_sizes, unpack

MAGIC = b"CNINR"
VERSION = 1
MAX_CONTENT = 2**24
"""Bytes of content that a reader unpacks at most: four million weights in float32."""
MAX_HEADER = 2**16
"""Bytes of the header."""
MAX_SIDE, MAX_PIXELS = 2**16, 2**28
MAX_LAYERS, MAX_WIDTH, MAX_FREQUENCIES = 256, 4096, 64
"""Of the network: what a pixel may cost."""
MAX_WORK = 2**36
"""What rendering an image takes unless more is asked for, in multiplications: at most some 6 s on one core."""

_PREFIX = struct.Struct("<5sBI")
_LENGTH = struct.Struct("<I")
_DIGEST_SIZE = 32
_COLORS = 3
_CHUNK = 2**14  # pixels rendered at a time
_PIXEL_WORK, _ENCODING_WORK, _MATRIX_WORK, _REAL_WORK, _COMPLEX_WORK = 2**11, 128, 512, 64, 192
"""In multiplications, for each pixel: what it takes by itself, each number of its encoding, each matrix of the network,
and each real or complex number that enters or leaves one (activation, norm), beside multiplying."""
# Weights have no repeated strings and no alignment: what compresses is the distribution of single bytes.
_FILTERS = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**20, "lc": 0, "lp": 0, "pb": 0}]


class CodecError(RepresentationError):
    """A `.cninr` file that cannot be read: the message says why."""


@dataclass(frozen=True)
class ImageSpec:
    """Which network an image is stored in."""

    method: str
    """As `make_network` knows it."""
    hidden: tuple[int, ...]
    """Width of each hidden layer."""
    height: int
    """Of the image, in pixels."""
    width: int
    """Of the image, in pixels."""
    options: dict[str, float | int] = field(default_factory=dict)
    """Of the method, as in `make_network`; numbers alone."""

    def make(self) -> nn.Module:
        """The network, (pixels, 2) -> (pixels, 3), with fresh weights."""
        return make_network(self.method, 2, _COLORS, self.hidden, **self.options)


def encode(network: nn.Module, spec: ImageSpec, quantization: Quantization = "int8") -> bytes:
    """A trained network as the bytes of a file.

    Args:
        network: of `spec.make()`, with stored statistics in its norms (calibrated).
        spec: what the reader needs to build it again.
        quantization: of the weights; "int8" keeps biases and the parameters and statistics of norms in float16.

    Raises:
        RepresentationError: the network is not the one of the specification, its norms have no statistics, or its
            values cannot be stored.
    """
    if (wrong := _excess(spec)) is not None:
        raise RepresentationError(wrong)
    tensors = stored_tensors(network)
    expected, found = _expected_shapes(spec), {name: tuple(value.shape) for name, value in tensors.items()}
    if found != expected:
        different = sorted(expected.items() ^ found.items())[0][0]
        raise RepresentationError(
            f"{different} differs: the network is not a {spec.method} network of {list(spec.hidden)}, or its norms "
            "have no stored statistics (see crossnorm_ns.calibrate)"
        )
    codes: dict[str, Code] = {name: choose_code(name, value, quantization) for name, value in tensors.items()}
    header = {
        "method": spec.method,
        "hidden": list(spec.hidden),
        "height": spec.height,
        "width": spec.width,
        "options": spec.options,
        "quantization": quantization,
        "tensors": [[name, list(value.shape), codes[name]] for name, value in tensors.items()],
    }
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    packed = [(codes[name], pack(value, codes[name])) for name, value in tensors.items()]
    order = _stream_order([(code, [len(stream) for stream in streams]) for code, streams in packed])
    content = b"".join([_LENGTH.pack(len(text)), text, *(packed[tensor][1][stream] for tensor, stream in order)])
    for what, size, most in (("network", len(content), MAX_CONTENT), ("header", len(text), MAX_HEADER)):
        if size > most:
            raise RepresentationError(f"the {what} takes {size:,} bytes, but files hold at most {most:,}")
    compressed = lzma.compress(content, format=lzma.FORMAT_RAW, filters=_FILTERS)
    body = _PREFIX.pack(MAGIC, VERSION, len(compressed)) + compressed
    return body + hashlib.sha256(body).digest()


def read_file(path: Path) -> bytes:
    """The bytes of a file, if it has no more than a `.cninr` file can have.

    Raises:
        CodecError: it is larger.
    """
    with path.open("rb") as file:
        data = file.read(2 * MAX_CONTENT + 1)
    if len(data) > 2 * MAX_CONTENT:
        raise CodecError(f"{path}: longer than any .cninr file")
    return data


def decode(data: bytes) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a file, in eval mode, and the file's header.

    Uses no more memory than a small multiple of `MAX_CONTENT`, whatever the file claims: nothing is built before its
    size is known to be that of the file's content.

    Raises:
        CodecError: these are not the bytes of such a file, or of a damaged one.
    """
    content = _decompress(_checked_body(data))
    header, streams = _split(content)
    spec, table = _read_spec(header), _read_table(header)
    own_streams = _tensor_streams(table, streams)
    try:
        if [(name, shape) for name, shape, _ in table] != list(_expected_shapes(spec).items()):
            raise CodecError(f"its tensors are not those of a {spec.method} network of {_shortened(list(spec.hidden))}")
        network = spec.make()
    except CodecError:
        raise
    except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
        raise CodecError(f"its header describes no network: {str(error).splitlines()[0]}") from error
    state = {}
    for (name, shape, code), own in zip(table, own_streams, strict=True):
        state[name] = unpack(own, shape, code)
        if not torch.isfinite(state[name]).all():
            raise CodecError(f"{name} holds NaN or infinite values")
    load_stored(network, state)
    return network.eval(), header


def render(network: nn.Module, height: int, width: int, chunk_size: int = _CHUNK) -> Float[Tensor, "height width 3"]:
    """The image of a network in eval mode; colours as the network gives them, unclipped.

    At another size than it was trained at the network shows the same picture, finer or coarser.
    """
    return torch.cat([colors for _, colors in _rendered_rows(network, height, width, chunk_size)])


def render_8_bits(
    network: nn.Module, height: int, width: int, chunk_size: int = _CHUNK
) -> UInt8[np.ndarray, "height width 3"]:
    """The same, clipped and rounded to 8 bits some rows at a time: takes little more memory than the result."""
    image = np.empty((height, width, _COLORS), dtype=np.uint8)
    for rows, colors in _rendered_rows(network, height, width, chunk_size):
        image[rows.start : rows.stop] = to_8_bits(colors.cpu().numpy())
    return image


def _rendered_rows(
    network: nn.Module, height: int, width: int, chunk_size: int
) -> Iterator[tuple[range, Float[Tensor, "rows width 3"]]]:
    step = max(1, chunk_size // width)
    for start in range(0, height, step):
        rows = range(start, min(start + step, height))
        points = pixel_coordinates(height, width, rows).to(next(network.parameters()))
        with torch.no_grad():
            colors = torch.cat([network(some) for some in points.split(chunk_size)])
        yield rows, colors.reshape(len(rows), width, _COLORS)


def render_work(network: nn.Module, height: int, width: int) -> int:
    """What `render` takes for a network of a file, in multiplications: to be compared with `MAX_WORK`."""
    pixel = _PIXEL_WORK + (_ENCODING_WORK * network.encoding.out_dim if isinstance(network, EncodedMLP) else 0)
    for tensor in stored_tensors(network).values():
        pixel += tensor.numel()
        if tensor.dim() > 1:  # pairs of reals are complex
            pixel += _MATRIX_WORK + (_REAL_WORK if tensor.dim() == 2 else _COMPLEX_WORK) * sum(tensor.shape[:2])
    return height * width * pixel


def bits_per_pixel(data: bytes, height: int, width: int) -> float:
    """Size of a file, whole, over the number of pixels."""
    return 8 * len(data) / (height * width)


def _expected_shapes(spec: ImageSpec) -> dict[str, tuple[int, ...]]:
    """Of the tensors that a file of this specification holds; takes no memory for them."""
    with torch.device("meta"):
        network = spec.make()
        for norm in norms_of(network):
            if norm.formula.uses_columns:
                norm.add_domain(norm.domain)
        return {name: tuple(value.shape) for name, value in stored_tensors(network).items()}


def _excess(spec: ImageSpec) -> str | None:
    """What of a network is more than readers take; None if nothing is."""
    if not 1 <= len(spec.hidden) <= MAX_LAYERS or max(spec.hidden) > MAX_WIDTH:
        return (
            f"files hold networks of 1 to {MAX_LAYERS} hidden layers of at most {MAX_WIDTH}, "
            f"but this one has {_shortened(list(spec.hidden))}"
        )
    if (frequencies := spec.options.get("num_frequencies", 1)) > MAX_FREQUENCIES:
        return f"files hold networks with num_frequencies of at most {MAX_FREQUENCIES}, but this one has {frequencies}"
    return None


def _stream_order(tensors: Sequence[tuple[str, list[int]]]) -> list[tuple[int, int]]:
    """(tensor, stream) in the order of the file: streams of one kind lie together."""
    keys = [(code[0], i) for code, lengths in tensors for i in range(len(lengths))]
    places = [(t, i) for t, (_, lengths) in enumerate(tensors) for i in range(len(lengths))]
    return [place for _, place in sorted(zip(keys, places, strict=True), key=lambda pair: (pair[0], pair[1]))]


def _checked_body(data: bytes) -> bytes:
    smallest = _PREFIX.size + _DIGEST_SIZE
    if not data.startswith(MAGIC):
        raise CodecError("not a .cninr file: it does not start with the letters CNINR")
    if len(data) < smallest:
        raise CodecError(f"truncated: {len(data)} bytes, but a file has at least {smallest}")
    _, version, length = _PREFIX.unpack_from(data)
    if version != VERSION:
        raise CodecError(f"written in version {version} of the format, but this program reads version {VERSION}")
    if len(data) != smallest + length:
        what = "truncated" if len(data) < smallest + length else "too long"
        raise CodecError(f"{what}: {len(data)} bytes, but its prefix announces {smallest + length}")
    body, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
    if hashlib.sha256(body).digest() != digest:
        raise CodecError("altered: its checksum does not match its content")
    return body[_PREFIX.size :]


def _decompress(compressed: bytes) -> bytes:
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_FILTERS)
    try:
        content = decompressor.decompress(compressed, max_length=MAX_CONTENT)
    except lzma.LZMAError as error:
        raise CodecError(f"its content cannot be decompressed: {error}") from error
    if not decompressor.eof:
        raise CodecError(f"its content is incomplete, or longer than the {MAX_CONTENT:,} bytes that are read")
    if decompressor.unused_data:
        raise CodecError("its content is followed by something else")
    return content


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    if len(content) < _LENGTH.size:
        raise CodecError("its content has no header")
    (length,) = _LENGTH.unpack_from(content)
    if length > min(len(content) - _LENGTH.size, MAX_HEADER):
        raise CodecError(f"its header claims {length:,} bytes, more than there are or than the {MAX_HEADER:,} allowed")
    text = content[_LENGTH.size : _LENGTH.size + length]
    try:
        header = json.loads(text.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CodecError("its header is not a JSON object")
    return header, content[_LENGTH.size + length :]


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _read_spec(header: dict[str, Any]) -> ImageSpec:
    method: Any = header.get("method")
    hidden: Any = header.get("hidden")
    options: Any = header.get("options")
    height: Any = header.get("height")
    width: Any = header.get("width")
    if not isinstance(method, str):
        raise CodecError("its header names no method")
    if not _is_shape(hidden):
        raise CodecError(f"its header has no widths of hidden layers, but {_shortened(hidden)}")
    if not _is_shape([height, width]) or max(height, width) > MAX_SIDE or height * width > MAX_PIXELS:
        raise CodecError(f"its header has an image size of {_shortened(height)} by {_shortened(width)} pixels")
    if not isinstance(options, dict) or not all(_is_number(value) for value in options.values()):
        raise CodecError(f"its header has options that are no numbers: {_shortened(options)}")
    if header.get("quantization") not in get_args(Quantization):
        raise CodecError(f"its header names no quantization, but {_shortened(header.get('quantization'))}")
    spec = ImageSpec(method, tuple(hidden), height, width, options)
    if (wrong := _excess(spec)) is not None:
        raise CodecError(wrong)
    return spec


def _read_table(header: dict[str, Any]) -> list[tuple[str, tuple[int, ...], Code]]:
    table = header.get("tensors")
    if not isinstance(table, list):
        raise CodecError("its header has no table of tensors")
    entries = []
    for entry in table:
        if not isinstance(entry, list) or len(entry) != 3:
            raise CodecError(f"its table of tensors has the entry {_shortened(entry)}")
        name, shape, code = entry
        fits = isinstance(name, str) and isinstance(shape, list) and (not shape or _is_shape(shape))
        if not fits or code not in get_args(Code) or (code in ("q8", "q8r") and not shape):
            raise CodecError(f"its table of tensors has the entry {_shortened(entry)}")
        entries.append((name, tuple(shape), code))
    return entries


def _tensor_streams(table: list[tuple[str, tuple[int, ...], Code]], streams: bytes) -> list[list[bytes]]:
    lengths = [(code, packed_sizes(shape, code)) for _, shape, code in table]
    total = sum(sum(some) for _, some in lengths)
    if total != len(streams):
        raise CodecError(f"its tensors need {total} bytes, but there are {len(streams)}")
    found = [[b""] * len(some) for _, some in lengths]
    start = 0
    for tensor, stream in _stream_order(lengths):
        stop = start + lengths[tensor][1][stream]
        found[tensor][stream] = streams[start:stop]
        start = stop
    return found


def _is_shape(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 1 <= v <= 2**20 for v in values)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 1e6


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
