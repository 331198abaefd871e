"""What a file holds, told by its content: for messages about a file of another kind than named.

Looks at the first and the last bytes only. Only for plain text do its answers decide anything:
``explain_no_text`` refuses a file that is surely something else. So a text is never told by its
first letters alone.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vacc_deploy.datasets.files import GZIP_MAGIC, LFS_POINTER
from vacc_deploy.datasets.traces import ASSISTANT, USER

HEAD_BYTES = 64 << 10  # what is looked at, packed and unpacked
MAX_LISTED = 1000  # entries of a directory that are looked at
MAX_EXAMINED = 20  # files of it that are opened
# As messages call the kinds.
TITLES = {
    "c4": "C4",
    "ceval": "C-Eval",
    "alpaca": "Alpaca",
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
    """

    what: str
    kind: str = ""
    advice: str = ""
    is_text: bool = False


_UNPACK = "Unpack it, then give one data file of it."
_NO_TEXT = "It holds no text. Check the path."
_SAVE_TEXT = "Save its text as a UTF-8 file, then give that file."
_DOWNLOAD = "Open it to see what went wrong, then download the file again."
_PARQUET_CODE = (
    'import sys, pandas; pandas.read_parquet(sys.argv[1]).to_json(sys.argv[2], orient="records", '
    "lines=True, force_ascii=False)"
)
_ARROW_CODE = (
    "import sys, datasets; datasets.Dataset.from_file(sys.argv[1]).to_json(sys.argv[2], "
    "force_ascii=False)"
)
_KEYS = "as c4 (records with the key text) or as alpaca (instruction, input and output)."
_PULL = "The data were never downloaded. Download the file again, for example with git lfs pull."
# First bytes of files that are no text, what they tell, and the advice. {file} and {target} are
# quoted for a shell. Letters count only where other bytes say that the file is no text.
_STARTS: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a Parquet file", "{parquet}"),
    (b"ARROW1", "an Arrow file", "{arrow}"),
    (b"\xff\xff\xff\xff", "an Arrow file", "{arrow}"),
    (b"\x28\xb5\x2f\xfd", "zstd data", "Unpack it with zstd -d {file}, then give the new file."),
    (b"\xfd7zXZ\0", "xz data", "Unpack it with xz -dk {file}, then give the new file."),
    (b"BZh", "bzip2 data", "Unpack it with bunzip2 -k {file}, then give the new file."),
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
        return _recognize_gzip(head, path)
    return _recognize_bytes(head, path)


def explain_other_kind(kind: str, path: Path, *, weight: str = "") -> str | None:
    """Return the error of a file that is another kind than ``kind``; None where that is not so.

    Args:
        kind: kind that was named for it; empty where none was.
        path: calibration file, or a directory given in place of one.
        weight: what stood behind the path, for example ``:2``.
    """
    if os.path.isdir(path):
        return _explain_directory(kind, path, weight)
    found = recognize(path)
    if found is None or found.kind == kind or (found.is_text and kind in ("text", "traces")):
        return None
    expected = f", not {TITLES[kind]}" if kind else ""
    return f"{path} is {found.what}{expected}. {_advise(found, path, weight)}"


def explain_no_text(path: Path) -> str | None:
    """Return the error of a file that is no plain text, for ``--text``; None where it may be."""
    found = recognize(path)
    if found is None or found.is_text:
        return None
    # Records of a data set are of no use here, whatever they are converted to.
    is_data_set = found.kind or found.advice.endswith(_KEYS)
    advice = "Give a UTF-8 file that holds nothing but text." if is_data_set else found.advice
    return f"{path} is {found.what}, not plain text. {advice}"


def calibration_option(kind: str, path: Path, weight: str = "") -> str:
    """Return ``--calibration KIND=PATH`` as a shell reads it."""
    return shlex.join(["--calibration", f"{kind}={path}{weight}"])


def _advise(found: Recognized, path: Path, weight: str) -> str:
    return found.advice or f"Give {calibration_option(found.kind, path, weight)}."


def _recognize_zip(head: bytes, tail: bytes) -> Recognized:
    for pattern, what, kind, advice in _ZIP_NAMES:
        if re.search(pattern, head) or re.search(pattern, tail):
            return Recognized(what, kind, advice)
    if _ZIP_END not in tail:
        return Recognized("a zip archive that is cut off", advice="Download it again.")
    return Recognized("a zip archive without C-Eval's tables", advice=_UNPACK)


