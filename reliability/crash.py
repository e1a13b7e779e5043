"""Crash safety: processes are killed, stopped and starved, and nothing is lost, doubled or changed.

``train`` is compared with an uninterrupted run byte by byte: weights, posterior and metrics in the
run's folder, and the last checkpoint, which holds the optimisers and the random state; `bench` by
its cells without their seconds; `predict` by its file.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from reliability.faults import Ended, Fault
from reliability.faults import run as process
from reliability.places import contents, differing, prepare, small_suite, timeless

#: What a training is asked for besides; dropout, so that random numbers matter.
TRAIN = ("rank=4", "layers=top:2", "epochs=3", "head_lr=0.05", "dropout=0.1")
#: Trainings by name: with a race of KL weights, random weights, members in turn, averages of steps.
TRAININGS = {
    "polar_vbll": ("--method", "polar_vbll"),
    "blob": ("--method", "blob", "kl=0.1"),
    "ensemble": ("--method", "ensemble", "weights.members=2"),
    "ivon": ("--method", "ivon", "kl=1"),
}
#: How many of each fault.
COUNTS = {
    "ci": {"kills": 3, "late": 0, "full": 1, "signals": 2, "bench": 0, "predict": 0},
    "full": {"kills": 40, "late": 12, "full": 12, "signals": 8, "bench": 8, "predict": 8},
}


@dataclass
class Harness:
    """Runs that are broken off, and one of each kind that is not.

    Attributes:
        folder: where everything lies.
        counts: what was survived, by name.
        failures: what was not, in words.
        rng: chooses moments.
    """

    folder: Path
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    rng: random.Random = field(default_factory=lambda: random.Random(0))

    def __post_init__(self) -> None:
        self.files = prepare(self.folder)
        self.whole: dict[str, tuple[Ended, dict[str, bytes]]] = {}
        self._number = 0

    def place(self) -> Path:
        """Return a new name for a folder."""
        self._number += 1
        return self.folder / f"run{self._number}"

    def count(self, name: str) -> None:
        """Count one more."""
        self.counts[name] = self.counts.get(name, 0) + 1
        print(f"{name}: {self.counts[name]}", file=sys.stderr, flush=True)

    def expect(self, right: bool, what: str, ended: Ended | None = None) -> None:
        """Note what is not as it should be, with the last words of the process."""
        if not right:
            words = "" if ended is None else f" (status {ended.status}): {ended.said[-300:]}"
            self.failures.append(what + words)
            print(f"FAILED: {self.failures[-1]}", file=sys.stderr, flush=True)

    def arguments(self, name: str, out: Path) -> list[str]:
        """Return the command of a training."""
        data = ["--model", str(self.files["base"]), "--data", str(self.files["train"])]
        return ["train", *data, *TRAININGS[name], *TRAIN, "--out", str(out)]

    def train(self, name: str, out: Path, *more: str, fault: Fault | None = None) -> Ended:
        """Run a training; its last checkpoint is kept beside it."""
        state = out.with_name(f"{out.name}.state")
        return process([*self.arguments(name, out), *more], out, fault, lambda: keep_last(state))

    def uninterrupted(self, name: str) -> tuple[Ended, dict[str, bytes]]:
        """Return how a whole training ended, and its files."""
        if name not in self.whole:
            out = self.place()
            ended = self.train(name, out)
            assert ended.status == 0, f"{name} does not train: {ended.said}"
            self.whole[name] = ended, everything(out)
        return self.whole[name]

    def resume(self, name: str, out: Path, what: str, fault: Fault | None = None) -> None:
        """Go on until a training is complete, and compare it with the whole one."""
        ended = self.train(name, out, "--resume", fault=fault)
        if fault is not None and ended.status == -9:
            self.count("kills")
            ended = self.train(name, out, "--resume")
        complete = ended.status == 0 or "holds a finished run" in ended.said
        self.expect(complete, f"{what}: not resumed", ended)
        wrong = differing(everything(out), self.uninterrupted(name)[1])
        self.expect(not wrong, f"{what}: {', '.join(wrong[:4])} differ")
        self.discard(out)

    def discard(self, out: Path) -> None:
        """Remove a run that was looked at."""
        for path in (out, out.with_name(f"{out.name}.state")):
            shutil.rmtree(path, ignore_errors=True)


def keep_last(state: Path) -> None:
    """Copy the last checkpoint of this process's training to where it is not removed."""
    from bayestune.training.run import CHECKPOINT, Journal

    close = Journal.close

    def closing(self: Journal) -> None:
        assert self.out is not None
        shutil.copytree(self.out / CHECKPOINT, state, dirs_exist_ok=True)
        close(self)

    Journal.close = closing  # in the forked process alone


