"""A run's config.yml damaged in its bytes and lines: it is refused in one line, or it is still a configuration."""

import dataclasses
import random
import time
from pathlib import Path

import pytest
import yaml

from eval.errors import EvaluationError
from eval.run_config import MOST_BYTES, read_config
from method_configs.mipnerf import mipnerf_cn_tiny
from method_configs.neus import neus_cn_tiny
from method_configs.volsdf import volsdf_cn_tiny

SEED = 7
CASES_EACH = 60
METHODS = {method.config.method_name: method for method in (mipnerf_cn_tiny, neus_cn_tiny, volsdf_cn_tiny)}
WORDS = (
    "",
    "~",
    "!!python/name:os.system ''",
    "1e400",
    "2024-13-45",
    "0x",
    "[",
    "{a: &a [*a]}",
    "- -",
    "'",
    "\t",
    "<<: *id001",
)


def damaged(text: str, rng: random.Random) -> bytes:
    """The file after one to three mishaps."""
    content = text.encode()
    for _ in range(rng.randint(1, 3)):
        lines, at = content.splitlines(keepends=True), rng.randrange(max(1, len(content)))
        line = rng.randrange(max(1, len(lines)))
        kind = rng.randrange(8)
        if kind == 0:
            content = content[:at]
        elif kind == 1:
            content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        elif kind == 2:
            content = b"".join(lines[:line] + lines[line + 1 :])
        elif kind == 3:
            content = b"".join([*lines[:line], lines[line], *lines[line:]]) if lines else content
        elif kind == 4 and lines:
            other = rng.randrange(len(lines))
            lines[line], lines[other] = lines[other], lines[line]
            content = b"".join(lines)
        elif kind == 5 and lines:
            key = lines[line].split(b":")[0]
            content = b"".join([*lines[:line], key + b": " + rng.choice(WORDS).encode() + b"\n", *lines[line + 1 :]])
        elif kind == 6:
            content = content[:at] + bytes(rng.randrange(1, 30)) + content[at:]
        else:
            content = content[:at] + rng.choice(WORDS).encode() + content[at:]
    return content


@pytest.mark.parametrize("name", METHODS)
def test_a_damaged_config_is_refused_in_one_line_or_is_still_one(name: str, tmp_path: Path) -> None:
    rng, file = random.Random(f"{SEED} {name}"), tmp_path / "config.yml"
    text, refused = yaml.dump(METHODS[name].config), 0
    for _ in range(CASES_EACH):
        file.write_bytes(damaged(text, rng))
        start = time.process_time()
        try:
            found = read_config(file)
        except EvaluationError as error:
            refused += 1
            assert str(file) in str(error) and "\n" not in str(error), file.read_bytes()
        else:
            whole = type(METHODS[name].config)
            assert not dataclasses.is_dataclass(found) or type(found) is whole, file.read_bytes()
        assert time.process_time() - start < 10
    assert CASES_EACH / 3 < refused < CASES_EACH


@pytest.mark.parametrize(
    "content",
    {
        "deep": "[" * 100_000,
        "deep mappings": "".join(f"{' ' * i}a:\n" for i in range(2000)),
        "merges of merges": "a: &a {x: 1}\n"
        + "".join(f"{n}: &{n} {{<<: [*{m}, *{m}]}}\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)),
        "long": "a: 1\n" * (MOST_BYTES // 5 + 1),
        "unhashable key": "? [a, {b: c}]\n: d\n",
    }.items(),
    ids=lambda item: item[0],
)
def test_a_config_that_would_take_without_end_is_refused(content: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "config.yml").write_text(content[1])
    with pytest.raises(EvaluationError, match="config.yml") as refusal:
        read_config(tmp_path / "config.yml")
    assert "\n" not in str(refusal.value)


def test_a_config_of_aliases_of_aliases_stays_small(tmp_path: Path) -> None:
    lines = ["a: &a [x, x]"] + [
        f"{n}: &{n} [*{m}, *{m}]" for m, n in zip("abcdefghijklmnopqrstuvw", "bcdefghijklmnopqrstuvwx", strict=True)
    ]
    (tmp_path / "config.yml").write_text("\n".join(lines))
    start = time.process_time()
    assert list(read_config(tmp_path / "config.yml")) == list("abcdefghijklmnopqrstuvwx")
    assert time.process_time() - start < 10
