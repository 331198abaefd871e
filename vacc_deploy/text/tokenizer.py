"""Text to token ids and back, straight from ``tokenizer.json``, and the chat template.

Never goes through transformers: its 5.0 to 5.21 releases tokenize a local directory of
R1-Distill-Llama wrongly, because they choose the backend by the model's name.
Files are read only; nothing here writes a tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers

from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.json_files import read_bounded, read_json
from vacc_deploy.text.chat_template import MAX_TEMPLATE_CHARS, ChatTemplate

TOKENIZER_NAME = "tokenizer.json"
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
TEMPLATE_NAME = "chat_template.jinja"
TEMPLATE_JSON_NAME = "chat_template.json"
MAX_TOKENIZER_BYTES = 64 << 20  # published files hold 4 to 17 MB
MAX_TOKENIZER_CONFIG_BYTES = 8 << 20
_RESTORE = "Restore the file from the model's original repository."


class Tokenizer:
    """The tokenizer of one checkpoint directory.

    Attributes:
        bos_token, bos_id: the begin-of-sequence token and its id, None where there is none.
        eos_token, eos_id: the end-of-sequence token and its id, None where there is none.
        adds_bos: whether plain text of this model begins with the BOS token.
        has_chat_template: whether the checkpoint carries a chat template.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        directory: Path,
        config: Mapping[str, Any],
        template: ChatTemplate | None,
    ) -> None:
        self._backend, self._directory, self._template = backend, directory, template
        # Settings saved by somebody's calibration run would cut every text.
        backend.no_truncation()
        backend.no_padding()
        if not backend.get_vocab(with_added_tokens=True):
            raise _damaged(directory / TOKENIZER_NAME, "its vocabulary is empty")
        self.bos_token, self.bos_id = self._read_special(config, "bos_token")
        self.eos_token, self.eos_id = self._read_special(config, "eos_token")
        with _library_errors(directory / TOKENIZER_NAME):
            leading = _probe_leading_id(backend)
        if self.bos_id is None and leading is not None:
            self.bos_id, self.bos_token = leading, backend.id_to_token(leading)
        self.adds_bos: bool = self._read_adds_bos(config, leading)
        self.has_chat_template = template is not None

    @classmethod
    def from_dir(cls, checkpoint_dir: Path) -> Tokenizer:
        """Read the tokenizer files of a checkpoint directory.

        Raises:
            CheckpointError: ``tokenizer.json`` is missing, too large or damaged, a special token
                is not in it, or the chat template does not compile.
        """
        backend = _read_backend(checkpoint_dir)
        config_path = checkpoint_dir / TOKENIZER_CONFIG_NAME
        config = _read_object(config_path) if config_path.is_file() else {}
        template = _read_template(checkpoint_dir, config)
        return cls(backend, directory=checkpoint_dir, config=config, template=template)

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """Return the ids of ``text``, never cut and never padded.

        Args:
            text: any text; special tokens written in it become their ids.
            add_bos: put the BOS id in front, unless the text begins with it already. No other
                special token is ever added.

        Raises:
            CheckpointError: ``add_bos`` for a tokenizer that has no BOS token, or
                ``tokenizer.json`` has no id for a part of the text.
            UsageError: ``text`` is not valid Unicode.
        """
        if add_bos and self.bos_id is None:
            raise CheckpointError(
                f"The tokenizer in {self._directory} has no BOS token: {TOKENIZER_CONFIG_NAME} "
                f"names none. {_RESTORE}"
            )
        try:
            with _library_errors(self._directory / TOKENIZER_NAME):
                # False: the post-processor would put its BOS whatever `add_bos` says.
                ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeError) as err:
            raise UsageError(
                "A text to tokenize is not valid Unicode (it holds half of a surrogate pair, or "
                "bytes that were not UTF-8). Give the text as UTF-8."
            ) from err
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        with _library_errors(self._directory / TOKENIZER_NAME):
            return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """Return a conversation in the form of the chat template.

        Args:
            messages: turns with ``role`` and ``content``.
            add_generation_prompt: end with the mark after which the model answers.

        Raises:
            CheckpointError: there is no chat template, or it fails.
        """
        if self._template is None:
            raise CheckpointError(
                f"{self._directory} has no chat template: neither {TEMPLATE_NAME}, nor "
                f"chat_template in {TOKENIZER_CONFIG_NAME}, nor {TEMPLATE_JSON_NAME}. Restore "
                "these files from the model's original repository."
            )
        special = {"bos_token": self.bos_token, "eos_token": self.eos_token}
        variables: dict[str, Any] = {k: token for k, token in special.items() if token is not None}
        # As transformers passes them: templates compare these two with none.
        variables |= {"tools": None, "documents": None}
        variables["add_generation_prompt"] = add_generation_prompt
        return self._template.render(messages, variables)

    def encode_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> list[int]:
        """Return the ids of a conversation, with exactly one BOS where the model wants one.

        See ``render_chat`` for the arguments and errors, ``encode_rendered`` for the BOS.
        """
        text = self.render_chat(messages, add_generation_prompt=add_generation_prompt)
        return self.encode_rendered(text)

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of what a chat template wrote.

        The template writes the BOS itself as a rule; only where it does not, and ``adds_bos`` is
        set, one is put in front.
        """
        wrote_bos = self.bos_token is not None and text.lstrip().startswith(self.bos_token)
        return self.encode(text, add_bos=self.adds_bos and not wrote_bos)

    def token_id(self, token: str) -> int | None:
        """Return the id of one token, None where the vocabulary does not have it."""
        return self._backend.token_to_id(token)

    def answer_end_id(self) -> int | None:
        """Return the id with which the model ends an answer.

        The special token that the chat template writes behind an answer; the end-of-sequence token
        where it writes none, or there is no template.

        Raises:
            CheckpointError: the template fails.
        """
        if self._template is None:
            return self.eos_id
        # What stands behind a known answer, in the rendered text, is what ends every answer.
        probe = "vacc-deploy-probe"
        turns = ({"role": "user", "content": "a"}, {"role": "assistant", "content": probe})
        tail = self.render_chat(turns, add_generation_prompt=False).rpartition(probe)[2].strip()
        first = self.encode(tail, add_bos=False)[:1]
        added = self._backend.get_added_tokens_decoder()
        # Only an added token counts: a template may write plain text behind an answer.
        return first[0] if first and first[0] in added else self.eos_id

    def _read_special(self, config: Mapping[str, Any], key: str) -> tuple[str | None, int | None]:
        """Return a special token and its id, None twice where the config names none."""
        value = config.get(key)
        # A token's text, or the object that transformers saves for an AddedToken.
        token = value.get("content") if isinstance(value, dict) else value
        if value is None:
            return None, None
        path = self._directory / TOKENIZER_CONFIG_NAME
        if not isinstance(token, str) or not token:
            raise _damaged(path, f"{key} is {value!r:.80}, expected a token")
        token_id = self._backend.token_to_id(token)
        if token_id is None:
            raise _damaged(path, f"{key} {token!r:.80} is not in {TOKENIZER_NAME}")
        return token, token_id

    def _read_adds_bos(self, config: Mapping[str, Any], leading: int | None) -> bool:
        """Return the config's own statement, else what the post-processor does."""
        value = config.get("add_bos_token")
        if value is None:
            return leading is not None and leading == self.bos_id
        path = self._directory / TOKENIZER_CONFIG_NAME
        if not isinstance(value, bool):
            raise _damaged(path, f"add_bos_token is {value!r:.80}, expected true or false")
        if value and self.bos_id is None:
            raise _damaged(path, "add_bos_token is true, but bos_token names no token")
        return value


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path} cannot be used: {what}. {_RESTORE}")


