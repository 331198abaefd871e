"""C-Eval: its published archive, unpacked or not, or one of its tables, to conversations.

Reads the ``dev`` and ``val`` questions. Nothing is unpacked to disk. Prompt form and subject names:
C-Eval, arXiv 2305.08322.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vacc_deploy.bounds import CEVAL_TABLE_BYTES, CEVAL_UNPACKED_BYTES
from vacc_deploy.datasets.ceval_tables import (
    CSV,
    PARQUET,
    SUBJECTS,
    Table,
    check_num_bytes,
    check_size,
    find_table,
    list_tables,
    name_with_folders,
    open_archive,
    read_member,
)
from vacc_deploy.datasets.files import (
    Document,
    check_file,
    compute_sha256,
    open_data,
    unreadable,
)
from vacc_deploy.datasets.odd import Entry, OddRecordError, Tally, check_text, keep_sound
from vacc_deploy.datasets.parquet import PARQUET_MAGIC, read_rows
from vacc_deploy.errors import CalibrationError

CHOICES = ("A", "B", "C", "D")
COLUMNS = ("question", *CHOICES, "answer")
_EXPLANATION = "explanation"
_EXPECTED = "the columns id, question, A, B, C, D, answer and maybe explanation"
# Names of columns as the Parquet reader compares them.
_WANTED = frozenset(name.lower() for name in (*COLUMNS, _EXPLANATION))


def build_conversation(subject: str, row: Mapping[str, str]) -> Document:
    """Return one question of ``COLUMNS`` as a user turn in the published form, and its answer."""
    choices = "\n".join(f"{choice}. {row[choice]}" for choice in CHOICES)
    prompt = (
        f"以下是中国关于{SUBJECTS[subject]}考试的单项选择题，请选出其中的正确答案。\n\n"
        f"{row['question']}\n{choices}\n答案："
    )
    # Only the dev questions have explanations.
    explanation = row.get(_EXPLANATION, "").strip()
    answer = f"{row['answer']}\n{explanation}" if explanation else row["answer"]
    return ({"role": "user", "content": prompt}, {"role": "assistant", "content": answer})


def read_ceval(path: Path, tally: Tally) -> Generator[Document, None, None]:
    """Yield the ``dev`` and ``val`` questions in the order of the tables' names.

    Args:
        path: ``ceval-exam.zip``, the folder that it unpacks to or the hub's folder of Parquet
            files, or one table.
        tally: counts the rows.

    Raises:
        CalibrationError: not C-Eval inside, damaged, over the size limits, or too many odd rows.
    """
    try:
        yield from keep_sound(path, _read_entries(path), _convert, tally)
    except OSError as err:
        raise unreadable(path, err) from err


class Question(NamedTuple):
    """One question of C-Eval.

    Attributes:
        split: ``dev`` or ``val``.
        subject: as the archive names it, one of ``SUBJECTS``.
        row: the texts of ``COLUMNS``, and maybe ``explanation``.
    """

    split: str
    subject: str
    row: dict[str, str]


def read_questions(path: Path) -> list[Question]:
    """Return all ``dev`` and ``val`` questions; who judges by them may leave none out.

    Args:
        path: as ``read_ceval`` takes it.

    Raises:
        CalibrationError: not C-Eval inside, damaged, over the size limits, or an odd row.
    """
    check_file(path, or_directory=True)
    questions = []
    try:
        for where, entry in _read_entries(path):
            try:
                questions.append(_check_row(entry))
            except OddRecordError as err:
                raise CalibrationError(
                    f"{path}, {where} {err}. Use the published archive."
                ) from err
    except OSError as err:
        raise unreadable(path, err) from err
    return questions


def hash_folder(folder: Path) -> str:
    """Return the sha256 in hex of the names and contents of a folder's tables."""
    digest = hashlib.sha256()
    for table in list_tables(folder):
        digest.update(f"{compute_sha256(folder / table.name)}  {table.name}\n".encode())
    return digest.hexdigest()


def _read_entries(path: Path) -> Iterator[Entry]:
    meter = _Meter(path)
    if os.path.isdir(path):
        for table in list_tables(path):
            yield from _read_file(path / table.name, table, f"table {table.name!r:.80}, ", meter)
        return
    with path.open("rb") as file:
        is_parquet = file.read(4) == PARQUET_MAGIC
    if is_parquet or _unpacked_name(path).suffix.lower() == f".{CSV}":
        yield from _read_file(path, _one_table(path, PARQUET if is_parquet else CSV), "", meter)
        return
    with open_archive(path) as (archive, tables):
        for table in tables:
            member = f"member {table.name!r:.80}"
            data = read_member(archive, table.name, f"{path}, {member}")
            meter.add(len(data))
            yield from _read_csv(data, table, f"{path}, {member}", f"{member}, ")


