"""Texts to judge on: the other half of the calibration sets, files given, and this Python's own.

Every text becomes token windows int64 [rows, seq]. The three published sets are split in two
halves: one calibrates, the other judges.
"""

from __future__ import annotations

import ast
import gzip
import json
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
import torch

from vacc_deploy.calibration.rows import build_rows
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.text.tokenizer import Tokenizer

JUDGE_SEED = 1
# A token holds fewer characters than this: so many are enough for a window.
_CHARS_PER_TOKEN = 12
_MIN_DOCSTRING_CHARS = 200
_KIND_BY_ENDING = {".json.gz": "c4", ".json": "alpaca", ".zip": "ceval"}

Windows = dict[str, torch.Tensor]


def split_lines(path: Path, parts: tuple[Path, Path]) -> None:
    """Deal the lines of a gzip file to two gzip files in turn."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.readlines()
    for index, part in enumerate(parts):
        with gzip.open(part, "wt", encoding="utf-8") as file:
            file.writelines(lines[index::2])


def split_records(path: Path, parts: tuple[Path, Path]) -> None:
    """Deal the records of a JSON array to two files in turn."""
    records = json.loads(path.read_text("utf-8"))
    for index, part in enumerate(parts):
        part.write_text(json.dumps(records[index::2], ensure_ascii=False), "utf-8")


def split_subjects(path: Path, parts: tuple[Path, Path]) -> None:
    """Deal the subjects of the C-Eval archive to two archives in turn."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".csv") and "test/" not in n)
        subjects = sorted({Path(name).stem.rsplit("_", 1)[0] for name in names})
        for index, part in enumerate(parts):
            chosen = set(subjects[index::2])
            with zipfile.ZipFile(part, "w") as out:
                for name in names:
                    if Path(name).stem.rsplit("_", 1)[0] in chosen:
                        out.writestr(name, archive.read(name))


def split_sources(
    c4: Path, ceval: Path, alpaca: Path, folder: Path
) -> tuple[list[CalibrationSource], list[CalibrationSource]]:
    """Return the calibrating and the judging half of the three sets, written into ``folder``."""
    halves: tuple[list[CalibrationSource], list[CalibrationSource]] = ([], [])
    jobs = (
        ("c4", c4, ".json.gz", split_lines),
        ("ceval", ceval, ".zip", split_subjects),
        ("alpaca", alpaca, ".json", split_records),
    )
    for kind, path, ending, split in jobs:
        parts = (folder / f"{kind}-a{ending}", folder / f"{kind}-b{ending}")
        split(path, parts)
        for half, part in zip(halves, parts, strict=True):
            half.append(CalibrationSource(kind, part, 1.0))
    return halves


def set_windows(
    sources: list[CalibrationSource],
    tokenizer: Tokenizer,
    shape: tuple[int, int],
    vocab_size: int,
) -> torch.Tensor:
    """Return windows [rows, seq] of published sets, documents shuffled and chats templated."""
    rows, seq_len = shape
    built = build_rows(
        sources,
        tokenizer,
        num_samples=rows,
        sequence_length=seq_len,
        seed=JUDGE_SEED,
        vocab_size=vocab_size,
    )
    return torch.from_numpy(np.ascontiguousarray(built.tokens))


def text_windows(text: str, tokenizer: Tokenizer, shape: tuple[int, int]) -> torch.Tensor | None:
    """Return the first windows of a text, or None where it is too short for one."""
    rows, seq_len = shape
    text = text[: rows * seq_len * _CHARS_PER_TOKEN]
    ids = tokenizer.encode(text, add_bos=False)[: rows * seq_len]
    count = len(ids) // seq_len
    return torch.tensor(ids[: count * seq_len]).view(count, seq_len) if count else None


def spread_windows(
    texts: Callable[[], Iterator[str]], tokenizer: Tokenizer, shape: tuple[int, int]
) -> torch.Tensor | None:
    """Return one window from the middle of each of ``rows`` texts, spread over all that are long.

    Beginnings are left out: they are licences and imports, the same in every file.
    """
    rows, seq_len = shape
    chars = seq_len * _CHARS_PER_TOKEN
    long_texts = [text for text in texts() if len(text) >= 2 * chars]
    windows = []
    for index in range(min(rows, len(long_texts))):
        text = long_texts[index * len(long_texts) // min(rows, len(long_texts))]
        start = text.find("\n", len(text) // 2 - chars // 2) + 1
        ids = tokenizer.encode(text[start : start + chars], add_bos=False)[:seq_len]
        if len(ids) == seq_len:
            windows.append(ids)
    return torch.tensor(windows) if windows else None


def python_files() -> Iterator[str]:
    """Yield the modules of this Python's standard library, sorted by name."""
    yield from _files(Path(sysconfig.get_path("stdlib")), "*.py")


def c_headers() -> Iterator[str]:
    """Yield the C headers of this Python, sorted by name; none where they are not installed."""
    yield from _files(Path(sysconfig.get_path("include")), "*.h")
    yield from _files(Path(sysconfig.get_path("include")) / "internal", "*.h")
    yield from _files(Path(sysconfig.get_path("include")) / "cpython", "*.h")


def _files(folder: Path, pattern: str) -> Iterator[str]:
    for path in sorted(folder.glob(pattern)):
        yield path.read_text("utf-8", errors="replace")


def docstrings() -> str:
    """Return the long docstrings of the standard library: technical English prose."""
    found = []
    for source in python_files():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node)
                if text and len(text) > _MIN_DOCSTRING_CHARS:
                    found.append(text)
    return "\n\n".join(found[::3])


def library_domains(tokenizer: Tokenizer, shape: tuple[int, int]) -> Windows:
    """Return what every machine with Python has: source code and technical prose."""
    found = {
        "python": spread_windows(python_files, tokenizer, shape),
        "c": spread_windows(c_headers, tokenizer, shape),
        "docstrings": text_windows(docstrings(), tokenizer, shape),
    }
    return {name: tokens for name, tokens in found.items() if tokens is not None}


def given_domains(
    texts: tuple[str, ...], tokenizer: Tokenizer, shape: tuple[int, int], vocab_size: int
) -> Windows:
    """Return the texts given as NAME=FILE.

    The ending of FILE says what it is: ``.json.gz`` C4, ``.json`` Alpaca, ``.zip`` C-Eval, anything
    else plain text, of which the first windows are taken.

    Raises:
        click.ClickException: a text is not of that form, or too short for one window.
    """
    windows: Windows = {}
    for text in texts:
        name, separator, file = text.partition("=")
        if not separator or not Path(file).is_file():
            raise click.ClickException(f"--text {text}: expected NAME=FILE, FILE existing.")
        path = Path(file)
        kinds = [kind for ending, kind in _KIND_BY_ENDING.items() if path.name.endswith(ending)]
        if kinds:
            source = CalibrationSource(kinds[0], path, 1.0)
            windows[name] = set_windows([source], tokenizer, shape, vocab_size)
            continue
        tokens = text_windows(path.read_text("utf-8"), tokenizer, shape)
        if tokens is None:
            raise click.ClickException(f"--text {text}: shorter than one window of {shape[1]}.")
        windows[name] = tokens
    return windows
