"""What is stored with every result: versions, machine, commit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from provenance_files import assert_provenance
from representation_files import write_image

import crossnorm_ns
from benchmarks import processes, tables
from benchmarks.training_runs import Run
from crossnorm_ns import provenance as module
from crossnorm_ns.provenance import git_state, provenance
from crossnorm_ns.representation.command import main


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_versions_and_machine_are_those_of_this_process() -> None:
    found = provenance()
    assert json.loads(json.dumps(found)) == found
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["versions"]["crossnorm_ns"] == crossnorm_ns.__version__
    assert "cores" in found["machine"]


def test_a_gpu_is_named_where_the_process_has_used_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert module.machine().endswith(" cores")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert module.machine().endswith(" cores, NVIDIA H200")
    monkeypatch.delitem(sys.modules, "torch")
    assert module.machine().endswith(" cores")


def test_what_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGES", ("numpy", "no-such-package"))
    assert module.versions()["no_such_package"] is None


def test_commit_is_that_of_the_packages_checkout_and_changes_are_told(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "result").write_text("one")
    git(tmp_path, "add", "file", "docs")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "beside").write_text("untracked files change no result")
    (tmp_path / "docs" / "result").write_text("what a command has written before changes none either")
    assert git_state(tmp_path) == (head, False)
    (tmp_path / "file").write_text("two")
    git_state.cache_clear()
    assert git_state(tmp_path) == (head, True)
    (tmp_path / "installed").mkdir()
    assert git_state(tmp_path / "installed") == (None, None), "another project's checkout is not the package's"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["image", "--image", "image.png", "--side", "16", "--network", "1x4", "--steps", "2"], "result.json"),
        (["ntk", "--methods", "relu", "--samples", "8", "--network", "1x4", "--num-seeds", "1"], "ntk.json"),
        (["spectrum", "--methods", "relu", "--network", "1x4", "--steps", "2", "--frequencies", "1"], "spectrum.json"),
        (["rate-distortion", "--image", "image.png", "--networks", "1x4", "--steps", "2"], "points.json"),
    ],
)
def test_results_of_the_command_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "image.png", 16, 16)
    growth = ["--growth-samples", "8", "16", "--growth-widths", "4", "8"] if arguments[0] == "ntk" else []
    main([*arguments, *growth, "--seed", "3", "--output", "out"])
    result = json.loads((tmp_path / "out" / name).read_text())
    assert_provenance(result)
    asked = next((result[key] for key in ("spec", "options") if "seed" in result.get(key, {})), result)
    assert asked["seed"] == 3


@pytest.mark.parametrize(
    ("commit", "dirty", "words"),
    [
        ("1a2b", False, "; commit 1a2b"),
        ("1a2b", True, "; commit 1a2b with changes"),
        (None, None, "; no commit"),
    ],
)
def test_results_of_benchmarks_in_markdown_name_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commit: str | None, dirty: bool | None, words: str
) -> None:
    monkeypatch.setattr(module, "git_state", lambda checkout: (commit, dirty))
    tables.store(tmp_path, "steps", "| a table |")
    first, _, last = (tmp_path / "results" / "steps.md").read_text().splitlines()
    assert first == "| a table |" and last.endswith(words)
    assert module.machine() in last and f"torch {module.versions()['torch']}" in last


def test_results_of_benchmark_trainings_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = {"name": "a", "data": "scene", "norm": "cn", "learning_rate": 1e-3, "steps": 1, "seed": 5}
    monkeypatch.setattr(processes.sys, "argv", ["program", json.dumps(run), str(tmp_path)])
    processes.run_program(Run, lambda run, folder: {"psnr": 20.0})
    result = json.loads((tmp_path / "a.json").read_text())
    assert_provenance(result["provenance"])
    assert result["run"]["seed"] == 5
