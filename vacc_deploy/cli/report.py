"""``--report`` and ``--language``, which several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from vacc_deploy.cli.options import FILE, Function, again_with, say
from vacc_deploy.errors import UsageError

# Kept here, and compared in a test: pages.texts, which owns them, is not needed for --help.
LANGUAGES = ("en", "zh")


def report_options(function: Function) -> Function:
    """Add ``--report`` and ``--language``."""
    report = click.option(
        "--report",
        type=FILE,
        metavar="FILE.html",
        help="Write the result as a page for the browser, too: one file, without network or "
        "scripts.",
    )
    language = click.option(
        "--language",
        type=click.Choice(LANGUAGES),
        help="Write the page in English or Chinese.  [default: en]",
    )
    return report(language(function))


def check_report(report: Path | None, language: str | None, *, overwrite: bool) -> None:
    """Refuse what could not be written, before hours of work.

    Args:
        report: of the page; None where none is wanted.
        language: as it was given.
        overwrite: a page of ours that nobody has changed may be replaced.

    Raises:
        UsageError: there is a language without a page, or the name is not that of a page.
        OutputError: see ``pages.file.check_page_file``.
    """
    if report is None:
        if language is not None:
            raise UsageError("--language is that of a page. Add --report FILE.html.")
        return
    from vacc_deploy.pages.file import check_page_file

    check_page_file(report, overwrite=overwrite)


def write_report(
    report: Path,
    make_page: Callable[..., str],
    result: object,
    language: str | None,
    *,
    overwrite: bool,
) -> None:
    """Write the page of a result, and say on stderr where it is.

    Args:
        report: of the page.
        make_page: a function of ``pages``: result, ``language`` and ``command_line`` to the page.
        result: of the command.
        language: as it was given.
        overwrite: as for ``check_report``.
    """
    from vacc_deploy.pages.file import write_page

    line = again_with("report", report)
    page = make_page(result, language=language or LANGUAGES[0], command_line=line)
    write_page(report, page, overwrite=overwrite, say=say)
    say(f"the page is in {report}")
