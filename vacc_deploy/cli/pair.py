"""Find the two directories of a command that compares a deployed model with its float model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vacc_deploy.cli.options import again_with, downloading, say
from vacc_deploy.errors import UsageError


def locate_pair(
    deployed_dir: str, reference: str | None, check_data: Callable[[], None]
) -> tuple[Path, Path | None]:
    """Return the two directories; what can be refused before a download is refused before it.

    Args:
        deployed_dir: what the user gave as DIR.
        reference: what the user gave as ``--reference``.
        check_data: refuses data that cannot be read.
    """
    from vacc_deploy.lookup.locate import find_repository, locate

    again = partial(again_with, "reference")

    def check(name: str) -> None:
        # Before a download of gigabytes.
        if reference is None:
            raise UsageError(
                f"{deployed_dir} is a repository, which does not say which float model it was made "
                f"from. Name it:\n  {again('REFERENCE')}"
            )
        if find_repository(reference) is None:
            locate(reference, again=again)
        check_data()

    deployed = locate(
        deployed_dir,
        again=partial(again_with, "deployed_dir"),
        before_download=check,
        downloading=downloading,
        say=say,
    )
    if reference is None:
        return deployed.directory, None
    found = locate(reference, again=again, before_download=check, downloading=downloading, say=say)
    return deployed.directory, found.directory
