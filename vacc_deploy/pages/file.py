"""The file of a page: what it may replace, and how it appears."""

from __future__ import annotations

from pathlib import Path

from vacc_deploy.errors import OutputError, UsageError
from vacc_deploy.outputs.file_system import Say, ignore
from vacc_deploy.outputs.text_file import check_text, replace_text
from vacc_deploy.pages.page import PAGE_HEAD

_ENDINGS = (".html", ".htm")


def check_page_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a place where a page could not be written, before hours of work.

    Args:
        path: of the page.
        overwrite: a page of ours may be replaced, if nobody has changed it.

    Raises:
        UsageError: the name is not that of a page.
        OutputError: the directory is missing or closed to us, or what stands there stays.
    """
    if path.suffix.lower() not in _ENDINGS:
        raise UsageError(f"--report is {path}, expected a name that ends with .html.")
    if not path.absolute().parent.is_dir():
        # check_text takes a directory that is yet to be made.
        raise OutputError(
            f"{path.absolute().parent} is no directory. Create it, or choose another --report."
        )
    try:
        check_text(path, "", overwrite=overwrite, head=PAGE_HEAD)
    except OutputError as err:
        raise _of_this_option(err) from err


def write_page(path: Path, page: str, *, overwrite: bool, say: Say = ignore) -> None:
    """Write a page, whole or not at all.

    Raises:
        OutputError: see ``check_page_file``.
    """
    try:
        replace_text(path, page, overwrite=overwrite, head=PAGE_HEAD, say=say)
    except OutputError as err:
        raise _of_this_option(err) from err


def _of_this_option(err: OutputError) -> OutputError:
    """Return an error of a text file with the option that named it."""
    return OutputError(str(err).replace("another --output", "another --report"))
