"""What came of all cases, as files of results."""

import json
from collections.abc import Sequence
from pathlib import Path

from damage import SEED
from kinds import Outcome

from crossnorm_ns.provenance import provenance


def table(outcomes: Sequence[Outcome]) -> str:
    """Of each kind: cases, how they ended, and the most that one took; in Markdown."""
    heads = ["file and command", "cases", "refused in one line", "right result", "slowest, s", "highest memory, MiB"]
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    kinds = list(dict.fromkeys(outcome.kind for outcome in outcomes))
    for name, some in [(kind, [one for one in outcomes if one.kind == kind]) for kind in kinds] + [("all", outcomes)]:
        refused = sum(outcome.refused for outcome in some)
        slowest = max(outcome.ending.seconds for outcome in some)
        memory = max(outcome.ending.memory for outcome in some) / 2**20
        cells = [name, len(some), refused, len(some) - refused, f"{slowest:.1f}", f"{memory:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def store(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Writes bad_input.md and bad_input.json; only where no case went wrong."""
    found = provenance()
    heading = f"Seed {SEED}; {found['machine']}, torch {found['versions']['torch']}."
    (folder / "bad_input.md").write_text(f"{heading}\n\n{table(outcomes)}")
    cases = [
        {
            "kind": outcome.kind,
            "case": outcome.case,
            "refused": outcome.refused,
            "said": outcome.ending.err.strip() if outcome.refused else None,
            "seconds": round(outcome.ending.seconds, 3),
            "memory": outcome.ending.memory,
        }
        for outcome in outcomes
    ]
    content = {"seed": SEED, **found, "cases": cases}
    (folder / "bad_input.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