class _Meter:
    """Counts what the tables of a source hold when they are unpacked.

    A little may unpack to very much: members of an archive lie over one another, and values of a
    Parquet file are stored once and repeated.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._num_bytes = path, 0

    def add(self, num_bytes: int) -> None:
        """Count a part of a table before it is used.

        Raises:
            CalibrationError: all parts together are too many.
        """
        self._num_bytes += num_bytes
        if self._num_bytes > CEVAL_UNPACKED_BYTES:
            raise CalibrationError(
                f"The tables of {self._path} hold more than {CEVAL_UNPACKED_BYTES:,} bytes, far "
                "more than those of C-Eval. Use the published archive."
            )


def _unpacked_name(path: Path) -> Path:
    """Return the path without the ending of packed data."""
    return path.with_suffix("") if path.suffix.lower() in (".gz", ".zst") else path


def _one_table(path: Path, form: str) -> Table:
    """Return which table a file is, by its name and the folders around it."""
    table = find_table(name_with_folders(_unpacked_name(path)))
    example = f"accountant_val.{form}"
    if table is None or table.subject not in SUBJECTS:
        raise CalibrationError(
            f"{path} does not name its subject and its split. Name it as C-Eval does, such as "
            f"{example}, or give the archive."
        )
    if table.split == "test":
        raise CalibrationError(
            f"{path} is a test table, whose questions have no answers. Give a dev or val table, "
            f"such as {example}."
        )
    return table._replace(form=form)


def _read_file(path: Path, table: Table, prefix: str, meter: _Meter) -> Iterator[Entry]:
    if table.form == PARQUET:
        yield from _read_parquet(path, table, prefix, meter)
        return
    with open_data(path) as file:
        data = check_size(file.read(CEVAL_TABLE_BYTES + 1), str(path))
    meter.add(len(data))
    yield from _read_csv(data, table, str(path), prefix)


def _read_parquet(path: Path, table: Table, prefix: str, meter: _Meter) -> Iterator[Entry]:
    num_bytes = 0

    def count(row_bytes: int) -> None:
        nonlocal num_bytes
        num_bytes += row_bytes
        check_num_bytes(num_bytes, str(path))
        meter.add(row_bytes)

    # Packed it is no larger; so a larger file is not opened.
    check_num_bytes(path.stat().st_size, str(path))
    for where, row in read_rows(path, _EXPECTED, _WANTED, count):
        yield f"{prefix}{where}", (table, row)


def _read_csv(data: bytes, table: Table, where: str, prefix: str) -> Iterator[Entry]:
    """Yield the rows of a table; ``where`` names it in errors, ``prefix`` stands before a line."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise CalibrationError(
            f"{where} is not UTF-8: {err}. Use the published archive, not a converted one."
        ) from err
    # newline="" leaves bare line ends inside quoted fields to the csv module.
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in COLUMNS if name not in header]
        if missing:
            raise CalibrationError(
                f"{where} lacks the columns {', '.join(missing)}: got "
                f"{', '.join(header[:20])!r:.200}, expected "
                f"{_EXPECTED.removeprefix('the columns ')}."
            )
        for fields in reader:
            if fields:
                row = _match(header, fields)
                yield f"{prefix}line {reader.line_num}", (table, row)
    except csv.Error as err:
        raise CalibrationError(
            f"{where}, line {reader.line_num} is not readable CSV: {err}. Download it again."
        ) from err


def _match(header: list[str], fields: list[str]) -> dict[str, Any] | OddRecordError:
    if len(fields) == len(header):
        return dict(zip(header, fields, strict=True))
    return OddRecordError(f"has {len(fields)} fields, expected {len(header)} as in the header")


def _convert(entry: tuple[Table, Any]) -> Document:
    question = _check_row(entry)
    return build_conversation(question.subject, question.row)


def _check_row(entry: tuple[Table, Any]) -> Question:
    """Return the question of a row.

    Raises:
        OddRecordError: a field is missing or no text, or the answer is no choice.
    """
    table, row = entry
    if isinstance(row, OddRecordError):
        raise row
    values = {name: check_text(row.get(name), name) for name in COLUMNS}
    values["answer"] = values["answer"].strip()
    if values["answer"] not in CHOICES:
        raise OddRecordError(f"has the answer {values['answer'][:40]!r}, expected A, B, C or D")
    if row.get(_EXPLANATION) is not None:
        values[_EXPLANATION] = check_text(row[_EXPLANATION], _EXPLANATION)
    return Question(table.split, table.subject, values)
