"""Whether vLLM predicts what bayestune does: the plug-in's and the client's answers, end to end.

For a machine with a GPU, in an environment where ``pip install 'bayestune[vllm]'`` was run. Exports
a run, starts ``vllm serve`` by the very command of the export's README, asks ``POST /pooling`` and
``/v1/embeddings``, and compares with ``bayestune predict`` of the same rows. Also what must be
refused: the base without its adapter, and cut prompts. Exit code 1 where a probability differs by
more than ``--tolerance`` or something is not refused.

    python bench/vllm_check.py RUN ROWS.jsonl [--tolerance 0.02] [--port 8123] [-- VLLM OPTIONS]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bayestune.serve import VllmClient

BATCH = 32


def bayestune(*arguments: object) -> str:
    """Run a verb in a process of its own, so that its memory is free again afterwards."""
    command = [sys.executable, "-m", "bayestune.cli", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def command_of(folder: Path) -> tuple[dict[str, str], list[str]]:
    """Return the environment and the command of an export's README."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", card, re.DOTALL)
    parts = shlex.split(blocks[0].replace("PATH/", f"{folder}/").replace("=PATH ", f"={folder} "))
    start = parts.index("vllm")
    return dict(part.split("=", 1) for part in parts[:start]), parts[start:]


@contextmanager
def server(folder: Path, port: int, options: list[str], seconds: float) -> Iterator[str]:
    """Serve an export; yields the address once it answers."""
    environment, command = command_of(folder)
    command += ["--port", str(port), *options]
    print(shlex.join(command), flush=True)
    process = subprocess.Popen(command, env={**os.environ, **environment})
    try:
        end = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except OSError as error:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit("vllm serve did not start; see its log above") from error
                time.sleep(2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def post(url: str, body: dict[str, Any], request: str = "same") -> Any:
    """Send JSON; all requests bear one id, so that the plug-in has to tell them apart."""
    headers = {"Content-Type": "application/json", "X-Request-Id": request}
    asked = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=600) as response:
        return json.load(response)


def plugin(url: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the plug-in's predictions; eight requests at a time."""
    parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    bodies = [{"model": "bayes", "data": {"inputs": part}} for part in parts]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda body: post(f"{url}/pooling", body), bodies))
    return [line for answer in answers for line in answer["data"]["predictions"]]


def refused(url: str, name: str, body: dict[str, Any]) -> bool:
    """Return whether a request gets a 400."""
    try:
        post(f"{url}/pooling", body, "refused")
    except urllib.error.HTTPError as error:
        with error:
            words = error.read().decode(errors="replace")
        print(f"{name}: {error.code} {words[:200]}")
        return error.code == 400
    print(f"{name}: answered, which it must not be")
    return False


def largest(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> dict[str, float]:
    """Return the largest difference of every number, and the share of labels that agree."""
    gaps: dict[str, float] = {}
    for line, one in zip(found, wanted, strict=True):
        for key in one.keys() & {"entropy", "aleatoric", "epistemic", "ood_score", "mean", "std"}:
            gaps[key] = max(gaps.get(key, 0.0), abs(line[key] - one[key]))
        for name, p in one.get("probs", {}).items():
            gaps["probs"] = max(gaps.get("probs", 0.0), abs(line["probs"][name] - p))
    if wanted and "label" in wanted[0]:
        pairs = zip(found, wanted, strict=True)
        gaps["labels equal"] = sum(a["label"] == b["label"] for a, b in pairs) / len(wanted)
    return gaps


def main() -> int:
    """Print the largest differences; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("rows")
    parser.add_argument("--tolerance", type=float, default=0.02)
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--start-seconds", type=float, default=900)
    parser.add_argument("options", nargs="*", help="of vllm serve, after --")
    given = parser.parse_args()
    lines = Path(given.rows).read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    wanted = [json.loads(line) for line in bayestune("predict", given.run, given.rows).splitlines()]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "export"
        bayestune("export", given.run, "--to", "vllm", "--out", folder)
        with server(folder, given.port, given.options, given.start_seconds) as url:
            served = plugin(url, rows)
            prediction = VllmClient(url, folder).predict(rows)
            asked = list(prediction.rows([line["id"] for line in wanted]))
            data = {"inputs": rows[:2]}
            base = command_of(folder)[1][2]
            fine = [
                refused(url, "without adapter", {"model": base, "data": data}),
                refused(url, "cut", {"model": "bayes", "data": data, "truncate_prompt_tokens": 3}),
            ]
    for name, pair in (
        ("plug-in, bayestune predict", (served, wanted)),
        ("client, bayestune predict", (asked, wanted)),
        ("plug-in, client", (served, asked)),
    ):
        gaps = largest(*pair)
        print(f"{name:28}", *(f"{key} {gap:.3g}" for key, gap in sorted(gaps.items())))
        fine.append(gaps.get("probs", gaps.get("mean", 0.0)) <= given.tolerance)
    print("fine" if all(fine) else "not fine")
    return 0 if all(fine) else 1


if __name__ == "__main__":
    sys.exit(main())
