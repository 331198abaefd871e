"""Records one by one, of JSON lines, a JSON array or Parquet. Knows nothing of the data sets."""

from __future__ import annotations

import codecs
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import BLANK_BYTES, RECORD_BYTES
from vacc_deploy.datasets.files import open_data
from vacc_deploy.datasets.json_array import read_array
from vacc_deploy.datasets.odd import Entry, OddRecordError
from vacc_deploy.datasets.parquet import PARQUET_MAGIC, read_rows
from vacc_deploy.errors import CalibrationError
from vacc_deploy.json_files import BeyondBoundError, parse_json


def read_entries(path: Path, expected: str, columns: Collection[str]) -> Iterator[Entry]:
    """Yield the records of a Parquet file, of a JSON array or of one JSON object a line.

    Args:
        path: file, JSON also gzip or zstd.
        expected: what a record holds, for errors, such as ``the key text``.
        columns: names of a Parquet file's columns to read, in lower case.

    Raises:
        CalibrationError: the file is damaged, or larger than is read.
    """
    with open_data(path) as file:
        # Past a byte order mark and the blanks in front of an array's bracket.
        head = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
        blanks = 4096
        while not head and blanks < BLANK_BYTES and (block := file.read(4096)):
            head, blanks = block.lstrip(), blanks + len(block)
    if head.startswith(PARQUET_MAGIC):
        yield from read_rows(path, expected, columns)
    elif head.startswith(b"["):
        yield from _read_array(path, expected)
    else:
        yield from _read_lines(path, expected)


def _read_lines(path: Path, expected: str) -> Iterator[Entry]:
    number = num_blanks = num_text = 0
    with open_data(path) as file:
        # One byte more than allowed tells a line that is too long, without reading all of it.
        while line := file.readline(RECORD_BYTES + 1):
            number += 1
            if len(line) > RECORD_BYTES:
                raise CalibrationError(
                    f"{path}, line {number} is longer than {RECORD_BYTES:,} bytes, expected one "
                    "JSON object a line. Check that this is the published file."
                )
            if line.isspace():
                num_blanks += len(line)
                if num_blanks > BLANK_BYTES + num_text:
                    raise CalibrationError(
                        f"{path} has {num_blanks:,} bytes of blank lines up to line {number:,}, "
                        f"expected at most {BLANK_BYTES:,} more than its records have. Check that "
                        "this is the published file."
                    )
            else:
                num_text += len(line)
                yield f"line {number}", _parse_line(line, number, expected)


def _parse_line(line: bytes, number: int, expected: str) -> Any:
    try:
        # A byte order mark can stand in front of the first line only.
        value = parse_json(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line)
    except ValueError as err:
        # The last line of a sound file may lack its line end, but then it is whole.
        is_cut = not line.endswith(b"\n")
        reason = f"cannot be read: {err}; expected one JSON object a line, with {expected}"
        return OddRecordError(reason, is_cut=is_cut)
    return _check_object(value, expected)


def _check_object(value: Any, expected: str) -> Any:
    if isinstance(value, dict):
        return value
    return OddRecordError(f"holds {type(value).__name__}, expected an object with {expected}")


def _read_array(path: Path, expected: str) -> Iterator[Entry]:
    number = 0
    with open_data(path) as file:
        try:
            for number, record in enumerate(read_array(file), start=1):
                yield f"record {number}", _check_object(record, expected)
        except BeyondBoundError as err:
            raise CalibrationError(
                f"{path}, record {number + 1:,} is over a bound: {err}. Leave the record out, or "
                "give its text in shorter records."
            ) from err
        except ValueError as err:
            raise CalibrationError(
                f"{path} is not valid JSON behind record {number:,}: {err}. Expected an array of "
                f"objects with {expected}. Correct it, or download it again."
            ) from err