def _recognize_gzip(head: bytes, path: Path) -> Recognized | None:
    try:
        # 31: gzip's own header. The limit also bounds what a few bytes may grow to.
        inner = zlib.decompressobj(wbits=31).decompress(head, HEAD_BYTES)
    except zlib.error:
        return None
    found = _recognize_bytes(inner, path) if inner else None
    if found is None or found.kind or found.what.startswith("JSON") or found.advice == _DOWNLOAD:
        return found
    unpack = f"Unpack it with {shlex.join(['gzip', '-dk', str(path)])}, then give the new file."
    return Recognized(f"gzip data of {found.what.removeprefix('a ')}", advice=unpack)


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
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 100_000_000:
        return Recognized("a safetensors file of weights", advice=_NO_TEXT)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return Recognized("UTF-16 text", advice=_convert(path, "UTF-16"), is_text=True)
    if b"\0" in head:
        what = f"binary data that begin with {head[:8]!r}"
        return Recognized(what, advice="Check the path.")
    return _recognize_text(head, path)


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
    if match := _RECORD_START.match(text):
        return _recognize_records(*_first_keys(text, match.end()))
    if not text or text.startswith("["):
        return None
    if USER in text and ASSISTANT in text:
        return Recognized("a file of R1 traces", kind="traces", is_text=True)
    if not _is_text(head):
        return Recognized("text that is not UTF-8", advice=_convert(path, "GB18030"), is_text=True)
    return Recognized("plain text", kind="text", is_text=True)


def _recognize_records(keys: list[str], is_whole: bool) -> Recognized | None:
    """Return what JSON data are by the keys of their first record, as far as these were read."""
    if "instruction" in keys and ("output" in keys or not is_whole):
        return Recognized("an Alpaca file", kind="alpaca")
    if "text" in keys:
        is_c4 = "url" in keys or "timestamp" in keys
        return Recognized("a C4 file" if is_c4 else "JSON data with C4's key text", kind="c4")
    if not keys or not is_whole:
        return None
    listed = ", ".join(key[:40] for key in keys[:5]) + (", ..." if len(keys) > 5 else "")
    return Recognized(
        f"JSON data with the keys {listed}",
        advice=f"Rewrite the records, then give the new file {_KEYS}",
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


def _explain_directory(kind: str, directory: Path, weight: str) -> str | None:
    """Return the error of a directory: which of its files to give, and as what."""
    if tables := _find_tables(directory):
        pack = shlex.join(["python3", "-m", "zipfile", "-c", "ceval-exam.zip", *map(str, tables)])
        return (
            f"{directory} is the unpacked C-Eval archive, not the archive itself. Pack it with "
            f"{pack}, then give {calibration_option('ceval', Path('ceval-exam.zip'), weight)}."
        )
    files = [(path, found) for path in _candidates(directory) if (found := recognize(path))]
    # A README or a list is text too, so text is named only where it was asked for.
    fitting = [item for item in files if item[1].kind == kind]
    for path, found in fitting or [item for item in files if not item[1].is_text]:
        inside = f"It holds {path}, which is {found.what}."
        return f"{directory} is a directory. {inside} {_advise(found, path, weight)}"
    return None


def _find_tables(directory: Path) -> list[Path]:
    """Return the folders of C-Eval's tables in ``directory``."""
    folders = [directory / split for split in ("dev", "val")]
    return [folder for folder in folders if any(folder.glob(f"*_{folder.name}.csv"))]


def _candidates(directory: Path) -> list[Path]:
    """Return some files of a directory that may be data, in the order of their paths."""
    paths = sorted(islice(_walk(directory), MAX_LISTED))
    return [path for path in paths if path.is_file()][:MAX_EXAMINED]


def _walk(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (
            Path(folder, name) for name in names if not name.startswith((".", "README", "LICENSE"))
        )


def _fill_in(advice: str, path: Path) -> str:
    """Return an advice with its commands for this file."""
    target = f"{path.name.rpartition('.')[0] or path.name}.jsonl"
    return advice.format(
        file=shlex.quote(str(path)),
        parquet=_convert_with("pandas and pyarrow", _PARQUET_CODE, path, target),
        arrow=_convert_with("datasets", _ARROW_CODE, path, target),
    )


def _convert_with(packages: str, code: str, path: Path, target: str) -> str:
    line = shlex.join(["python3", "-c", code, str(path), target])
    return f"Convert it, which needs {packages}:\n  {line}\nThen give the new file {_KEYS}"


def _convert(path: Path, encoding: str) -> str:
    """Return how to convert a text; the encoding is only the likeliest one."""
    line = shlex.join(["iconv", "-f", encoding, "-t", "UTF-8", str(path)])
    return f"Convert it, then give the new file:\n  {line} > {shlex.quote(path.name + '.utf8')}"
