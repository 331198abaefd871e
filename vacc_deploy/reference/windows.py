"""Read a text as token windows of one model, for a comparison to run over.

Owns how much of a text is read, where windows begin, and what is said about tokens left out.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

import torch

from vacc_deploy.bounds import TEXT_BYTES, TOKENIZED_BYTES
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.datasets.explain import explain_no_text
from vacc_deploy.datasets.files import advise_utf8, open_data
from vacc_deploy.errors import CalibrationError, CheckpointError
from vacc_deploy.text.tokenizer import Tokenizer

MIN_TOKENS = 16
_FIRST_BYTES_PER_TOKEN = 16  # more than a token of any language stands for on average


def read_windows(
    checkpoint: Checkpoint, path: Path, *, max_tokens: int, sequence_length: int
) -> tuple[torch.Tensor, list[str]]:
    """Return the text as token windows, and notes on the tokenizer and on what fills no window.

    Args:
        checkpoint: the model whose tokenizer reads the text.
        path: UTF-8 text, plain or gzip, with or without a byte order mark.
        max_tokens: tokens of the text to use.
        sequence_length: tokens of one window; a shorter text makes one shorter window.

    Returns:
        int64 [rows, seq], where every window begins with the BOS, and the notes.

    Raises:
        CheckpointError: the tokenizer is damaged or belongs to another model.
        CalibrationError: the text cannot be read, is not UTF-8 or is too short.
    """
    tokenizer = Tokenizer.from_dir(checkpoint.directory)
    ids, is_whole = _read_ids(tokenizer, path, max_tokens)
    check_ids(checkpoint, ids)
    usable = min(len(ids), max_tokens)
    if usable < MIN_TOKENS:
        raise CalibrationError(
            f"{path} gives {len(ids)} tokens (at most {max_tokens} used), expected at least "
            f"{MIN_TOKENS}. Use a longer text."
        )
    prefix = [tokenizer.bos_id] if tokenizer.adds_bos and tokenizer.bos_id is not None else []
    # The BOS is one of the sequence_length tokens of a window.
    width = min(sequence_length - len(prefix), usable)
    rows = [prefix + ids[start : start + width] for start in range(0, usable - width + 1, width)]
    left_over, is_short = usable % width, is_whole and len(ids) < max_tokens
    notes = list(tokenizer.notes)
    # A few tokens beyond a round --max-tokens are no surprise; the end of a short text may be.
    if left_over and (is_short or left_over >= MIN_TOKENS):
        has = f"{path.name} has {len(ids):,} tokens" if is_short else f"--max-tokens {max_tokens}"
        notes.append(
            f"{has}: the last {left_over:,} fill no window of {width:,} and were left out."
        )
    return torch.tensor(rows), notes


def check_text(path: Path) -> None:
    """Refuse a text that cannot be opened or is something else than plain text.

    Raises:
        CalibrationError: says why, and what to give.
    """
    with open_data(path) as file:
        file.read(1)
    if problem := explain_no_text(path):
        raise CalibrationError(problem)


def check_ids(checkpoint: Checkpoint, ids: list[int]) -> None:
    """Refuse ids that the model has no embedding for.

    Raises:
        CheckpointError: the tokenizer belongs to another model.
    """
    if ids and max(ids) >= checkpoint.config.vocab_size:
        raise CheckpointError(
            f"The tokenizer of {checkpoint.directory} gives the id {max(ids)}, but the model has "
            f"vocab_size {checkpoint.config.vocab_size}: the two do not belong together. Restore "
            "the tokenizer files from the model's original repository."
        )


def cut_text(text: str, num_bytes: int) -> Iterator[str]:
    """Yield a text in pieces of at most ``num_bytes`` of UTF-8, behind line ends where there are.

    Between two pieces the ids may differ a little from those of the whole.
    """
    data, start = text.encode(), 0
    while start < len(data) or not start:
        end = min(start + num_bytes, len(data))
        if end < len(data):
            end = data.rfind(b"\n", start, end) + 1 or end
        while end < len(data) and data[end] & 0xC0 == 0x80:  # in the middle of a character
            end -= 1
        yield data[start:end].decode()
        if end == len(data):
            return
        start = end


def _read_ids(tokenizer: Tokenizer, path: Path, max_tokens: int) -> tuple[list[int], bool]:
    """Return the ids of as much of the text as ``max_tokens`` needs, and whether it is all.

    Reads twice as much each time, until there are enough tokens: a token may stand for many bytes.
    """
    # The last tokens of a text that is cut are not those of the whole text, so read a few more.
    wanted, data = max_tokens + MIN_TOKENS, b""
    check_text(path)
    try:
        with open_data(path) as file:
            while True:
                num_bytes = max(_FIRST_BYTES_PER_TOKEN * max_tokens, len(data))
                more = file.read(min(num_bytes, TEXT_BYTES))
                data, is_whole = data + more, not more
                # The last character may be cut unless the text is whole.
                text = codecs.getincrementaldecoder("utf-8-sig")().decode(data, final=is_whole)
                # Without the BOS, which read_windows puts before each window.
                pieces = cut_text(text, TOKENIZED_BYTES)
                ids = [i for piece in pieces for i in tokenizer.encode(piece, add_bos=False)]
                if is_whole or len(ids) >= wanted or len(data) >= TEXT_BYTES:
                    return ids, is_whole
    except UnicodeDecodeError as err:
        raise CalibrationError(
            f"{path} is not UTF-8 text: {err.reason}, byte {err.start:,}. "
            + advise_utf8(path, err.reason)
        ) from err
