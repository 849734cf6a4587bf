"""Ways to damage a file, and values that no file should hold."""

import functools
import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

SEED = 6
T = TypeVar("T")


@dataclass(frozen=True)
class Damage:
    """One file that is not as it should be."""

    name: str
    """What was done to it."""
    content: bytes
    refused: bool = False
    """No command may take it."""


def drawn(strategy: st.SearchStrategy[T], count: int) -> list[T]:
    """The first examples of a strategy, always the same."""
    found: list[T] = []

    @seed(SEED)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def collect(example: T) -> None:
        found.append(example)

    collect()
    return found[:count]


def mutations(content: bytes, rng: Random, count: int) -> Iterator[Damage]:
    """Damage to single bytes and blocks, one kind after the other."""
    for number in range(count):
        name, mutate = _MUTATIONS[number % len(_MUTATIONS)]
        mutated = mutate(content, rng)
        yield Damage(f"{name} ({number})", mutated if mutated != content else mutated + b"\0")


def _block(content: bytes, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(content))
    return start, min(len(content), start + rng.randint(1, max(1, len(content) // 4)))


def _flipped(content: bytes, rng: Random) -> bytes:
    place = rng.randrange(8 * len(content))
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


def _scattered(content: bytes, rng: Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.randint(2, 8)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(content: bytes, rng: Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _beheaded(content: bytes, rng: Random) -> bytes:
    return content[rng.randint(1, len(content)) :]


def _zeroed(content: bytes, rng: Random) -> bytes:
    start, stop = _block(content, rng)
    return content[:start] + bytes(stop - start) + content[stop:]


def _repeated(content: bytes, rng: Random) -> bytes:
    start, stop = _block(content, rng)
    return content[:stop] + content[start:stop] * rng.randint(1, 3) + content[stop:]


def _without_block(content: bytes, rng: Random) -> bytes:
    start, stop = _block(content, rng)
    return content[:start] + content[stop:]


def _swapped(content: bytes, rng: Random) -> bytes:
    a, b, c, d = sorted(rng.randint(0, len(content)) for _ in range(4))
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:]


def _inserted(content: bytes, rng: Random) -> bytes:
    place = rng.randint(0, len(content))
    return content[:place] + rng.randbytes(rng.randint(1, 16)) + content[place:]


_MUTATIONS: list[tuple[str, Callable[[bytes, Random], bytes]]] = [
    ("a bit flipped", _flipped),
    ("cut", _cut),
    ("bytes changed", _scattered),
    ("a block of zeros", _zeroed),
    ("bytes inserted", _inserted),
    ("a block left out", _without_block),
    ("blocks swapped", _swapped),
    ("a block repeated", _repeated),
    ("its beginning lost", _beheaded),
]


def other_files(content: bytes) -> Iterator[Damage]:
    """What is no file of the kind at all."""
    for name, other in {
        "empty": b"",
        "zeros": bytes(len(content)),
        "a page of the web": b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
        "a pointer of git lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    }.items():
        yield Damage(name, other, refused=True)


odd_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 10**30, 10**400, -0.0, 1e39, 1e308, float("nan"), float("inf"), float("-inf")])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "\0", ".", "..", "/", "../../../etc/passwd", "/etc/passwd", "a" * 300, "\n", "\x1b[31m"]),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=4), values, max_size=3),
    max_leaves=5,
)
"""Values of other kinds and sizes than anything expects."""


def places(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON document."""
    found = [path] if path else []
    entries = (
        document.items() if isinstance(document, dict) else enumerate(document if isinstance(document, list) else [])
    )
    return found + [place for key, value in entries for place in places(value, (*path, key))]


def changed_documents(document: Any) -> st.SearchStrategy[tuple[str, Any]]:
    """The document with one of its values changed or left out, and what was done."""

    def change(place: tuple[Any, ...], value: Any, remove: bool) -> tuple[str, Any]:
        copy = json.loads(json.dumps(document))
        owner = copy
        for key in place[:-1]:
            owner = owner[key]
        where = "/".join(map(str, place))
        if remove:
            del owner[place[-1]]
            return f"without {where}", copy
        owner[place[-1]] = value
        return f"{where} is {value!r:.60}", copy

    return st.builds(change, st.sampled_from(places(document)), odd_values, st.integers(0, 5).map(lambda n: n == 0))


def nested(depth: int, opening: str = "[", closing: str = "]") -> bytes:
    """Brackets within brackets."""
    return (opening * depth + closing * depth).encode()


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG, with its right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, data: bytes, depth: int = 8, color: int = 6, *extra: bytes) -> bytes:
    """A PNG with right checksums, whatever it says and holds."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros_deflated(size: int) -> bytes:
    """A raw stream of deflate that becomes so many zeros, made without packing all of them."""
    packer, block = zlib.compressobj(9, wbits=-15), 2**16
    start = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start * (size // block) + packer.compress(bytes(size % block)) + packer.flush()


def zeros_compressed(size: int) -> bytes:
    """The same as a stream of zlib."""
    return b"\x78\xda" + zeros_deflated(size) + struct.pack(">HH", size % 65521, 1)


def archive(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return stream.getvalue()


def archive_of_zeros(name: str, start: bytes, zeros: int, said: int | None = None) -> bytes:
    """A zip file of one member, some bytes and then zeros, packed; its directory may say another size."""
    size = len(start) + zeros
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH) + zeros_deflated(zeros)
    checksum = functools.reduce(lambda crc, _: zlib.crc32(bytes(2**20), crc), range(zeros // 2**20), zlib.crc32(start))
    sizes = checksum, len(packed), size if said is None else said, len(name), 0
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 8, 0, 0x21, *sizes) + name.encode()
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 8, 0, 0x21, *sizes, 0, 0, 0, 0, 0) + name.encode()
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(entry), len(local) + len(packed), 0)
    return local + packed + entry + end