def everything(out: Path) -> dict[str, bytes]:
    """Return the files of a run and of its last checkpoint."""
    state = contents(out.with_name(f"{out.name}.state"))
    return contents(out) | {f"checkpoint/{name}": content for name, content in state.items()}


def kills(at: Harness, count: int, late: int) -> None:
    """SIGKILL at chosen file operations, at moments, and again while going on."""
    names = list(TRAININGS) if count > 3 else ["polar_vbll"]
    for i in range(count + late):
        name = names[i % len(names)]
        whole = at.uninterrupted(name)[0]
        operations = len(whole.changes)
        if i < count:
            # Spread over the whole run, the saves at its end included.
            share = (i + at.rng.random()) / count
            fault = Fault("kill", at=1 + int(share * operations))
            after = whole.changes[min(fault.at, operations) - 1].split("/")[0].strip()
            what = f"{name} killed at operation {fault.at} ({after})"
        else:
            fault = Fault("kill", after=at.rng.uniform(0.05, 0.95) * whole.seconds)
            what = f"{name} killed after {fault.after:.2f} s"
        out = at.place()
        ended = at.train(name, out, fault=fault)
        if ended.status != -9:
            at.expect(ended.status == 0, f"{what}: ended otherwise", ended)
            at.discard(out)
            continue
        at.count("kills" if i < count else "kills at any moment")
        if i < count and ".new" in whole.changes[fault.at - 1]:
            at.count("kills inside a save")
        loadable(at, out, what)
        again = at.rng.random() < 0.4
        second = Fault("kill", at=1 + int(at.rng.random() * operations * 0.6)) if again else None
        at.resume(name, out, what, second)


def loadable(at: Harness, out: Path, what: str) -> None:
    """Look whether the last good checkpoint can be loaded after a kill."""
    from bayestune.errors import StoreError
    from bayestune.files import recover
    from bayestune.training.checkpoint import load_checkpoint

    for folder in (out / "checkpoint", *(out / "race").glob("[!.]*")):
        recover(folder)
        if folder.is_dir():
            try:
                load_checkpoint(folder)
                at.count("checkpoints loaded after a kill")
            except StoreError as error:
                at.expect(False, f"{what}: {error}")


def starved(at: Harness, count: int) -> None:
    """A disk that is full from some operation on, files that may not grow, places not to write."""
    name = "polar_vbll"
    for i in range(count):
        whole = at.uninterrupted(name)[0]
        if i % 4 == 3:
            fault = Fault("limit", at=at.rng.choice([200, 2_000, 20_000, 40_000]))
        else:
            fault = Fault("full", at=1 + int((i + at.rng.random()) / count * len(whole.changes)))
        out, what = at.place(), f"{name}, {fault}"
        ended = at.train(name, out, fault=fault)
        if ended.status == 0:  # nothing was written after it
            at.discard(out)
            continue
        refused(at, ended, what)
        at.count("full disks")
        at.resume(name, out, what)
    out = at.place()
    out.mkdir(mode=0o555)
    refused(at, at.train(name, out, fault=Fault("denied")), "train in a read-only folder")
    at.expect(not any(out.iterdir()), "train wrote into a read-only folder")
    at.count("read-only folders")


def refused(at: Harness, ended: Ended, what: str) -> None:
    """Look whether a command ended with one sentence and status 2."""
    last = (ended.said.strip().splitlines() or [""])[-1]
    at.expect(ended.status == 2 and last.startswith("bayestune: "), f"{what}: not refused", ended)
    at.expect("Traceback" not in ended.said, f"{what}: a traceback", ended)


def signals(at: Harness, count: int) -> None:
    """Ctrl-C and SIGTERM, at operations and moments."""
    name = "polar_vbll"
    whole = at.uninterrupted(name)[0]
    for i in range(count):
        kind, expected = (("int", 130), ("term", 143))[i % 2]
        fault = Fault(kind, after=at.rng.uniform(0.2, 0.8) * whole.seconds)
        if i % 4 < 2:
            share = (i + at.rng.random()) / count
            fault = Fault(kind, at=1 + int(share * len(whole.changes)))
        out, what = at.place(), f"{name}, {fault}"
        ended = at.train(name, out, fault=fault)
        if ended.status == 0:
            at.discard(out)
            continue
        at.expect(ended.status == expected, f"{what}: another status", ended)
        at.expect("Traceback" not in ended.said, f"{what}: a traceback", ended)
        at.count(f"signals answered by {expected}")
        at.resume(name, out, what)


