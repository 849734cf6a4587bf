"""python -m eval.report: the paper's tables, what may stand beside its figures and what may not, four formats."""

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
from provenance_files import assert_provenance

from crossnorm_ns.networks import PAPER_METHODS
from crossnorm_ns.paper_tables import AVERAGE, paper_row, paper_table
from crossnorm_ns.provenance import provenance
from eval import report
from eval.dtu_files import DTU_SCANS

SCENES = ["chair", "drums", "ficus", "hotdog", "lego", "materials", "mic", "ship"]


def blender_result(scene: str | None, psnr: float | None, **changes: Any) -> dict[str, Any]:
    """As eval.blender writes it."""
    source = {"config": "/runs/config.yml", "method": "mipnerf-cn", "step": 999_999, "seed": 0, "device": "cpu"}
    source |= changes.pop("source", {})
    result = {
        "protocol": "mipnerf",
        "psnr": psnr,
        "ssim": 0.9,
        "num_test_images": 200,
        "every": 1,
        "resolution": [400, 400],
        "scene": f"/data/{scene or 'mine'}",
        "official_scene": scene,
        "source": source,
        "per_image": [],
    }
    return result | changes


def dtu_result(scan: int, overall: float, **changes: Any) -> dict[str, Any]:
    """As eval.dtu_chamfer writes it."""
    source = {"config": "/runs/config.yml", "method": "neus-cn", "step": 299_999, "seed": 0, "resolution": 512}
    source |= {"image_size": [1600, 1200]} | changes.pop("source", {})
    result = {"scan": scan, "cull": "none", "mode": "mesh", "overall": overall, "completeness": 1, "source": source}
    return result | changes


def task_result(task: str, stem: str, method: str, values: dict[str, float | None], **changes: Any) -> dict[str, Any]:
    """As a run of crossnorm table ends, at the paper preset's learning rate."""
    spec = {"task": task, "input": f"/data/{stem}.png", "method": method, "preset": "paper", "network": "10x28"}
    rate = {"image": 1e-2 if "+" in method else 2e-4, "shape": 5e-3, "ct": 5e-3, "mri": 2e-3}[task]
    spec |= {"learning_rate": rate, "steps": None, "seed": 0, "changes": {}} | changes.pop("spec", {})
    return {"spec": spec, "size": [512, 768], "options": {"steps": 100_000}, "metrics": values} | changes


def kodak(method: str, psnr: float, **spec: Any) -> list[dict[str, Any]]:
    """All 24 images, whose mean is `psnr`."""
    return [
        task_result(
            "image",
            f"kodim{number:02}",
            method,
            {"psnr": psnr + (number - 12.5) / 10, "ssim": 0.7},
            size=[768, 512] if number in (4, 9) else [512, 768],
            spec=spec,
        )
        for number in range(1, 25)
    ]


class Command:
    """Writes results and runs the command on their folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.monkeypatch, self.capsys = folder, monkeypatch, capsys

    def write(self, *results: Any) -> list[Path]:
        self.folder.mkdir(exist_ok=True)
        files = []
        for result in results:
            files.append(self.folder / f"{len(list(self.folder.iterdir()))}.json")
            files[-1].write_text(json.dumps(result))
        return files

    def run(self, *arguments: object) -> str:
        self.monkeypatch.setattr(sys, "argv", ["eval.report", *map(str, arguments)])
        report.run()
        return self.capsys.readouterr().out

    def sections(self, table: str) -> list[dict[str, Any]]:
        return json.loads(self.run(self.folder, "--table", table, "--format", "json"))["sections"]

    def refusal(self, *arguments: object) -> str:
        with pytest.raises(SystemExit) as exit_:
            self.run(*arguments)
        error = self.capsys.readouterr().err
        assert exit_.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
        return error


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(tmp_path / "results", monkeypatch, capsys)


def series(section: dict[str, Any], origin: str, method: str) -> dict[str, dict[str, Any]]:
    (found,) = [one for one in section["series"] if (one["origin"], one["method"]) == (origin, method)]
    return found["values"]


def origins(section: dict[str, Any]) -> set[str]:
    return {one["origin"] for one in section["series"]}


def lines_of(text: str, start: str) -> list[list[str]]:
    """Cells of Markdown lines whose first cell starts so."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0].startswith(start)]


