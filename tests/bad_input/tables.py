"""Results that `eval.report` puts into tables."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from damage import Damage, changed_documents, drawn, nested
from kinds import Kind

import eval.report

RESULT = Path("runs/result.json")
METRICS = ("psnr", "ssim")
VALID = {
    "protocol": "mipnerf",
    "psnr": 30.25,
    "ssim": 0.91,
    "num_test_images": 200,
    "every": 1,
    "resolution": [400, 400],
    "scene": "/data/lego",
    "official_scene": "lego",
    "source": {"config": "/runs/config.yml", "method": "mipnerf-cn", "checkpoint": "a.ckpt", "step": 999, "seed": 0},
    "per_image": [],
}


def _make(folder: Path) -> None:
    (folder / RESULT).parent.mkdir(parents=True)
    (folder / RESULT).write_text(json.dumps(VALID))


def _report() -> dict[str, Any]:
    output = Path("results/table.json")
    sys.argv = ["eval.report", str(RESULT), "--table", "blender", "--format", "json", "--output", str(output)]
    eval.report.run()
    found: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for section in json.loads(output.read_text())["sections"]:
        for row in section["series"]:
            if row["origin"] == "measured":
                found[section["metric"]] += [one["mean"] for one in row["values"].values()]
    return found


def _truth(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / RESULT).read_text())
    return {metric: [result[metric]] if result[metric] is not None else [] for metric in METRICS}


def _damaged(content: bytes) -> Iterator[Damage]:
    for name, document in drawn(changed_documents(json.loads(content)), 60):
        yield Damage(name, json.dumps(document).encode())
    for name, text in {"a number": b"3", "true": b"true", "nested": nested(100_000), "no text": b'"\xff"'}.items():
        yield Damage(name, text, refused=True)


KINDS = [Kind("results of a run, eval.report", str(RESULT), _make, _report, _truth, _damaged)]
