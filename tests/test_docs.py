"""The documentation is held to the code: commands, options, files, figures."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from fnmatch import fnmatch

import click
import pytest
from checks_page import PAGE as CHECKS_PAGE
from checks_page import put_into as put_checks
from texts import ROOT

from vacc_deploy import __version__, api
from vacc_deploy.checkpoint.normalize import RULES
from vacc_deploy.cli import cli
from vacc_deploy.demo import run as demo_module
from vacc_deploy.models.catalog import (
    ALIGN_QKV,
    MODELS,
    PLAIN,
    TENSOR_PARALLEL_SIZES,
    VENDOR,
    official_models,
)
from vacc_deploy.models.catalog import tensor_parallel_rule as rule
from vacc_deploy.models.settle import CONFIG_RULES

README = (ROOT / "README.md").read_text("utf-8")
PAGES = {path.name: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
ALL_TEXT = {"README.md": README, **PAGES}
MAP = PAGES["architecture.md"]
COMMANDS = sorted(cli.commands)
COMMAND_LINE = re.compile(r"vacc-deploy ([a-z-]+)([^`\n]*)")


def option_names(command: str) -> set[str]:
    return {
        name
        for parameter in cli.commands[command].params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def options_in(text: str) -> set[str]:
    """Return the options that a text names, each as a whole word."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))


def test_an_option_is_not_taken_for_a_longer_one():
    assert options_in("`--answers-cache DIR`, --json.") == {"--answers-cache", "--json"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_and_every_option_on_its_page(command):
    assert f"`vacc-deploy {command}`" in README
    assert option_names(command) - options_in(PAGES.get(f"{command}.md", PAGES["cli.md"])) == set()


@pytest.mark.parametrize("name", sorted(ALL_TEXT))
def test_commands_and_options_in_the_documentation_exist(name):
    for command, rest in COMMAND_LINE.findall(ALL_TEXT[name]):
        assert command in COMMANDS, f"{name}: vacc-deploy {command}"
        assert options_in(rest) <= option_names(command) | {"--help"}, f"{name}: {command}"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_begins_with_what_it_is_for_and_a_command(name):
    head = PAGES[name].split("\n## ")[0]
    title, purpose, block = head.split("\n\n")[:3]
    assert title.startswith("# ") and purpose[0].isupper()
    assert re.search(r"^```\n(vacc-deploy|python|torchrun) ", block), block


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")], ids=lambda p: p.name
)
def test_links_lead_to_files_and_headings(path):
    for link in re.findall(r"\]\(([^):]+)\)", path.read_text("utf-8")):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text("utf-8")), link


