"""The benchmark of NeuS's training step, at a size that says nothing about its speed."""

from pathlib import Path

import torch

from benchmarks import neus
from benchmarks.neus import PLACES, Options, main, training_step


def test_a_step_trains_the_networks_with_their_norms(monkeypatch) -> None:
    made = []
    setup = neus.NeuSModel.get_param_groups
    monkeypatch.setattr(neus.NeuSModel, "get_param_groups", lambda model: (made.append(model), setup(model))[1])
    step = training_step("cn", "bn", Options("step", rays=4))
    (model,) = made
    kinds = [type(layer.norm).__name__ for layer in model.field.sdf_network.layers if hasattr(layer, "norm")]
    assert kinds == ["CrossNorm"] * 4
    step()
    before = [parameter.clone() for parameter in model.field.parameters()]
    step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.field.parameters(), strict=True))


def test_tables_are_printed_and_stored(tmp_path: Path, capsys) -> None:
    threads = torch.get_num_threads()
    for what in ("step", "profile"):
        main(Options(what, rays=4, seconds=0.0, steps=1, docs=tmp_path, threads=threads))
    said = capsys.readouterr().out
    ratios, profile = ((tmp_path / "results" / f"neus-{name}.md").read_text() for name in ("step", "profile"))
    assert said == ratios + profile
    assert "tiny preset, 4 rays" in ratios and "tiny preset, 4 rays" in profile
    rows = [line.strip("| ").split(" | ") for line in ratios.splitlines() if line.startswith("|")]
    cells = {row[0]: row[1] for row in rows}
    assert all(float(cells[name]) > 0 for name in PLACES)
    rows = [line.strip("| ").split(" | ") for line in profile.splitlines()[4:] if line.startswith("|")]
    assert rows[-1][0] == "sum"
    for column in (1, 2):
        parts = [float(row[column]) for row in rows[:-1]]
        assert abs(sum(parts) - float(rows[-1][column])) < 0.01 * len(parts)
