"""Conversations as the model sees and writes them: prompt, thought, answer, end token.

The prompt is what a server would send: the chat template with its mark for the answer. What follows
is what the model would write, which a template does not know: it drops the thoughts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vacc_deploy.datasets.files import Message

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
# What R1 models write when they do not think. Source: the usage notes in the DeepSeek-R1 README.
EMPTY_THOUGHT = f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n"
# How the answers of a source were written; see docs/calibration.md.
JOINED = "joined"  # no chat template: the turns as plain text
PLAIN = "plain"  # prompt, answer, end token
AFTER_OPENING = "after-think-opening"  # the template's prompt ends with <think>
WITH_OPENING = "with-think-opening"  # the model writes <think> itself


class TextEncoder(Protocol):
    """What calibration needs of a tokenizer."""

    @property
    def adds_bos(self) -> bool:
        """Whether plain text begins with the BOS token."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """Whether ``render_chat`` works."""
        ...

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """Return the ids of plain text."""
        ...

    def encode_rendered(self, text: str) -> list[int]:
        """Return the ids of a rendered conversation, with one BOS where the model wants one."""
        ...

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> str:
        """Return a conversation in the form of the chat template."""
        ...

    def token_id(self, token: str) -> int | None:
        """Return the id of one token, None where there is none."""
        ...

    def answer_end_id(self) -> int | None:
        """Return the id with which the model ends an answer, None where there is none."""
        ...


class ConversationEncoder:
    """Turns conversations into ids.

    Attributes:
        form: ``JOINED``, ``PLAIN``, ``AFTER_OPENING`` or ``WITH_OPENING``.
    """

    def __init__(self, tokenizer: TextEncoder) -> None:
        """Find out by probes how the checkpoint's chat template treats thoughts.

        Raises:
            CheckpointError: the chat template fails.
        """
        self._tokenizer = tokenizer
        self._opening = ""
        self._end_id: int | None = None
        self.form = JOINED
        if tokenizer.has_chat_template:
            self._end_id = tokenizer.answer_end_id()
            self.form = self._probe_form()

    def _probe_form(self) -> str:
        prompt = self._render([{"role": "user", "content": "a"}])
        if prompt.rstrip().endswith(THINK_OPEN):
            self._opening = prompt[prompt.rindex(THINK_OPEN) :]
            return AFTER_OPENING
        tokens = (THINK_OPEN, THINK_CLOSE)
        thinks = all(self._tokenizer.token_id(token) is not None for token in tokens)
        return WITH_OPENING if thinks else PLAIN

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation that ends with an answer of the assistant.

        The ids of the prompt are those that a server sends, and the answer follows them: a token
        never spans the two.

        Raises:
            CheckpointError: the chat template fails.
        """
        if self.form == JOINED:
            text = "\n".join(message["content"] for message in messages)
            return self._tokenizer.encode(text, add_bos=self._tokenizer.adds_bos)
        prompt, answer = self._render(messages[:-1]), self._answer(messages[-1]["content"])
        ids = self._tokenizer.encode_rendered(prompt)
        whole = self._tokenizer.encode_rendered(prompt + answer)
        if whole[: len(ids)] == ids:
            ids = whole
        else:
            ids += self._tokenizer.encode(answer, add_bos=False)
        if self._end_id is not None and ids[-1:] != [self._end_id]:
            ids.append(self._end_id)
        return ids

    def encode_prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids after which the model writes the last answer of a conversation itself.

        A reasoning model gets its ``<think>`` and line end also from a template that does not write
        them: its makers advise that, since the model may leave its thoughts out otherwise.

        Raises:
            CheckpointError: there is no chat template, or it fails.
        """
        prompt = self._render(messages[:-1])
        opening = f"{THINK_OPEN}\n" if self.form == WITH_OPENING else ""
        return self._tokenizer.encode_rendered(prompt + opening)

    def _render(self, messages: Sequence[Message]) -> str:
        return self._tokenizer.render_chat(messages, add_generation_prompt=True)

    def _answer(self, content: str) -> str:
        """Return what the model would write for an answer with or without thoughts."""
        answer = content.strip()
        if self.form == PLAIN:
            return answer
        if not answer.startswith(THINK_OPEN):
            has_thought = THINK_CLOSE in answer
            answer = f"{THINK_OPEN}\n{answer}" if has_thought else f"{EMPTY_THOUGHT}{answer}"
        if self.form == WITH_OPENING:
            return answer
        opening = self._opening if answer.startswith(self._opening) else THINK_OPEN
        return answer.removeprefix(opening)
