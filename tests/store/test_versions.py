"""Runs of other versions: those of every format that there was load, others say what wrote them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_damage import describe

from bayestune.errors import StoreError
from bayestune.store import load, open_sidecar, recipe_of
from bayestune.store.guarantees import GUARANTEES
from bayestune.store.manifest import FORMAT, digest_of

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("number", range(1, FORMAT + 1))
def test_a_golden_run_of_every_format_loads_and_predicts_as_it_did(number) -> None:
    expected = json.loads((GOLDEN / f"format-{number}.json").read_text())
    model = load(GOLDEN / f"format-{number}", base=str(GOLDEN / "base"))
    assert model.guarantees is not None and model.guarantees.sets is not None
    found = list(model.predict(expected["texts"]).rows([1, 2]))
    for row, known in zip(found, expected["rows"], strict=True):
        assert row["label"] == known["label"] and row["set"] == known["set"]
        assert row["probs"] == pytest.approx(known["probs"], abs=1e-5)
        for name in ("entropy", "epistemic", "ood_score"):
            assert row[name] == pytest.approx(known[name], abs=1e-4)


def test_a_run_without_a_digest_is_of_an_earlier_version_and_not_damaged(copied) -> None:
    folder = copied()
    file = folder / "bayestune.json"
    data = json.loads(file.read_text())
    del data["digest"]
    data["versions"]["bayestune"] = "0.0.7"
    file.write_text(json.dumps(data))
    for use in (load, recipe_of):
        with pytest.raises(
            StoreError, match=r"another version of bayestune \(0\.0\.7; this is"
        ) as e:
            use(folder)
        assert "damaged" not in str(e.value) and "or train again" in str(e.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["recipe"]["train"].update(momentum=0.5),
        lambda data: data["base"].pop("weights"),
        lambda data: data["head"].update(kind="NewHead"),
        lambda data: data["task"].update(kind="ranking"),
        lambda data: data["recipe"]["head"].update(covariance="circulant"),
    ],
)
def test_what_a_later_version_may_have_added_names_that_version(copied, change) -> None:
    folder = copied()

    def newer(data) -> None:
        data["versions"]["bayestune"] = "0.9.0"
        change(data)

    describe(folder, newer)
    with pytest.raises(
        StoreError, match=r"another version of bayestune \(0\.9\.0; this is 0\.1\.0"
    ):
        load(folder)


def test_promises_of_another_format_are_not_called_damaged(tmp_path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "format-1", tmp_path / "model"))
    data = json.loads((folder / GUARANTEES).read_text())
    data["format"] = 9
    (folder / GUARANTEES).write_text(json.dumps({**data, "digest": digest_of(data)}))
    with pytest.raises(
        StoreError, match=r"guarantees\.json has format 9; this version reads 1"
    ) as e:
        load(folder, base=str(GOLDEN / "base"))
    assert "damaged" not in str(e.value)


def test_a_side_car_of_another_version_says_so(copied) -> None:
    folder = copied()  # a model's description lacks what a side-car's has
    with pytest.raises(StoreError, match=r"another version of bayestune .* 'reads' is missing"):
        open_sidecar(folder)
