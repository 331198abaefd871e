"""Documents to ids: plain text as it is, conversations as the model sees and writes them.

The prompt of a conversation is what a server would send: the chat template with its mark for the
answer. What follows is what the model would write, which a template does not know: it drops the
thoughts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vacc_deploy.datasets.files import Document, Message
from vacc_deploy.datasets.sources import CONVERSATION_KINDS, CalibrationSource
from vacc_deploy.errors import CalibrationError, CheckpointError, TooLongError, shorten
from vacc_deploy.progress import Progress
from vacc_deploy.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vacc_deploy.calibration.own_answers import OwnAnswers

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
# What R1 models write when they do not think. Source: the usage notes in the DeepSeek-R1 README.
EMPTY_THOUGHT = f"{THINK_OPEN}\n\n{THINK_CLOSE}\n\n"
# How the answers of a source were written; see docs/calibration.md.
JOINED = "joined"  # no chat template: the turns as plain text
PLAIN = "plain"  # prompt, answer, end token
AFTER_OPENING = "after-think-opening"  # the template's prompt ends with <think>
WITH_OPENING = "with-think-opening"  # the model writes <think> itself
# A thought and an answer that no template writes by itself.
_PROBE, _PROBE_ANSWER = "7d4c1f", "e29b83"


class DocumentEncoder:
    """Turns the documents of one source into ids.

    Attributes:
        batch_size: how many documents to encode at once.
        form: how conversations are written; None where the source has none.
        has_own_answers: whether the model writes the answers itself.
        num_skipped: conversations left out so far, because their prompt is too long to be answered.
    """

    def __init__(
        self,
        source: CalibrationSource,
        tokenizer: Tokenizer,
        vocab_size: int,
        *,
        writer: OwnAnswers | None,
        progress: Progress,
    ) -> None:
        """Look at the chat template, where the source has conversations.

        Args:
            source: where the documents come from.
            tokenizer: tokenizer of the model.
            vocab_size: rows of the model's embedding; every id must be below it.
            writer: answers the prompts of conversations in place of the data set.
            progress: warned where there is no chat template.

        Raises:
            CheckpointError: the chat template fails.
        """
        self._name, self._path = source.name, source.path
        self._tokenizer, self._vocab_size = tokenizer, vocab_size
        self._conversations = self._writer = None
        if source.kind in CONVERSATION_KINDS:
            self._conversations, self._writer = ConversationEncoder(tokenizer), writer
        self.form = self._conversations.form if self._conversations else None
        self.has_own_answers = self._writer is not None
        self.batch_size = self._writer.batch_size if self._writer else 1
        self.num_skipped = 0
        if self.form == JOINED:
            progress.warn(
                f"The checkpoint has no chat template: the conversations of {self._name} are read "
                "as plain text."
            )

    def encode(self, documents: Sequence[Document]) -> list[list[int]]:
        """Return the ids of each document; none for a prompt too long to be answered.

        Raises:
            CheckpointError: an id is not below ``vocab_size``, or the chat template fails.
            CalibrationError: a document is too long.
        """
        return self._answer(documents) if self._writer else list(map(self._encode, documents))

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Refuse ids that would be read past the embedding."""
        largest = max(ids, default=0)
        if largest >= self._vocab_size:
            raise CheckpointError(
                f"The tokenizer gives the id {largest} for text of {self._name}, but the model has "
                f"vocab_size {self._vocab_size}: tokenizer.json does not belong to this model. "
                "Restore the tokenizer files from the model's original repository."
            )

    def _encode(self, document: Document) -> list[int]:
        with self._naming(document):
            if isinstance(document, str):
                ids = self._tokenizer.encode(document, add_bos=self._tokenizer.adds_bos)
            else:
                assert self._conversations is not None
                ids = self._conversations.encode(document)
        self._check_ids(ids)
        return ids

    @contextmanager
    def _naming(self, document: Document) -> Iterator[None]:
        """Name the file and the record where a document is too long."""
        try:
            yield
        except TooLongError as err:
            text = document if isinstance(document, str) else document[0]["content"]
            raise CalibrationError(
                f"{self._path} has a record that is too long. It begins with {shorten(text)!r}. "
                f"{err.problem} Cut the record, or take it out."
            ) from err

    def _answer(self, documents: Sequence[Document]) -> list[list[int]]:
        """Return prompts with the model's answers, and plain texts as they are.

        A prompt that is too long has no ids.
        """
        assert self._conversations is not None and self._writer is not None
        limit, encoded = self._writer.max_prompt_tokens, list[list[int]]()
        asked = list[int]()  # positions of the prompts that are answered
        for position, document in enumerate(documents):
            if isinstance(document, str):
                encoded.append(self._encode(document))
                continue
            with self._naming(document):
                prompt = self._conversations.encode_prompt(document)
            self._check_ids(prompt)
            if len(prompt) <= limit:
                asked.append(position)
            else:
                self.num_skipped += 1
            encoded.append(prompt if len(prompt) <= limit else [])
        # One list for all: the model writes the answers of a batch at once.
        answers = self._writer.write([encoded[position] for position in asked]) if asked else []
        for position, answer in zip(asked, answers, strict=True):
            encoded[position] = encoded[position] + answer
        return encoded