def anchors(text: str) -> set[str]:
    """Return what the headings of a page are called in links."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


def test_readme_model_table_equals_the_catalogue():
    rows = dict(re.findall(r"^\| (DeepSeek-R1-\S+) \| (.*) \|$", README, re.MULTILINE))
    expected = {}
    for model in official_models():
        config = model.config
        sizes = {
            kind: ", ".join(str(tp) for tp in TENSOR_PARALLEL_SIZES if rule(config, tp) == kind)
            for kind in (PLAIN, ALIGN_QKV)
        }
        weight = config.num_parameters() * config.dtype_bytes / 1e9
        expected[model.name] = f"{weight:.1f} GB | {sizes[PLAIN]} | {sizes[ALIGN_QKV]}"
    assert rows == expected


def test_the_page_on_models_says_where_each_configuration_comes_from():
    rows = PAGES["models.md"].partition("| model | copies |\n|---|---|\n")[2]
    named = ", ".join(re.findall(r"^\| (.+?) \|", rows, re.MULTILINE)).split(", ")
    expected = {name for name, model in MODELS.items() if model.group == VENDOR}
    assert set(named) == expected | {"DeepSeek-R1-0528-Qwen3-8B"}


def test_the_list_of_codes_is_that_of_the_rules():
    page = CHECKS_PAGE.read_text("utf-8")
    assert page == put_checks(page), "make checks"


def test_changelog_newest_release_is_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## (\d\S*)", changelog, re.MULTILINE).group(1) == __version__


def test_ci_runs_the_readme_s_test_command():
    block = re.search(r"## Test\n\n```\n(.+?)\n```", README, re.DOTALL).group(1)
    script = (ROOT / ".ci/run").read_text("utf-8")
    assert block in script


def test_readme_demo_command_is_the_first_block():
    block = re.search(r"```\n(.+?)\n```", README, re.DOTALL).group(1)
    assert shlex.split(block)[-2:] == ["vacc-deploy", "demo"]


def test_contributing_and_docs_name_existing_scripts():
    texts = [(ROOT / "CONTRIBUTING.md").read_text("utf-8"), *PAGES.values()]
    for text in texts:
        for script in re.findall(r"(?:benchmarks|tools)/\w+\.py", text):
            assert (ROOT / script).is_file(), script


@pytest.mark.parametrize("name", ["vacc-demo", demo_module.PREPARED_DIR, demo_module.INT8_DIR])
def test_what_the_readme_commands_write_is_not_linted_and_not_committed(name):
    """The test command works in a checkout where the demo has run."""
    config = (ROOT / "pyproject.toml").read_text("utf-8")
    excluded = re.findall(r'"([^"]+)"', re.search(r"extend-exclude = (.+)", config).group(1))
    ignored = (ROOT / ".gitignore").read_text("utf-8").split()
    assert any(fnmatch(name, pattern) for pattern in excluded)
    assert any(fnmatch(f"{name}/", pattern) for pattern in ignored)


def test_every_figure_has_its_machine_command_and_date():
    sections = PAGES["performance.md"].split("\n## ")[1:]
    rows = (r"machine \| .*machine", r"command \| `", r"date \| 20", r"not comparable \| \S")
    for section in sections:
        for row in rows:
            assert re.search(rf"^\| {row}", section, re.MULTILINE), (section[:30], row)


# ---- the map -----------------------------------------------------------------------------------


def test_the_map_lists_the_layers_as_their_test_does():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \| .+ \|$", MAP, re.MULTILINE)
    tree = ast.parse((ROOT / "tests/test_layering.py").read_text("utf-8"))
    (layers,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "LAYERS"
    )
    expected = [(str(n), name) for n, line in enumerate(layers) for name in line.split()]
    assert sorted(rows) == sorted(expected)


def test_paths_on_the_map_exist():
    paths = re.findall(r"`([\w./]+(?:\.py|/))`", MAP)
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "vacc_deploy" / path).exists(), path


def test_names_on_the_map_exist():
    tops = {path.stem for path in (ROOT / "vacc_deploy").iterdir()}
    dotted = re.findall(r"`(\w+(?:\.\w+)+)(?<!\.py)`", MAP)
    names = [name for name in dotted if name.partition(".")[0] in tops]
    assert len(names) > 20
    for name in names:
        assert is_defined(name), name


def is_defined(name: str) -> bool:
    """Return whether ``folder.module.Class.method``, below the package, is in the source."""
    path, rest = ROOT / "vacc_deploy", name.split(".")
    while rest and (path / rest[0]).is_dir():
        path /= rest.pop(0)
    path = (path / rest.pop(0)).with_suffix(".py")
    scope = ast.parse(path.read_text("utf-8")).body if path.is_file() else None
    while scope is not None and rest:
        wanted = rest.pop(0)
        scope = next((getattr(node, "body", []) for node in scope if wanted in bound(node)), None)
    return scope is not None


def bound(node: ast.stmt) -> set[str]:
    """Return the names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_a_name_that_is_gone_is_noticed():
    assert is_defined("checkpoint.reader.Checkpoint.open") and is_defined("datasets.sources.KINDS")
    assert not is_defined("checkpoint.reader.Checkpoint.shut")
    assert not is_defined("checkpoint.reeder.Checkpoint") and not is_defined("errors.Nothing")


def test_the_map_lists_the_public_functions():
    section = MAP.partition("## Public functions")[2]
    assert sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == sorted(api.__all__)


def test_the_public_functions_are_what_the_pages_import():
    for name, text in ALL_TEXT.items():
        for module, names in re.findall(r"^from (vacc_deploy\S*) import (.+)$", text, re.MULTILINE):
            assert module == "vacc_deploy.api" and set(names.split(", ")) <= {*api.__all__}, name


def test_public_functions_load_their_modules_when_they_are_asked_for():
    code = (
        "import sys, vacc_deploy.api as api\n"
        "assert 'torch' not in sys.modules\n"
        "import vacc_deploy.prepare, vacc_deploy.quantize.run\n"
        "names = [getattr(api, name).__name__ for name in api.__all__]\n"
        "assert names == api.__all__, names\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'vacc_deploy.api' has no attribute 'destroy'"):
        api.destroy  # noqa: B018


def test_the_page_on_prepare_lists_every_rule():
    rows = PAGES["prepare.md"].partition("| rule | what it does |\n|---|---|\n")[2]
    table, _, _ = rows.partition("\n\n")
    assert re.findall(r"^\| `([a-z0-9-]+)` \| .*\. \|$", table, re.M) == [*RULES, *CONFIG_RULES]
