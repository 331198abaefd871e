"""Targets that read tokenizers, chat templates and prompts.

The tokenizers library runs in its own process, as in the commands, because it may end it. A chat
template is rendered here, where the watch sees what it does, with a shorter clock.
"""

import signal
from pathlib import Path

import jinja2.debug  # noqa: F401 - what jinja would import later
import tokenizers
from files import place, write
from sandbox import FindingError

from vacc_deploy.text import template_job
from vacc_deploy.text.chat_template import ChatTemplate
from vacc_deploy.text.prompts import read_prompt_file
from vacc_deploy.text.token_files import settle_tokens
from vacc_deploy.text.tokenizer import Tokenizer
from vacc_deploy.text.worker import WorkerError

_FILES = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "config.json")
_TEXTS = ("Hello world", "<s>a</s>", "\u00e9\u65e5 <\uff5cUser\uff5c>", "a\r\n  b\0")
_MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
_TEMPLATE_SECONDS = 0.3


def tokenizer(data: bytes, directory: Path) -> None:
    """``tokenizer.json`` and what stands beside it; what is settled gives the library's ids."""
    place(data, directory, "tokenizer.json", *_FILES)
    _use(directory)


def vocabulary(data: bytes, directory: Path) -> None:
    """``vocab.json`` and ``merges.txt``, of which a tokenizer is built."""
    place(data, directory, "vocab.json", "merges.txt", *_FILES)
    (directory / "tokenizer.json").unlink(missing_ok=True)
    _use(directory)


def _use(directory: Path) -> None:
    settled = settle_tokens(directory)
    own = Tokenizer.from_dir(directory)
    ids = [own.encode(text, add_bos=False) for text in _TEXTS]
    for each in ids:
        own.decode(each)
    # Here only now: what has run within its bounds does no harm.
    written = settled.generated or (directory / "tokenizer.json").read_bytes()
    theirs = tokenizers.Tokenizer.from_buffer(written)
    theirs.no_truncation()
    for text, mine in zip(_TEXTS, ids, strict=True):
        if mine != theirs.encode(text, add_special_tokens=False).ids:
            raise FindingError("differs", f"{text!r} has other ids by what would be written")


class _Here:
    """Renders in this process."""

    def request(self, head, data, *, seconds, num_bytes, limit):
        signal.signal(signal.SIGVTALRM, _stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, _TEMPLATE_SECONDS)
        try:
            reply, answer = template_job.handle({**head, "limit": limit}, data)
        except (MemoryError, RecursionError, _LateError, template_job.JobError) as err:
            raise WorkerError(str(err)[:500], line=getattr(err, "line", None)) from err
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        return {"used": 0.0, **reply}, answer


class _LateError(BaseException):
    pass


def _stop(number, frame):
    raise _LateError("it needs too long")


def template(data: bytes, directory: Path) -> None:
    """A chat template: compiled and rendered in the sandbox, the same at every time."""
    compiled = ChatTemplate(data.decode("utf-8", "replace"), directory / "chat_template.jinja")
    compiled._session._worker = _Here()
    special = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    special |= {"add_generation_prompt": True}
    if compiled.render(_MESSAGES, special) != compiled.render(_MESSAGES, special):
        raise FindingError("differs", "a conversation is rendered in two ways")


def prompts(data: bytes, directory: Path) -> None:
    """A file of prompts, as text and as JSON lines."""
    for name in ("prompts.txt", "prompts.jsonl"):
        write(directory / name, data)
    read_prompt_file(directory / "prompts.txt")
    for prompt in read_prompt_file(directory / "prompts.jsonl"):
        if not prompt.strip():
            raise FindingError("differs", "a blank prompt")