def test_figures_of_the_papers_setting_stand_beside_its_own_with_mean_spread_and_difference(command: Command) -> None:
    psnrs = {seed: {scene: 30 + place + seed / 10 for place, scene in enumerate(SCENES)} for seed in range(3)}
    for seed, by_scene in psnrs.items():
        command.write(*(blender_result(scene, psnr, source={"seed": seed}) for scene, psnr in by_scene.items()))
    section = command.sections("blender")[0]
    assert section["comparable with the paper"] and section["metric"] == "psnr"
    assert section["setting"]["protocol"] == "mipnerf" and section["setting"]["resolution"] == "400x400"
    found = series(section, "measured", "mipnerf-cn, 1,000,000 steps")
    lego = [by_scene["lego"] for by_scene in psnrs.values()]
    assert found["lego"]["mean"] == pytest.approx(fmean(lego))
    assert found["lego"]["spread"] == pytest.approx(stdev(lego)) and found["lego"]["seeds"] == 3
    means = [fmean(by_scene.values()) for by_scene in psnrs.values()]
    assert found[AVERAGE]["mean"] == pytest.approx(fmean(means))
    assert found[AVERAGE]["spread"] == pytest.approx(stdev(means))
    difference = series(section, "difference", "mipnerf-cn, 1,000,000 steps")
    assert difference["lego"]["mean"] == pytest.approx(fmean(lego) - 35.56)
    assert difference[AVERAGE]["mean"] == pytest.approx(fmean(means) - 33.91)


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "nerfbaselines"},
        {"resolution": [800, 800]},
        {"resolution": [100, 100]},
        {"every": 8},
        {"official_scene": None},
    ],
    ids=str,
)
def test_another_protocol_resolution_or_input_is_never_in_the_papers_table(command: Command, changes: dict) -> None:
    """Nor in one table with a figure that is."""
    command.write(blender_result("lego", 35.0), blender_result("lego", 36.0, **changes))
    sections = [section for section in command.sections("blender") if section["metric"] == "psnr"]
    paper, other = sections
    assert [value["mean"] for value in series(paper, "measured", "mipnerf-cn, 1,000,000 steps").values()] == [35.0]
    assert not other["comparable with the paper"]
    assert [value["mean"] for value in series(other, "measured", "mipnerf-cn, 1,000,000 steps").values()] == [36.0]
    assert not origins(other) & {"paper", "difference"}
    assert other["setting"] != paper["setting"]


def test_figures_published_at_another_resolution_stand_with_those_measured_at_it(command: Command) -> None:
    command.write(blender_result("lego", 35.0, resolution=[800, 800]))
    paper, at_800 = (section for section in command.sections("blender") if section["metric"] == "psnr")
    assert origins(paper) == {"paper"}
    assert series(at_800, "published", "mip-NeRF")["lego"]["mean"] == 35.70
    text = command.run(command.folder, "--table", "blender")
    assert "resolution 800x800" in text and "so there is no difference from them" in text


def test_settings_of_dtu_are_kept_apart(command: Command) -> None:
    command.write(
        dtu_result(24, 1.0),
        dtu_result(24, 2.0, cull="2dgs"),
        dtu_result(24, 3.0, mode="pointcloud"),
        dtu_result(24, 4.0, source={"image_size": [400, 300]}),
        dtu_result(24, 5.0, source={"resolution": 64}),
        dtu_result(24, 6.0, source={"image_size": None}),
        dtu_result(0, 7.0),
    )
    sections = command.sections("dtu")
    found = [
        [value["mean"] for value in series(one, "measured", "neus-cn, 300,000 steps").values()] for one in sections
    ]
    assert found == [[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0]]
    assert [one["comparable with the paper"] for one in sections] == [True] + [False] * 6
    assert len({json.dumps(one["setting"]) for one in sections}) == 7
    assert series(sections[0], "difference", "neus-cn, 300,000 steps")["24"]["mean"] == pytest.approx(0.09)


def test_best_of_each_column_is_marked_lowest_for_distances(command: Command) -> None:
    command.write(dtu_result(24, 0.904), dtu_result(37, 0.851), dtu_result(40, 0.9))
    section = command.sections("dtu")[0]
    best = {
        (one["method"], item) for one in section["series"] for item, value in one["values"].items() if value["best"]
    }
    assert {method for method, item in best if item == "24"} == {"neus-cn, 300,000 steps"}
    assert {method for method, item in best if item == "37"} == {"neus-cn, 300,000 steps"}
    assert {method for method, item in best if item == "40"} == {"Ours"}
    assert {method for method, item in best if item == "55"} == {"NeuS", "Ours"}
    text = command.run(command.folder, "--table", "dtu")
    ours = lines_of(text, "neus-cn, 300,000 steps, measured, 1 seed")[0]
    assert ours[1:5] == ["**0.90**", "**0.85**", "0.90", "-"]


