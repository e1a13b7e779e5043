"""The import of the package: light, lazy, and enough for PEFT to load a PoLAR folder."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig

import bayestune
from bayestune import _hook

SOURCE = Path(bayestune.__file__).parents[1]


def python(program: str, *arguments: object) -> str:
    """Run a program in a fresh interpreter, off line, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": str(SOURCE),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# the package by itself --------------------------------------------------------------------------


def test_import_is_light_and_quick() -> None:
    program = """
import sys, time
start = time.perf_counter()
import bayestune
seconds = time.perf_counter() - start
dir(bayestune), bayestune.__version__
print(sorted({"torch", "peft", "transformers", "numpy"} & set(sys.modules)), seconds)
"""
    loaded, _, seconds = python(program).partition(" ")
    assert loaded == "[]"
    # The best of three, because a busy machine can only make it slower.
    assert min(float(seconds), *(float(python(program).split()[-1]) for _ in range(2))) < 0.3


def test_public_names_are_all_listed() -> None:
    assert set(bayestune.__all__) <= set(dir(bayestune))
    assert bayestune._HOME.keys() | bayestune._SUBPACKAGES | {"__version__"} == {*bayestune.__all__}


@pytest.mark.parametrize("name", bayestune.__all__)
def test_public_name_resolves(name: str) -> None:
    value = getattr(bayestune, name)
    if name in bayestune._HOME:
        assert value is getattr(importlib.import_module(bayestune._HOME[name]), name)
    elif name in bayestune._SUBPACKAGES:
        assert value is sys.modules[f"bayestune.{name}"]
    else:
        assert value == "0.1.0"


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'PolarConfg'. Did you mean 'PolarConf"):
        _ = bayestune.PolarConfg  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(bayestune, "zzz")


# PEFT finds PoLAR whatever comes first ----------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, a PoLAR adapter on it, and the logits they give."""
    root = tmp_path_factory.mktemp("polar")
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=0,
        num_labels=3,
        initializer_range=0.2,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(root / "base")
    base = AutoModelForSequenceClassification.from_pretrained(root / "base")
    settings = bayestune.PolarConfig(r=4, target_modules="all-linear", task_type="SEQ_CLS")
    with warnings.catch_warnings():
        # PEFT 0.21 asks transformers for the old name of this property.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model = get_peft_model(base, settings)
    for name, parameter in model.named_parameters():
        if "polar_theta" in name:
            torch.nn.init.normal_(parameter)
    model.eval().save_pretrained(root / "adapter")
    with torch.no_grad():
        out = model(input_ids=torch.arange(1, 7)[None], output_hidden_states=True)
    save_file({"logits": out.logits, "last": out.hidden_states[-1]}, root / "expected.safetensors")
    return root


CHECK = """
import sys
def check(model, key, value):
    import torch
    from safetensors.torch import load_file
    tokens = torch.arange(1, 7)[None]
    with torch.no_grad():
        found = value(model.eval()(input_ids=tokens))
    assert torch.equal(found, load_file(sys.argv[1] + "/expected.safetensors")[key])
    print("loaded", flush=True)
"""
LOAD = """
from peft import AutoPeftModelForSequenceClassification
model = AutoPeftModelForSequenceClassification.from_pretrained(sys.argv[1] + "/adapter")
check(model, "logits", lambda out: out.logits)
from peft import PeftConfig
print(type(PeftConfig.from_pretrained(sys.argv[1] + "/adapter")).__name__)
print([type(f).__name__ for f in sys.meta_path if "Peft" in type(f).__name__])
"""


@pytest.mark.parametrize(
    "order",
    ["import bayestune", "import peft, bayestune"],
    ids=["bayestune-first", "peft-first"],
)
def test_stock_peft_loads_a_folder(order: str, folder: Path) -> None:
    assert python(order + CHECK + LOAD, folder) == "loaded\nPolarConfig\n[]"


def test_plug_in_imported_before_peft_registers_itself() -> None:
    program = """
import bayestune, sys
print(bayestune.PolarConfig(r=2).r, [f for f in sys.meta_path if "Peft" in type(f).__name__])
from peft.mapping import get_peft_config
print(type(get_peft_config({"peft_type": "POLAR"})).__name__)
"""
    assert python(program) == "2 []\nPolarConfig"


def test_transformers_loads_a_folder(folder: Path) -> None:
    program = """
import bayestune
from transformers import AutoModel
assert "bayestune.peft" not in sys.modules
model = AutoModel.from_pretrained(sys.argv[1] + "/adapter")
check(model, "last", lambda out: out.last_hidden_state)
import torch
half = AutoModel.from_pretrained(sys.argv[1] + "/adapter", dtype=torch.bfloat16)
print(sorted({str(p.dtype) for n, p in half.named_parameters() if "polar" in n}))
"""
    assert python(CHECK + program, folder) == "loaded\n['torch.float32']"


# the hook, on a stand-in package ----------------------------------------------------------------


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A package ``standin`` that the hook waits for; collects whether it was complete each time."""
    (tmp_path / "standin.py").write_text("import os\nif 'FAIL' in os.environ: 1 / 0\ndone = True\n")
    calls: list[bool] = []
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(_hook, "_TARGET", "standin")
    monkeypatch.setattr(_hook, "_register", lambda: calls.append(hasattr(module(), "done")))
    monkeypatch.delitem(sys.modules, "standin", raising=False)
    return calls


def module() -> object:
    return sys.modules.get("standin")


def waiting() -> int:
    return sum(isinstance(finder, _hook._PeftFinder) for finder in sys.meta_path)


def test_hook_runs_once_after_the_import(stand_in: list[bool]) -> None:
    _hook.install()
    _hook.install()
    assert waiting() == 1
    assert importlib.util.find_spec("standin") is not None
    assert stand_in == []
    standin = importlib.import_module("standin")
    assert stand_in == [True]
    assert waiting() == 0
    assert "exec_module" not in vars(standin.__spec__.loader)
    importlib.reload(standin)
    assert stand_in == [True]
    _hook.install()
    assert stand_in == [True, True]


def test_hook_survives_a_failed_import(
    stand_in: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    _hook.install()
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("standin")
    assert stand_in == []
    monkeypatch.delenv("FAIL")
    importlib.import_module("standin")
    assert stand_in == [True]


def test_hook_leaves_other_imports_and_absent_packages_alone(
    stand_in: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_hook, "_TARGET", "absent_standin")
    _hook.install()
    importlib.import_module("standin")
    with pytest.raises(ModuleNotFoundError, match="absent_standin"):
        importlib.import_module("absent_standin")
    assert stand_in == []


def test_a_broken_plug_in_warns_and_leaves_peft_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hook, "_PLUGIN", "bayestune.no_such_plug_in")
    with pytest.warns(RuntimeWarning, match="could not register.*no_such_plug_in"):
        _hook._register()
    monkeypatch.setattr(_hook, "_PLUGIN", "bayestune.errors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _hook._register()