class ConversationEncoder:
    """Turns conversations into ids; ``form`` is one of the four words above."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Find out by probes how the checkpoint's chat template treats thoughts.

        Raises:
            CheckpointError: the chat template fails.
        """
        self._tokenizer, self._opening, self.form = tokenizer, "", JOINED
        if not tokenizer.has_chat_template:
            return
        self._end_id = tokenizer.answer_end_id()
        prompt = self._render([{"role": "user", "content": "a"}])
        if prompt.rstrip().endswith(THINK_OPEN):
            # The opening with what the template writes behind it, such as a line end.
            self.form, self._opening = AFTER_OPENING, prompt[prompt.rindex(THINK_OPEN) :]
        else:
            self.form = WITH_OPENING if self._writes_thoughts() else PLAIN

    def _writes_thoughts(self) -> bool:
        """Return whether the model thinks, though its template does not write the opening.

        The marks are single tokens, and the template takes the thoughts out of earlier answers.
        Tokens alone are no sign: those of Qwen3 have the marks also where a model never thinks.
        """
        if any(self._tokenizer.token_id(mark) is None for mark in (THINK_OPEN, THINK_CLOSE)):
            return False
        thoughts = f"{THINK_OPEN}\n{_PROBE}\n{THINK_CLOSE}\n\n"
        earlier = {"role": "assistant", "content": f"{thoughts}{_PROBE_ANSWER}"}
        asked = {"role": "user", "content": "a"}
        try:
            text = self._render([asked, earlier, asked])
        except CheckpointError:
            # A template for one turn only says nothing of earlier ones; the marks stay a sign.
            return True
        # One that leaves out the whole turn does not take thoughts out of it.
        return _PROBE not in text and _PROBE_ANSWER in text

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation that ends with an answer of the assistant.

        The ids of the prompt are those that a server sends, and the answer follows them: a token
        never spans the two.
        """
        if self.form == JOINED:
            text = "\n".join(message["content"] for message in messages)
            return self._tokenizer.encode(text, add_bos=self._tokenizer.adds_bos)
        # The last turn is the answer; the template sees the turns before it only.
        prompt, answer = self._render(messages[:-1]), self._answer(messages[-1]["content"])
        ids = self._tokenizer.encode_rendered(prompt)
        whole = self._tokenizer.encode_rendered(prompt + answer)
        if whole[: len(ids)] == ids:
            ids = whole
        else:
            # A token would span the two, for example one of two line ends: encode them apart.
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
        return self._tokenizer.encode_prompt(prompt + opening)

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
        # The prompt ends with the opening already.
        opening = self._opening if answer.startswith(self._opening) else THINK_OPEN
        return answer.removeprefix(opening)
