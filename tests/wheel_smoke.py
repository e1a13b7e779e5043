"""What an installed wheel must do, with nothing of the checkout on its path: `make wheel-test`.

Trains on a tiny model, evaluates, calibrates and predicts by the command line, and looks for the
files that are no modules: the marker of types, recipes, suites, a report's page, data.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from tiny_bases import save_llama
from toy_tasks import topic_rows

import bayestune
from bayestune.data.quickstart import QUICKSTART_FILES

PACKAGE = Path(bayestune.__file__).parent
FILES = (
    "py.typed",
    "recipes/polar_vbll.yaml",
    "bench/suites/smoke.yaml",
    "report/page/page.html",
    *(f"data/quickstart/{name}" for name in QUICKSTART_FILES),
)


def run(*arguments: object, given: str = "") -> str:
    """Return what the installed command prints."""
    command = [str(Path(sys.executable).with_name("bayestune")), *map(str, arguments)]
    return subprocess.run(command, input=given, check=True, text=True, stdout=-1).stdout


def main() -> None:
    """Fail with a traceback where something is not as an installed package has it."""
    assert "site-packages" in PACKAGE.parts, f"{PACKAGE} is not an installed package"
    missing = [name for name in FILES if not (PACKAGE / name).is_file()]
    assert not missing, f"the wheel lacks {missing}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, part in enumerate(("train", "test", "cal")):
            rows = "\n".join(json.dumps(row) for row in topic_rows(120, number))
            (folder / f"{part}.jsonl").write_text(rows, encoding="utf-8")
        base, out = save_llama(folder / "base"), folder / "run"
        run("train", "--model", base, "--data", folder / "train.jsonl", "--out", out,
            "rank=4", "layers=top:2", "kl=1", "epochs=4", "head_lr=0.05")  # fmt: skip
        found = json.loads(run("eval", out, "--data", folder / "test.jsonl", "--json"))
        assert found["accuracy"] > 0.8, found
        run("calibrate", out, "--data", folder / "cal.jsonl", "--coverage", 0.9)
        row = json.loads(run("predict", out, given='{"text": "find my parcel"}'))
        assert row["label"] == "parcel" and "parcel" in row["set"], row
    print(f"{PACKAGE}: trained, measured, calibrated, predicted")


if __name__ == "__main__":
    main()
