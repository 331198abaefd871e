"""Which files travel beside the weights, and which of them are made anew on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vacc_deploy.checkpoint.files import copy_file, side_files
from vacc_deploy.checkpoint.writer import WrittenFile, write_bytes
from vacc_deploy.errors import CheckpointError, TokenConflictError
from vacc_deploy.text.files import MERGES_NAME, SENTENCEPIECE_NAME, TOKENIZER_NAME, VOCAB_NAME
from vacc_deploy.text.token_files import settle_tokens


class SideFile(NamedTuple):
    """A file that an output will hold beside the weights.

    Attributes:
        num_bytes: None where only the work would tell.
        how: how it comes, such as ``copy`` or ``generated``.
        write: writes it into a directory.
    """

    name: str
    num_bytes: int | None
    how: str
    write: Callable[[Path], WrittenFile]


def plan_side_files(
    directory: Path, *, with_config: bool
) -> tuple[tuple[SideFile, ...], tuple[str, ...]]:
    """Return what of ``directory`` an output gets beside the weights, and notes on the tokenizer.

    All is copied but ``tokenizer.json``, where other files of the directory say more than it does.
    A directory without a usable tokenizer gives a note: its weights can be used all the same.

    Raises:
        TokenConflictError: the files disagree on an id.
        CheckpointError: a file cannot be read, or is too large.
    """
    paths = side_files(directory, with_config=with_config)
    generated, notes = _settle(directory)
    files = [
        SideFile(path.name, path.stat().st_size, "copy", partial(copy_file, path))
        for path in paths
        if generated is None or path.name != TOKENIZER_NAME
    ]
    if generated is not None:
        write = partial(_write_tokenizer, generated)
        files.append(SideFile(TOKENIZER_NAME, len(generated), "generated", write))
    return tuple(files), notes


def _settle(directory: Path) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the ``tokenizer.json`` to write, None for the directory's own, and notes."""
    names = TOKENIZER_NAME, VOCAB_NAME, MERGES_NAME, SENTENCEPIECE_NAME
    if not any((directory / name).is_file() for name in names):
        return None, (f"the source has no {TOKENIZER_NAME}; quantize and verify will need it.",)
    try:
        settled = settle_tokens(directory)
    except TokenConflictError:
        raise
    except CheckpointError as err:
        return None, (f"quantize and verify will need a tokenizer, and cannot use this one. {err}",)
    return settled.generated, settled.notes


def _write_tokenizer(data: bytes, directory: Path) -> WrittenFile:
    return write_bytes(directory / TOKENIZER_NAME, [data])
