"""Read JSON files within bounds, and write them in a stable form.

Also names what stands in place of a file that was never downloaded.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import JSON_DEPTH, JSON_DIGITS, JSON_FREE_BYTES, JSON_MEMORY
from vacc_deploy.errors import CheckpointError, VaccDeployError
from vacc_deploy.links import explain_outside
from vacc_deploy.permissions import explain_unreadable
from vacc_deploy.stamps import open_ordinary

_LFS_POINTER = b"version https://git-lfs"
_PAGE_STARTS = (b"<!doctype html", b"<html")
# How the answers of hubs, mirrors and stores begin where a file cannot be had. A vocabulary holds
# numbers, so a text behind the key tells it from one.
_ANSWERS = re.compile(
    rb"\{\s*\"(?:error|detail)\"\s*:\s*[\"{]|<\?xml|<error>|entry not found|repository not found"
    rb"|(?:404:? )?not found|invalid username or password|access to model|unauthorized|forbidden"
    rb"|too many requests|internal server error|bad gateway",
    re.IGNORECASE,
)
# Only an escape brings half of a surrogate pair into a text.
_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
# Enough of a file to tell what stands in its place.
STAND_IN_BYTES = 512
# What some editors and shells put in front of UTF-8.
UTF8_MARK = b"\xef\xbb\xbf"


def name_stand_in(head: bytes) -> str:
    """Return what stands in place of a file's content, and what to do; nothing where it is there.

    Args:
        head: the first ``STAND_IN_BYTES`` bytes of a file, or all of it.
    """
    if head.startswith(_LFS_POINTER):
        return (
            "is a Git LFS pointer, not the file itself. In a clone of its repository run: "
            "git lfs pull"
        )
    text = head.removeprefix(UTF8_MARK).lstrip()
    if _ANSWERS.match(text):
        line = text.splitlines()[0].decode("utf-8", "replace")
        return (
            f"is the answer of a server that was saved under this name: {line[:80]!r}. Download "
            "the file again with a program that logs in, such as hf download."
        )
    if text[:14].lower().startswith(_PAGE_STARTS):
        return (
            "is a web page that was saved under this name, for example that of a login or of an "
            "error. Download the file again with a program that logs in, such as hf download."
        )
    if head and not head.strip(b"\0"):
        return "begins with zero bytes only: its download was interrupted. Download it again."
    return ""


def read_bounded(
    path: Path,
    limit_bytes: int,
    *,
    error: type[VaccDeployError] = CheckpointError,
    advice: str = "Check the path.",
    is_users_own: bool = False,
) -> bytes:
    """Return the bytes of a file that holds at most ``limit_bytes``.

    A size that the file system states may lie (a pipe, a file that grows), so one byte more than
    the limit is asked for.

    Args:
        path: file to read.
        limit_bytes: largest size that is accepted.
        error: class of what is raised where the file cannot be read, or is too large.
        advice: what to do about a file that is too large, a sentence.
        is_users_own: whether the user has named this very file: then a link may lead anywhere, and
            a pipe is read too.
    """
    if not is_users_own and (outside := explain_outside(path)):
        raise error(outside)
    try:
        with path.open("rb") if is_users_own else open_ordinary(path) as file:
            data = file.read(limit_bytes + 1)
    except OSError as err:
        raise error(explain_unreadable(path, err, otherwise=advice)) from err
    if len(data) > limit_bytes:
        raise error(
            f"{path} holds more than {limit_bytes:,} bytes, too many for such a file. {advice}"
        )
    stand_in = name_stand_in(data[:STAND_IN_BYTES])
    # A text for people may be a web page; a JSON file never is.
    if stand_in and (path.suffix == ".json" or data.startswith(_LFS_POINTER)):
        raise error(f"{path} {stand_in}")
    return data


def read_json(
    path: Path, *, limit_bytes: int, times: int = JSON_MEMORY, in_utf8: bool = False
) -> Any:
    """Parse a small JSON file of at most ``limit_bytes``.

    Args:
        path: file to read.
        limit_bytes: largest size that is accepted.
        times: see ``parse_json``.
        in_utf8: refuse half a character, which no text file can hold. Our own files hold some:
            Python reads a byte of a path that is no UTF-8 as one.

    Raises:
        CheckpointError: the file is missing, too large, not UTF-8, not JSON, over a bound of
            ``parse_json``, or has half a character.
    """
    data = read_bounded(path, limit_bytes)
    if not data:
        raise CheckpointError(f"{path} is not valid JSON: it is empty. Download it again.")
    try:
        value = parse_json(data.removeprefix(UTF8_MARK), times=times)
    except BeyondBoundError as err:
        raise CheckpointError(
            f"{path} cannot be read: {err}. Restore the file from the model's original repository."
        ) from err
    except ValueError as err:
        raise CheckpointError(
            f"{path} is not valid JSON: {err}. Correct the file, or download it again."
        ) from err
    if in_utf8 and _HALF_CHARACTER.search(data) and not is_unicode(value):
        raise CheckpointError(
            f"{path} has a text with half of a character, such as \\ud800 alone, which no file can "
            "hold. Restore the file from the model's original repository."
        )
    return value


def is_unicode(value: Any) -> bool:
    """Return whether all texts of a value can be written as UTF-8: no half of a surrogate pair."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_json(value: Any) -> bool:
    """Return whether a value of Python's parser is JSON: that takes NaN and infinity too."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


class BeyondBoundError(ValueError):
    """JSON that may be valid, and is not read because it is over a bound."""


def parse_json(data: bytes | str, *, times: int = JSON_MEMORY, is_strict: bool = False) -> Any:
    """Return the values of a JSON text; every JSON of a stranger is read by this function.

    Args:
        data: the text; bytes are UTF-8 without a byte order mark.
        times: how much memory the values may take, in times of the text.
        is_strict: refuse also what Python's reader takes and others do not: a key that appears
            twice, NaN, infinity, -0 and half of a surrogate pair.

    Raises:
        BeyondBoundError: it is over a bound; says which in a clause.
        ValueError: it is not JSON; says why.
    """
    text = data.decode("utf-8") if isinstance(data, bytes) else data
    check_json_memory(text, times)
    try:
        value = _STRICT.decode(text) if is_strict else PLAIN_DECODER.decode(text)
    except RecursionError as err:
        raise BeyondBoundError(_TOO_DEEP) from err
    check_json_depth(value)
    if is_strict and ("\\ud" in text or "\\uD" in text) and not is_unicode(value):
        raise ValueError("it has a text with half of a character, such as \\ud800 alone")
    return value


def check_json_depth(value: Any) -> None:
    """Refuse lists and objects that are nested too deep.

    Raises:
        BeyondBoundError: they are.
    """
    if _is_deeper(value, JSON_DEPTH):
        raise BeyondBoundError(_TOO_DEEP)


def check_json_memory(text: str, times: int = JSON_MEMORY) -> None:
    """Refuse a JSON text whose values would take far more memory than the text.

    Raises:
        BeyondBoundError: says how much.
    """
    allowed = times * len(text) + JSON_FREE_BYTES
    if _reckon(text) > allowed and (reckoned := _reckon_exactly(text)) > allowed:
        raise BeyondBoundError(
            f"its values would take some {reckoned >> 20:,} MiB of memory, expected at most "
            f"{allowed >> 20:,} MiB for a text of {len(text):,} characters"
        )


def _reckon(text: str) -> int:
    return sum(cost * text.count(mark) for mark, cost in _MARKS.items())


def _reckon_exactly(text: str) -> int:
    """Return the same without the marks that stand in strings: those cost nothing of their own."""
    text = text.replace("\\\\", "").replace('\\"', "")
    total, is_inside = _MARKS['"'] * text.count('"'), 0
    for start in range(0, len(text), _PIECE_CHARACTERS):
        pieces = text[start : start + _PIECE_CHARACTERS].split('"')
        total += _reckon("".join(pieces[is_inside::2]))
        is_inside = (is_inside + len(pieces) - 1) % 2
    return total


def _read_whole_number(text: str) -> int:
    if len(text) > JSON_DIGITS:
        raise BeyondBoundError(
            f"it has a number of {len(text):,} digits, expected at most {JSON_DIGITS}"
        )
    return int(text)


def _read_strict_number(text: str) -> int:
    if text == "-0":
        raise ValueError("it has the whole number -0")
    return _read_whole_number(text)


def _read_finite_number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("it has a number that is too large")
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        # json takes the last of two equal keys, another reader may take the first.
        counts = Counter(key for key, _ in pairs)
        twice = max(counts, key=counts.__getitem__)
        raise ValueError(f"key {twice!r:.80} appears twice")
    return result


_TOO_DEEP = f"it has lists or objects nested more than {JSON_DEPTH} deep"
# What stands in a text for a value, and the bytes that it takes at about: of a list its own and the
# place in the list around it; of a text half for each quotation mark.
_MARKS = {"[": 64, "{": 200, '"': 24, ",": 32, ":": 24}
_PIECE_CHARACTERS = 1 << 16
PLAIN_DECODER = json.JSONDecoder(parse_int=_read_whole_number)
_STRICT = json.JSONDecoder(
    parse_int=_read_strict_number,
    parse_float=_read_finite_number,
    parse_constant=_refuse_constant,
    object_pairs_hook=_refuse_duplicates,
)


def _is_deeper(value: Any, limit: int) -> bool:
    """Return whether lists and objects are nested more than ``limit`` deep."""
    level = [value]
    for _ in range(limit):
        if not level:
            return False
        level = [
            inner
            for outer in level
            if isinstance(outer, (list, dict))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (list, dict))
        ]
    return bool(level)


def dump_json(values: Mapping[str, Any]) -> str:
    """Return ``values`` as the text of a JSON file: readable, and the same for the same values."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"
