"""The direction of dependencies, and a few things that no source file may hold."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import bayestune

ROOT = Path(bayestune.__file__).parent
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(ROOT.rglob("*.py"))
}
#: A module imports from rows above its own and from its own package, never sideways or down.
ROWS = (
    {"errors", "version"},
    {"files", "gradients", "processes"},
    {"geometry", "posterior", "metrics"},
    {"guarantees"},
    {"data"},
    {"config"},
    {"optim", "peft", "head"},
    {"progress", "prediction"},
    {"weights"},
    {"backbone"},
    {"finalize"},
    {"methods"},
    {"preprocessor", "readout"},
    {"model"},
    {"store"},
    {"exports"},
    {"training"},
    {"evaluation", "calibration"},
    {"online"},
    {"recipes"},
    {"plots", "hf", "serve", "scoring"},
    {"demo", "bench"},
    {"report"},
    {"cli"},
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
#: These need less than everything above them.
ONLY = {"optim": {"geometry"}, "peft": {"geometry"}, "head": {"posterior"}}
#: What names everything lazily, and the one method that reaches down: `BayesModel.save`.
FREE = {"__init__.py", "_hook.py"}
LAZY = {("model.py", "store")}


def imports(tree: ast.AST) -> Iterator[str]:
    """The parts of bayestune that a file imports anywhere, within functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level == 0, "relative imports hide where they point"
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        yield from (name.split(".")[1] for name in names if name.startswith("bayestune."))


def test_every_module_has_its_place():
    assert {file.split("/")[0].removesuffix(".py") for file in set(TREES) - FREE} <= set(RANK)


def test_imports_point_one_way():
    wrong = []
    for file in sorted(set(TREES) - FREE):
        own = file.split("/")[0].removesuffix(".py")
        for name in set(imports(TREES[file])) - {own}:
            above = RANK[name] < RANK[own]
            allowed = RANK[name] == 0 or name in ONLY.get(own, {name})
            if not (above and allowed) and (file, name) not in LAZY:
                wrong.append(f"{file} imports {name}")
    assert not wrong
    assert all(name in imports(TREES[file]) for file, name in LAZY), "an exception is not needed"


def test_a_file_has_a_subject_and_an_end():
    assert not [f for f in TREES if Path(f).stem.strip("_") in ("util", "utils", "helpers", "misc")]
    assert not [f for f in TREES if len((ROOT / f).read_text("utf-8").splitlines()) > 400]


def forbidden(node: ast.AST) -> bool:
    """Whether a node unpickles, or runs code that comes with a model."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = {alias.name.split(".")[0] for alias in node.names} | {getattr(node, "module", "")}
        return bool(names & {"pickle", "dill", "cloudpickle", "joblib"})
    if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
        return not (isinstance(node.value, ast.Constant) and node.value.value is False)
    return isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.load"


def test_nothing_unpickles_or_runs_foreign_code():
    assert not [
        f"{file}:{getattr(node, 'lineno', 0)}"
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if forbidden(node)
    ]
    bad = "import pickle; torch.load(p); f(trust_remote_code=True); g(trust_remote_code=False)"
    assert sum(forbidden(node) for node in ast.walk(ast.parse(bad))) == 3
