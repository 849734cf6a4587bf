"""Stand-ins for ns-train and eval.blender: they do in a moment what the sweep sees of these.

    python sweep_programs.py train CONTROL METHOD --data ... | evaluate CONTROL MODULE --load-config ...

Files in the folder CONTROL say how a cell behaves: `fail`, `die` or `hang`, then METHOD-SCENE-SEED.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    what, control, name, *options = sys.argv[1:]
    given = dict(zip(options, options[1:], strict=False))
    if what == "train":
        train(Path(control), name, given, options)
    else:
        evaluate(Path(control), given)


def train(control: Path, method: str, given: dict[str, str], options: list[str]) -> None:
    cell = f"{method}-{given['--experiment-name']}-{given['--machine.seed']}"
    folder = Path(given["--output-dir"]) / given["--experiment-name"] / method / given["--timestamp"]
    checkpoint = folder / "nerfstudio_models" / "step-000000001.ckpt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with (control / "starts.jsonl").open("a") as file:
        file.write(json.dumps({"cell": cell, "pid": os.getpid(), "options": options}) + "\n")
    if (control / f"fail-{cell}").exists():
        raise ConnectionError("urlopen error: name resolution failed")
    if (control / f"die-{cell}").exists():
        os.kill(os.getpid(), signal.SIGKILL)

    def save(*_: object) -> None:
        checkpoint.touch()
        sys.exit(143)

    signal.signal(signal.SIGTERM, save)
    if (control / f"hang-{cell}").exists():
        (control / "hanging").write_text(str(os.getpid()))
        time.sleep(120)
    (folder / "config.yml").write_text(json.dumps({"method": method, "seed": int(given["--machine.seed"])}))


def evaluate(control: Path, given: dict[str, str]) -> None:
    run = json.loads(Path(given["--load-config"]).read_text())
    scene = Path(given["--data"]).name
    with (control / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(given) + "\n")
    result = {
        "protocol": given["--protocol"],
        "psnr": 20.0 + run["seed"] + 5 * (run["method"] == "mipnerf-cn"),
        "ssim": 0.5,
        "num_test_images": 2,
        "every": 1,
        "resolution": [24, 24],
        "scene": f"/data/{scene}",
        "official_scene": None,
        "source": {"config": given["--load-config"], "step": 1, **run},
        "per_image": [],
    }
    Path(given["--output"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
