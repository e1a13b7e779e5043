"""Folders of runs, damaged by accident or made with intent."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import bayestune as bt
from bayestune.files import checksum
from bayestune.serve import Runs
from bayestune.store import recipe_of, save_guarantees, save_update
from bayestune.store.manifest import digest_of
from reliability.cases.damage import BOMBS, cut, exchange, flip, insert, noise, respell
from reliability.cases.harness import must, snapshot
from reliability.cases.world import World, answers

_WEIGHTS = ("adapter_model.safetensors", "posterior.safetensors")
_SECRET = b"what lies outside a run's folder is nobody's business\n"
_NAMES = (
    "../outside/secret",
    "/etc/hostname",
    "a/../../outside/secret",
    "..",
    ".",
    "",
    "\x00",
    "C:\\x",
)


class Folders:
    """Copies of a calibrated and measured run, each with one thing wrong."""

    name, title = "folders", "run folders"

    def __init__(self, folder: Path, world: World) -> None:
        self.world, self.model = world, folder / "run" / "model"
        self.outside = folder / "outside"
        self.outside.mkdir()
        (self.outside / "secret").write_bytes(_SECRET)

    def case(self, rng: random.Random) -> bool:
        """Damage a copy, use it, and look at what came of it and of all around it."""
        shutil.rmtree(self.model.parent, ignore_errors=True)
        shutil.copytree(self.world.run, self.model.parent)
        honest = rng.random() < 0.5
        leads = rng.choice(_ACCIDENTS if honest else _INTENTS)(self, rng)
        before, around = snapshot(self.model.parent), snapshot(self.outside)
        use = rng.choice((self._load, self._load, self._load, self._serve, self._write))
        try:
            model = use(rng)
        except Exception:
            # What was made with intent may stop a write between two files, each of them whole.
            must(
                (use == self._write and not honest) or snapshot(self.model.parent) == before,
                "a refusal left other bytes behind",
            )
            raise
        finally:
            must(snapshot(self.outside) == around, "something was written outside")
        followed = leads == "link" or (leads == "name" and use != self._write)
        must(not followed, "what leads outside the folder was followed")
        if model is not None:
            must(use == self._write or snapshot(self.model.parent) == before, "reading wrote")
            found = answers(model)
            if honest and use != self._write:
                rules = (
                    model.guarantees is not None or not (self.model / "guarantees.json").exists()
                )
                same = found[:, :5].equal(self.world.answers[:, :5])
                must(same and rules, "another model, and nobody said so")
            must(bool(torch.isfinite(found).all()), "answers that are no numbers")
        return True

    # what is done with it

    def _load(self, rng: random.Random) -> Any:
        return bt.load(rng.choice((self.model, self.model.parent)))

    def _serve(self, rng: random.Random) -> Any:
        (served,) = Runs([str(self.model.parent)])
        must(_SECRET.decode().strip() not in served.card, "the card tells a secret")
        json.dumps(served.describe())
        return served.model

    def _write(self, rng: random.Random) -> Any:
        kind = rng.randrange(3)
        if kind == 0:
            save_guarantees(self.world.model, self.model)
        elif kind == 1:
            recipe_of(self.model)
        else:
            out = self.model.parent.parent / "updated"
            shutil.rmtree(out, ignore_errors=True)
            save_update(self.world.model, self.model, out)
            must(not any(p.is_symlink() for p in out.rglob("*")), "a link was copied")
            for file in out.rglob("*"):
                must(not file.is_file() or _SECRET not in file.read_bytes(), "a secret was copied")
        return None

    # accidents: nothing is made consistent again

    def _spoil(self, rng: random.Random) -> str:
        file = self._any(rng)
        file.write_bytes(
            rng.choice((flip, flip, flip, cut, insert, exchange, noise))(rng, file.read_bytes())
        )
        return ""

    def _remove(self, rng: random.Random) -> str:
        self._any(rng).unlink()
        return ""

    def _swap(self, rng: random.Random) -> str:
        """Exchange two files, or take one of another run."""
        one, two = self._any(rng), self._any(rng)
        if rng.random() < 0.5:
            shutil.copyfile(self.world.other / "model" / one.name, one)
        else:
            first, second = one.read_bytes(), two.read_bytes()
            one.write_bytes(second)
            two.write_bytes(first)
        return ""

    def _no_file(self, rng: random.Random) -> str:
        """Put a folder, a pipe or a link to nothing in the place of a file."""
        file = self._any(rng)
        file.unlink()
        kind = rng.randrange(4)
        if kind == 0:
            file.mkdir()
        elif kind == 1:
            os.mkfifo(file)
        else:
            file.symlink_to("nothing" if kind == 2 else file.name)
        return ""

    # intent: checksums and digest fit

    def _link(self, rng: random.Random) -> str:
        """Put a link outside in the place of a file, of which another file may be a part."""
        file = self._any(rng)
        target = self.outside / "secret"
        if rng.random() < 0.5:
            target = self.outside / file.name
            shutil.copyfile(file, target)
        file.unlink()
        file.symlink_to(rng.choice((str(target), os.path.relpath(target, file.parent))))
        return "link"

    def _bomb(self, rng: random.Random) -> str:
        names = ("bayestune.json", "guarantees.json", "evaluation.json", "adapter_config.json")
        (self.model / rng.choice(names)).write_bytes(rng.choice(BOMBS))
        if rng.random() < 0.5:
            self._describe()
        return ""

    def _name(self, rng: random.Random) -> str:
        """Name a file outside among the checksums; its own sum fits where there is one."""
        name = rng.choice(_NAMES)
        secret = checksum(self.outside / "secret")
        self._describe(lambda data: data["checksums"].update({name: secret}))
        return "name"

    def _respell(self, rng: random.Random) -> str:
        """Change one value of a description, a rule or a measurement."""
        name = rng.choice(
            ("bayestune.json", "bayestune.json", "guarantees.json", "evaluation.json")
        )
        file = self.model / name
        data = respell(rng, json.loads(file.read_text()))
        if isinstance(data, dict) and rng.random() < 0.9:
            data["digest"] = digest_of(data)
        file.write_text(json.dumps(data))
        return ""

    def _header(self, rng: random.Random) -> str:
        """Give a safetensors file a header that lies about itself."""
        file = self.model / rng.choice(_WEIGHTS)
        data = file.read_bytes()
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
        kind = rng.randrange(4)
        if kind == 0:
            data = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1))) + data[8:]
        elif kind == 1:
            body = rng.choice(BOMBS)
            data = struct.pack("<Q", len(body)) + body + data[8 + size :]
        else:
            body = json.dumps(respell(rng, header)).encode()
            data = struct.pack("<Q", len(body)) + body + data[8 + size :]
        file.write_bytes(data)
        self._describe()
        return ""

    def _tensor(self, rng: random.Random) -> str:
        """Change a tensor's shape, type or name, or take it out."""
        file = self.model / rng.choice(_WEIGHTS)
        tensors = {name: t.clone() for name, t in load_file(file).items()}
        name = rng.choice(sorted(tensors))
        tensor = tensors.pop(name)
        change = rng.choice(_CHANGES)
        if change is not None:
            tensors[rng.choice((name, name, name, "extra", "../x", ""))] = change(
                tensor
            ).contiguous()
        save_file(tensors, file, {"format": "pt"})
        self._describe()
        return ""

    def _any(self, rng: random.Random) -> Path:
        return rng.choice(sorted(file for file in self.model.iterdir() if file.is_file()))

    def _describe(self, change: Callable[[dict[str, Any]], Any] = lambda data: None) -> None:
        """Make checksums and digest fit, where there is still a description."""
        file = self.model / "bayestune.json"
        try:
            data = json.loads(file.read_text())
            data["checksums"] = {name: checksum(self.model / name) for name in data["checksums"]}
        except (ValueError, KeyError, TypeError, RecursionError):
            return
        change(data)
        file.write_text(json.dumps({**data, "digest": digest_of(data)}))


_CHANGES: tuple[Callable[[torch.Tensor], torch.Tensor] | None, ...] = (
    None,
    lambda t: t.T if t.ndim == 2 else t[None],
    lambda t: t.reshape(-1)[:1],
    lambda t: t[..., None],
    lambda t: torch.zeros(0),
    lambda t: t.double(),
    lambda t: t.half(),
    lambda t: t.to(torch.int64),
    lambda t: t.bool(),
    lambda t: torch.full_like(t, torch.nan) if t.is_floating_point() else t,
    lambda t: torch.full_like(t, torch.inf) if t.is_floating_point() else t,
)
_ACCIDENTS = (
    Folders._spoil,
    Folders._spoil,
    Folders._spoil,
    Folders._remove,
    Folders._swap,
    Folders._no_file,
)
_INTENTS = (
    *(Folders._link, Folders._bomb, Folders._name, Folders._respell, Folders._respell),
    *(Folders._header, Folders._tensor),
)
