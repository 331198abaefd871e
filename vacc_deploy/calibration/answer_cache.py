"""Answers that were generated once, kept in a file so that they need not be generated again.

A file of JSON lines: first what shaped the answers, then one line for each batch of prompts. Every
line carries a hash of its content; the file is replaced as a whole, never changed in place.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vacc_deploy.errors import OutputError
from vacc_deploy.progress import Progress

FORMAT = 1
MAX_CACHE_BYTES = 1 << 28  # 128 x 2048 tokens take 2 MB
_HASH_CHARS = 24


def default_directory(environment: Mapping[str, str]) -> Path:
    """Return ``$XDG_CACHE_HOME/vacc-deploy/answers``, in ``~/.cache`` where that is not set."""
    base = environment.get("XDG_CACHE_HOME", "")
    # The XDG rules: a relative path is to be ignored.
    root = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~")) / ".cache"
    return root / "vacc-deploy" / "answers"


def hash_json(value: Any) -> str:
    """Return the sha256 of a value in hex, the same for equal values."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class AnswerCache:
    """The answers of one model under one set of settings.

    Attributes:
        path: of the file; its name holds a hash of ``identity``.
        digest: that hash, whole.
    """

    def __init__(
        self, directory: Path, identity: Mapping[str, Any], *, vocab_size: int, max_tokens: int
    ) -> None:
        """Prepare a cache; nothing is read yet.

        Args:
            directory: where the file lies; created with its parents.
            identity: plain values, everything that shapes the answers but the prompts.
            vocab_size: every id of an answer is below it.
            max_tokens: of an answer.

        Raises:
            OutputError: the directory cannot be written.
        """
        self._identity, self._vocab_size, self._max_tokens = dict(identity), vocab_size, max_tokens
        self.digest = hash_json(self._identity)
        self.path = directory / f"{self.digest[:_HASH_CHARS]}.jsonl"
        self._batches: dict[str, list[list[int]]] = {}
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory):
                pass
        except OSError as err:
            raise self._unwritable(err) from err

    def load(self, progress: Progress) -> None:
        """Read what the file holds; a damaged line is left out, with one warning."""
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_CACHE_BYTES + 1)
        except FileNotFoundError:
            return
        except OSError as err:
            progress.warn(f"{self.path} cannot be read ({err.strerror}): answers are written anew.")
            return
        lines = data.splitlines() if len(data) <= MAX_CACHE_BYTES else []
        num_damaged = 0 if lines else 1
        for number, line in enumerate(lines):
            key, value = self._parse(line)
            if number == 0:
                if (key, value) != ("", self._identity):
                    num_damaged = len(lines)
                    break
            elif key and self._is_batch(value):
                self._batches[key] = value
            else:
                num_damaged += 1
        if num_damaged:
            progress.warn(
                f"{self.path} is damaged (lines: {num_damaged}): these answers are written anew."
            )

    def get(self, prompts: Sequence[Sequence[int]]) -> list[list[int]] | None:
        """Return the answers to a batch of prompts, None where they are not known."""
        answers = self._batches.get(hash_json(prompts))
        return answers if answers is not None and len(answers) == len(prompts) else None

    def put(self, prompts: Sequence[Sequence[int]], answers: list[list[int]]) -> None:
        """Keep the answers to a batch of prompts, and write the file.

        Raises:
            OutputError: the file cannot be written.
        """
        self._batches[hash_json(prompts)] = answers
        lines = [_to_line("", self._identity)]
        lines += [_to_line(key, self._batches[key]) for key in self._batches]
        try:
            self._replace("".join(lines).encode("ascii"))
        except OSError as err:
            raise self._unwritable(err) from err

    def _replace(self, data: bytes) -> None:
        handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, self.path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _parse(self, line: bytes) -> tuple[str | None, Any]:
        """Return the key and the value of a line; no key where it is damaged."""
        try:
            record = json.loads(line.decode("ascii"))
        except (ValueError, RecursionError):
            return None, None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            return None, None
        key, value = record.get("prompts_sha256"), record.get("value")
        if not isinstance(key, str) or record.get("sha256") != hash_json([key, value]):
            return None, None
        return key, value

    def _is_batch(self, value: Any) -> bool:
        return isinstance(value, list) and all(
            isinstance(ids, list)
            and len(ids) <= self._max_tokens
            and all(type(token) is int and 0 <= token < self._vocab_size for token in ids)
            for ids in value
        )

    def _unwritable(self, err: OSError) -> OutputError:
        return OutputError(
            f"The answers cannot be kept in {self.path.parent}: {err.strerror or err}. Name a "
            "directory that can be written with --answers-cache."
        )


def _to_line(key: str, value: Any) -> str:
    record = {
        "format": FORMAT,
        "prompts_sha256": key,
        "sha256": hash_json([key, value]),
        "value": value,
    }
    return json.dumps(record, ensure_ascii=True) + "\n"