def test_dtu_results_of_all_scans_are_read_one_by_one(command: Command) -> None:
    results = [dtu_result(scan, 1.0 + scan / 1000) for scan in DTU_SCANS]
    command.write({"overall": 1, "scans": results})
    found = series(command.sections("dtu")[0], "measured", "neus-cn, 300,000 steps")
    assert found[AVERAGE]["mean"] == pytest.approx(fmean(result["overall"] for result in results))


def test_an_average_needs_every_scene(command: Command) -> None:
    command.write(*(blender_result(scene, 30.0) for scene in SCENES[:-1]))
    assert AVERAGE not in series(command.sections("blender")[0], "measured", "mipnerf-cn, 1,000,000 steps")


def test_seeds_are_averaged_over_equal_steps_alone(command: Command) -> None:
    command.write(
        blender_result("lego", 30.0),
        blender_result("lego", 31.0, source={"seed": 1}),
        blender_result("lego", 20.0, source={"seed": 2, "step": 99}),
    )
    section = command.sections("blender")[0]
    assert series(section, "measured", "mipnerf-cn, 1,000,000 steps")["lego"]["mean"] == 30.5
    assert series(section, "measured", "mipnerf-cn, 100 steps")["lego"]["mean"] == 20.0


def test_other_options_make_another_row_which_is_not_the_papers(command: Command) -> None:
    """A result without the entry is of an older version."""
    command.write(
        blender_result("lego", 30.0),
        blender_result("lego", 31.0, source={"seed": 1, "options": {}}),
        blender_result("lego", 25.0, source={"options": {"model.norm": "none", "model.depth": 4}}),
        blender_result("lego", 20.0, source={"options": {"model.norm": "bn"}}),
    )
    section = command.sections("blender")[0]
    rows = {one["method"]: one["values"]["lego"]["mean"] for one in section["series"] if one["origin"] == "measured"}
    assert rows == {
        "mipnerf-cn, 1,000,000 steps": 30.5,
        "mipnerf-cn (model.depth 4, model.norm none), 1,000,000 steps": 25.0,
        "mipnerf-cn (model.norm bn), 1,000,000 steps": 20.0,
    }
    compared = {one["method"] for one in section["series"] if one["origin"] == "difference"}
    assert compared == {"mipnerf-cn, 1,000,000 steps"}


def test_surfaces_of_other_options_are_another_row(command: Command) -> None:
    command.write(dtu_result(24, 1.0), dtu_result(24, 2.0, source={"options": {"model.norm": "none"}}))
    rows = {one["method"] for one in command.sections("dtu")[0]["series"] if one["origin"] == "measured"}
    assert rows == {"neus-cn, 300,000 steps", "neus-cn (model.norm none), 300,000 steps"}


@pytest.mark.parametrize(
    ("source", "paper"),
    [
        ({"method": "mipnerf-ref"}, "MipNeRF"),
        ({"method": "instant-ngp"}, "Instant NGP"),
        ({"method": "vanilla-nerf"}, "NeRF"),
        ({"method": "mipnerf"}, None),
        ({"method": "nerfacto"}, None),
    ],
)
def test_methods_are_compared_with_the_papers_of_the_same_kind(
    command: Command, source: dict, paper: str | None
) -> None:
    """nerfstudio's own mipnerf is another method."""
    command.write(blender_result("lego", 30.0, source=source))
    section = command.sections("blender")[0]
    differences = [one["values"]["lego"]["mean"] for one in section["series"] if one["origin"] == "difference"]
    expected = [] if paper is None else [30.0 - paper_table("blender").values["psnr"]["lego"][paper]]
    assert differences == pytest.approx(expected)


@pytest.mark.parametrize(
    ("method", "paper"),
    [("neus-cn", "Ours"), ("neus-ref", "NeuS"), ("volsdf-ref", "VOLSDF"), ("volsdf-cn", None), ("IDR", "IDR")],
)
def test_surfaces_are_compared_with_the_papers_of_the_same_kind(
    command: Command, method: str, paper: str | None
) -> None:
    command.write(dtu_result(24, 1.0, source={"method": method}))
    section = command.sections("dtu")[0]
    differences = [one["values"]["24"]["mean"] for one in section["series"] if one["origin"] == "difference"]
    expected = [] if paper is None else [1.0 - paper_table("dtu").values["overall"]["24"][paper]]
    assert differences == pytest.approx(expected)


