"""Accuracy on C-Eval: the letter that a model finds most likely, float and deployed side by side.

Source: C-Eval, arXiv 2305.08322. The ``val`` questions are asked, since those of ``test`` have no
published answers; the examples are those of ``dev``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.datasets.ceval import CHOICES
from vacc_deploy.evaluation.ceval_prompts import ChoicePrompt, build_prompts, choose_questions
from vacc_deploy.evaluation.pair import Pair, explain_nan, open_pair
from vacc_deploy.evaluation.paired import Paired
from vacc_deploy.evaluation.trees import Prompt
from vacc_deploy.evaluation.walk import Walk, longest_prompt
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.activations import AUTO, FLOAT, choose_activations
from vacc_deploy.reference.next_tokens import final_norm, head_name
from vacc_deploy.reference.threads import threads_for
from vacc_deploy.reference.windows import check_ids
from vacc_deploy.results import format_pairs, format_seconds, format_table
from vacc_deploy.text.tokenizer import Tokenizer

DEFAULT_SHOTS = 5


@dataclass(frozen=True)
class Choice:
    """What both models answer to one question; letters as indexes of ``CHOICES``."""

    subject: str
    answer: int
    float_choice: int
    deployed_choice: int

    def to_dict(self) -> dict[str, str]:
        """Return the letters."""
        return {
            "subject": self.subject,
            "answer": CHOICES[self.answer],
            "float": CHOICES[self.float_choice],
            "deployed": CHOICES[self.deployed_choice],
        }


@dataclass(frozen=True)
class CevalResult:
    """The accuracy of two models on C-Eval.

    Attributes:
        data: the name of the archive, folder or table.
        shots: examples that were asked for.
        num_short: prompts with fewer examples, because they were too long.
        choices: of every question, subject by subject.
        activations: what the deployed model's linears were given, ``float`` or ``int8``.
        notes: what a reader of the figures should know.
        seconds: wall time of both models.
    """

    pair: Pair
    data: str
    shots: int
    num_short: int
    choices: tuple[Choice, ...]
    activations: str
    notes: tuple[str, ...]
    seconds: float

    def subjects(self) -> dict[str, Paired]:
        """Return the counts of each subject."""
        names = dict.fromkeys(choice.subject for choice in self.choices)
        return {
            name: _count([choice for choice in self.choices if choice.subject == name])
            for name in names
        }

    @property
    def same_choice(self) -> float:
        """The share of questions to which both models give the same answer, right or wrong."""
        same = sum(choice.float_choice == choice.deployed_choice for choice in self.choices)
        return same / len(self.choices)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        subjects = self.subjects()
        return {
            "task": "ceval",
            **self.pair.to_dict(),
            "data": self.data,
            "shots": self.shots,
            "prompts_with_fewer_shots": self.num_short,
            "activations": self.activations,
            **_count(self.choices).to_dict(),
            "same_choice": self.same_choice,
            "subject_mean_float": _mean([paired.float_share for paired in subjects.values()]),
            "subject_mean_deployed": _mean([p.deployed_share for p in subjects.values()]),
            "subjects": {name: paired.to_dict() for name, paired in subjects.items()},
            "answers": [choice.to_dict() for choice in self.choices],
            "seconds": round(self.seconds, 3),
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the table by subject, then all questions together."""
        subjects = self.subjects()
        rows = [
            (name, p.total, f"{p.float_share:.1%}", f"{p.deployed_share:.1%}", p.p_value_text())
            for name, p in subjects.items()
        ]
        means = [
            _mean([p.float_share for p in subjects.values()]),
            _mean([p.deployed_share for p in subjects.values()]),
        ]
        pairs = [
            ("data", f"{self.data}, val, {self.shots} examples in front of a question"),
            *_count(self.choices).describe(),
            ("mean of subjects", f"{means[0]:.2%} float, {means[1]:.2%} deployed"),
            ("same choice", f"{self.same_choice:.2%}"),
            ("activations", self.activations),
            ("time", format_seconds(self.seconds)),
        ]
        headers = ("subject", "questions", "float", "deployed", "p")
        lines = [self.pair.describe(), format_table(headers, rows), "", format_pairs(pairs)]
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])


