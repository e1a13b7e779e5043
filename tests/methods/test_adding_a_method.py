"""The page on adding a method: its code, as it stands there, is a method."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from toy_tasks import topic_rows

from bayestune import methods
from bayestune.methods.cost import cost
from bayestune.store import load

PAGE = Path(__file__).parents[2] / "docs/adding_a_method.md"


@pytest.fixture
def jitter(monkeypatch) -> dict[str, Any]:
    """The names that the page's first two blocks define, its method registered."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "jitter", "blocks": blocks}
    for block in blocks[:2]:
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
    monkeypatch.setitem(methods.METHODS, "jitter", names["METHOD"])
    return names


def test_the_page_makes_a_method(jitter, llama_base, tmp_path):
    scope: dict[str, Any] = {"rows": topic_rows(32), "base": str(llama_base)}
    exec(compile(jitter["blocks"][2], str(PAGE), "exec"), scope)
    model = scope["model"]
    found = model.predict(["where is my parcel?", "login"])
    assert found.epistemic.min() > 0
    model.save(tmp_path / "m")
    assert (load(tmp_path / "m").predict(["login"]).probs == model.predict(["login"]).probs).all()
    counted = cost(model.method, model.recipe, model.source, 3)
    assert counted.stored == 0 and counted.passes.startswith("1 + S")


def test_the_table_of_the_base_class_is_complete(jitter):
    text = PAGE.read_text(encoding="utf-8")
    base = jitter["JitterWeights"].__mro__[1]
    own = {
        "fold_temperature",
        "tensors",
        "load",
        "drawing",
        "own_step",
        "kl_weight",
        "require_unmerged",
    }
    public = {n for n in vars(base) if not n.startswith("_") and callable(getattr(base, n))}
    assert {n for n in public - own if f"`{n}(" not in text} == set()
