"""The files of a tokenizer: their names, and how they are read within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import TOKENIZER_BYTES, TOKENIZER_CONFIG_BYTES
from vacc_deploy.errors import CheckpointError
from vacc_deploy.json_files import UTF8_MARK, read_bounded, read_json

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
ADDED_TOKENS_NAME = "added_tokens.json"
SPECIAL_TOKENS_NAME = "special_tokens_map.json"
VOCAB_NAME = "vocab.json"
MERGES_NAME = "merges.txt"
SENTENCEPIECE_NAME = "tokenizer.model"
MODEL_CONFIG_NAME = "config.json"
# All that decide the ids, beside config.json.
TOKEN_FILES = (
    *(TOKENIZER_NAME, TOKENIZER_CONFIG_NAME, ADDED_TOKENS_NAME, SPECIAL_TOKENS_NAME),
    *(VOCAB_NAME, MERGES_NAME),
)
RESTORE = "Restore the file from the model's original repository."


def damaged(path: Path, what: str, advice: str = RESTORE) -> CheckpointError:
    """Return the error for a file that cannot be used; ``what`` is a clause."""
    return CheckpointError(f"{path} cannot be used: {what}. {advice}")


def read_large(path: Path) -> bytes:
    """Return the bytes of a file that holds a vocabulary, without a byte order mark."""
    data = read_bounded(path, TOKENIZER_BYTES, advice=RESTORE).removeprefix(UTF8_MARK)
    if not data:
        raise damaged(path, "it is empty")
    return data


def read_object(path: Path) -> Mapping[str, Any]:
    """Return the object of a small JSON file; an empty one where there is no such file."""
    if not path.is_file():
        return {}
    value = read_json(path, limit_bytes=TOKENIZER_CONFIG_BYTES)
    if not isinstance(value, dict):
        raise damaged(path, f"it holds {type(value).__name__}, expected a JSON object")
    return value