def _read_backend(checkpoint_dir: Path) -> tokenizers.Tokenizer:
    path = checkpoint_dir / TOKENIZER_NAME
    if not path.is_file():
        if (checkpoint_dir / "tokenizer.model").is_file():
            raise CheckpointError(
                f"{checkpoint_dir} has only tokenizer.model, the SentencePiece form; "
                f"{TOKENIZER_NAME} is needed. Load the tokenizer once with transformers "
                "(use_fast=True), save it with save_pretrained, and copy its tokenizer.json here."
            )
        raise CheckpointError(
            f"{path} is missing. Download it from the model's repository into this directory."
        )
    data = read_bounded(path, MAX_TOKENIZER_BYTES, advice=_RESTORE)
    with _library_errors(path):
        try:
            return tokenizers.Tokenizer.from_buffer(data)
        except ValueError as err:
            raise _damaged(path, f"the tokenizers library says: {err}") from err


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turn what the tokenizers library raises for a damaged file into a ``CheckpointError``.

    It raises a bare ``Exception``; the panic of its Rust code is a ``BaseException`` only. Every
    other class passes through.
    """
    try:
        yield
    except BaseException as err:
        if type(err) is Exception or type(err).__name__ == "PanicException":
            raise _damaged(path, f"the tokenizers library says: {err}") from err
        raise


def _probe_leading_id(backend: tokenizers.Tokenizer) -> int | None:
    """Return the id that the post-processor of ``tokenizer.json`` puts in front of a text."""
    bare, dressed = (backend.encode("a", add_special_tokens=dress).ids for dress in (False, True))
    return None if dressed[:1] == bare[:1] else int(dressed[0])


def _read_object(path: Path) -> Mapping[str, Any]:
    value = read_json(path, limit_bytes=MAX_TOKENIZER_CONFIG_BYTES)
    if not isinstance(value, dict):
        raise _damaged(path, f"it holds {type(value).__name__}, expected a JSON object")
    return value


def _read_template(checkpoint_dir: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the template of the first file that has one; the order is that of transformers 5."""
    path = checkpoint_dir / TEMPLATE_NAME
    if path.is_file():
        # UTF-8 takes four bytes a character at the most.
        data = read_bounded(path, 4 * MAX_TEMPLATE_CHARS, advice=_RESTORE)
        try:
            return ChatTemplate(data.decode("utf-8"), path)
        except UnicodeDecodeError as err:
            raise _damaged(path, f"it is not UTF-8: {err}") from err
    found = _choose_template(config.get("chat_template"), checkpoint_dir / TOKENIZER_CONFIG_NAME)
    path = checkpoint_dir / TEMPLATE_JSON_NAME
    if found is None and path.is_file():
        found = _choose_template(_read_object(path).get("chat_template"), path)
    return found


def _choose_template(value: Any, path: Path) -> ChatTemplate | None:
    """Return the template of a ``chat_template`` entry: a text, or a list with a default."""
    if value is None or value == []:
        return None
    if isinstance(value, list):
        named = {
            entry["name"]: entry.get("template")
            for entry in value
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
        if "default" not in named:
            names = ", ".join(sorted(named)) or "none"
            raise _damaged(path, f"chat_template has no entry named default (got: {names})")
        value = named["default"]
    if not isinstance(value, str):
        raise _damaged(path, f"chat_template is {type(value).__name__}, expected text")
    return ChatTemplate(value, path)
