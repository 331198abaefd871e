"""Questions of mathematics with their results: JSON lines, ``{"question": ..., "answer": ...}``."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from vacc_deploy.bounds import PROBLEM_CHARACTERS, PROBLEMS
from vacc_deploy.datasets.files import check_file
from vacc_deploy.datasets.odd import OddRecordError, read_field
from vacc_deploy.datasets.records import read_entries
from vacc_deploy.errors import CalibrationError

_KEYS = ("question", "answer")
_EXPECTED = "the keys question and answer"


class MathProblem(NamedTuple):
    """One question, and the result that is right."""

    question: str
    answer: str


def read_problems(path: Path) -> list[MathProblem]:
    """Return all problems of a file; who judges by them may leave none out.

    Args:
        path: JSON lines or a JSON array, also gzip or zstd; or Parquet.

    Raises:
        CalibrationError: the file cannot be read or holds too much, or a record is odd.
    """
    check_file(path)
    problems, num_chars = list[MathProblem](), 0
    for where, record in read_entries(path, _EXPECTED, _KEYS):
        try:
            problems.append(_convert(record))
        except OddRecordError as err:
            raise CalibrationError(
                f'{path}, {where} {err}. Write {{"question": "...", "answer": "..."}} there, or '
                "remove the record."
            ) from err
        num_chars += sum(map(len, problems[-1]))
        if len(problems) > PROBLEMS or num_chars > PROBLEM_CHARACTERS:
            raise CalibrationError(
                f"{path}, {where} is more than is read: {PROBLEMS:,} questions, of "
                f"{PROBLEM_CHARACTERS:,} characters with their results. Give fewer."
            )
    if not problems:
        raise CalibrationError(
            f'{path} holds no question. Write one a line, {{"question": "...", "answer": "..."}}.'
        )
    return problems


def _convert(record: Any) -> MathProblem:
    """Return the problem of a record; a result may be written as a number.

    Raises:
        OddRecordError: a field is missing, blank or no text, or the answer is NaN or infinite.
    """
    if isinstance(record, OddRecordError):
        raise record
    answer = record.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        if isinstance(answer, float) and not math.isfinite(answer):
            raise OddRecordError(f'has {answer} under "answer", expected a finite number or text')
        # With all its digits, as people write results: 0.00001, not 1e-05.
        record = {**record, "answer": f"{Decimal(repr(answer)):f}"}
    problem = MathProblem(*(read_field(record, key) for key in _KEYS))
    if blank := [key for key in _KEYS if not getattr(problem, key).strip()]:
        raise OddRecordError(f'has a blank text under "{blank[0]}"')
    return problem
