r"""Generated answers to questions of mathematics, judged by what their last ``\boxed{...}`` holds.

The model is asked as R1 models are: through its chat template, with the sentence that DeepSeek
advises behind the question. Each model is loaded as a whole, as ``generate`` loads it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.datasets.problems import MathProblem, read_problems
from vacc_deploy.errors import shorten
from vacc_deploy.evaluation.boxed import is_same_result, last_boxed
from vacc_deploy.evaluation.pair import Pair, open_pair
from vacc_deploy.evaluation.paired import Paired
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.activations import plain_input_notes
from vacc_deploy.reference.generate import (
    check_length,
    continue_prompts,
    eos_ids,
    name_damage,
)
from vacc_deploy.reference.loader import activation_dtype, load_model
from vacc_deploy.reference.sampling import (
    Sampling,
    SamplingOptions,
    choose_sampling,
    describe_sampling,
    probability_errors,
)
from vacc_deploy.reference.threads import threads_for
from vacc_deploy.results import format_pairs, format_seconds, format_table
from vacc_deploy.text.tokenizer import Tokenizer

# As DeepSeek advises for R1 (its model card, "Usage Recommendations").
DIRECTIVE = r"Please reason step by step, and put your final answer within \boxed{}."
# Prompts that are answered together; each has a cache of keys and values of its own.
BATCH_PROMPTS = 8
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class MathAnswer:
    """What one model wrote to one question.

    Attributes:
        boxed: what its last box holds, None where there is none.
        right: whether this is the result.
        num_tokens: new tokens.
        finished: whether the model ended by itself, not at the limit.
    """

    text: str
    boxed: str | None
    right: bool
    num_tokens: int
    finished: bool


@dataclass(frozen=True)
class MathResult:
    """The answers of two models to the same questions.

    Attributes:
        data: name of the file.
        answers: of the float and of the deployed model, in the order of ``problems``.
        sampling: how tokens were drawn; None is greedy.
        seconds: wall time of both models.
    """

    pair: Pair
    data: str
    problems: tuple[MathProblem, ...]
    answers: tuple[tuple[MathAnswer, ...], tuple[MathAnswer, ...]]
    max_new_tokens: int
    sampling: Sampling | None
    notes: tuple[str, ...]
    seconds: float

    @property
    def paired(self) -> Paired:
        """The right answers of both."""
        right = [[answer.right for answer in answers] for answers in self.answers]
        return Paired.count(*right)

    def num_unboxed(self) -> tuple[int, ...]:
        """Return how many answers of each model have no box."""
        return tuple(sum(a.boxed is None for a in answers) for answers in self.answers)

    def num_cut(self) -> tuple[int, ...]:
        """Return how many answers of each model ended at the limit of tokens."""
        return tuple(sum(not a.finished for a in answers) for answers in self.answers)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        both = zip(self.problems, *self.answers, strict=True)
        return {
            "task": "math",
            **self.pair.to_dict(),
            "data": self.data,
            "max_new_tokens": self.max_new_tokens,
            "sampling": {"greedy": True} if self.sampling is None else asdict(self.sampling),
            **self.paired.to_dict(),
            **_by_model("without_box", self.num_unboxed()),
            **_by_model("cut", self.num_cut()),
            "answers": [
                {**problem._asdict(), "float": asdict(left), "deployed": asdict(right)}
                for problem, left, right in both
            ],
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return one row a question, then all together."""
        rows = [
            (number, shorten(problem.answer, _SHOWN_CHARACTERS), _show(left), _show(right))
            for number, (problem, left, right) in enumerate(
                zip(self.problems, *self.answers, strict=True), 1
            )
        ]
        limit = f"{self.max_new_tokens:,} new tokens"
        pairs = [
            ("data", f"{self.data}, {describe_sampling(self.sampling)}, at most {limit}"),
            *self.paired.describe(),
            ("without a box", _describe(self.num_unboxed())),
            ("cut at the limit", _describe(self.num_cut())),
            ("time", format_seconds(self.seconds)),
        ]
        headers = ("question", "result", "float", "deployed")
        lines = [self.pair.describe(), format_table(headers, rows), "", format_pairs(pairs)]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def evaluate_math(
    deployed_dir: Path,
    data: Path,
    *,
    reference_dir: Path | None = None,
    limit: int | None = None,
    max_new_tokens: int = 4096,
    options: SamplingOptions | None = None,
    progress: Progress = SILENT,
) -> MathResult:
    """Let both models answer questions, and compare what they box with the results.

    Args:
        deployed_dir: a directory that ``quantize`` or ``prepare`` wrote.
        data: the questions, see ``datasets.problems``.
        reference_dir: the float model; default the one that the manifest names.
        limit: the most questions to ask.
        max_new_tokens: the most tokens of one answer.
        options: how to draw tokens; default as the deployed directory's generation config says.
        progress: learns of every file that is checked, then of every answer.

    Raises:
        CalibrationError: the questions cannot be read.
        CheckpointError: a directory is damaged, has no chat template, or writes no probabilities.
        UsageError: a question and an answer do not fit the context, options that contradict each
            other, or no float model is known.
    """
    problems = read_problems(data)[:limit]
    with open_pair(deployed_dir, reference_dir, progress) as pair:
        # One way to draw for both: a difference is to come of the weights.
        sampling = choose_sampling(pair.deployed.directory, options or SamplingOptions())
        tokenizer = Tokenizer.from_dir(pair.deployed.directory)
        prompts = [_encode(pair.deployed, tokenizer, p, max_new_tokens) for p in problems]
        started, answers = time.monotonic(), []
        progress.start("Answering", 2 * len(problems), "answers")
        for name, checkpoint in pair.models():
            writer = _Writer(checkpoint, tokenizer, max_new_tokens, sampling)
            written = writer.write(prompts, progress, name)
            answers.append(tuple(map(_judge, written, problems)))
            del writer  # the next model takes its memory
        progress.finish()
        return MathResult(
            pair=pair,
            data=data.name,
            problems=tuple(problems),
            answers=(answers[0], answers[1]),
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            notes=(*pair.notes, *tokenizer.notes, *plain_input_notes(pair.deployed.config)),
            seconds=time.monotonic() - started,
        )


