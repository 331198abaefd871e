"""Targets that read calibration files, each packed or not, and the option that names them."""

from contextlib import closing
from itertools import islice
from pathlib import Path

import pyarrow.parquet  # noqa: F401 - what the readers would import later
import zstandard  # noqa: F401
from files import write
from sandbox import FindingError

from vacc_deploy.datasets.odd import Tally
from vacc_deploy.datasets.sources import CalibrationSource, parse_source, read_documents

_MAX_DOCUMENTS = 100_000


def _read(kind: str, path: Path) -> None:
    """Read all documents: each is text that a tokenizer takes, or turns of it."""
    tally = Tally()
    with closing(read_documents(CalibrationSource(kind, path), tally)) as documents:
        for document in islice(documents, _MAX_DOCUMENTS):
            turns = [document] if isinstance(document, str) else [m["content"] for m in document]
            for text in turns:
                text.encode()
    if tally.num_skipped > tally.num_read:
        raise FindingError("differs", "more records are skipped than read")


def _reader(kind: str, name: str):
    def target(data: bytes, directory: Path) -> None:
        write(directory / name, data)
        _read(kind, directory / name)

    target.__doc__ = f"A calibration file that is given as {kind}."
    return target


def source_option(data: bytes, directory: Path) -> None:
    """The text of ``--calibration``; it may name a file that is there."""
    write(directory / "a.txt", b"Some text.\n")
    text = data.decode("utf-8", "surrogateescape").replace("DIR", str(directory))
    source = parse_source(text)
    if not 0 < source.weight < float("inf"):
        raise FindingError("differs", f"the weight {source.weight}")


c4, alpaca, chat = (_reader(kind, f"{kind}.json") for kind in ("c4", "alpaca", "chat"))
text, traces = (_reader(kind, f"{kind}.txt") for kind in ("text", "traces"))
ceval_csv = _reader("ceval", "accountant_val.csv")
ceval_archive = _reader("ceval", "ceval-exam.zip")
parquet = _reader("chat", "chat.parquet")
for _name in ("c4", "alpaca", "chat", "text", "traces", "ceval_csv", "ceval_archive", "parquet"):
    globals()[_name].__name__ = _name