def evaluate_ceval(
    deployed_dir: Path,
    data: Path,
    *,
    reference_dir: Path | None = None,
    subjects: Sequence[str] = (),
    limit: int | None = None,
    shots: int = DEFAULT_SHOTS,
    activations: str = AUTO,
    progress: Progress = SILENT,
) -> CevalResult:
    """Ask both models the ``val`` questions of C-Eval.

    Args:
        deployed_dir: a directory that ``quantize`` or ``prepare`` wrote.
        data: the archive of C-Eval, its folder, or one table.
        reference_dir: the float model; default the one that the manifest names.
        subjects: those to ask; none for all that ``data`` has.
        limit: the most questions of a subject.
        shots: examples in front of a question.
        activations: as ``verify`` takes it.
        progress: learns of every file that is checked, then of every layer of both models.

    Raises:
        CalibrationError: the data cannot be read or lack what is asked for.
        CheckpointError: a directory is damaged, or a model gives NaN.
        UsageError: an unknown subject, or no float model is known.
    """
    questions, examples = choose_questions(data, subjects, limit)
    with open_pair(deployed_dir, reference_dir, progress) as pair:
        tokenizer = Tokenizer.from_dir(pair.deployed.directory)
        prompts = build_prompts(
            questions,
            examples,
            shots=shots,
            tokenizer=tokenizer,
            longest=longest_prompt(pair.deployed.config),
        )
        check_ids(pair.deployed, [i for p in prompts for i in (*p.ids, *p.letters)])
        chosen = choose_activations(activations, pair.deployed)
        started = time.monotonic()
        walks = [Walk(pair.reference, FLOAT), Walk(pair.deployed, chosen)]
        answers = _choose(walks, prompts, progress)
        return CevalResult(
            pair=pair,
            data=data.name or data.resolve().name,
            shots=shots,
            num_short=_count_short(prompts, shots),
            choices=tuple(
                Choice(prompt.subject, prompt.answer, *letters)
                for prompt, *letters in zip(prompts, *answers, strict=True)
            ),
            activations=chosen,
            notes=(*pair.notes, *tokenizer.notes, *_note_short(prompts, shots)),
            seconds=time.monotonic() - started,
        )


def _count_short(prompts: Sequence[ChoicePrompt], shots: int) -> int:
    return sum(prompt.shots < shots for prompt in prompts)


def _note_short(prompts: Sequence[ChoicePrompt], shots: int) -> tuple[str, ...]:
    count = _count_short(prompts, shots)
    note = (
        f"the first examples were left out of {count:,} of {len(prompts):,} prompts, which would "
        "be too long with them."
    )
    return (note,) if count else ()


def _choose(
    walks: Sequence[Walk], prompts: Sequence[ChoicePrompt], progress: Progress
) -> list[list[int]]:
    """Return for each model the index of the letter that it finds most likely, by prompt."""
    asked, answers = [Prompt(prompt.ids) for prompt in prompts], []
    progress.start("Evaluating", sum(walk.num_steps(asked) for walk in walks), "layers")
    for walk in walks:
        with threads_for(walk.checkpoint.config):
            states = walk.states(asked, progress)  # [prompts, hidden]
            answers.append(_score_letters(walk.checkpoint, states, prompts))
    progress.finish()
    return answers


def _score_letters(
    checkpoint: Checkpoint, states: torch.Tensor, prompts: Sequence[ChoicePrompt]
) -> list[int]:
    """Return the index of the largest of the four letters' logits, by prompt.

    Of all rows of the head only those of the letters are read. Probabilities have the same order.
    """
    ids, places = torch.unique(torch.tensor([p.letters for p in prompts]), return_inverse=True)
    table = checkpoint.read_rows(head_name(checkpoint), ids.tolist()).float()
    logits = final_norm(checkpoint, states) @ table.T  # [prompts, ids]
    scores = logits.gather(1, places)  # [prompts, 4]
    if not torch.isfinite(scores).all():
        raise explain_nan(checkpoint, "an answer")
    return [int(i) for i in scores.argmax(1)]


def _count(choices: Sequence[Choice]) -> Paired:
    return Paired.count(
        [choice.float_choice == choice.answer for choice in choices],
        [choice.deployed_choice == choice.answer for choice in choices],
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