def test_renders_of_other_systems_stand_under_their_names(command: Command) -> None:
    source = {"renders": "/renders/lego", "method": "DVGO"}
    result = blender_result("lego", 34.0)
    result["source"] = source
    command.write(result)
    section = command.sections("blender")[0]
    assert series(section, "measured", "DVGO")["lego"]["mean"] == 34.0
    assert series(section, "difference", "DVGO")["lego"]["mean"] == pytest.approx(34.0 - 34.73)


def test_images_have_methods_as_columns_and_the_paper_above_ours(command: Command) -> None:
    for seed in (0, 1):
        command.write([*kodak("pe+cn", 27.0 + seed, seed=seed), *kodak("siren", 25.0, seed=seed)])
    text = command.run(command.folder, "--table", "image")
    heads = next(line for line in text.splitlines() if line.startswith("|"))
    assert [cell.strip() for cell in heads.strip("|").split("|")] == ["", *PAPER_METHODS]
    (paper,), (ours,), (difference,) = (
        lines_of(text, f"10x28, {origin}")[:1] for origin in ("paper", "measured", "diff")
    )
    assert paper[1] == "25.52" and paper[-1] == "**26.91**"
    assert ours[0] == "10x28, measured, 2 seeds"
    assert ours[1] == "25.00 ± 0.00" and ours[-1] == "**27.50 ± 0.71**" and ours[2] == "-"
    assert difference[1] == "-0.52" and difference[-1] == "+0.59"
    assert "protocol paper preset; resolution 768x512 or 512x768; the 24 images of Kodak" in text


@pytest.mark.parametrize(
    "results",
    [
        kodak("pe+cn", 27.0)[:-1],
        kodak("pe+cn", 27.0, preset="quick"),
        kodak("pe+cn", 27.0, steps=500),
        kodak("pe+cn", 27.0, changes={"side": 128}),
    ],
    ids=["23 images", "quick", "steps", "changes"],
)
def test_other_images_presets_or_sizes_are_not_in_the_papers_table(command: Command, results: list) -> None:
    command.write(results)
    sections = [section for section in command.sections("image") if section["metric"] == "psnr"]
    assert [origins(section) for section in sections] == [{"paper"}, {"measured"}]


def test_rates_that_were_tried_make_a_setting_in_which_each_method_counts_with_its_best(command: Command) -> None:
    """The paper's setting has the preset's rates alone, 1e-2 with a norm and 2e-4 without."""
    command.write([*kodak("pe+cn", 26.0), *kodak("pe", 25.0)])
    assert len({json.dumps(section["setting"]) for section in command.sections("image")}) == 1
    command.write([*kodak("pe+cn", 27.0, learning_rate=3e-3), *kodak("pe", 24.0, learning_rate=1e-2)])
    paper, tuned = (section for section in command.sections("image") if section["metric"] == "psnr")
    for section, expected in ((paper, 26.0), (tuned, 27.0)):
        assert series(section, "measured", "pe+cn")["10x28"]["mean"] == pytest.approx(expected)
        assert series(section, "measured", "pe")["10x28"]["mean"] == pytest.approx(25.0)
    assert not origins(tuned) & {"paper", "difference"}
    assert tuned["setting"]["protocol"] == "paper preset, each method's best of learning rates 0.0002, 0.003, 0.01"


def test_another_learning_rate_than_the_presets_is_not_in_the_papers_table(command: Command) -> None:
    command.write(kodak("pe+cn", 27.0, learning_rate=2e-2))
    paper, other = (section for section in command.sections("image") if section["metric"] == "psnr")
    assert origins(paper) == {"paper"} and origins(other) == {"measured"}
    assert other["setting"]["protocol"] == "paper preset, learning rate 0.02"


def test_a_diverged_run_has_no_figure(command: Command) -> None:
    results = kodak("pe+cn", 27.0)
    results[3]["metrics"] = {}
    command.write([*results, *kodak("pe", 25.0)])
    assert series(command.sections("image")[0], "measured", "pe+cn") == {}


