"""Questions of C-Eval as prompts: examples of the subject, the question, and the four letters.

The form is that of the task ``ceval-valid`` of lm-evaluation-harness 0.4, to the letter, so that
accuracies can be compared: the description with the subject's Chinese name, examples from ``dev``
with their letters, the question, its choices and ``答案：``. The text goes to the model as it is,
without the chat template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path

from vacc_deploy.bounds import EVALUATED_TOKENS
from vacc_deploy.datasets.ceval import CHOICES, Question, read_questions
from vacc_deploy.datasets.ceval_tables import SUBJECTS
from vacc_deploy.errors import CalibrationError, CheckpointError, UsageError, name_some
from vacc_deploy.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class ChoicePrompt:
    """One question as a model gets it.

    Attributes:
        subject: as the archive names it.
        ids: of the prompt, up to the answer.
        letters: the id of each of ``CHOICES`` behind it.
        answer: the index of the right one.
        shots: examples in front of the question.
    """

    subject: str
    ids: tuple[int, ...]
    letters: tuple[int, ...]
    answer: int
    shots: int


def choose_questions(
    path: Path, subjects: Sequence[str], limit: int | None
) -> tuple[list[Question], dict[str, list[Question]]]:
    """Return the questions to ask, subject by subject, and the examples by subject.

    Args:
        path: the archive of C-Eval, its folder or a table.
        subjects: those to ask; none for all.
        limit: the most questions of a subject.

    Raises:
        CalibrationError: see ``read_questions``; or there is no question of a subject.
        UsageError: a subject is unknown.
    """
    if unknown := sorted(set(subjects) - SUBJECTS.keys()):
        raise UsageError(
            f"--subjects: {name_some(unknown)} is no subject of C-Eval. The subjects are "
            f"{', '.join(sorted(SUBJECTS))}."
        )
    asked, examples = dict[str, list[Question]](), dict[str, list[Question]]()
    for question in read_questions(path):
        kept = asked if question.split == "val" else examples
        kept.setdefault(question.subject, []).append(question)
    if missing := sorted(set(subjects) - asked.keys()):
        raise CalibrationError(
            f"{path} has no val questions of {name_some(missing)}. Give the whole archive, "
            "ceval-exam.zip, or leave the subject out."
        )
    if not asked:
        raise CalibrationError(f"{path} has no val questions. Give the archive ceval-exam.zip.")
    chosen = sorted(set(subjects)) or sorted(asked)
    return [q for name in chosen for q in asked[name][:limit]], examples


def build_prompts(
    questions: Sequence[Question],
    examples: Mapping[str, Sequence[Question]],
    *,
    shots: int,
    tokenizer: Tokenizer,
    longest: int,
) -> list[ChoicePrompt]:
    """Return the prompts of questions; where one is too long, its first examples are left out.

    Args:
        questions: to ask.
        examples: the ``dev`` questions of each subject, in order.
        shots: examples in front of a question.
        tokenizer: of the models.
        longest: tokens that the model sees as a whole.

    Raises:
        CalibrationError: a subject has fewer examples, or a question alone is too long.
        CheckpointError: the letters are no single tokens.
    """
    limit, prompts = min(longest, EVALUATED_TOKENS), list[ChoicePrompt]()
    for question in questions:
        shown = list(examples.get(question.subject, ())[:shots])
        if len(shown) < shots:
            raise CalibrationError(
                f"C-Eval's dev table of {question.subject} has {len(shown)} examples, --shots "
                f"{shots} asks for more. Give the whole archive, or --shots {len(shown)}."
            )
        while True:
            ids, letters = _encode(write_prompt(question, shown), tokenizer)
            if len(ids) <= limit:
                break
            if not shown:
                raise CalibrationError(
                    f"A question of {question.subject} has {len(ids):,} tokens, the limit is "
                    f"{limit:,}. Leave the subject out with --subjects."
                )
            del shown[0]
        answer = CHOICES.index(question.row["answer"])
        prompts.append(ChoicePrompt(question.subject, ids, letters, answer, len(shown)))
    return prompts


def write_prompt(question: Question, shown: Sequence[Question]) -> str:
    """Return the prompt as text."""
    name = SUBJECTS[question.subject]
    description = f"以下是中国关于{name}的单项选择题，请选出其中的正确答案。\n\n"
    solved = (f"{_ask(example.row)} {example.row['answer']}\n\n" for example in shown)
    return description + "".join(solved) + _ask(question.row)


def _ask(row: Mapping[str, str]) -> str:
    choices = "\n".join(f"{choice}. {row[choice]}" for choice in CHOICES)
    return f"{row['question'].strip()}\n{choices}\n答案："


def _encode(text: str, tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids up to the letter, and the id of each letter.

    Raises:
        CheckpointError: a letter takes more than one token.
    """
    # The letter is encoded with the text before it: alone it may be another token.
    whole = [
        tuple(tokenizer.encode(f"{text} {choice}", add_bos=tokenizer.adds_bos))
        for choice in CHOICES
    ]
    # What all four begin with, the space before the letter if that is a token of its own.
    ids = tuple(commonprefix(whole))
    letters = tuple(i for ids_of_one in whole for i in ids_of_one[len(ids) :])
    if len(letters) != len(CHOICES) or any(len(one) != len(ids) + 1 for one in whole):
        raise CheckpointError(
            "The tokenizer writes the answers A, B, C and D with several tokens each, so that one "
            "token does not decide. Evaluate this model with --task text or --task math."
        )
    return ids, letters
