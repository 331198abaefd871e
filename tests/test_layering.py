"""The architecture as a list: a folder imports from the lines before its own only.

Imports inside functions count. Those for types do not, since no interpreter runs them.
"""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "vacc_deploy"

# From the floor up. Within a folder modules import each other freely, but never in a circle.
LAYERS = (
    "bounds children errors problems progress results assets phases stamps system permissions",
    "links",
    "json_files formats",
    "datasets text models solver",
    "checkpoint",
    "outputs",
    "lookup",
    "vamc reference prepare gguf_file",
    "calibration check evaluation graphs",
    "quantize",
    "demo api pages",
    "cli",
)
# Mathematics and codes: no paths, no model names, no logging. They may use these and each other.
PURE = ("formats", "solver")
PURE_MAY_IMPORT = {"torch", "triton", "numpy", "errors"}
PURE_STANDARD = {
    *("__future__", "collections", "contextlib", "copy", "dataclasses", "functools", "importlib"),
    *("math", "os", "shutil", "typing"),
}
SOURCE_CODE_MAY_IMPORT = {"torch", "transformers", "onnx"}
HEAVY = {"torch", "transformers", "numpy", "onnx", "onnxruntime", "yaml", "tokenizers"}


def module_names(package_dir):
    """Return the modules below a package but its entry points: dotted name to path."""
    names = {}
    for path in sorted(package_dir.rglob("*.py")):
        parts = path.relative_to(package_dir).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name and name != "__main__":
            names[name] = path
    return names


def imported(source, modules):
    """Return the names that ``source`` imports: modules of the package, else top names."""
    found = set()
    for node in ast.walk(without_type_checking(ast.parse(source))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports are not used in the package"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}".removeprefix(f"{PACKAGE}.")
                is_inside = node.module.partition(".")[0] == PACKAGE
                found.add(f"{PACKAGE}.{inner}" if is_inside and inner in modules else node.module)
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


def read_graph(package_dir):
    """Return every module's imports."""
    modules = module_names(package_dir)
    return {name: imported(path.read_text("utf-8"), modules) for name, path in modules.items()}


def folder_of(name):
    return name.partition(".")[0]


def layer_of(folder):
    for number, line in enumerate(LAYERS):
        if folder in line.split():
            return number
    raise AssertionError(f"{folder} is in no line of LAYERS: give the new folder a place")


def wrong_imports(graph):
    """Return a line for every import that goes up, or to another folder of the same layer."""
    wrong = []
    for name, targets in sorted(graph.items()):
        for target in sorted(targets & graph.keys()):
            own, other = folder_of(name), folder_of(target)
            if own != other and layer_of(other) >= layer_of(own):
                wrong.append(f"{name} (layer {layer_of(own)}) imports {target} ({layer_of(other)})")
    return wrong


def circle(graph):
    """Return the names along a circle of imports, empty where there is none."""
    finished, path = set(), []

    def visit(name):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        path.append(name)
        for target in sorted(graph[name] & graph.keys()):
            found = visit(target)
            if found:
                return found
        finished.add(path.pop())
        return []

    return next(filter(None, map(visit, graph)), [])


def impure_imports(graph):
    """Return a line for every import of a pure folder that is none of what those may use."""
    allowed = PURE_MAY_IMPORT | PURE_STANDARD
    return [
        f"{name} imports {target}"
        for name, targets in sorted(graph.items())
        for target in sorted(targets)
        if folder_of(name) in PURE and folder_of(target) not in {*allowed, *PURE}
    ]


GRAPH = read_graph(ROOT / PACKAGE)


def test_a_folder_imports_only_from_the_layers_before_its_own():
    assert wrong_imports(GRAPH) == []


def test_every_entry_of_the_list_exists():
    listed = [folder for line in LAYERS for folder in line.split()]
    assert sorted(listed) == sorted({folder_of(name) for name in GRAPH})


def test_nothing_imports_in_a_circle():
    assert circle(GRAPH) == []


def test_pure_folders_import_tensors_and_errors_only():
    assert impure_imports(GRAPH) == []


def test_the_command_line_starts_without_a_heavy_library():
    code = f"import sys, vacc_deploy.cli; print(*sorted({HEAVY!r} & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert ran.stdout.split() == []


@pytest.mark.parametrize("path", sorted((ROOT / "source_code").glob("*.py")), ids=lambda p: p.name)
def test_source_code_stands_alone(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module.partition(".")[0])
    siblings = {other.stem for other in path.parent.glob("*.py")}
    assert names - set(sys.stdlib_module_names) - siblings <= SOURCE_CODE_MAY_IMPORT


# ---- the rules refuse what they are for --------------------------------------------------------


@pytest.fixture
def graph(tmp_path):
    """Return a function that writes a small package, module to source, and reads its imports."""

    def write(sources):
        for name, source in sources.items():
            path = tmp_path / PACKAGE / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, "utf-8")
        return read_graph(tmp_path / PACKAGE)

    return write


def test_an_import_that_goes_up_is_named_even_inside_a_function(graph):
    up = "def f():\n    from vacc_deploy.quantize.run import quantize\n"
    sources = {"checkpoint.reader": up, "quantize.run": ""}
    assert wrong_imports(graph(sources)) == ["checkpoint.reader (layer 4) imports quantize.run (9)"]


def test_an_import_sideways_to_another_folder_is_named(graph):
    sources = {"text.tokenizer": "from vacc_deploy.models import config", "models.config": ""}
    assert wrong_imports(graph(sources)) == ["text.tokenizer (layer 3) imports models.config (3)"]


def test_imports_down_within_a_folder_and_for_types_are_free(graph):
    source = (
        "from typing import TYPE_CHECKING\nfrom vacc_deploy.errors import UsageError\n"
        "from vacc_deploy.checkpoint.header import read_header\n"
        "if TYPE_CHECKING:\n    from vacc_deploy.cli import main\n"
    )
    sources = {"checkpoint.reader": source, "checkpoint.header": "", "errors": "", "cli": ""}
    assert wrong_imports(graph(sources)) == [] and circle(graph(sources)) == []


def test_a_folder_without_a_place_is_named(graph):
    sources = {"attic.box": "import vacc_deploy.errors", "errors": ""}
    with pytest.raises(AssertionError, match="attic is in no line of LAYERS"):
        wrong_imports(graph(sources))


def test_a_circle_is_named(graph):
    sources = {
        "solver.a": "from vacc_deploy.solver import b",
        "solver.b": "from vacc_deploy.solver.c import f",
        "solver.c": "import vacc_deploy.solver.a",
    }
    assert circle(graph(sources)) == ["solver.a", "solver.b", "solver.c", "solver.a"]


def test_a_path_or_a_checkpoint_in_a_pure_folder_is_named(graph):
    source = "import torch\nfrom pathlib import Path\nfrom vacc_deploy.checkpoint import reader\n"
    sources = {"solver.gptq": source, "checkpoint.reader": ""}
    assert impure_imports(graph(sources)) == [
        "solver.gptq imports checkpoint.reader",
        "solver.gptq imports pathlib",
    ]
