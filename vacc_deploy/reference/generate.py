"""Let a loaded model write: one chat turn, a conversation, or many prompts in one batch.

Owns how a model is asked and where an answer ends. ``loader`` makes the model, ``sampling`` says
how tokens are drawn, ``streaming`` shows text while it is written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.checkpoint.generation_config import describe_unused, read_generation_config
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.soundness import advise, find_unsound
from vacc_deploy.errors import UsageError, list_problems
from vacc_deploy.reference.activations import plain_input_notes
from vacc_deploy.reference.loader import activation_dtype, load_model
from vacc_deploy.reference.sampling import (
    Sampling,
    SamplingOptions,
    check_scores,
    choose_sampling,
    describe_sampling,
    probability_errors,
)
from vacc_deploy.reference.streaming import TextStream, TokenStreamer
from vacc_deploy.reference.threads import threads_for
from vacc_deploy.reference.windows import check_ids
from vacc_deploy.results import format_seconds
from vacc_deploy.text.tokenizer import Tokenizer

MAX_NEW_TOKENS = 256
_SHORTER = "Ask for fewer tokens."


@dataclass(frozen=True)
class Answer:
    """One chat turn.

    Attributes:
        text: what the model wrote, special tokens included.
        num_prompt_tokens: tokens of the prompt as the chat template writes it.
        finished: whether the model ended by itself, not at the limit.
        sampling: how its tokens were drawn; None is greedy.
    """

    prompt: str
    text: str
    num_prompt_tokens: int
    num_new_tokens: int
    seconds: float
    finished: bool
    sampling: Sampling | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        sampling = {"greedy": self.sampling is None}
        if self.sampling:
            sampling |= asdict(self.sampling)
        return {**asdict(self), "seconds": round(self.seconds, 3), "sampling": sampling}

    def to_text(self) -> str:
        """Return the answer, and a line of figures."""
        return f"{self.text}\n\n{self.figures()}"

    def figures(self) -> str:
        """Return a line of length, speed and sampling."""
        end = "" if self.finished else ", stopped at --max-new-tokens"
        rate = self.num_new_tokens / self.seconds if self.seconds else 0.0
        return (
            f"[{self.num_new_tokens} tokens in {format_seconds(self.seconds)}, "
            f"{rate:.1f} tokens/s, {describe_sampling(self.sampling)}{end}]"
        )


@dataclass(frozen=True)
class Answers:
    """The answers to several prompts, each of which was asked by itself."""

    answers: tuple[Answer, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {"answers": [answer.to_dict() for answer in self.answers]}

    def to_text(self) -> str:
        """Return every prompt with its answer."""
        count = len(self.answers)
        return "\n\n".join(
            f"{prompt_heading(number, count, answer.prompt)}\n{answer.to_text()}"
            for number, answer in enumerate(self.answers, 1)
        )


def prompt_heading(number: int, count: int, prompt: str) -> str:
    """Return the line above the answer to one prompt of several."""
    return f"--- prompt {number} of {count}: {prompt}"


class Responder:
    """A checkpoint that answers conversations; the model is loaded before the first answer.

    Attributes:
        notes: by which rules the directory is read, what to know of its token ids, and what of
            its generation config is not done.
    """

    def __init__(
        self,
        directory: Path,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        options: SamplingOptions | None = None,
    ) -> None:
        """Open a directory that ``prepare`` or ``quantize`` wrote, or a float checkpoint.

        Args:
            directory: holds weights, tokenizer and chat template.
            max_new_tokens: the most tokens of one answer.
            options: how to draw tokens; default as the directory's generation config says.

        Raises:
            CheckpointError: the directory does not exist or is damaged.
            UsageError: options that contradict each other.
        """
        # The checkpoint first: a directory that does not exist lacks more than a tokenizer.
        self._checkpoint = Checkpoint.open(directory)
        self._tokenizer = Tokenizer.from_dir(directory)
        self._sampling = choose_sampling(directory, options or SamplingOptions())
        self._max_new_tokens = max_new_tokens
        config = self._checkpoint.config
        stated, applied = read_generation_config(directory, config.vocab_size)
        unused = describe_unused(stated or {})
        self.notes = (
            *self._checkpoint.notes,
            *self._tokenizer.notes,
            *(rule.to_text() for rule in applied),
            *([unused] if unused else []),
            *plain_input_notes(config),
        )

    @cached_property
    def _model(self) -> Any:
        return load_model(self._checkpoint, dtype=activation_dtype(self._checkpoint))

    def encode(self, messages: Sequence[Mapping[str, str]], advice: str = _SHORTER) -> list[int]:
        """Return the ids that the model is to continue.

        Raises:
            UsageError: they and an answer do not fit the model's context; ends with ``advice``.
            CheckpointError: there is no chat template, or it fails; or the tokenizer gives no id,
                or one that the model has no embedding for.
        """
        ids = self._tokenizer.encode_chat(messages, add_generation_prompt=True)
        check_length(self._checkpoint, ids, self._max_new_tokens, advice)
        return ids

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuse prompts of which one is too long, before any is answered.

        Raises:
            UsageError: names the first that is too long by its number.
            CheckpointError: there is no chat template, or it fails.
        """
        for number, prompt in enumerate(prompts, 1):
            which = f"This is prompt {number} of {len(prompts)}. " if len(prompts) > 1 else ""
            self.encode([_user(prompt)], f"{which}{_SHORTER}")

    def answer(
        self,
        prompt: str,
        *,
        history: Sequence[Mapping[str, str]] = (),
        on_text: Callable[[str], None] | None = None,
        advice: str = _SHORTER,
    ) -> Answer:
        """Answer one chat turn.

        Args:
            prompt: the user's words; the directory's chat template is applied.
            history: the turns before, with ``role`` and ``content``.
            on_text: takes the answer's text while it is written, in pieces.
            advice: what to do where the context is too short, a sentence.

        Raises:
            UsageError: prompt and answer do not fit the model's context.
            CheckpointError: see ``load_model``; also where there is no chat template, or the
                model writes no probabilities.
        """
        ids = self.encode([*history, _user(prompt)], advice)
        with threads_for(self._checkpoint.config):
            model = self._model
            ends = eos_ids(model, self._tokenizer)
            stream = TextStream(self._tokenizer, ends, on_text) if on_text else None
            # Loading is not timed: tokens/s is the rate of writing alone.
            started = time.monotonic()
            directory = self._checkpoint.directory
            with probability_errors(directory, partial(name_damage, self._checkpoint)):
                (answer,) = continue_prompts(
                    model,
                    self._tokenizer,
                    [ids],
                    max_new_tokens=self._max_new_tokens,
                    sampling=self._sampling,
                    on_token=stream.add if stream else None,
                )
            if stream:
                stream.finish()
            seconds = time.monotonic() - started
        # An answer that was cut by the limit lacks the end token.
        finished = bool(answer) and answer[-1] in ends
        text = self._tokenizer.decode(answer[:-1] if finished else answer)
        return Answer(prompt, text, len(ids), len(answer), seconds, finished, self._sampling)


