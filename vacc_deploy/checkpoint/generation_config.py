"""``generation_config.json`` of a checkpoint: its ids and limits as every loader takes them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vacc_deploy.errors import CheckpointError
from vacc_deploy.json_files import read_json
from vacc_deploy.models.config import GENERATION_CONFIG_NAME
from vacc_deploy.models.settle import Applied, settle_generation

if TYPE_CHECKING:
    from vacc_deploy.text.tokenizer import Tokenizer

MAX_GENERATION_CONFIG_BYTES = 1 << 20


def read_generation_config(
    directory: Path, vocab_size: int = 1 << 31
) -> tuple[dict[str, Any] | None, tuple[Applied, ...]]:
    """Return the settled values of ``generation_config.json``, and what was changed.

    Args:
        directory: a checkpoint directory; None is returned for one without the file.
        vocab_size: ids at or above it are left out.

    Raises:
        CheckpointError: the file is too large, not JSON, or no object.
    """
    path = directory / GENERATION_CONFIG_NAME
    if not path.is_file():
        return None, ()
    values = read_json(path, limit_bytes=MAX_GENERATION_CONFIG_BYTES)
    if not isinstance(values, dict):
        raise CheckpointError(
            f"{path} holds {type(values).__name__}, expected a JSON object. Restore the file from "
            "the model's original repository."
        )
    settler = settle_generation(values, vocab_size, token_lookup(directory))
    return settler.values, tuple(settler.applied)


def token_lookup(directory: Path) -> Callable[[str], int | None]:
    """Return what finds the id of a token in a directory's tokenizer, which is read when asked."""

    @cache
    def read() -> Tokenizer | None:
        from vacc_deploy.text.tokenizer import Tokenizer

        with suppress(CheckpointError):
            return Tokenizer.from_dir(directory)
        return None

    def find(token: str) -> int | None:
        tokenizer = read()
        return tokenizer.token_id(token) if tokenizer else None

    return find
