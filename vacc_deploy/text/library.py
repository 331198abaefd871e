"""What the installed transformers makes of a tokenizer, asked in a process of limited means.

transformers chooses the class and the form of a tokenizer by names in several files, and in which
way depends on its version. See ``library_job`` for what is asked, ``worker`` for the process.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import (
    TOKENIZER_CPU_SECONDS,
    TOKENIZER_MEMORY,
    TOKENIZER_MEMORY_TIMES,
    WORKER_MEMORY,
)
from vacc_deploy.errors import NAME_SHOWN, REASON_SHOWN, ProcessError, shorten
from vacc_deploy.text.files import (
    MODEL_CONFIG_NAME,
    TOKEN_FILES,
    TOKENIZER_CONFIG_NAME,
    read_object,
)
from vacc_deploy.text.probes import CHAT, PROBES
from vacc_deploy.text.worker import Worker, WorkerError

# The classes of the models that are supported. transformers has a hundred more, some of which read
# pickles or start other programs: a stranger's file does not get to choose among them.
_CLASSES = frozenset(
    f"{name}{ending}"
    for name in ("PreTrainedTokenizer", "LlamaTokenizer", "Qwen2Tokenizer", "GPT2Tokenizer")
    for ending in ("", "Fast")
) | {"TokenizersBackend"}
_ANSWER_BYTES = 1 << 20
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    # Neither a cache nor a token of the user is looked at.
    "HF_HOME": "/nonexistent/huggingface",
    "OPENBLAS_NUM_THREADS": "1",
}
_worker = Worker(
    "library_job.py",
    ("transformers", "tokenizers", "huggingface_hub", "jinja2", "numpy"),
    environment=_ENVIRONMENT,
)


@dataclass(frozen=True)
class LibraryReading:
    """The probes as the installed transformers reads them.

    Attributes:
        version: of transformers; empty where it could not be asked.
        error: why there are no ids, a clause; empty where there are.
        class_name: the class that it chose.
        is_byte_level: whether that works on bytes, as GPT-2 does; None where it does not say.
        ids: of each text of ``PROBES``, without special tokens that are added.
        opened: the same with them.
        chat: ``CHAT`` as the chat template writes it; None where that fails.
        chat_ids: its ids, without special tokens that are added.
        chat_error: why there is none.
    """

    version: str = ""
    error: str = ""
    class_name: str = ""
    is_byte_level: bool | None = None
    ids: tuple[tuple[int, ...], ...] = ()
    opened: tuple[tuple[int, ...], ...] = ()
    chat: str | None = None
    chat_ids: tuple[int, ...] = ()
    chat_error: str = ""


def read_with_library(directory: Path) -> LibraryReading:
    """Return what the installed transformers makes of a directory's tokenizer.

    Whatever goes wrong is told in the result: a tokenizer that transformers cannot read, or reads
    beyond the bounds of memory and time, is a finding.

    Raises:
        CheckpointError: a configuration file is too large or not JSON.
    """
    if name := _strange_class(directory):
        return LibraryReading(
            error=f"it names the class {name}, and only those of Qwen, Llama and GPT-2 are loaded"
        )
    files = [directory / name for name in (*TOKEN_FILES, MODEL_CONFIG_NAME)]
    size = sum(path.stat().st_size for path in files if path.is_file())
    body = json.dumps({"texts": [text for _, text in PROBES], "chat": CHAT}).encode()
    try:
        reply, data = _worker.request(
            {"directory": str(directory.resolve())},
            body,
            seconds=2 * TOKENIZER_CPU_SECONDS + 2 * size / 1e6,
            num_bytes=min(TOKENIZER_MEMORY + TOKENIZER_MEMORY_TIMES * size, WORKER_MEMORY),
            limit=_ANSWER_BYTES,
        )
    except WorkerError as err:
        return LibraryReading(error=f"with it transformers {err}" if err.is_limit else str(err))
    except ProcessError as err:
        return LibraryReading(error=str(err).rstrip("."))
    return _unpack(str(reply["version"]), json.loads(data))


def start_library(directory: Path) -> Future[LibraryReading]:
    """Begin ``read_with_library`` and return at once: transformers takes seconds to start."""
    future = Future[LibraryReading]()

    def work() -> None:
        try:
            future.set_result(read_with_library(directory))
        except BaseException as err:
            future.set_exception(err)

    # Not waited for where the command ends before it asks for the result.
    threading.Thread(target=work, daemon=True).start()
    return future


def _unpack(version: str, values: Mapping[str, Any]) -> LibraryReading:
    if error := values.get("load_error"):
        return LibraryReading(version, error=shorten(error, REASON_SHOWN))
    return LibraryReading(
        version,
        class_name=shorten(values["class"]),
        is_byte_level=values["is_byte_level"],
        ids=tuple(map(tuple, values["ids"])),
        opened=tuple(map(tuple, values["opened"])),
        chat=values.get("chat"),
        chat_ids=tuple(values.get("chat_ids", ())),
        chat_error=shorten(values.get("chat_error", ""), REASON_SHOWN),
    )


def _strange_class(directory: Path) -> str:
    """Return the class that the files name, if it is none of those that are loaded."""
    for name in (TOKENIZER_CONFIG_NAME, MODEL_CONFIG_NAME):
        stated = read_object(directory / name).get("tokenizer_class")
        if stated is not None and (not isinstance(stated, str) or stated not in _CLASSES):
            return shorten(stated, NAME_SHOWN)
    return ""
