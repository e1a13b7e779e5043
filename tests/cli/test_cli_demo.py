"""``bayestune demo``: its table; the demonstration itself is tested where it is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from toy_tasks import foreign_texts

import bayestune
from bayestune import demo
from bayestune.data.quickstart import QUICKSTART_FILES, quickstart_path


def test_table(cli, trained, trained_mle, clear_test, monkeypatch) -> None:
    models = {"LoRA": trained_mle, "PoLAR-VBLL": trained}
    outside = {demo.OOS: foreign_texts(20)}
    found = {
        name: bayestune.evaluate(model, clear_test, ood=outside) for name, model in models.items()
    }
    asked = {}

    def run_demo(out: Path, *, base: str, seed: int) -> demo.Demo:
        asked.update(out=out, base=base, seed=seed)
        runs = {name: SimpleNamespace(seconds=12.3) for name in found}
        return demo.Demo(found, runs, [out / "reliability.png"])  # pyright: ignore

    monkeypatch.setattr(demo, "run_demo", run_demo)
    lines = cli("demo", "--out", "here", "--model", "m", "--seed", 3).stdout.splitlines()
    assert asked == {"out": Path("here"), "base": "m", "seed": 3}
    for line, (name, evaluation) in zip(lines[1:3], found.items(), strict=True):
        values = evaluation.ood[demo.OOS]
        numbers = [
            *(getattr(evaluation, key) for key in ("accuracy", "nll", "ece", "brier", "aurc")),
            *(values[f"auroc_{key}"] for key in ("max_prob", "mutual_information", "density")),
            values["fpr95"],
        ]
        assert line.split() == [name, *(f"{n:.3f}" for n in numbers), "12", "s"]
    assert lines[3] == "here/reliability.png"


def test_the_quick_start_data_is_copied_once(cli, tmp_path) -> None:
    folder = tmp_path / "new" / "desk"
    named = cli("demo", "--data-to", folder).stdout.splitlines()
    assert [Path(line).name for line in named] == list(QUICKSTART_FILES)
    for line in named:
        assert Path(line).read_bytes() == quickstart_path(Path(line).name).read_bytes()
    (folder / "train.jsonl").write_text("mine", encoding="utf-8")
    refused = cli("demo", "--data-to", folder, code=2)
    assert "train.jsonl exists already" in refused.stderr
    assert (folder / "train.jsonl").read_text(encoding="utf-8") == "mine"
