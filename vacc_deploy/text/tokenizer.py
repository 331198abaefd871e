"""Text to token ids and back, and the chat template.

Never goes through transformers: its 5.0 to 5.21 releases tokenize a local directory of
R1-Distill-Llama wrongly, because they choose the backend by the model's name.
Which ids there are is settled in ``text.token_files``; nothing here writes a tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vacc_deploy.errors import CheckpointError, UsageError
from vacc_deploy.text.chat_template import ChatTemplate
from vacc_deploy.text.files import (
    RESTORE,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    damaged,
)
from vacc_deploy.text.template_files import TEMPLATE_JSON_NAME, TEMPLATE_NAME, find_template
from vacc_deploy.text.token_files import SettledTokens, probe_leading_id, settle_tokens


class Tokenizer:
    """The tokenizer of one checkpoint directory.

    Attributes:
        bos_token, bos_id: the begin-of-sequence token and its id, None where there is none.
        eos_token, eos_id: the end-of-sequence token and its id, None where there is none.
        adds_bos: whether plain text of this model begins with the BOS token.
        has_chat_template: whether the checkpoint carries a chat template, usable or not.
        template_file: name of the file that holds it; the usual one where there is none.
        notes: what a user should know about the ids, sentences.
    """

    def __init__(
        self,
        settled: SettledTokens,
        *,
        directory: Path,
        template: ChatTemplate | CheckpointError | None,
    ) -> None:
        self._backend = backend = settled.backend
        self._directory, self._template, self.notes = directory, template, settled.notes
        if not backend.size:
            raise damaged(directory / TOKENIZER_NAME, "its vocabulary is empty")
        self.bos_token, self.bos_id = self._special(settled.special, "bos_token")
        self.eos_token, self.eos_id = self._special(settled.special, "eos_token")
        leading = probe_leading_id(backend)
        if self.bos_id is None and leading is not None:
            self.bos_id, self.bos_token = leading, backend.id_to_token(leading)
        self.adds_bos: bool = self._read_adds_bos(settled.config, leading)
        self.has_chat_template = template is not None
        is_file = (directory / TEMPLATE_NAME).is_file()
        self.template_file = TEMPLATE_NAME if is_file else TOKENIZER_CONFIG_NAME
        if isinstance(template, ChatTemplate):
            self.template_file = template.path.name

    @classmethod
    def from_dir(cls, checkpoint_dir: Path) -> Tokenizer:
        """Read the tokenizer files of a checkpoint directory.

        Raises:
            TokenConflictError: two files disagree on an id.
            CheckpointError: there is no tokenizer, or a file of it is too large or damaged.
        """
        settled = settle_tokens(checkpoint_dir)
        template = find_template(checkpoint_dir, settled.config)
        return cls(settled, directory=checkpoint_dir, template=template)

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """Return the ids of ``text``, never cut and never padded.

        Args:
            text: any text; special tokens written in it become their ids.
            add_bos: put the BOS id in front, unless the text begins with it already. No other
                special token is ever added.

        Raises:
            CheckpointError: ``add_bos`` for a tokenizer that has no BOS token, or
                ``tokenizer.json`` has no id for a part of the text.
            TooLongError: ``text`` is too long.
            UsageError: ``text`` is not valid Unicode.
        """
        if add_bos and self.bos_id is None:
            raise CheckpointError(
                f"The tokenizer in {self._directory} has no BOS token: {TOKENIZER_CONFIG_NAME} "
                f"names none. {RESTORE}"
            )
        try:
            # Not `special`: the post-processor would put its BOS whatever `add_bos` says.
            ids = self._backend.encode(text)
        except UnicodeError as err:
            raise UsageError(
                "A text to tokenize is not valid Unicode (it holds half of a surrogate pair, or "
                "bytes that were not UTF-8). Give the text as UTF-8."
            ) from err
        if add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD."""
        return self._backend.decode(ids, skip_special=skip_special_tokens)

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """Return a conversation in the form of the chat template.

        Args:
            messages: turns with ``role`` and ``content``.
            add_generation_prompt: end with the mark after which the model answers.

        Raises:
            CheckpointError: there is no chat template, or it cannot be used.
            TooLongError: the conversation is too long for any template.
        """
        if isinstance(self._template, CheckpointError):
            raise self._template
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
        return self.encode_prompt(text) if add_generation_prompt else self.encode_rendered(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a prompt that a chat template wrote: at least one.

        Raises:
            CheckpointError: the template wrote nothing, or ``tokenizer.json`` gives no token.
        """
        if not text and isinstance(self._template, ChatTemplate):
            what = "its chat template writes nothing for a prompt, expected at least the question"
            raise damaged(self._template.path, what)
        ids = self.encode_rendered(text)
        if not ids:
            what = "it gives 0 tokens for a prompt, expected at least 1"
            raise damaged(self._directory / TOKENIZER_NAME, what)
        return ids

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
        # Only an added token counts: a template may write plain text behind an answer.
        return first[0] if first and first[0] in self._backend.added else self.eos_id

    def _special(self, tokens: Mapping[str, str], role: str) -> tuple[str | None, int | None]:
        """Return the token with a role and its id, None twice where none has it."""
        token = tokens.get(role)
        return token, None if token is None else self._backend.token_to_id(token)

    def _read_adds_bos(self, config: Mapping[str, Any], leading: int | None) -> bool:
        """Return the config's own statement, else what the post-processor does."""
        value = config.get("add_bos_token")
        if value is None:
            return leading is not None and leading == self.bos_id
        path = self._directory / TOKENIZER_CONFIG_NAME
        if not isinstance(value, bool):
            raise damaged(path, f"add_bos_token is {value!r:.80}, expected true or false")
        # Without a BOS there is none to put; `settle_tokens` has told it.
        return value and self.bos_id is not None
