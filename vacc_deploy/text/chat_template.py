"""A checkpoint's chat template: a stranger's program, run in a process of limited means.

Here nothing of it is compiled or run: see ``worker`` for the process, and ``template_job`` for
what a template may use there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import (
    CONVERSATION_BYTES,
    RENDERED_BYTES,
    RENDERED_FREE_BYTES,
    RENDERED_TIMES,
    TEMPLATE_CHARACTERS,
    TEMPLATE_CPU_PER_MB,
    TEMPLATE_CPU_SECONDS,
    TEMPLATE_MEMORY,
)
from vacc_deploy.errors import CheckpointError, TooLongError
from vacc_deploy.text.session import Session
from vacc_deploy.text.worker import Worker, WorkerError

_MEMORY_TIMES = 16  # what the values and the text of a conversation take of memory
_SMALLEST_BYTES = 512  # as which a short conversation counts
_worker = Worker("template_job.py", ("jinja2", "markupsafe"))


class ChatTemplate:
    """A chat template.

    Attributes:
        path: the file it came from, for messages.
        source: its text.
    """

    def __init__(self, source: str, path: Path) -> None:
        """Take the text of a template.

        Raises:
            CheckpointError: the template is too long.
        """
        self.path, self.source = path, source
        if len(source) > TEMPLATE_CHARACTERS:
            raise CheckpointError(
                f"The chat template in {path} holds {len(source):,} characters, expected at most "
                f"{TEMPLATE_CHARACTERS:,}. Restore the file from the model's original repository."
            )
        data = source.encode("utf-8", "surrogatepass")
        self._session = Session(
            _worker, data, seconds=TEMPLATE_CPU_SECONDS, num_bytes=TEMPLATE_MEMORY
        )

    def render(self, messages: Sequence[Mapping[str, str]], variables: Mapping[str, Any]) -> str:
        """Return the conversation as one text.

        Raises:
            CheckpointError: the template does not compile, fails, or leaves its bounds.
            TooLongError: the conversation is too long for any template.
        """
        values = {"messages": [dict(message) for message in messages], **variables}
        # A conversation may hold half of a surrogate pair.
        data = json.dumps(values, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(data) > CONVERSATION_BYTES:
            raise TooLongError(
                f"A conversation holds {len(data):,} bytes, more than {CONVERSATION_BYTES:,}."
            )
        size = max(len(data), _SMALLEST_BYTES)
        try:
            _, text = self._session.request(
                {"op": "render"},
                data,
                seconds=size * TEMPLATE_CPU_PER_MB / 1e6,
                num_bytes=TEMPLATE_MEMORY + _MEMORY_TIMES * size,
                limit=min(RENDERED_FREE_BYTES + RENDERED_TIMES * len(data), RENDERED_BYTES),
            )
        except WorkerError as err:
            what = "cannot render a conversation" if self._session.is_loaded else "does not compile"
            said = f"it {err}" if err.is_limit else str(err)
            place = f" (line {err.line})" if err.line else ""
            raise CheckpointError(
                f"The chat template in {self.path} {what}{place}: {said}. Restore the file from "
                "the model's original repository."
            ) from err
        return text.decode("utf-8", "surrogatepass")
