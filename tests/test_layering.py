"""Imports go down only; see ``RANKS``. Those inside functions count, those for types do not."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "vacc_deploy"

# From the floor up. A line imports from the lines above it only. A package is one entry, but for
# quantize/, whose modules have ranks of their own: its mathematics lies far below its pipeline.
RANKS = (
    (
        "errors",
        "assets",
        "config_reader",
        "host_memory",
        "layouts",
        "phases",
        "progress",
        "results",
    ),
    ("chat_template", "model_config"),
    ("catalog", "vacc_config", "strict_yaml", "compile_schema", "hardware", "demo_task"),
    ("checkpoint", "tokenizer", "calibration", "answer_cache"),
    ("hub", "compile_target", "compile_rules", "onnx_graph"),
    ("quantize.int8", "quantize.packing", "quantize.report", "quantize.compute", "quantize.ranks"),
    ("quantize.block_kernel", "quantize.cuda_support", "quantize.scale_search"),
    ("quantize.gptq", "quantize.formats", "quantize.journal", "onnx_check"),
    ("quantize.statistics", "quantize.correction", "quantize.hidden_rows"),
    (
        "quantize.linear",
        "quantize.layer_weights",
        "quantize.stage_exchange",
        "quantize.process_ranks",
        "quantize.warm_up",
    ),
    ("decoder", "quantize.plan"),
    (
        "scoring",
        "quantize.layer",
        "quantize.identity",
        "quantize.workload",
        "runtime",
        "onnx_report",
    ),
    ("quantize.walk", "quantize.memory"),
    ("quantize.rounded", "quantize.calibrated", "quantize.resume", "quantize.complete"),
    (
        "quantize.directory",
        "own_answers",
        "quantize.assist",
        "quantize.trial",
        "quantize.file_time",
    ),
    ("quantize.layers", "quantize.estimate"),
    ("prepare", "quantize.pipeline", "compile_yaml", "verify", "onnx_export"),
    ("compile_set", "demo"),
    ("cli",),
)
WHOLE_PACKAGES = ("checkpoint", "calibration", "cli")
# The mathematics: no paths, no model names, no logging.
PURE = {
    "quantize.gptq": {
        *("torch", "errors"),
        *("quantize.int8", "quantize.block_kernel", "quantize.cuda_support"),
    },
    "quantize.int8": {"torch", "errors"},
    "quantize.block_kernel": {"torch", "triton", "quantize.int8"},
    "quantize.cuda_support": {"torch"},
    "quantize.scale_search": {"torch", "quantize.int8"},
    "quantize.correction": {"torch", "quantize.cuda_support", "quantize.gptq"},
    "quantize.statistics": {"torch", "quantize.gptq"},
    "quantize.packing": {"torch", "errors"},
}
SOURCE_CODE_MAY_IMPORT = {"torch", "transformers", "onnx"}


def module_names():
    """Return every module of the package but the entry points: dotted name to path."""
    names = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name and name != "__main__":
            names[name] = path
    return names


MODULES = module_names()


def imported(source, modules):
    """Return the names that ``source`` imports: modules of the package, else top names."""
    found = set()
    for node in ast.walk(without_type_checking(ast.parse(source))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used in the package"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                inner = full.removeprefix(f"{PACKAGE}.")
                found.add(full if full.startswith(PACKAGE) and inner in modules else node.module)
    inside = {name for name in found if name.partition(".")[0] == PACKAGE}
    outside = {name.partition(".")[0] for name in found - inside}
    return {name.removeprefix(f"{PACKAGE}.") for name in inside if name != PACKAGE} | outside


def without_type_checking(tree):
    """Return the tree without the blocks that no interpreter runs."""
    for node in ast.walk(tree):
        for field, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(node, field, [item for item in value if not is_type_checking(item)])
    return tree


def is_type_checking(node):
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def entry(name):
    """Return the entry of ``RANKS`` that a module belongs to."""
    top = name.partition(".")[0]
    return top if top in WHOLE_PACKAGES else name


def rank(name):
    for number, line in enumerate(RANKS):
        if entry(name) in line:
            return number
    raise AssertionError(f"{name} is in no line of RANKS: give it one")


def wrong_imports(name, targets):
    """Return the imports of ``name`` that go up or sideways."""
    wrong = []
    for target in sorted(targets & (MODULES.keys() | {name})):
        same_package = "." in name and name.partition(".")[0] == target.partition(".")[0]
        if rank(target) < rank(name) or (same_package and rank(target) == rank(name)):
            continue
        wrong.append(f"{name} (rank {rank(name)}) imports {target} (rank {rank(target)})")
    return wrong


GRAPH = {name: imported(path.read_text("utf-8"), MODULES) for name, path in MODULES.items()}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"quantize"}))
def test_imports_go_down_only(name):
    # A package's own __init__ gathers its modules.
    own = {target for target in GRAPH[name] if target.startswith(f"{name}.")}
    assert wrong_imports(name, GRAPH[name] - own) == []


def test_every_entry_of_the_table_exists():
    listed = [name for line in RANKS for name in line]
    assert len(listed) == len(set(listed))
    assert set(listed) <= MODULES.keys()


def test_no_module_imports_in_a_circle():
    finished, path = set(), []

    def visit(name):
        assert name not in path, f"circle: {' -> '.join([*path, name])}"
        if name in finished:
            return
        path.append(name)
        for target in sorted(GRAPH[name] & MODULES.keys()):
            visit(target)
        finished.add(path.pop())

    for name in MODULES:
        visit(name)


@pytest.mark.parametrize(
    "name", sorted(n for n in MODULES if n.partition(".")[0] in WHOLE_PACKAGES)
)
def test_a_packages_module_names_the_sibling_it_needs(name):
    assert name.partition(".")[0] not in GRAPH[name]


@pytest.mark.parametrize("name", PURE)
def test_the_mathematics_imports_nothing_else(name):
    standard = {"__future__", "math", "collections", "dataclasses", "typing"}
    standard |= {"contextlib", "functools", "importlib", "os", "shutil"}
    assert GRAPH[name] - standard <= PURE[name]


@pytest.mark.parametrize("path", sorted((ROOT / "source_code").glob("*.py")), ids=lambda p: p.name)
def test_source_code_stands_alone(path):
    tree = ast.parse(path.read_text("utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    siblings = {other.stem for other in path.parent.glob("*.py")}
    assert names - set(sys.stdlib_module_names) - siblings <= SOURCE_CODE_MAY_IMPORT
    assert PACKAGE not in names


def test_the_reader_sees_imports_inside_functions_and_not_those_for_types():
    source = (
        "from typing import TYPE_CHECKING\nimport torch.nn\n"
        "from vacc_deploy import __version__, errors\n"
        "if TYPE_CHECKING:\n    import vacc_deploy.cli\n"
        "def f():\n    if TYPE_CHECKING:\n        import yaml\n"
        "    def g():\n        from vacc_deploy.quantize.pipeline import quantize\n"
        "        from vacc_deploy.quantize import gptq\n"
        "    try:\n        import numpy as np\n"
        "    except ImportError:\n        import vacc_deploy.hub\n"
    )
    assert imported(source, MODULES) == {
        *("typing", "torch", "numpy", "errors", "hub"),
        *("quantize.pipeline", "quantize.gptq"),
    }


def test_the_rule_refuses_up_and_sideways():
    assert wrong_imports("errors", {"results"}) == ["errors (rank 0) imports results (rank 0)"]
    assert wrong_imports("decoder", {"verify"}) == ["decoder (rank 10) imports verify (rank 16)"]
    assert wrong_imports("quantize.gptq", {"quantize.layer"}) != []
    assert wrong_imports("checkpoint.reader", {"tokenizer"}) != []
    assert wrong_imports("verify", {"decoder", "errors", "torch"}) == []
    assert wrong_imports("checkpoint.reader", {"checkpoint.header"}) == []
