"""What a file holds, told by its content: for messages about a file of another kind than named.

Looks at the first and the last bytes only, and at the names of Parquet's columns.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from vacc_deploy.bounds import HEADER_BYTES
from vacc_deploy.datasets.ceval import CHOICES
from vacc_deploy.datasets.chat import is_chat
from vacc_deploy.datasets.extras import find_package, has_package, how_to_install
from vacc_deploy.datasets.files import LFS_POINTER, advise_utf8
from vacc_deploy.datasets.packed import GZIP_MAGIC, ZSTD_MAGICS, unpack_head
from vacc_deploy.datasets.parquet import PARQUET_MAGIC, list_columns
from vacc_deploy.datasets.traces import ASSISTANT, USER
from vacc_deploy.errors import shorten

HEAD_BYTES = 64 << 10  # what is looked at, packed and unpacked
# As messages call the kinds.
TITLES = {
    "c4": "C4",
    "ceval": "C-Eval",
    "alpaca": "Alpaca",
    "chat": "chat records",
    "text": "plain text",
    "traces": "traces of an R1 model",
}


@dataclass(frozen=True)
class Recognized:
    """What a file holds.

    Attributes:
        what: for example ``a C4 file``.
        kind: the kind whose reader takes it; empty where none does.
        advice: what to do where none does, sentences.
        is_text: it may also be meant as plain text.
        also: kinds whose readers take it too.
    """

    what: str
    kind: str = ""
    advice: str = ""
    is_text: bool = False
    also: tuple[str, ...] = ()


_UNPACK = "Unpack it, then give one data file of it."
_NO_TEXT = "It holds no text. Check the path."
_SAVE_TEXT = "Save its text as a UTF-8 file, then give that file."
_DOWNLOAD = "Open it to see what went wrong, then download the file again."
_ANY_KIND = tuple(TITLES)
TABLE = "a C-Eval table"
_QUESTION_COLUMNS = ("question", *CHOICES)  # test tables have no answers
_ARROW_CODE = (
    "import sys, datasets; datasets.Dataset.from_file(sys.argv[1]).to_json(sys.argv[2], "
    "force_ascii=False)"
)
RECORD_KEYS = "as c4 (records with the key text) or as chat (messages, or questions with answers)."
# Kinds whose readers take records; of each the files that are packed or Parquet too.
_RECORD_KINDS = ("c4", "ceval", "alpaca", "chat")
_PULL = "The data were never downloaded. Download the file again, for example with git lfs pull."
# First bytes of files that are no text, what they tell, and the advice. {file} and {target} are
# quoted for a shell. Letters count only where other bytes say that the file is no text.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"ARROW1", "an Arrow file", "{arrow}"),
    (b"\xff\xff\xff\xff", "an Arrow file", "{arrow}"),
    (b"\xfd7zXZ\0", "xz data", "Unpack it with xz -dk {file}, then give the new file."),
    (b"\x04\x22\x4d\x18", "lz4 data", "Unpack it with lz4 -dk {file}, then give the new file."),
    (b"BZh", "bzip2 data", "Unpack it with bunzip2 -k {file}, then give the new file."),
    (b"PARE", "an encrypted Parquet file", "Write it without encryption, then give that file."),
    (b"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"%PDF", "a PDF document", _SAVE_TEXT),
    (b"\xd0\xcf\x11\xe0", "a document of an office program", _SAVE_TEXT),
    (b"GGUF", "a GGUF file of weights", _NO_TEXT),
    (b"\x93NUMPY", "a NumPy array", _NO_TEXT),
)
_ZIP_STARTS = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_END = b"PK\x05\x06"
_TEXT_STARTS = (
    ("<!doctype html", "an HTML page"),
    ("<html", "an HTML page"),
    ('{"error"', "an error message of a server"),
    ("entry not found", "an error message of the hub"),
    ("invalid username or password", "an error message of the hub"),
    ("access to dataset", "an error message of the hub"),
)
# What the names in a zip archive tell of it.
_ZIP_NAMES = (
    (rb"(?:dev|val)/[a-z_]+_(?:dev|val)\.csv", "the C-Eval archive", "ceval", ""),
    (rb"word/document\.xml", "a Word document", "", _SAVE_TEXT),
    (rb"(?:xl/workbook|ppt/presentation)\.xml", "an office document", "", _SAVE_TEXT),
    (rb"data\.pkl", "a PyTorch file of weights", "", _NO_TEXT),
)
_MANY_ZEROS = 16  # at the end of a text
_CONTROLS = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
_SPREAD = re.compile(r"\{[ \t\r]*\n")
_RECORD_START = re.compile(r"\s*(?:\[\s*)?\{")
_KEY = re.compile(r'\s*(?:,\s*)?"((?:[^"\\]|\\.)*)"\s*:\s*')


def recognize(path: Path) -> Recognized | None:
    """Return what a file holds; None where that cannot be told, also of damaged gzip data."""
    # Anything but an ordinary file, such as a pipe, could wait forever.
    if not os.path.isfile(path):
        return None
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            file.seek(max(0, file.seek(0, os.SEEK_END) - HEAD_BYTES))
            tail = file.read(HEAD_BYTES)
    except OSError:
        return None
    if head.startswith(_ZIP_STARTS):
        return _recognize_zip(head, tail)
    if head.startswith(GZIP_MAGIC):
        return _recognize_packed(unpack_head(head, HEAD_BYTES), path, "gzip")
    if head.startswith(PARQUET_MAGIC) and not _is_text(head):
        return _recognize_parquet(path)
    if head.startswith(ZSTD_MAGICS):
        if find_package("zstandard") is None:
            return Recognized("zstd data", advice=how_to_install("zstandard"), also=_ANY_KIND)
        return _recognize_packed(unpack_head(head, HEAD_BYTES), path, "zstd")
    return _recognize_bytes(head, path)


def _recognize_zip(head: bytes, tail: bytes) -> Recognized:
    for pattern, what, kind, advice in _ZIP_NAMES:
        if re.search(pattern, head) or re.search(pattern, tail):
            return Recognized(what, kind, advice)
    if _ZIP_END not in tail:
        return Recognized("a zip archive that is cut off", advice="Download it again.")
    return Recognized("a zip archive without C-Eval's tables", advice=_UNPACK)


def _recognize_packed(inner: bytes, path: Path, how: str) -> Recognized | None:
    found = _recognize_bytes(inner, path) if inner else None
    if found is None or found.kind or found.what.startswith("JSON") or found.advice == _DOWNLOAD:
        return found
    unpack = f"Unpack it with {shlex.join([how, '-dk', str(path)])}, then give the new file."
    return Recognized(f"{how} data of {found.what.removeprefix('a ')}", advice=unpack)


def _recognize_parquet(path: Path) -> Recognized:
    """Return what a Parquet file is by the names of its columns."""
    if not has_package("pyarrow"):
        advice = f"Give it as c4, alpaca, chat or ceval. {how_to_install('pyarrow')}"
        return Recognized("a Parquet file", advice=advice, also=_RECORD_KINDS)
    columns = list_columns(path)
    if columns is None:
        # The readers of records say what is wrong with it.
        return Recognized("a Parquet file", advice="Download it again.", also=_RECORD_KINDS)
    if set(columns).issuperset(_QUESTION_COLUMNS):
        return Recognized(TABLE, kind="ceval")
    found = _recognize_records(columns, True)
    if found is None or not found.kind:
        listed = ", ".join(column[:40] for column in columns[:5]) or "none"
        listed += ", ..." if len(columns) > 5 else ""
        what = f"a Parquet file with the columns {listed}"
        return Recognized(what, advice=f"Rename the columns, then give the new file {RECORD_KEYS}")
    what = found.what.replace("JSON data", "a Parquet file").replace(" key", " column")
    return Recognized(what, kind=found.kind, also=found.also)


def _recognize_bytes(head: bytes, path: Path) -> Recognized | None:
    if head.startswith(LFS_POINTER):
        return Recognized("a Git LFS pointer", advice=_PULL)
    if _is_text(head):
        return _recognize_text(head, path)
    for magic, what, advice in _STARTS:
        if head.startswith(magic):
            return Recognized(what, advice=_fill_in(advice, path))
    if head[257:262] == b"ustar":
        return Recognized("a tar archive", advice=_UNPACK)
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < HEADER_BYTES:
        return Recognized("a safetensors file of weights", advice=_NO_TEXT)
    if encoding := _wide_encoding(head):
        what = f"{encoding} text"
        return Recognized(what, advice=advise_utf8(path, encoding=encoding), is_text=True)
    text = head.rstrip(b"\0")
    if len(head) - len(text) >= _MANY_ZEROS and _is_text(text) and not _CONTROLS.search(text):
        what = "a text that ends in zero bytes, as an interrupted download does"
        return Recognized(what, advice="Download it again.")
    if b"\0" in head:
        what = f"binary data that begin with {head[:8]!r}"
        return Recognized(what, advice="Check the path.")
    return _recognize_text(head, path)


def _wide_encoding(head: bytes) -> str:
    """Return the encoding of a text whose characters have two or four bytes each, or nothing."""
    for marks, encoding in (
        ((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE), "UTF-32"),  # one begins like that of UTF-16
        ((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE), "UTF-16"),
    ):
        if head.startswith(marks):
            return encoding
    # Without a mark: every other byte of a letter is zero.
    for start, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        other = head[1 - start :: 2]
        if len(head) >= 8 and not head[start:64:2].strip(b"\0") and _is_text(other[:32]):
            return encoding
    return ""


def _is_text(head: bytes) -> bool:
    """Return whether bytes are UTF-8 text, of which the last character may be cut."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return b"\0" not in head