def benchmark(at: Harness, count: int) -> None:
    """A benchmark that is killed and started again has every cell once, with the same numbers."""
    suite = small_suite(at.folder, at.files)

    def command(out: Path) -> list[str]:
        return ["bench", str(suite), "--data", str(at.folder), "--out", str(out)]

    out = at.place()
    whole = process(command(out), out)
    at.expect(whole.status == 0, "bench does not run", whole)
    expected = timeless(contents(out))
    for i in range(count):
        out = at.place()
        fault = Fault("kill", at=1 + int((i + at.rng.random()) / count * len(whole.changes)))
        ended = process(command(out), out, fault)
        at.expect(ended.status == -9, f"bench, {fault}: was not killed", ended)
        ended = process(command(out), out)
        at.expect(ended.status == 0, f"bench, {fault}: does not go on", ended)
        wrong = differing(timeless(contents(out)), expected)
        at.expect(not wrong, f"bench, {fault}: {', '.join(wrong[:4])} differ")
        at.count("kills of bench")
        shutil.rmtree(out, ignore_errors=True)
    out = at.place()
    out.mkdir(mode=0o555)
    refused(at, process(command(out), out, Fault("denied")), "bench in a read-only folder")
    at.count("read-only folders")


def predictions(at: Harness, count: int) -> None:
    """An --out is whole or as it was; with --resume a killed prediction goes on from it."""
    run = at.place()
    at.expect(at.train("polar_vbll", run).status == 0, "there is no run to predict with")
    inside = at.folder / "predictions"
    inside.mkdir()
    out, rows = inside / "found.jsonl", str(at.files["many"])

    def predict(*more: str, fault: Fault | None = None) -> Ended:
        command = ["predict", str(run), rows, "--out", str(out), "--batch-size", "4", *more]
        return process(command, inside, fault)

    once = predict()
    expected = contents(inside)
    at.expect(once.status == 0 and len(expected) == 1, "predict does not run", once)
    ended = predict(fault=Fault("kill", after=0.7 * once.seconds))
    at.expect(contents(inside)["found.jsonl"] == expected["found.jsonl"], "predict lost its file")
    for leftover in inside.glob(".*"):
        leftover.unlink()
    out.unlink()
    whole = predict("--resume")
    at.expect(whole.status == 0, "predict --resume does not run", whole)
    at.expect(contents(inside) == expected, "predict --resume writes something else")
    for i in range(count):
        out.unlink(missing_ok=True)
        fault = Fault("kill", at=1 + int((i + at.rng.random()) / count * len(whole.changes)))
        ended = predict("--resume", fault=fault)
        at.expect(ended.status == -9, f"predict, {fault}: was not killed", ended)
        ended = predict("--resume")
        at.expect(ended.status == 0, f"predict, {fault}: does not go on", ended)
        at.expect(
            contents(inside).get("found.jsonl") == expected["found.jsonl"],
            f"predict, {fault}: lost or doubled rows",
        )
        at.count("kills of predict")
        for leftover in inside.glob(".*"):
            leftover.unlink()
    for kind, status in (("int", 130), ("term", 143)):
        out.unlink(missing_ok=True)
        ended = predict(fault=Fault(kind, after=0.6 * once.seconds))
        if ended.status:
            at.expect(ended.status == status, f"predict, {kind}: another status", ended)
            at.expect(not contents(inside), f"predict, {kind}: something is left")
            at.count(f"signals answered by {status}")
    predict()
    inside.chmod(0o555)
    refused(at, predict(fault=Fault("denied")), "predict in a read-only folder")
    inside.chmod(0o755)
    at.expect(contents(inside) == expected, "predict changed a read-only folder")
    at.count("read-only folders")


STAGES: tuple[Callable[[Harness, dict[str, int]], None], ...] = (
    lambda at, n: kills(at, n["kills"], n["late"]),
    lambda at, n: starved(at, n["full"]),
    lambda at, n: signals(at, n["signals"]),
    lambda at, n: benchmark(at, n["bench"]) if n["bench"] else None,
    lambda at, n: predictions(at, n["predict"]) if n["predict"] else None,
)


def run(budget: str) -> dict[str, int | float | str]:
    """Break processes off and count what was survived.

    Args:
        budget: ``ci`` or ``full``.

    Raises:
        AssertionError: if anything was lost, doubled or changed, naming all of it.
    """
    with tempfile.TemporaryDirectory(prefix="bayestune-crash-") as folder:
        Path(folder).chmod(0o755)  # one stage is not root
        harness = Harness(Path(folder))
        for stage in STAGES:
            stage(harness, COUNTS[budget])
    assert not harness.failures, "\n".join(harness.failures)
    return dict(sorted(harness.counts.items()))
