"""The tokenizers library as the rest of this package sees it: in a process of limited means.

See ``worker`` for the process, and ``token_job`` for what it does there.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import (
    TOKENIZED_BYTES,
    TOKENIZER_CPU_PER_MB,
    TOKENIZER_CPU_SECONDS,
    TOKENIZER_MEMORY,
    TOKENIZER_MEMORY_TIMES,
    VOCABULARY_MEMORY,
)
from vacc_deploy.errors import CheckpointError, TooLongError
from vacc_deploy.json_files import BeyondBoundError, parse_json
from vacc_deploy.text.files import damaged
from vacc_deploy.text.session import Session
from vacc_deploy.text.worker import Worker, WorkerError

# The library takes 200 to 400 bytes for each byte of a text: tokens, places, origins.
_TEXT_TIMES = 15 * TOKENIZER_MEMORY_TIMES
_SMALLEST_BYTES = 512  # as which a short text counts
_SAYS = "the tokenizers library says:"
_worker = Worker("token_job.py", ("tokenizers",))


class Backend:
    """A tokenizer of the library.

    Attributes:
        size: tokens of the vocabulary, added ones included.
        added: id to added token.
    """

    def __init__(self, document: Mapping[str, Any], data: bytes, path: Path) -> None:
        """Read a tokenizer.

        Args:
            document: the content of ``tokenizer.json``. Only its vocabulary is looked at.
            data: the same, as the library reads it.
            path: named where it cannot be read.

        Raises:
            CheckpointError: the library cannot read it, or not within bounds.
        """
        self._document, self._path = document, path
        self._session = Session(
            _worker,
            data,
            seconds=TOKENIZER_CPU_SECONDS + len(data) / 1e6,
            num_bytes=TOKENIZER_MEMORY + TOKENIZER_MEMORY_TIMES * len(data),
        )
        try:
            self._session.load()
        except WorkerError as err:
            raise self._damaged(err) from err
        facts = self._session.facts
        self.size: int = facts["size"]
        self.added: dict[int, str] = {int(idx): token for idx, token in facts["added"].items()}

    def section(self, name: str) -> Any:
        """Return a part of ``tokenizer.json`` as it is stored, None where there is none."""
        return self._document.get(name)

    @cached_property
    def plain(self) -> dict[str, int]:
        """Token to id, of the vocabulary without added tokens."""
        model = self._document.get("model")
        vocab = model.get("vocab") if isinstance(model, dict) else None
        if isinstance(vocab, dict):
            return vocab
        # Unigram has pairs of token and score.
        pairs = vocab if isinstance(vocab, list) else []
        return {pair[0]: idx for idx, pair in enumerate(pairs)}

    @cached_property
    def added_ids(self) -> dict[str, int]:
        """Added token to id."""
        return {token: token_id for token_id, token in self.added.items()}

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token, None where there is none."""
        found = self.added_ids.get(token)
        return self.plain.get(token) if found is None else found

    def id_to_token(self, token_id: int) -> str | None:
        """Return the token of an id, None where there is none."""
        found = self.added.get(token_id)
        return self._plain_tokens.get(token_id) if found is None else found

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """Return the ids of ``text``, with what the post-processor adds where ``special`` is set.

        Raises:
            CheckpointError: the library fails, or does not get ready within bounds.
            TooLongError: ``text`` is too long.
            UnicodeEncodeError: ``text`` is not valid Unicode.
        """
        data = text.encode()
        if len(data) > TOKENIZED_BYTES:
            raise TooLongError(
                f"A text of {len(data):,} bytes is too long to be made tokens at once, expected at "
                f"most {TOKENIZED_BYTES:,}."
            )
        return array("I", self._ask({"op": "encode", "special": special}, data)).tolist()

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        Raises:
            CheckpointError: see ``encode``.
        """
        head = {"op": "decode", "skip_special": skip_special}
        return self._ask(head, array("I", ids).tobytes()).decode()

    def _ask(self, head: Mapping[str, Any], data: bytes) -> bytes:
        size = max(len(data), _SMALLEST_BYTES)
        try:
            _, answer = self._session.request(
                head,
                data,
                seconds=size * TOKENIZER_CPU_PER_MB / 1e6,
                num_bytes=TOKENIZER_MEMORY + _TEXT_TIMES * size,
                limit=TOKENIZER_MEMORY,
            )
        except WorkerError as err:
            raise self._damaged(err) from err
        return answer

    def _damaged(self, err: WorkerError) -> CheckpointError:
        said = f"with it the tokenizers library {err}" if err.is_limit else f"{_SAYS} {err}"
        return damaged(self._path, said)

    @cached_property
    def _plain_tokens(self) -> dict[int, str]:
        return {token_id: token for token, token_id in self.plain.items()}


def parse_document(data: bytes, path: Path) -> dict[str, Any]:
    """Return the content of a ``tokenizer.json``.

    Raises:
        CheckpointError: it is not JSON, no object, or says one thing twice.
    """
    try:
        document = parse_json(data, times=VOCABULARY_MEMORY, is_strict=True)
    except BeyondBoundError as err:
        raise damaged(path, str(err)) from err
    except ValueError as err:
        raise damaged(path, f"it is not valid JSON: {err}") from err
    if not isinstance(document, dict):
        raise damaged(path, f"it holds {type(document).__name__}, expected a JSON object")
    return document
