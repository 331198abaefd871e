"""Targets that read tokenizers, chat templates and prompts."""

from pathlib import Path

import jinja2.debug  # noqa: F401 - what jinja would import later
import tokenizers
from files import place, write
from sandbox import FindingError

from vacc_deploy.text.chat_template import ChatTemplate
from vacc_deploy.text.prompts import read_prompt_file
from vacc_deploy.text.token_files import settle_tokens
from vacc_deploy.text.tokenizer import Tokenizer

_FILES = ("tokenizer_config.json", "added_tokens.json", "special_tokens_map.json", "config.json")
_TEXTS = ("Hello world", "<s>a</s>", "\u00e9\u65e5 <\uff5cUser\uff5c>", "a\r\n  b\0")
_MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


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
    written = settled.generated or (directory / "tokenizer.json").read_bytes()
    theirs = tokenizers.Tokenizer.from_buffer(written)
    theirs.no_truncation()
    for text in _TEXTS:
        ids = own.encode(text, add_bos=False)
        if ids != theirs.encode(text, add_special_tokens=False).ids:
            raise FindingError("differs", f"{text!r} has other ids by what would be written")
        own.decode(ids)


def template(data: bytes, directory: Path) -> None:
    """A chat template: compiled and rendered in the sandbox."""
    compiled = ChatTemplate(data.decode("utf-8", "replace"), directory / "chat_template.jinja")
    special = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None}
    compiled.render(_MESSAGES, {**special, "add_generation_prompt": True})


def prompts(data: bytes, directory: Path) -> None:
    """A file of prompts, as text and as JSON lines."""
    for name in ("prompts.txt", "prompts.jsonl"):
        write(directory / name, data)
    read_prompt_file(directory / "prompts.txt")
    for prompt in read_prompt_file(directory / "prompts.jsonl"):
        if not prompt.strip():
            raise FindingError("differs", "a blank prompt")


TARGETS = (tokenizer, vocabulary, template, prompts)
