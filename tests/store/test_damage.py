"""Damaged, incomplete and foreign folders: one clear sentence, never a fresh head."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bases import save_llama
from torch import Tensor

from bayestune.errors import BayestuneError, ModelError, StoreError
from bayestune.files import checksum
from bayestune.store import load
from bayestune.store.manifest import digest_of

PARTS = ["adapter_model.safetensors", "posterior.safetensors", "adapter_config.json"]


def describe(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda data: None) -> None:
    """Change the description and make it consistent again, as an attacker or an editor would."""
    file = folder / "bayestune.json"
    data = json.loads(file.read_text())
    data["checksums"] = {name: checksum(folder / name) for name in data["checksums"]}
    change(data)
    file.write_text(json.dumps({**data, "digest": digest_of(data)}))


def retensor(folder: Path, name: str, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the tensors of a file, its checksum too."""
    tensors = {key: value.clone() for key, value in load_file(folder / name).items()}
    change(tensors)
    save_file(tensors, folder / name, {"format": "pt"})
    describe(folder)


# files ------------------------------------------------------------------------------------------


def test_an_undamaged_copy_loads(copied) -> None:
    folder = copied()
    describe(folder)
    assert load(folder).labels.names == ("login", "parcel", "refund")


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped", "other"])
def test_a_damaged_part_is_named(copied, name, damage) -> None:
    folder = copied()
    file = folder / name
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "truncated":
        file.write_bytes(content[:-1])
    elif damage == "flipped":
        spoilt = bytearray(content)
        spoilt[-20] ^= 4
        file.write_bytes(spoilt)
    else:
        file.write_bytes(random.Random(0).randbytes(len(content)))
    expected = "is missing" if damage == "missing" else "is damaged or was changed"
    with pytest.raises(StoreError, match=rf"{name} {expected}"):
        load(folder)


def test_every_flipped_byte_of_the_description_is_noticed(copied) -> None:
    file = copied() / "bayestune.json"
    content = file.read_bytes()
    for position in range(0, len(content), 23):
        spoilt = bytearray(content)
        spoilt[position] ^= 1
        # The 17th digit of a number may read as the same number.
        with suppress(ValueError):
            if json.loads(spoilt) == json.loads(content):
                continue
        file.write_bytes(spoilt)
        with pytest.raises(StoreError, match=r"bayestune\.json"):
            load(file.parent)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b'{"format": 1}', b"\x80\x04K\x01."]
)
def test_a_description_that_is_none_is_refused(copied, content) -> None:
    folder = copied()
    (folder / "bayestune.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"bayestune\.json"):
        load(folder)


@pytest.mark.parametrize("found", [0, 2, "1", None])
def test_another_format_says_which_version_wrote_it(copied, found) -> None:
    folder = copied()
    describe(folder, lambda data: data.update(format=found))
    with pytest.raises(
        StoreError,
        match=rf"has format {found!r}; this version reads 1\. Install the bayestune",
    ):
        load(folder)


@pytest.mark.parametrize(
    "key", ["recipe", "task", "base", "head", "checksums", "base.fingerprint", "head.kind"]
)
def test_a_description_without_a_part_is_refused(copied, key) -> None:
    def remove(data: dict[str, Any]) -> None:
        *sections, leaf = key.split(".")
        for section in sections:
            data = data[section]
        del data[leaf]

    folder = copied()
    describe(folder, remove)
    with pytest.raises(StoreError, match=r"another version of bayestune .* is missing or wrong"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"recipe": {"adapter": {"rnk": 1}}},
            r"another version .*unknown key adapter\.rnk.*'rank'",
        ),
        ({"recipe": {"method": "magic"}}, r"There is no method 'magic'"),
        ({"recipe": 3}, r"is missing or wrong"),
        ({"task": {"kind": "poem"}}, r"schema has no 'fields'"),
        ({"task": []}, r"is missing or wrong"),
        ({"head": None}, r"is missing or wrong"),
        ({"head": {"kind": "TreeHead"}}, r"TreeHead"),
        ({"checksums": []}, r"is missing or wrong"),
        ({"checksums": {}}, r"is damaged or was changed"),
        ({"checksums": {"posterior.safetensors": 5}}, r"is damaged or was changed"),
    ],
)
def test_a_description_of_something_else_is_refused(copied, change, message) -> None:
    folder = copied()
    describe(folder, lambda data: data.update(change))
    with pytest.raises(BayestuneError, match=message):
        load(folder)


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", "tokenizer/../../x"])
def test_a_checksum_of_a_file_outside_is_refused(copied, name) -> None:
    folder = copied()
    (folder.parent / "x").write_text("there")
    describe(folder, lambda data: data["checksums"].update({name: checksum(folder.parent / "x")}))
    with pytest.raises(StoreError, match=f"names a file outside itself: {name!r}"):
        load(folder)