class _Writer:
    """A loaded model that answers prompts in batches."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer,
        max_new_tokens: int,
        sampling: Sampling | None,
    ) -> None:
        self._checkpoint, self._tokenizer, self._sampling = checkpoint, tokenizer, sampling
        self._max_new_tokens = max_new_tokens
        self._model = load_model(checkpoint, dtype=activation_dtype(checkpoint))

    def write(
        self, prompts: Sequence[list[int]], progress: Progress, name: str
    ) -> list[MathAnswer]:
        """Return the answers, not judged yet."""
        answers = list[MathAnswer]()
        ends = eos_ids(self._model, self._tokenizer)
        advise = partial(name_damage, self._checkpoint)
        for first in range(0, len(prompts), BATCH_PROMPTS):
            # Every batch draws other numbers, and both models draw the same.
            seed = self._sampling and replace(self._sampling, seed=self._sampling.seed + first)
            with (
                threads_for(self._checkpoint.config),
                probability_errors(self._checkpoint.directory, advise),
            ):
                written = continue_prompts(
                    self._model,
                    self._tokenizer,
                    list(prompts[first : first + BATCH_PROMPTS]),
                    max_new_tokens=self._max_new_tokens,
                    sampling=seed,
                )
            for ids in written:
                finished = bool(ids) and ids[-1] in ends
                text = self._tokenizer.decode(ids[:-1] if finished else ids)
                answers.append(MathAnswer(text, last_boxed(text), False, len(ids), finished))
            progress.advance(len(written), f"{name}: {max(map(len, written)):,} tokens")
        return answers


def _encode(
    checkpoint: Checkpoint, tokenizer: Tokenizer, problem: MathProblem, max_new_tokens: int
) -> list[int]:
    """Return the ids of a question as the chat template writes it."""
    content = f"{problem.question}\n{DIRECTIVE}"
    ids = tokenizer.encode_chat([{"role": "user", "content": content}], add_generation_prompt=True)
    begin = shorten(problem.question, _SHOWN_CHARACTERS)
    advice = f"The question begins with {begin!r}. Ask for fewer tokens."
    check_length(checkpoint, ids, max_new_tokens, advice)
    return ids


def _judge(answer: MathAnswer, problem: MathProblem) -> MathAnswer:
    is_right = answer.boxed is not None and is_same_result(problem.answer, answer.boxed)
    return replace(answer, right=is_right)


def _show(answer: MathAnswer) -> str:
    if answer.boxed is None:
        return "no box"
    return f"{shorten(answer.boxed, _SHOWN_CHARACTERS)}{'' if answer.right else ' (wrong)'}"


def _describe(counts: Sequence[int]) -> str:
    return f"{counts[0]:,} float, {counts[1]:,} deployed"


def _by_model(name: str, counts: Sequence[int]) -> dict[str, int]:
    return {f"{name}_float": counts[0], f"{name}_deployed": counts[1]}
