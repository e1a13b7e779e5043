"""Memory and rate of ``bayestune predict`` on files of growing length, by format.

    python bench/stream_files.py RUN [--rows 50000 1000000] [--folder /tmp]

Each prediction runs in a process of its own, whose largest resident memory the system reports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

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


def main() -> None:
    """Print a line for each format and length."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 1_000_000])
    parser.add_argument("--folder", type=Path, default=Path("/tmp"))
    given = parser.parse_args()
    for suffix in (".jsonl", ".parquet"):
        for rows in given.rows:
            source, out = given.folder / f"rows{suffix}", given.folder / f"predictions{suffix}"
            write(source, rows)
            seconds, peak = measured(given.run, source, out)
            size = source.stat().st_size / 1e6, out.stat().st_size / 1e6
            print(
                f"{suffix} {rows} rows: {seconds:.0f} s, peak {peak:.0f} MB "
                f"(in {size[0]:.0f} MB, out {size[1]:.0f} MB)",
                flush=True,
            )
            source.unlink()
            out.unlink()


if __name__ == "__main__":
    main()