# tensors that do not fit, in files that are whole ------------------------------------------------

ADAPTER, POSTERIOR = PARTS[:2]
SCORE = "base_model.model.score.weight"


def first(tensors: dict[str, Tensor]) -> str:
    return min(name for name in tensors if "score" not in name)


@pytest.mark.parametrize(
    ("kind", "file", "change"),
    [
        ("diagonal", ADAPTER, lambda t: t.update({SCORE: t[SCORE].T.contiguous()})),
        ("diagonal", ADAPTER, lambda t: t.update({SCORE: t[SCORE][:2].clone()})),
        ("diagonal", ADAPTER, lambda t: t.pop(SCORE)),
        ("diagonal", ADAPTER, lambda t: t.pop(first(t))),
        ("diagonal", ADAPTER, lambda t: t.update({first(t): torch.zeros(2, 2)})),
        ("diagonal", ADAPTER, lambda t: t.update(extra=torch.zeros(1))),
        ("diagonal", ADAPTER, lambda t: t.clear()),
        ("diagonal", POSTERIOR, lambda t: t.update({"head.log_scale": torch.zeros(32, 3)})),
        ("diagonal", POSTERIOR, lambda t: t.pop("head.log_scale")),
        ("diagonal", POSTERIOR, lambda t: t.pop("head.prior_mean")),
        ("diagonal", POSTERIOR, lambda t: t.update({"head.mystery": torch.zeros(1)})),
        ("diagonal", POSTERIOR, lambda t: t.update({"density.means": torch.zeros(2, 32)})),
        ("diagonal", POSTERIOR, lambda t: t.pop("density.present")),
        ("diagonal", POSTERIOR, lambda t: t.update({"density.mystery": torch.zeros(1)})),
        ("diagonal", POSTERIOR, lambda t: t.clear()),
        ("dense", POSTERIOR, lambda t: t.update({"head.factor": torch.zeros(3, 32)})),
        ("dense", POSTERIOR, lambda t: t.pop("head.factor")),
        ("point", POSTERIOR, lambda t: t.pop("head.feature_energy")),
        ("encoder", POSTERIOR, lambda t: t.pop("score.weight")),
        ("encoder", POSTERIOR, lambda t: t.update({"score.weight": torch.zeros(3, 32)})),
    ],
)
def test_tensors_that_do_not_fit_are_refused(copied, kind, file, change) -> None:
    folder = copied(kind)
    retensor(folder, file, change)
    with pytest.raises(StoreError, match=r"[a-z].* .*"):
        load(folder)


def test_a_file_of_another_model_is_refused(saved_kind, copied) -> None:
    folder = copied("diagonal")
    shutil.copy(saved_kind("dense")[1] / "model" / POSTERIOR, folder / POSTERIOR)
    with pytest.raises(StoreError, match=f"{POSTERIOR} is damaged or was changed"):
        load(folder)
    # Made consistent it would be a posterior of another kind around this mean: allowed, and no
    # fresh head; a file of another method is not.
    shutil.copy(saved_kind("point")[1] / "model" / POSTERIOR, folder / POSTERIOR)
    describe(folder)
    with pytest.raises(StoreError, match="posterior holds"):
        load(folder)


# places -----------------------------------------------------------------------------------------


def test_another_backbone_is_refused(copied, tmp_path, tied_base) -> None:
    folder = copied()
    other = save_llama(tmp_path / "other", seed=9)
    with pytest.raises(ModelError, match=r"is not the one that .*model was trained on \("):
        load(folder, base=str(other))
    with pytest.raises(ModelError, match="is not the one that"):
        load(folder, base=str(tied_base))
    with pytest.raises(ModelError, match="No model at"):
        load(folder, base=str(tmp_path / "gone" / "for" / "good"))


def test_a_backbone_that_changed_where_it_lies_is_refused(make, tmp_path) -> None:
    base = save_llama(tmp_path / "base")
    make(base=str(base)).save(tmp_path / "model")
    load(tmp_path / "model")
    save_llama(base, seed=5)
    with pytest.raises(ModelError, match="is not the one that"):
        load(tmp_path / "model")


def test_a_peft_adapter_without_a_posterior_is_refused(copied) -> None:
    folder = copied()
    (folder / "bayestune.json").unlink()
    with pytest.raises(StoreError, match=r"is a PEFT adapter without bayestune"):
        load(folder)


def test_what_is_no_run_is_named(tmp_path) -> None:
    with pytest.raises(StoreError, match="nowhere does not exist; expected a run or a model"):
        load(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"is not a run: it has no bayestune\.json and no model/"):
        load(tmp_path)
    (tmp_path / "unfinished").touch()
    with pytest.raises(StoreError, match="Its training did not finish: continue it with"):
        load(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="is not a run"):
        load(tmp_path / "file")
