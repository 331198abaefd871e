"""Texts and files that several tests write and read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from vacc_deploy.datasets.sources import CalibrationSource

ROOT = Path(__file__).resolve().parents[2]
SOURCE_DIR = ROOT / "source_code"


def number_words(count: int) -> str:
    """Return ``count`` short words, each of another number: text in which no two rows are alike."""
    return "".join(f"{i * 7919 % 10007} words, " for i in range(count))


def write_numbers(path: Path, count: int) -> Path:
    """Write ``number_words`` to a file and return its path."""
    path.write_text(number_words(count), "utf-8")
    return path


def write_alpaca(directory: Path, records: int | list[dict[str, str]] = 10) -> CalibrationSource:
    """Write records, or so many made ones, as a source of conversations."""
    if isinstance(records, int):
        records = [{"instruction": f"q{n}", "input": "", "output": f"a{n}"} for n in range(records)]
    path = directory / "alpaca.json"
    path.write_text(json.dumps(records), "utf-8")
    return CalibrationSource("alpaca", path)


def contents(directory: Path, *, without: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return every file below a directory but those of the names ``without``: path to bytes."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name not in without
    }


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text("utf-8"))
