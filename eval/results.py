"""What an evaluation found: for a JSON file and for people."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from crossnorm_ns.provenance import provenance
from eval.files import write_atomically
from eval.protocols import Protocol


@dataclass(frozen=True)
class Subject:
    """What is evaluated: which test frames of which scene, rendered by what."""

    scene: Path
    """Folder of the scene."""
    official_scene: str | None
    """Name of the official scene whose test pictures these are; None: not comparable with published numbers."""
    width: int
    """Of the images, in pixels."""
    height: int
    """Of the images, in pixels."""
    num_test_images: int
    """Frames of the test split, evaluated or not."""
    every: int
    """Frames 0, every, 2 * every, ... are evaluated."""
    source: dict[str, Any]
    """Where the renders come from: a folder, or a run and its checkpoint."""

    @property
    def indices(self) -> range:
        """The frames that are evaluated."""
        return range(0, self.num_test_images, self.every)


@dataclass(frozen=True)
class ImageResult:
    """Scores of one test frame."""

    name: str
    psnr: float
    """Decibels; infinite where render and truth are equal."""
    ssim: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of a scene's test frames under one protocol."""

    protocol: Protocol
    subject: Subject
    images: tuple[ImageResult, ...]
    """At least one."""

    @property
    def psnr(self) -> float:
        """Mean of the images' PSNRs, decibels."""
        return sum(image.psnr for image in self.images) / len(self.images)

    @property
    def ssim(self) -> float:
        """Mean of the images' SSIMs."""
        return sum(image.ssim for image in self.images) / len(self.images)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; an infinite PSNR (render and truth are equal) becomes None."""
        return {
            "protocol": self.protocol.name,
            "description": self.protocol.description,
            "psnr": _finite(self.psnr),
            "ssim": self.ssim,
            "num_images": len(self.images),
            "num_test_images": self.subject.num_test_images,
            "every": self.subject.every,
            "resolution": [self.subject.width, self.subject.height],
            "scene": str(self.subject.scene),
            "official_scene": self.subject.official_scene,
            "source": self.subject.source,
            **provenance(),
            "per_image": [
                {"name": image.name, "psnr": _finite(image.psnr), "ssim": image.ssim} for image in self.images
            ],
        }

    def write_json(self, path: Path) -> None:
        """Writes `as_dict` atomically."""
        write_atomically(path, (json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n").encode())

    def summary(self) -> Group:
        """For the terminal: heading, means, best and worst frame, and what the numbers mean."""
        ranked = sorted(self.images, key=lambda image: image.psnr)
        table = Table()
        table.add_column("")
        table.add_column("PSNR (dB)", justify="right")
        table.add_column("SSIM", justify="right")
        table.add_row("mean", f"{self.psnr:.3f}", f"{self.ssim:.4f}", style="bold")
        for label, image in (("best", ranked[-1]), ("worst", ranked[0])):
            table.add_row(f"{label}: {image.name}", f"{image.psnr:.3f}", f"{image.ssim:.4f}")
        return Group(Text(self.heading(), style="bold"), table, Text(self.protocol.description + self._caveat()))

    def heading(self) -> str:
        """Scene, images, resolution and protocol in a line."""
        subject, count = self.subject, len(self.images)
        images = f"{count} test images"
        if subject.every > 1:
            images = f"{count} of {subject.num_test_images} test images (every {subject.every})"
        return f"{subject.scene.name}: {images}, {subject.width}x{subject.height}, protocol {self.protocol.name}"

    def _caveat(self) -> str:
        if self.subject.official_scene is None:
            return "\nThe test images are not the official ones: numbers are not comparable with published ones."
        return ""


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
