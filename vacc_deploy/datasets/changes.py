"""See that calibration files stay the same while they are read, and while they are hashed later."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vacc_deploy.datasets.ceval_tables import list_tables
from vacc_deploy.datasets.sources import FOLDER_KINDS, CalibrationSource
from vacc_deploy.errors import CalibrationError
from vacc_deploy.stamps import FileStamp, compare_stamps, explain_change, take_stamp


@contextmanager
def unchanged_sources(sources: Sequence[CalibrationSource]) -> Iterator[None]:
    """See at the end of a block, also where their reader fails, that no file was changed.

    Raises:
        CalibrationError: names the first file that was changed, is gone or is new.
    """
    before = _stamp(sources)
    try:
        yield
    except CalibrationError as err:
        # What a reader says of a file that changes under it is no more than a consequence.
        if message := _find_change(before, _stamp(sources)):
            raise CalibrationError(message) from err
        raise
    if message := _find_change(before, _stamp(sources)):
        raise CalibrationError(message)


def _stamp(sources: Sequence[CalibrationSource]) -> dict[Path, FileStamp | None]:
    """Return the stamp of every file; of a folder those of its tables."""
    paths = list[Path]()
    for source in sources:
        if source.kind in FOLDER_KINDS and os.path.isdir(source.path):
            # What is wrong with the folder is told by what reads it.
            with suppress(CalibrationError, OSError):
                paths += [source.path / table.name for table in list_tables(source.path)]
        else:
            paths.append(source.path)
    return {path: take_stamp(path) for path in paths}


def _find_change(before: dict[Path, FileStamp | None], now: dict[Path, FileStamp | None]) -> str:
    for path in sorted(before.keys() | now.keys()):
        if change := compare_stamps(path, before.get(path), now.get(path)):
            return explain_change(path, change)
    return ""
