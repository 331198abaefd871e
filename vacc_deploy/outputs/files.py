"""The small files beside the weights: which travel, and how files are copied or linked."""

from __future__ import annotations

import os
from pathlib import Path

from vacc_deploy.bounds import SIDE_FILE_BYTES
from vacc_deploy.checkpoint.header import ShardHeader, read_header
from vacc_deploy.checkpoint.small_files import DOCUMENTS, SIDE_FILES
from vacc_deploy.checkpoint.stored import read_pieces
from vacc_deploy.errors import CheckpointError, OutputError
from vacc_deploy.json_files import STAND_IN_BYTES, name_stand_in
from vacc_deploy.links import explain_outside
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.outputs.file_system import FULL, Say, ignore
from vacc_deploy.outputs.manifests import LinkedFile
from vacc_deploy.outputs.writer import WrittenFile, write_bytes
from vacc_deploy.permissions import explain_dangling, explain_unreadable, real_path
from vacc_deploy.stamps import FileStamp, explain_change, find_change, open_ordinary

LINK_MODES = ("auto", "hardlink", "symlink", "copy")


def side_files(directory: Path, *, with_config: bool) -> list[Path]:
    """Return the files of ``directory`` that travel with the weights, sorted by name.

    Raises:
        CheckpointError: one of them cannot be read, is larger than such a file can be, or is a
            link that leads out of the directory.
    """
    names = (*SIDE_FILES, CONFIG_NAME) if with_config else SIDE_FILES
    for name in names:
        # It would seem not to be there.
        dangling = explain_dangling(directory / name) if name not in DOCUMENTS else ""
        if dangling:
            raise CheckpointError(dangling)
    paths = sorted(directory / name for name in names if (directory / name).is_file())
    for path in paths:
        if outside := explain_outside(path):
            raise CheckpointError(outside)
        try:
            with open_ordinary(path) as file:
                stand_in = name_stand_in(file.read(STAND_IN_BYTES))
        except OSError as err:
            raise CheckpointError(explain_unreadable(path, err)) from err
        if path.stat().st_size > SIDE_FILE_BYTES:
            raise CheckpointError(
                f"{path} holds {path.stat().st_size:,} bytes, expected at most "
                f"{SIDE_FILE_BYTES:,}. Restore the file from the model's original repository."
            )
        if stand_in and path.name not in DOCUMENTS:
            raise CheckpointError(f"{path} {stand_in}")
    return paths


def copy_file(source: Path, directory: Path, stamp: FileStamp | None = None) -> WrittenFile:
    """Copy ``source`` into ``directory`` byte for byte, hashing it on the way.

    Args:
        source: the file.
        directory: where the copy goes, under its name.
        stamp: what the file had when it was checked; default the one that it has now.

    Raises:
        CheckpointError: it was changed.
    """
    # As many bytes as were checked, however many it may have by now.
    num_bytes = source.stat().st_size if stamp is None else stamp.num_bytes
    pieces = read_pieces(source, [(0, num_bytes)], stamp)
    written = write_bytes(directory / source.name, pieces)
    if written.num_bytes != num_bytes:
        change = f"{written.num_bytes:,} of its {num_bytes:,} bytes could be read"
        raise CheckpointError(explain_change(source, change))
    return written


def place_shard(
    shard: ShardHeader, directory: Path, link_mode: str, *, before_copy: Say = ignore
) -> tuple[WrittenFile | LinkedFile, str]:
    """Put one weight file into ``directory``.

    Args:
        shard: the checked source file; a symbolic link (as in the hub's cache) is resolved first.
        directory: where to put it, under its own name.
        link_mode: one of ``LINK_MODES``; ``auto`` is a hard link, else a copy.
        before_copy: called, before a byte is copied, with the reason why ``auto`` could not link.

    Returns:
        the record for the manifest, and what was done: ``hardlink``, ``symlink`` or ``copy``.

    Raises:
        OutputError: the file system refuses the link asked for, or holds another copy than was
            written.
        CheckpointError: the source is not what it was when it was checked, or cannot be read.
    """
    written, how = _place(shard, directory, link_mode, before_copy)
    _compare_placed(shard, directory / shard.path.name, is_link=how != "copy")
    return written, how


def _compare_placed(shard: ShardHeader, target: Path, *, is_link: bool) -> None:
    """Refuse a weight file that is not the one whose header was checked."""
    change = find_change(target, shard.stamp) if is_link and shard.stamp else ""
    if not change and _has_header_of(shard, target):
        return
    if not is_link and _has_header_of(shard, shard.path):
        raise OutputError(
            f"{target} is not the copy of {shard.path} that was written. Look into the system's "
            "log (dmesg) for errors of the disk, then rerun, if need be with another --output."
        )
    raise CheckpointError(explain_change(shard.path, change or "its header is another one"))


def _has_header_of(shard: ShardHeader, path: Path) -> bool:
    """Return whether a file has the size and the header of the one that was checked.

    Raises:
        CheckpointError: the system does not let it be read.
    """
    try:
        found = read_header(path)
    except CheckpointError as err:
        if isinstance(err.__cause__, OSError):
            raise
        return False
    return (found.file_bytes, found.header_sha256) == (shard.file_bytes, shard.header_sha256)


def _place(
    shard: ShardHeader, directory: Path, link_mode: str, before_copy: Say
) -> tuple[WrittenFile | LinkedFile, str]:
    """Link or copy one weight file; see ``place_shard``."""
    source, target = real_path(shard.path), directory / shard.path.name
    # Bound by size and header: hashing the data would read gigabytes that are not copied.
    linked = LinkedFile(target.name, shard.file_bytes, shard.header_sha256)
    if link_mode == "copy":
        return copy_file(shard.path, directory, shard.stamp), "copy"
    try:
        if link_mode == "symlink":
            os.symlink(source, target)
            return linked, "symlink"
        os.link(source, target)
        return linked, "hardlink"
    except OSError as err:
        if err.errno in FULL:
            raise
        reason = err.strerror or str(err)
        # Whatever the reason is, a copy serves; or it fails too, and then says why.
        if link_mode != "auto":
            raise _cannot_link(source, directory, link_mode, reason) from err
    before_copy(reason)
    return copy_file(shard.path, directory, shard.stamp), "copy"


def _cannot_link(source: Path, directory: Path, link_mode: str, reason: str) -> OutputError:
    if link_mode == "symlink":
        return OutputError(
            f"No symbolic link to {source} can be made in {directory.parent} ({reason}). Use "
            "--link-mode auto, or choose an --output on another file system."
        )
    return OutputError(
        f"{source} cannot be hard-linked into {directory.parent} ({reason}). "
        "Use --link-mode copy or symlink, or an --output on the same file system."
    )
