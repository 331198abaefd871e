"""``vacc-deploy check``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vacc_deploy.cli.card import card_options, choose_card
from vacc_deploy.cli.options import (
    again_with,
    common_options,
    emit,
    emit_json,
    is_json,
)
from vacc_deploy.cli.report import check_report, report_options, write_report
from vacc_deploy.errors import UsageError
from vacc_deploy.problems.problem import WARNING
from vacc_deploy.progress import SILENT
from vacc_deploy.results import escape_controls

if TYPE_CHECKING:
    from vacc_deploy.check.result import CheckResult

_FORMATS = TEXT, JSON, SARIF = ("text", "json", "sarif")
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@click.command("check")
@click.argument("targets", nargs=-1, metavar="TARGET...")
@card_options("Calculate whether what a compile file describes fits on this card.")
@click.option(
    "--read-all",
    is_flag=True,
    help="Read all weights and compare all hashes. Without it: headers, norms, scales, some rows.",
)
@click.option("--strict", is_flag=True, help="Fail (exit code 3) on warnings, too.")
@click.option(
    "--format",
    "form",
    type=click.Choice(_FORMATS),
    default=TEXT,
    help="Print text, one JSON object, or SARIF 2.1.0 for a system of continuous integration.",
)
@click.option(
    "--fix",
    is_flag=True,
    help="Write a mended copy of the one TARGET to --output; TARGET itself stays as it is.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="With --fix: write the mended directory or file here.",
)
@report_options
@common_options
def check_command(
    targets: tuple[str, ...],
    card: str | None,
    bandwidth: float | None,
    read_all: bool,
    strict: bool,
    form: str,
    fix: bool,
    output: Path | None,
    report: Path | None,
    language: str | None,
) -> None:
    """Find every fault that can be seen in directories and compile files, in seconds.

    TARGET is a directory (a checkpoint, or what prepare or quantize wrote) or a compile file
    (.yaml). A directory that a compile file names is checked with it. Each finding has a code, and
    says what is wrong, where, why it matters and what to do. The exit code is 0 for passed and 3
    for failed.

    Example: vacc-deploy check DeepSeek-R1-Distill-Qwen-7B-vacc qwen7b.yaml --card VA16
    """
    if not targets:
        raise UsageError("Give a directory or a compile file as TARGET.")
    if fix != (output is not None):
        raise UsageError("--fix and --output go together: the mended copy needs a place.")
    chosen = choose_card(card, bandwidth)
    if form == SARIF and is_json():
        raise UsageError("--json and --format sarif contradict each other. Give one of them.")
    # As of verify: an older page is replaced, if it is ours and nobody has changed it.
    check_report(report, language, overwrite=True)
    from vacc_deploy.check.run import CheckOptions, check, is_compile_file
    from vacc_deploy.cli.terminal import terminal_progress

    if card is not None and not any(map(is_compile_file, targets)):
        raise UsageError(
            "--card needs a compile file as TARGET, from which dtype, tp and lengths are taken. "
            "vacc-deploy yaml writes one."
        )
    options = CheckOptions(chosen, read_all, strict)
    # Without them little is read, and there is nothing to wait for.
    progress = terminal_progress() if read_all or fix else SILENT
    if output is not None:
        from vacc_deploy.check.fixes import fix_target

        result = fix_target(targets, output, options, progress=progress)
    else:
        again = partial(again_with, "targets")
        result = check(targets, options, progress=progress, again=again)
    _show(result, form)
    if report is not None:
        from vacc_deploy.pages.check_page import check_page

        write_report(report, check_page, result.to_dict(), language, overwrite=True)
    if not result.passed:
        raise click.exceptions.Exit(3)


def _show(result: CheckResult, form: str) -> None:
    if form == SARIF:
        from vacc_deploy.check.sarif import to_sarif

        emit_json(to_sarif(result))
    elif form == JSON:
        emit_json(result.to_dict())
    elif sys.stdout.isatty() and not is_json():
        _print_table(result)
    else:
        emit(result)


def _print_table(result: CheckResult) -> None:
    """Print the findings as one table, for a terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    table = Table(box=box.ROUNDED, show_lines=True, expand=True)
    # A code is never broken, however narrow the terminal is.
    table.add_column("code", width=len(WARNING), no_wrap=True)
    for name, ratio in (("where", 4), ("what is wrong", 7), ("what to do", 5)):
        table.add_column(name, ratio=ratio, overflow="fold")
    has_rows = False
    for finding in result.shown():
        problem, rule = finding.problem, finding.problem.rule
        code = Text(f"{rule.code}\n{rule.severity}", style=_STYLES[rule.severity])
        place = escape_controls(finding.place.replace(": ", "\n", 1))
        what = Text(f"{rule.title}\n", style="bold")
        what.append(escape_controls(f"{problem}\n"), style="not bold")
        what.append(rule.why, style="not bold dim")
        table.add_row(code, Text(place), what, Text(rule.fix))
        has_rows = True
    if has_rows:
        console.print(table)
    for line in result.to_verdict():
        style = "bold green" if line.startswith("Passed") else ""
        style = "bold red" if line.startswith("Failed") else style
        console.print(Text(escape_controls(line), style=style))
