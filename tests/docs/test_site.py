"""What the site must hold: a page for every method and package, each in the navigation."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re

import pytest
from blocks import ROOT

import bayestune
from bayestune.methods import METHODS

DOCS = ROOT / "docs"
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
PACKAGES = sorted(
    module.name
    for module in pkgutil.iter_modules(bayestune.__path__)
    if module.ispkg and hasattr(importlib.import_module(f"bayestune.{module.name}"), "__all__")
)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_a_page_that_says_when_not_to_use_it(name: str) -> None:
    text = (DOCS / "methods" / f"{name}.md").read_text(encoding="utf-8")
    assert f"`{name}`" in text.partition("\n")[0]
    assert "\n## When not to use it" in text
    assert re.search(r"\n    .*[=~].*", text), "the mathematics"
    (source,) = re.findall(r"\d{4}\.\d{4,5}", METHODS[name].source)
    assert f"https://arxiv.org/abs/{source}" in text
    assert re.search(rf"bayestune train --(method|config) {name}\b", text)


@pytest.mark.parametrize("name", PACKAGES)
def test_every_package_with_public_names_has_a_page(name: str) -> None:
    page = DOCS / "api" / f"{name}.md"
    assert page.is_file(), f"write {page} as its siblings are, and name it in mkdocs.yml"
    assert f"::: bayestune.{name}\n" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PACKAGES)
def test_every_public_name_is_described(name: str) -> None:
    module = importlib.import_module(f"bayestune.{name}")
    page = (DOCS / "api" / f"{name}.md").read_text(encoding="utf-8")
    for public in module.__all__:
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
            assert inspect.getdoc(value), public  # what has none is not shown
        else:
            assert f"::: bayestune.{name}.{public}\n" in page  # constants are shown by name


def test_the_verbs_stand_on_the_first_page_of_the_reference() -> None:
    text = (DOCS / "api" / "index.md").read_text(encoding="utf-8")
    packages = {*PACKAGES, "__version__"}
    missing = [n for n in bayestune.__all__ if f"bayestune.{n}\n" not in text and n not in packages]
    assert not missing


def test_every_page_is_in_the_navigation() -> None:
    pages = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    named = set(re.findall(r"[\w/]+\.md", NAVIGATION))
    assert pages == named