def _recognize_text(head: bytes, path: Path) -> Recognized | None:
    text = head.decode("utf-8-sig", "replace").lstrip()
    for start, what in _TEXT_STARTS:
        if text[:40].lower().startswith(start):
            return Recognized(what, advice=_DOWNLOAD, is_text=True)
    if (match := _RECORD_START.match(text)) and not _is_text(head.partition(b"\n")[0]):
        return Recognized(
            "JSON data that are not UTF-8", advice=advise_utf8(path, encoding="GB18030")
        )
    if match:
        keys, is_whole = _first_keys(text, match.end())
        # An object over several lines is one by itself, whatever stands behind what was read.
        return _recognize_records(keys, is_whole or _SPREAD.match(text) is not None)
    if not text or text.startswith("["):
        return None
    first_line = {name.strip() for name in text.partition("\n")[0].split(",")}
    if first_line.issuperset(_QUESTION_COLUMNS):
        return Recognized(TABLE, kind="ceval", is_text=True)
    if USER in text and ASSISTANT in text:
        return Recognized("a file of R1 traces", kind="traces", is_text=True)
    if not _is_text(head):
        return Recognized(
            "text that is not UTF-8", advice=advise_utf8(path, encoding="GB18030"), is_text=True
        )
    return Recognized("plain text", kind="text", is_text=True)


