"""Memory and rate of ``bayestune predict`` on files of growing length, by format.

    python bench/stream_files.py RUN [--rows 50000 1000000] [--folder /tmp] [--ray 2]

Each prediction runs in a process of its own, whose largest resident memory the system reports.
With ``--ray`` so many workers predict, and the resident memory of all processes is read four times
a second: of the command, of the largest worker, and of all of them with what Ray starts beside
them (pages that they share count for each). What was read of the parts is checked: every row once.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet

TEXTS = ("where is my parcel", "i cannot login today", "refund the charge please", "help")


def write(path: Path, rows: int) -> None:
    """Write short rows; Parquet as one row group, the worst case for reading it in pieces."""
    texts = [f"{TEXTS[i % len(TEXTS)]} {i % 1000}" for i in range(rows)]
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, row_group_size=rows)
        return
    with path.open("w") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)


def measured(run: str, source: Path, out: Path) -> tuple[float, float]:
    """Return seconds and the peak memory in MB of one prediction."""
    code = "import resource, sys; from bayestune.cli.app import app; sys.argv[0] = 'bayestune'\n"
    code += "try: app()\nexcept SystemExit as e: status = e.code\n"
    code += "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(status)"
    command = [sys.executable, "-c", code, "predict", run, str(source), "--out", str(out)]
    start = time.monotonic()
    done = subprocess.run(
        [*command, "--batch-size", "256"], capture_output=True, text=True, check=True
    )
    peak = int(done.stdout.split("peak ")[1])  # kilobytes on Linux
    return time.monotonic() - start, peak / 1024


def by_ray(run: str, source: Path, out: Path, workers: int) -> tuple[float, dict[str, float]]:
    """Return seconds and the peak memory in MB by kind of process of one job of Ray's workers."""
    command = [sys.executable, "-m", "bayestune.cli", "predict", run, str(source)]
    options = f"--engine ray -n {workers} --batch-size 256 --parts {source.suffix[1:]}".split()
    start = time.monotonic()
    job = psutil.Popen([*command, "--out", str(out), *options], stderr=subprocess.DEVNULL)
    peak = {"command": 0.0, "largest worker": 0.0, "all": 0.0}
    while job.poll() is None:
        for kind, memory in _resident(job).items():
            peak[kind] = max(peak[kind], memory / 2**20)
        time.sleep(0.25)
    if job.returncode:
        raise SystemExit(f"the job ended with {job.returncode}")
    return time.monotonic() - start, peak


def _resident(job: psutil.Process) -> dict[str, float]:
    found = {"command": 0.0, "largest worker": 0.0, "all": 0.0}
    for process in _tree(job):
        try:
            memory, title = process.memory_info().rss, " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        found["all"] += memory
        if process.pid == job.pid:
            found["command"] = memory
        elif title.startswith("ray::") and "MapBatches" in title:
            found["largest worker"] = max(found["largest worker"], memory)
    return found


def _tree(job: psutil.Process) -> list[psutil.Process]:
    try:
        return [job, *job.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def each_once(out: Path, rows: int) -> None:
    """Read all parts; raise unless they hold every row exactly once, in the file's order."""
    expected = 0
    for part in sorted(p for p in out.iterdir() if p.name.startswith("part-")):
        for identity in _ids(part):
            if int(identity) != expected + 1:
                raise SystemExit(f"{part}: row {identity} follows {expected}")
            expected += 1
    if expected != rows:
        raise SystemExit(f"{expected} of {rows} rows are there")


def _ids(part: Path) -> Iterable[str]:
    if part.suffix == ".parquet":
        return pyarrow.parquet.read_table(part, columns=["id"])["id"].to_pylist()
    if part.suffix == ".jsonl":
        with part.open() as stream:
            return [json.loads(line)["id"] for line in stream]
    return ()  # the note beside a part


def main() -> None:
    """Print a line for each format and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path("/tmp"))
    parser.add_argument("--ray", type=int, metavar="N", help="workers of Ray")
    given = parser.parse_args()
    for suffix in (".jsonl", ".parquet"):
        for rows in given.rows:
            source, out = given.folder / f"rows{suffix}", given.folder / f"predictions{suffix}"
            write(source, rows)
            size = source.stat().st_size / 1e6
            if given.ray:
                seconds, peak = by_ray(given.run, source, out, given.ray)
                each_once(out, rows)
                memory = ", ".join(f"{kind} {value:.0f} MB" for kind, value in peak.items())
                print(f"{suffix} {rows} rows: {seconds:.0f} s, {memory}", flush=True)
                shutil.rmtree(out)
            else:
                seconds, alone = measured(given.run, source, out)
                print(
                    f"{suffix} {rows} rows: {seconds:.0f} s, peak {alone:.0f} MB "
                    f"(in {size:.0f} MB, out {out.stat().st_size / 1e6:.0f} MB)",
                    flush=True,
                )
                out.unlink()
            source.unlink()


if __name__ == "__main__":
    main()
