"""Which files travel beside the weights, and which of them are made anew on the way."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from vacc_deploy.bounds import SIDE_FILE_BYTES
from vacc_deploy.checkpoint.generation_config import read_generation_config
from vacc_deploy.checkpoint.reader import INDEX_NAME, Checkpoint
from vacc_deploy.checkpoint.small_files import DOCUMENTS
from vacc_deploy.errors import CheckpointError, TokenConflictError
from vacc_deploy.json_files import UTF8_MARK, dump_json, read_bounded
from vacc_deploy.models.config import CONFIG_NAME, GENERATION_CONFIG_NAME
from vacc_deploy.models.settle import BYTE_ORDER_MARK, TOKEN_FILES, Applied
from vacc_deploy.outputs.files import copy_file, side_files
from vacc_deploy.outputs.writer import WrittenFile, write_bytes
from vacc_deploy.stamps import FileStamp, open_ordinary
from vacc_deploy.text.files import MERGES_NAME, SENTENCEPIECE_NAME, TOKENIZER_NAME, VOCAB_NAME
from vacc_deploy.text.token_files import settle_tokens

GENERATED = "generated"


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

    @classmethod
    def copied(cls, path: Path, how: str = "copy", stamp: FileStamp | None = None) -> SideFile:
        """Return a file that is copied byte for byte, but for a byte order mark.

        ``stamp`` is the one that it had when it was read.
        """
        if _has_mark(path):
            return cls.generated(path.name, read_bounded(path, SIDE_FILE_BYTES)[len(UTF8_MARK) :])
        return cls(path.name, path.stat().st_size, how, partial(copy_file, path, stamp=stamp))

    @classmethod
    def generated(cls, name: str, text: str | bytes) -> SideFile:
        """Return a file of this content."""
        # A lone surrogate becomes its escape, as JSON has it.
        data = text.encode(errors="backslashreplace") if isinstance(text, str) else text
        return cls(name, len(data), GENERATED, partial(_write, name=name, data=data))


class SidePlan(NamedTuple):
    """What lies beside the weights of an output.

    Attributes:
        applied: the rules by which the source is read, those of its weights included.
        notes: what else a user should know of the tokenizer.
    """

    files: tuple[SideFile, ...]
    applied: tuple[Applied, ...]
    notes: tuple[str, ...]

    def to_notes(self) -> tuple[str, ...]:
        """Return a sentence for every rule, and the notes."""
        return (*(rule.to_text() for rule in self.applied), *self.notes)


def plan_side_files(checkpoint: Checkpoint, *, with_config: bool) -> SidePlan:
    """Return what of a source an output gets beside the weights.

    All is copied but what the rules change: ``tokenizer.json`` where other files say more than it
    does, ``generation_config.json``, and ``config.json``. A directory without a usable tokenizer
    gives a note: its weights can be used all the same.

    Args:
        checkpoint: the source.
        with_config: whether the output gets the source's ``config.json``.

    Raises:
        TokenConflictError: the files disagree on an id.
        CheckpointError: a file cannot be read, is damaged or too large.
    """
    directory, texts = checkpoint.directory, dict[str, str | bytes]()
    generation, applied = read_generation_config(directory, checkpoint.config.vocab_size)
    if generation is not None and applied:
        texts[GENERATION_CONFIG_NAME] = dump_json(generation)
    if with_config and checkpoint.is_config_changed:
        texts[CONFIG_NAME] = dump_json(checkpoint.config.raw)
    tokenizer, notes = _settle_tokenizer(directory)
    if tokenizer is not None:
        texts[TOKENIZER_NAME] = tokenizer
        applied += tuple(Applied(TOKEN_FILES, note) for note in notes)
        notes = ()
    paths = side_files(directory, with_config=with_config)
    files = [
        SideFile.copied(path, stamp=checkpoint.stamps.get(path.name))
        for path in paths
        if path.name not in texts
    ]
    files += [SideFile.generated(name, text) for name, text in texts.items()]
    index = [directory / INDEX_NAME] if with_config and checkpoint.has_index else []
    rules = (*checkpoint.applied, *applied, *_drop_marks([*paths, *index]))
    return SidePlan(tuple(files), rules, notes)


def _has_mark(path: Path) -> bool:
    """Return whether a file that programs read begins with a byte order mark."""
    with open_ordinary(path) as file:
        return path.name not in DOCUMENTS and file.read(len(UTF8_MARK)) == UTF8_MARK


def _drop_marks(paths: list[Path]) -> list[Applied]:
    """Return the rule by which ``SideFile.copied`` leaves byte order marks out, if it does."""
    names = ", ".join(path.name for path in paths if _has_mark(path))
    note = f"left the byte order mark at the beginning of {names} out."
    return [Applied(BYTE_ORDER_MARK, note)] if names else []


def _settle_tokenizer(directory: Path) -> tuple[bytes | None, tuple[str, ...]]:
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


def _write(directory: Path, *, name: str, data: bytes) -> WrittenFile:
    return write_bytes(directory / name, [data])
