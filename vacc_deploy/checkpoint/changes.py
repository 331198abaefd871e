"""See that checkpoints stay what they were when they were opened: what is read is what was checked.

``stored`` compares a file while its tensors are read; here all files are compared, before a command
relies on what it has read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vacc_deploy.checkpoint.causes import SINGLE_FILE, find_weight_files
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.small_files import DOCUMENTS
from vacc_deploy.errors import CheckpointError, StoppedError, list_problems
from vacc_deploy.stamps import explain_change, find_change


def find_changes(checkpoint: Checkpoint) -> list[str]:
    """Return a line for each file that is not what it was when the directory was opened.

    It was written to, replaced or removed; or it is a new one that would be read.
    """
    directory, shards = checkpoint.directory, checkpoint.shards
    stamps = {**checkpoint.stamps, **{name: shard.stamp for name, shard in shards.items()}}
    changes = {
        name: find_change(directory / name, stamp)
        for name, stamp in stamps.items()
        # No program reads these. Who copies one compares it then.
        if name not in DOCUMENTS
    }
    if SINGLE_FILE not in shards and directory.is_dir():
        # A single file wins over an index. Without an index every weight file counts.
        counted = [SINGLE_FILE] if checkpoint.has_index else find_weight_files(directory)
        new = (name for name in counted if name not in shards)
        changes |= {name: "it is new" for name in new if os.path.isfile(directory / name)}
    return [f"{name}: {change}" for name, change in changes.items() if change]


def check_unchanged(*checkpoints: Checkpoint) -> None:
    """Refuse to rely on checkpoints that were changed since they were opened.

    Raises:
        CheckpointError: names every file of the first one that was.
    """
    for checkpoint in checkpoints:
        if changes := find_changes(checkpoint):
            raise CheckpointError(explain_changes(checkpoint.directory, changes))


@contextmanager
def unchanged(*checkpoints: Checkpoint) -> Iterator[None]:
    """See at the end of a block, also where it fails, that checkpoints were not changed.

    A change is the cause of whatever a reader, or a library, says of the changed files.

    Raises:
        CheckpointError: see ``check_unchanged``.
    """
    try:
        yield
    except StoppedError:
        raise
    except Exception as err:
        for checkpoint in checkpoints:
            if changes := find_changes(checkpoint):
                raise CheckpointError(explain_changes(checkpoint.directory, changes)) from err
        raise
    check_unchanged(*checkpoints)


def explain_changes(directory: Path, changes: Sequence[str]) -> str:
    """Return the message of a directory that was changed while it was read.

    Args:
        directory: the checkpoint.
        changes: a line for each file, its name first.
    """
    if len(changes) == 1:
        name, _, change = changes[0].partition(": ")
        return explain_change(directory / name, change)
    return (
        f"{directory} was changed while it was read:\n{list_problems(changes)}\n"
        "Wait until what writes there has ended, then rerun."
    )
