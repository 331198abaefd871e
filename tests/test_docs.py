"""The documentation is held to the code: commands, options, files, figures."""

from __future__ import annotations

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest

from vacc_deploy import __version__
from vacc_deploy.cli import cli
from vacc_deploy.demo import run as demo_module
from vacc_deploy.models.catalog import ALIGN_QKV, MODELS, PLAIN, TENSOR_PARALLEL_SIZES
from vacc_deploy.models.catalog import tensor_parallel_rule as rule

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PAGES = {path.name: path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")}
ALL_TEXT = {"README.md": README, **PAGES}
COMMANDS = sorted(cli.commands)
COMMAND_LINE = re.compile(r"vacc-deploy ([a-z-]+)([^`\n]*)")


def page_of(command: str) -> str:
    """Return the page that describes a command."""
    return PAGES.get(f"{command}.md", PAGES["cli.md"])


def option_names(command: str) -> set[str]:
    return {
        name
        for parameter in cli.commands[command].params
        if isinstance(parameter, click.Option)
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme_and_has_help_with_an_example(command):
    assert f"`vacc-deploy {command}`" in README
    text = cli.commands[command].help
    assert text and re.search(r"Examples?:", text) and f"vacc-deploy {command}" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_on_the_command_s_page(command):
    page = page_of(command)
    missing = [name for name in option_names(command) if f"{name}" not in page]
    assert not missing


@pytest.mark.parametrize("name", sorted(ALL_TEXT))
def test_commands_and_options_in_the_documentation_exist(name):
    for command, rest in COMMAND_LINE.findall(ALL_TEXT[name]):
        assert command in COMMANDS, f"{name}: vacc-deploy {command}"
        for word in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", rest):
            assert word in option_names(command) | {"--help"}, f"{name}: {command} {word}"


def test_readme_links_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_docs_links_exist():
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (ROOT / "docs" / target).exists(), f"{name}: {target}"


def test_readme_model_table_equals_the_catalogue():
    rows = dict(re.findall(r"^\| (DeepSeek-R1-Distill-\S+) \| (.*) \|$", README, re.MULTILINE))
    expected = {}
    for name, model in MODELS.items():
        config = model.config
        sizes = {
            kind: ", ".join(str(tp) for tp in TENSOR_PARALLEL_SIZES if rule(config, tp) == kind)
            for kind in (PLAIN, ALIGN_QKV)
        }
        weight = config.num_parameters() * config.dtype_bytes / 1e9
        expected[name] = f"{weight:.1f} GB | {sizes[PLAIN]} | {sizes[ALIGN_QKV]}"
    assert rows == expected


def test_changelog_newest_entry_is_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## (\S+)", changelog, re.MULTILINE).group(1) == __version__


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
