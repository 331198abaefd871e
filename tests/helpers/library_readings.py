"""What transformers might make of a tokenizer, without transformers: for tests of the contract."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from vacc_deploy.errors import CheckpointError
from vacc_deploy.text.library import LibraryReading
from vacc_deploy.text.probes import CHAT, PROBES
from vacc_deploy.text.tokenizer import Tokenizer


def agreeing(directory: Path, **changes: Any) -> LibraryReading:
    """Return the reading of a transformers that agrees with ``tokenizer.json``, but for changes."""
    tokenizer = Tokenizer.from_dir(directory)
    texts = [text for _, text in PROBES]
    chat, chat_ids, chat_error = None, list[int](), ""
    try:
        chat = tokenizer.render_chat(CHAT, add_generation_prompt=True)
        chat_ids = tokenizer.encode(chat, add_bos=False)
    except CheckpointError:
        chat_error = "ValueError: no template"
    reading = LibraryReading(
        version="9.8.7",
        class_name="LlamaTokenizerFast",
        is_byte_level=True,
        ids=tuple(tuple(tokenizer.encode(text, add_bos=False)) for text in texts),
        opened=tuple(tuple(tokenizer.encode(text, add_bos=tokenizer.adds_bos)) for text in texts),
        chat=chat,
        chat_ids=tuple(chat_ids),
        chat_error=chat_error,
    )
    return replace(reading, **changes)


def finished(reading: LibraryReading) -> Future[LibraryReading]:
    """Return a reading as one that was begun before."""
    future = Future[LibraryReading]()
    future.set_result(reading)
    return future
