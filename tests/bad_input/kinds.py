"""Kinds of files: a valid one, the command that reads it, what is right, and how it is damaged."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from commands import MEMORY, Ending, carried_out
from damage import SEED, Damage, mutations, other_files

AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Kind:
    """One kind of file and one command that reads it."""

    name: str
    file: str
    """The file to damage, from the folder that `make` fills."""
    make: Callable[[Path], object]
    """Fills a folder with all that the command needs."""
    command: Callable[[], Any]
    """Carries it out in that folder; returns what it has made of the file."""
    truth: Callable[[Path], Any]
    """The same for the folder by other means; raises where there is nothing right to be made of it."""
    structured: Callable[[bytes], Iterator[Damage]]
    """Damage that knows the format, from the valid content."""
    mutated: int = 18
    """Cases of damaged bytes."""

    def cases(self, content: bytes, share: float) -> Iterator[Damage]:
        """The valid file, then this share of the damaged ones."""
        rng = Random(f"{SEED} {self.name}")
        yield Damage(AS_IT_IS, content)
        for damage in itertools.chain(
            other_files(content), self.structured(content), mutations(content, rng, self.mutated)
        ):
            if Random(f"{SEED} {self.name} {damage.name}").random() < share:
                yield damage


@dataclass(frozen=True)
class Outcome:
    """One case and how it ended."""

    kind: str
    case: str
    ending: Ending
    wrong: str | None
    """What of it is not as it must be."""

    @property
    def refused(self) -> bool:
        return self.ending.code == 2


def tried(kind: Kind, damage: Damage, folder: Path) -> Outcome:
    """Carries out the command on a damaged file in a folder that `kind.make` has filled."""
    (folder / kind.file).write_bytes(damage.content)
    ending = carried_out(kind.command, folder)
    return Outcome(kind.name, damage.name, ending, _wrong(kind, damage, folder, ending))


def _wrong(kind: Kind, damage: Damage, folder: Path, ending: Ending) -> str | None:
    if ending.memory > MEMORY:
        return f"{ending.memory:,} bytes of memory"
    if ending.code == 2:
        return _wrong_refusal(kind, damage, ending)
    if ending.code != 0:
        return f"exit code {ending.code}: {ending.err[-2000:]}"
    if damage.refused:
        return "not refused"
    try:
        truth = kind.truth(folder)
    except Exception as error:
        return f"not refused, though another reader cannot make anything of it: {error!r}"
    difference = _difference(ending.found, truth)
    return None if difference is None else f"a wrong result: {difference}"


def _wrong_refusal(kind: Kind, damage: Damage, ending: Ending) -> str | None:
    one_line = ending.err.startswith("error: ") and ending.err.count("\n") == 1 and ending.err.endswith("\n")
    if not one_line or Path(kind.file).name not in ending.err:
        return f"not one line that names the file: {ending.err}"
    if any(word in ending.err for word in ("MemoryError", "llocate", "bad_alloc")):
        return f"it asked for more memory than it may have: {ending.err}"
    if ending.written:
        return f"written: {ending.written}"
    return f"refused: {ending.err}" if damage.name == AS_IT_IS else None


def _difference(found: Any, truth: Any, where: str = "") -> str | None:
    if isinstance(truth, dict):
        if found.keys() != truth.keys():
            return f"{where}: {list(found)}, not {list(truth)}"
        pairs = [_difference(found[key], truth[key], f"{where}/{key}") for key in truth]
        return next((pair for pair in pairs if pair is not None), None)
    if isinstance(truth, str | list):
        return None if found == truth else f"{where}: {found}, not {truth}"
    found, truth = np.asarray(found, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if found.shape != truth.shape:
        return f"{where}: shape {found.shape}, not {truth.shape}"
    if not np.isfinite(found).all():
        return f"{where}: not finite"
    close = np.isclose(found, truth, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(truth).max(initial=0))))
    return None if close.all() else f"{where}: {found[~close][:3]}, not {truth[~close][:3]}"