def generate(
    directory: Path,
    *,
    prompt: str,
    max_new_tokens: int = MAX_NEW_TOKENS,
    options: SamplingOptions | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answer one chat turn.

    The arguments and errors are those of ``Responder`` and of its ``answer``.
    """
    responder = Responder(directory, max_new_tokens=max_new_tokens, options=options)
    return responder.answer(prompt, on_text=on_text)


def check_length(checkpoint: Checkpoint, ids: list[int], max_new_tokens: int, advice: str) -> None:
    """Refuse a prompt that the model cannot continue.

    Raises:
        UsageError: it and an answer do not fit the model's context; ends with ``advice``.
        CheckpointError: it has an id that the model has no embedding for.
    """
    check_ids(checkpoint, ids)
    context = checkpoint.config.max_position_embeddings
    if len(ids) + max_new_tokens > context:
        raise UsageError(
            f"The prompt of {len(ids)} tokens and --max-new-tokens {max_new_tokens} are more than "
            f"the model's context of {context}. {advice}"
        )


def name_damage(checkpoint: Checkpoint) -> str:
    """Return which weights keep a model from writing, and what to do."""
    found = find_unsound(checkpoint)
    if not found.faults:
        return "Check the weights with vacc-deploy verify."
    listed = list_problems(found.faults)
    return f"Its weights are damaged:\n{listed}\n{advise(checkpoint, found.files)}"


def _user(prompt: str) -> dict[str, str]:
    return {"role": "user", "content": prompt}


def eos_ids(model: Any, tokenizer: Tokenizer) -> list[int]:
    """Return every id that ends an answer, by the generation config and by the tokenizer."""
    # One id, a list of ids, or None.
    stated = getattr(model.generation_config, "eos_token_id", None)
    ids = set(stated if isinstance(stated, list) else [stated]) | {tokenizer.eos_id}
    return sorted(value for value in ids if value is not None)


def continue_prompts(
    model: Any,
    tokenizer: Tokenizer,
    prompts: list[list[int]],
    *,
    max_new_tokens: int,
    sampling: Sampling | None = None,
    on_token: Callable[[int], None] | None = None,
) -> list[list[int]]:
    """Continue token prompts as one left-padded batch, greedily or by ``sampling``.

    The model's own generation config is replaced; only its end tokens go into the new one. The
    caller's random state is left as it was. ``on_token`` takes each new id of a single prompt.

    Returns:
        the new ids of each prompt, up to and including the first that ends an answer.
    """
    from transformers import GenerationConfig, LogitsProcessorList

    streamer = {"streamer": TokenStreamer(on_token)} if on_token else {}
    ends = eos_ids(model, tokenizer)
    # Any id will do: the mask hides it in front, and answers are cut behind their first end.
    pad = ends[0] if ends else 0
    drawing = asdict(sampling) if sampling else {}
    seed = drawing.pop("seed", 0)
    # transformers fills what a passed config leaves out from the model's own: its repetition
    # penalty or beams would choose other tokens than those asked for.
    model.generation_config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=1,
        eos_token_id=ends or None,
        pad_token_id=pad,
        do_sample=sampling is not None,
        **drawing,
    )
    # Left-padded, all prompts end in one column and the new tokens begin in the next.
    width = max(len(prompt) for prompt in prompts)
    padded = [[pad] * (width - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    device = getattr(model, "device", torch.device("cpu"))
    devices = [] if device.type == "cpu" else [device]
    with torch.inference_mode(), torch.random.fork_rng(devices, enabled=sampling is not None):
        if sampling is not None:
            torch.manual_seed(seed)
        output = model.generate(
            torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=model.generation_config,
            logits_processor=LogitsProcessorList([check_scores]),
            **streamer,
        )
    answers = []
    for row in output[:, width:].tolist():  # [prompts, new tokens]
        # A row that ended earlier than the longest one is padded: cut behind its first end.
        stop = next((i + 1 for i, value in enumerate(row) if value in ends), len(row))
        answers.append(row[:stop])
    return answers