def _recognize_records(keys: list[str], is_whole: bool) -> Recognized | None:
    """Return what JSON data are by the keys of their first record, as far as these were read."""
    if "instruction" in keys and ("output" in keys or not is_whole):
        return Recognized("an Alpaca file", kind="alpaca", also=("chat",))
    if not is_chat(keys, is_whole=is_whole) and "text" in keys:
        is_c4 = "url" in keys or "timestamp" in keys
        what = "a C4 file" if is_c4 else "JSON data with C4's key text"
        return Recognized(what, kind="c4", also=("chat",))
    listed = ", ".join(shorten(key, 40) for key in keys[:5]) + (", ..." if len(keys) > 5 else "")
    if is_chat(keys, is_whole=is_whole):
        # Records with text beside a chat are read by both.
        also = ("c4",) if "text" in keys else ()
        return Recognized(f"JSON data of chats with the keys {listed}", kind="chat", also=also)
    if not keys or not is_whole:
        return None
    return Recognized(
        f"JSON data with the keys {listed}",
        advice=f"Rewrite the records, then give the new file {RECORD_KEYS}",
        is_text=True,
    )


def _first_keys(text: str, position: int) -> tuple[list[str], bool]:
    """Return the keys of the object whose inside begins at ``position``, and whether it ends."""
    keys, decoder = [], json.JSONDecoder()
    while match := _KEY.match(text, position):
        keys.append(match[1])
        try:
            _, position = decoder.raw_decode(text, match.end())
        except (ValueError, RecursionError):
            return keys, False
    return keys, text[position:].lstrip().startswith("}")


def _fill_in(advice: str, path: Path) -> str:
    """Return an advice with its commands for this file."""
    target = f"{path.name.rpartition('.')[0] or path.name}.jsonl"
    return advice.format(
        file=shlex.quote(str(path)),
        arrow=_convert_with("datasets", _ARROW_CODE, path, target),
    )


def _convert_with(packages: str, code: str, path: Path, target: str) -> str:
    line = shlex.join(["python3", "-c", code, str(path), target])
    return f"Convert it, which needs {packages}:\n  {line}\nThen give the new file {RECORD_KEYS}"