def test_shapes_are_known_by_their_names(command: Command) -> None:
    spec = {"network": "2x256", "input": "/data/lucy_512.npz"}
    command.write([task_result("shape", "", "pe+cn", {"iou": 0.99}, spec=spec, size=[512] * 3)])
    section = command.sections("shape")[0]
    assert series(section, "measured", "pe+cn")["lucy"]["mean"] == 0.99
    assert series(section, "difference", "pe+cn")["lucy"]["mean"] == pytest.approx(-0.006)
    other = task_result("shape", "", "pe", {"iou": 0.9}, spec=spec | {"network": "4x256"}, size=[512] * 3)
    command.write([other])
    assert [origins(one) for one in command.sections("shape")] == [
        {"paper", "measured", "difference"},
        {"measured"},
    ]


@pytest.mark.parametrize("task", ["ct", "mri"])
def test_inputs_that_are_not_the_papers_have_their_own_table(command: Command, task: str) -> None:
    """Its slices and volumes are not known to us."""
    command.write([task_result(task, "mine", "pe+cn", {"psnr": 30.0, "ssim": 0.9}, spec={"network": "2x256"})])
    sections = command.sections(task)
    assert [origins(section) for section in sections] == [{"paper"}, {"paper"}, {"measured"}, {"measured"}]
    assert sections[2]["setting"]["inputs"] == "mine"


# --- formats


def test_markdown_and_html_and_tex_hold_the_same_table(command: Command) -> None:
    command.write(*(blender_result(scene, 40.0, source={"method": "a_method & more"}) for scene in SCENES))
    markdown = command.run(command.folder, "--table", "blender")
    expected = lines_of(markdown, "a_method")[0]
    assert expected == ["a_method & more, 1,000,000 steps, measured, 1 seed", *["**40.00**"] * 9]

    class Rows(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[list[str]] = []
            self.in_cell = False

        def handle_starttag(self, tag: str, attrs: object) -> None:
            if tag == "tr":
                self.rows.append([])
            elif tag in ("td", "th"):
                self.rows[-1].append("")
                self.in_cell = True
            elif tag == "b":
                self.rows[-1][-1] += "**"

        def handle_endtag(self, tag: str) -> None:
            if tag == "b":
                self.rows[-1][-1] += "**"
            self.in_cell = self.in_cell and tag not in ("td", "th")

        def handle_data(self, data: str) -> None:
            if self.in_cell:
                self.rows[-1][-1] += data

    parser = Rows()
    parser.feed(command.run(command.folder, "--table", "blender", "--format", "html"))
    assert expected in parser.rows

    tex = command.run(command.folder, "--table", "blender", "--format", "tex")
    assert r"a\_method \& more, 1,000,000 steps, measured, 1 seed & " + " & ".join([r"\textbf{40.00}"] * 9) in tex
    assert tex.count(r"\begin{tabular}{lrrrrrrrrr}") == tex.count(r"\end{tabular}") == 2
    body = re.search(r"\\midrule\n(.*?)\\bottomrule", tex, re.DOTALL)
    assert body and all(line.count(" & ") == 9 and line.endswith(r"\\") for line in body[1].strip().splitlines())


def test_output_is_written_to_a_file(command: Command, tmp_path: Path) -> None:
    command.write(blender_result("lego", 30.0))
    shown = command.run(command.folder, "--table", "blender", "--format", "tex")
    command.run(command.folder, "--table", "blender", "--format", "tex", "--output", tmp_path / "new" / "table.tex")
    assert (tmp_path / "new" / "table.tex").read_text() == shown


# --- what cannot be used


def test_same_result_twice_counts_once_and_different_ones_are_refused(command: Command) -> None:
    command.write(blender_result("lego", 30.0), blender_result("lego", 30.0))
    assert series(command.sections("blender")[0], "measured", "mipnerf-cn, 1,000,000 steps")["lego"]["seeds"] == 1
    command.write(blender_result("lego", 31.0))
    error = command.refusal(command.folder, "--table", "blender")
    assert "0.json" in error and "2.json" in error and "lego, seed 0" in error


def test_files_without_results_are_left_out_in_folders_and_refused_by_name(command: Command) -> None:
    _, other = command.write(blender_result("lego", 30.0), {"scale": 1.0, "transform": []})
    assert command.sections("blender")
    assert "1.json holds no result" in command.refusal(other, "--table", "blender")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", ["is not valid json"]),
        (json.dumps({"per_image": []}), ["incomplete", "0.json"]),
        (json.dumps(dtu_result(24, 1.0)), ["No results for the table blender", "dtu"]),
        ("[]", ["holds no result"]),
    ],
)
def test_unusable_files_are_refused_in_one_line(command: Command, content: str, words: list[str]) -> None:
    (file,) = command.write(None)
    file.write_text(content)
    error = command.refusal(file, "--table", "blender")
    assert all(word in error for word in words), error


