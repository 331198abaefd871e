"""The three files stand alone: old syntax, few imports, and every way a loader may open them."""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
from pathlib import Path

import pytest
from texts import SOURCE_DIR

ALLOWED = {"torch", "transformers"}
SIBLINGS = {"configuration_qwen2_vacc", "modeling_qwen2_vacc", "quantization_vacc"}
STDLIB = {"__future__", "importlib", "math", "os", "sys", "typing"}

# Opens the files in three ways in one interpreter: torch and transformers are imported once.
USE_EVERY_WAY = """
import importlib, importlib.util, sys
import torch

def use(modeling, configuration):
    torch.manual_seed(0)
    config = configuration.Qwen2Config(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1)
    model = modeling.Qwen2ForCausalLM(config).eval()
    ids = torch.arange(6).unsqueeze(0)
    with torch.no_grad():
        before = model(ids).logits
        after = model.quantize(8)(ids).logits
    assert 0 < (before - after).abs().max() < 0.1
    assert "vacc_deploy" not in sys.modules
    for name in [name for name in sys.modules if name.endswith("_vacc")]:
        del sys.modules[name]
    print("ran", modeling.__name__)

path_before = list(sys.path)
spec = importlib.util.spec_from_file_location("model_file", {folder!r} + "/modeling_qwen2_vacc.py")
modeling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(modeling)
assert sys.path == path_before
use(modeling, modeling)

sys.path.insert(0, {parent!r})
from vacc_files import configuration_qwen2_vacc, modeling_qwen2_vacc
assert "configuration_qwen2_vacc" not in sys.modules
use(modeling_qwen2_vacc, configuration_qwen2_vacc)

sys.path[0] = {folder!r}
import configuration_qwen2_vacc, modeling_qwen2_vacc
assert sys.path.count({folder!r}) == 1
use(modeling_qwen2_vacc, configuration_qwen2_vacc)
"""


@pytest.fixture(params=sorted(SIBLINGS))
def source(request):
    return (SOURCE_DIR / f"{request.param}.py").read_text(encoding="utf-8")


def test_source_is_python_38(source):
    ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source


def test_source_imports_only_what_travels(source):
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module.split(".")[0])
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith("vacc_deploy")
    assert names <= ALLOWED | SIBLINGS | STDLIB


def test_source_neither_prints_nor_reads_the_environment(source):
    tree = ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & {"print", "environ", "getenv", "filterwarnings", "simplefilter"}


def test_source_is_small(source):
    limit = 480 if "class Qwen2ForCausalLM" in source else 300
    assert len(source.splitlines()) <= limit
    assert source.startswith("# vacc-deploy:")
    assert all(line.startswith("# ") for line in source.splitlines()[:3])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name


def test_folder_holds_the_three_files_and_is_not_a_package():
    assert {path.stem for path in SOURCE_DIR.glob("*.py")} == SIBLINGS


@pytest.fixture
def copied(tmp_path):
    folder = tmp_path / "elsewhere" / "vacc_files"
    return Path(shutil.copytree(SOURCE_DIR, folder, ignore=shutil.ignore_patterns("__pycache__")))


def test_files_work_from_an_empty_folder(copied, run_python):
    result = run_python(USE_EVERY_WAY.format(folder=str(copied), parent=str(copied.parent)))
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [
        "ran model_file",
        "ran vacc_files.modeling_qwen2_vacc",
        "ran modeling_qwen2_vacc",
    ]
    assert result.stderr == ""


def test_switches_of_old_transformers(monkeypatch, copied):
    """Read the top of the file as 4.40 and 5.0 would see it."""
    import transformers

    monkeypatch.syspath_prepend(str(copied.parent))
    keys, casts = {}, {}
    for version in ("4.37.0.dev0", "5.0.0rc1"):
        for name in [name for name in sys.modules if name.startswith("vacc_files")]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(transformers, "__version__", version)
        module = importlib.import_module("vacc_files.modeling_qwen2_vacc")
        keys[version] = module.TIED_WEIGHTS_KEYS
        casts[version] = module.META_LOADING_CASTS
    assert casts == {"4.37.0.dev0": True, "5.0.0rc1": False}
    assert keys["4.37.0.dev0"] == ["lm_head.weight"]
    assert keys["5.0.0rc1"] == {"lm_head.weight": "model.embed_tokens.weight"}
