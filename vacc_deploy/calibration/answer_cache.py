"""Answers that were generated once, saved so that they need not be generated again.

A directory for each set of settings, and in it a small JSON file for each batch of prompts. A file
is written aside and renamed, so it is whole or absent, and it carries a hash of what it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import ANSWERS_BYTES
from vacc_deploy.errors import OutputError
from vacc_deploy.json_files import parse_json
from vacc_deploy.outputs.text_file import replace_text
from vacc_deploy.permissions import explain_unwritable
from vacc_deploy.progress import SILENT, Progress

_NAME_CHARS = 24  # 96 bits; a file's seal covers the whole hash and the prompts

Answers = list[list[int]]


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
    """The answers of one model under one set of settings, whose hash is ``digest``."""

    def __init__(
        self,
        directory: Path,
        identity: Mapping[str, Any],
        *,
        vocab_size: int,
        max_tokens: int,
        progress: Progress = SILENT,
    ) -> None:
        """Prepare a cache; no answer is read yet.

        Args:
            directory: holds the caches of all settings; created with its parents.
            identity: plain values, everything that shapes the answers but the prompts.
            vocab_size: every id of an answer is below it.
            max_tokens: length of the longest answer.
            progress: warned of damaged files.

        Raises:
            OutputError: the directory cannot be written.
        """
        self._vocab_size, self._max_tokens, self._progress = vocab_size, max_tokens, progress
        self.digest = hash_json(dict(identity))
        self._directory = directory / self.digest[:_NAME_CHARS]
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            # Before the first answer, which takes long.
            with tempfile.TemporaryFile(dir=self._directory):
                pass
        except OSError as err:
            raise self._unwritable(err) from err

    def path_of(self, prompts: Sequence[Sequence[int]]) -> Path:
        """Return the file of a batch of prompts."""
        return self._directory / f"{hash_json(prompts)[:_NAME_CHARS]}.json"

    def get(self, prompts: Sequence[Sequence[int]]) -> Answers | None:
        """Return the answers to a batch of prompts; None where they are missing or damaged."""
        path = self.path_of(prompts)
        try:
            with path.open("rb") as file:
                # One byte more than allowed tells a file that is too large.
                data = file.read(ANSWERS_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as err:
            problem = f"cannot be read ({err.strerror})"
        else:
            answers = self._parse(data, prompts) if len(data) <= ANSWERS_BYTES else None
            if answers is not None:
                return answers
            problem = "is damaged"
        self._progress.warn(f"{path} {problem}: its answers are written anew.")
        return None

    def put(self, prompts: Sequence[Sequence[int]], answers: Answers) -> None:
        """Save the answers to a batch of prompts.

        Raises:
            OutputError: the file cannot be written.
        """
        text = json.dumps({"answers": answers, "sha256": self._seal(prompts, answers)}) + "\n"
        try:
            replace_text(self.path_of(prompts), text, overwrite=True, head="")
        except (OSError, OutputError) as err:
            raise self._unwritable(err) from err

    def _seal(self, prompts: Sequence[Sequence[int]], answers: Any) -> str:
        """Return the hash that ties answers to their prompts and to these settings."""
        return hash_json([self.digest, prompts, answers])

    def _parse(self, data: bytes, prompts: Sequence[Sequence[int]]) -> Answers | None:
        """Return the answers that a file holds, None where it is damaged."""
        try:
            record = parse_json(data)
            answers = record["answers"]
            is_sealed = record["sha256"] == self._seal(prompts, answers)
        except (ValueError, TypeError, LookupError):
            return None
        is_sound = is_sealed and isinstance(answers, list) and len(answers) == len(prompts)
        return answers if is_sound and all(map(self._is_answer, answers)) else None

    def _is_answer(self, value: Any) -> bool:
        if not isinstance(value, list) or len(value) > self._max_tokens:
            return False
        # The exact type: true is an int in Python, and no id.
        return all(type(token) is int and 0 <= token < self._vocab_size for token in value)

    def _unwritable(self, err: OSError | OutputError) -> OutputError:
        what = f"The answers cannot be saved in {self._directory}"
        choose = "Name a directory that can be written with --answers-cache"
        # replace_text has put the system's error into words that speak of --output.
        cause = err if isinstance(err, OSError) else err.__cause__
        if isinstance(cause, OSError):
            path = self._directory / "answers.json"
            return OutputError(explain_unwritable(path, cause, choose=choose, what=what))
        return OutputError(f"{what}: {err} {choose}.")