@pytest.mark.parametrize(
    "content",
    [
        "3",
        "true",
        '{"scans": 5}',
        blender_result("lego", 30.0, source={"seed": [1]}),
        blender_result("lego", 30.0, source={"seed": True}),
        blender_result("lego", 30.0, source={"method": "\ud800"}),
        blender_result("lego", 30.0, source={"method": "a\nb"}),
        blender_result("lego", 30.0, source={"step": "1"}),
        blender_result("lego", 30.0, official_scene=["lego"]),
        blender_result("lego", 30.0, protocol=7),
        blender_result("lego", 10**400),
        blender_result("lego", float("nan")),
        blender_result("lego", float("inf")),
        blender_result("lego", True),
        dtu_result(24, "0.7"),
        dtu_result(24, 0.7, source={"image_size": 5}),
    ],
)
@pytest.mark.parametrize("form", ["md", "json"])
def test_figures_and_names_that_are_none_are_refused_in_one_line(
    command: Command, content: Any, form: str
) -> None:
    (file,) = command.write(None)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    table = "dtu" if isinstance(content, dict) and "scan" in content else "blender"
    assert file.name in command.refusal(file, "--table", table, "--format", form)


@pytest.mark.parametrize("form", ["md", "tex", "html", "json"])
def test_tables_say_what_made_them(command: Command, form: str, tmp_path: Path) -> None:
    output = tmp_path / f"table.{form}"
    (file,) = command.write(blender_result("lego", 30.0))
    command.run(file, "--table", "blender", "--format", form, "--output", output)
    if form == "json":
        assert_provenance(json.loads(output.read_text()))
        return
    found, text = provenance(), html.unescape(output.read_text())
    for part in (found["machine"], f"torch {found['versions']['torch']}", found["git_commit"] or "no commit"):
        assert part in text


def test_missing_files_are_refused(command: Command, tmp_path: Path) -> None:
    assert "must be a file or a folder" in command.refusal(tmp_path / "nowhere", "--table", "blender")
    assert "must be one or more" in command.refusal("--table", "blender")


# --- the paper's figures


@pytest.mark.parametrize(("name", "tolerance"), [("shape", 0.0016), ("blender", 0.0101), ("dtu", 0.0101)])
def test_the_papers_averages_are_the_means_of_its_items(name: Any, tolerance: float) -> None:
    """As printed: rounding alone explains the rest, and of ReLU+CN on shapes a difference of 0.0015."""
    for metric, by_item in paper_table(name).values.items():
        items = [item for item in by_item if item != AVERAGE]
        assert len(items) == {"shape": 8, "blender": 8, "dtu": 15}[name]
        for method in paper_table(name).methods:
            mean = fmean(by_item[item][method] for item in items)
            assert by_item[AVERAGE][method] == pytest.approx(mean, abs=tolerance), (metric, method)


def test_numbers_of_the_paper_are_as_printed() -> None:
    def row(*arguments: Any) -> dict[str, float]:
        found = paper_row(*arguments)
        assert found is not None and list(found) == list(PAPER_METHODS)
        return dict(found)

    assert row("image", "psnr", "13x49")["pe+cn"] == 31.08
    assert row("ct", "psnr", "2x256")["siren"] == 16.16
    assert row("mri", "ssim", "4x256")["pe+bn"] == 0.955
    assert row("shape", "iou", "2x256", "thai_statue")["relu"] == 0.904
    assert row("shape", "iou", "2x256")["pe+cn"] == 0.997
    assert paper_row("image", "psnr", "9x9") is None and paper_row("shape", "iou", "4x256") is None
    blender, dtu = paper_table("blender"), paper_table("dtu")
    assert blender.values["psnr"]["ship"]["Ours"] == 32.00 and blender.values["ssim"]["ship"]["MipNeRF"] == 0.886
    assert dtu.values["overall"]["110"]["Ours"] == 1.22 and dtu.values["overall"][AVERAGE]["NeuS"] == 0.80
    assert tuple(map(int, dtu.items[:-1])) == DTU_SCANS and list(blender.items[:-1]) == SCENES
    published = {other.method: other for other in (*blender.others, *dtu.others)}
    assert published["mip-NeRF"].values["psnr"][AVERAGE] == 33.09
    assert published["NeuS with masks"].values["overall"] == {AVERAGE: 0.77}
    assert published["mip-NeRF"].setting.resolution != blender.setting.resolution
