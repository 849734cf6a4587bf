"""A run's config.yml damaged in its bytes and lines: it is refused in one line, or it is still a configuration."""

import dataclasses
import random
import time
from pathlib import Path

import pytest
import yaml
from option_cases import processor_time

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


def nested(parts: str, depth: int) -> str:
    """A value of values, each but the innermost holding the one within it several times, by aliases."""
    text = "&b0 [x, x]"
    for level in range(1, depth):
        text = f"&b{level} {parts.format(text, f'*b{level - 1}')}"
    return text


WITHOUT_END = {
    "lists of aliases": ("max_num_iterations", nested("[{0}, {1}, {1}, {1}, {1}, {1}, {1}, {1}, {1}, {1}]", 8)),
    "mappings of aliases": ("optimizers", nested("{{a: {0}, b: {1}}}", 24)),
    "list of itself": ("optimizers", "&a {a: [*a]}"),
    "base of 60": ("max_num_iterations", "1" + ":59" * 30_000),
    "base of 60, float": ("max_num_iterations", "1" + ":01" * 200 + ".5"),
    "long number": ("max_num_iterations", "0x" + "f" * 6000),
    "long text": ("method_name", "x" * 90_000),
    "many configurations": (
        "optimizers",
        "{a: &a !!python/object:nerfstudio.engine.trainer.TrainerConfig {}, "
        + ", ".join(f"b{i}: *a" for i in range(750))
        + "}",
    ),
    "no flag": ("max_num_iterations", "!!bool foo"),
    "no date": ("max_num_iterations", "!!timestamp foo"),
    "no integer": ("max_num_iterations", "!!int ''"),
    "no float": ("max_num_iterations", "!!float ''"),
    "no path": ("output_dir", '!!python/object/apply:pathlib.PosixPath ["\\0"]'),
    "no path of this system": ("output_dir", '!!python/object/apply:pathlib.PosixPath ["\\ud800"]'),
}
"""A field, and a value that took without end, or memory without bound, or ended reading with another error."""


@pytest.mark.parametrize("name", WITHOUT_END)
def test_a_value_that_would_take_without_end_or_is_none_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    field, value = WITHOUT_END[name]
    text = yaml.dump(mipnerf_cn_tiny.config)
    start = text.index(f"\n{field}:") + 1
    end = next(i for i in range(start, len(text)) if text[i] == "\n" and text[i + 1] not in " -")
    (tmp_path / "config.yml").write_text(f"{text[:start]}{field}: {value}{text[end:]}")
    with processor_time(10), pytest.raises(EvaluationError, match="config.yml") as refusal:
        read_config(tmp_path / "config.yml")
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 1000


def test_what_is_shown_of_a_wrong_value_is_short(tmp_path: Path) -> None:
    for value in ("x" * 4000, "[" + "x, " * 500 + "]", "!!python/object:nerfstudio.engine.trainer.TrainerConfig {}"):
        text = yaml.dump(mipnerf_cn_tiny.config).replace("max_num_iterations: 4000", f"max_num_iterations: {value}")
        (tmp_path / "config.yml").write_text(text)
        with pytest.raises(EvaluationError, match="max_num_iterations is .* but must be of the type int") as refusal:
            read_config(tmp_path / "config.yml")
        assert len(str(refusal.value)) < 500
