"""Measure int8 quality on text that calibration has not seen: rounding beside GPTQ.

    python benchmarks/quality.py CHECKPOINT --c4 FILE --ceval FILE --alpaca FILE [--text NAME=FILE]

Each published file is split in two: one half calibrates, the other judges ("held-out mix"). Further
texts judge other domains. Prints one row per text: perplexity change, mean KL and its standard
error, share of equal top tokens, and GPTQ's KL as a ratio of rounding's.
"""

from __future__ import annotations

import gzip
import io
import json
import platform
import tempfile
import zipfile
from pathlib import Path

import click
import numpy as np
import torch

from vacc_deploy.calibration.rows import build_rows
from vacc_deploy.calibration.sources import CalibrationSource
from vacc_deploy.checkpoint import Checkpoint
from vacc_deploy.quantize.pipeline import quantize
from vacc_deploy.quantize.plan import QuantizeOptions
from vacc_deploy.results import format_table
from vacc_deploy.scoring import NextTokenScores
from vacc_deploy.tokenizer import Tokenizer
from vacc_deploy.verify import compare_on_tokens

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


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
    """Return the calibrating and the judging half of the three sets."""
    halves: tuple[list[CalibrationSource], list[CalibrationSource]] = ([], [])
    jobs = (
        ("c4", c4, ".json.gz", split_lines),
        ("ceval", ceval, ".zip", split_subjects),
        ("alpaca", alpaca, ".json", split_records),
    )
    for kind, path, ending, split in jobs:
        parts = tuple(folder / f"{kind}-{half}{ending}" for half in ("a", "b"))
        split(path, parts)  # type: ignore[arg-type]
        for half, part in zip(halves, parts, strict=True):
            half.append(CalibrationSource(kind, part, 1.0))
    return halves


def text_rows(path: Path, tokenizer: Tokenizer, rows: int, seq_len: int) -> torch.Tensor | None:
    """Return a text as token windows, or None where it is too short for one."""
    ids = tokenizer.encode(path.read_text("utf-8"), add_bos=False)[: rows * seq_len]
    count = len(ids) // seq_len
    if not count:
        return None
    return torch.tensor(ids[: count * seq_len]).view(count, seq_len)


def other_domains(
    texts: tuple[str, ...], tokenizer: Tokenizer, rows: int, seq_len: int
) -> list[tuple[str, torch.Tensor]]:
    """Return the texts given as NAME=FILE that are long enough for one window."""
    pairs = [text.partition("=") for text in texts]
    found = [(name, text_rows(Path(path), tokenizer, rows, seq_len)) for name, _, path in pairs]
    return [(name, tokens) for name, tokens in found if tokens is not None]


def row(name: str, rtn: NextTokenScores, gptq: NextTokenScores) -> tuple[object, ...]:
    """Return one line of the table."""
    return (
        name,
        f"{rtn.num_tokens}",
        f"{rtn.perplexity_change:+.3%}",
        f"{gptq.perplexity_change:+.3%}",
        f"{rtn.mean_kl:.6f} ± {rtn.kl_standard_error:.6f}",
        f"{gptq.mean_kl:.6f} ± {gptq.kl_standard_error:.6f}",
        f"{gptq.mean_kl / rtn.mean_kl:.3f}",
        f"{rtn.top1:.2%}",
        f"{gptq.top1:.2%}",
    )


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--c4", type=FILE, required=True)
@click.option("--ceval", type=FILE, required=True)
@click.option("--alpaca", type=FILE, required=True)
@click.option("--text", "texts", multiple=True, metavar="NAME=FILE", help="Another domain.")
@click.option("--num-samples", default=32, show_default=True)
@click.option("--seq-len", default=512, show_default=True)
@click.option("--judge-rows", default=18, show_default=True, help="Windows to judge on.")
@click.option("--act-order/--no-act-order", default=True, show_default=True)
def main(
    checkpoint: Path,
    c4: Path,
    ceval: Path,
    alpaca: Path,
    texts: tuple[str, ...],
    num_samples: int,
    seq_len: int,
    judge_rows: int,
    act_order: bool,
) -> None:
    """Print the quality table of CHECKPOINT."""
    with tempfile.TemporaryDirectory(dir=checkpoint.resolve().parent) as name:
        folder = Path(name)
        calibrate, judge = split_sources(c4, ceval, alpaca, folder)
        options = QuantizeOptions(
            "gptq", tuple(calibrate), num_samples, seq_len, act_order=act_order
        )
        result = quantize(checkpoint, options=options, output=folder / "gptq")
        quantize(checkpoint, options=QuantizeOptions("rtn"), output=folder / "rtn")
        tokenizer = Tokenizer.from_dir(checkpoint)
        source = Checkpoint.open(checkpoint)
        held_out = build_rows(
            judge,
            tokenizer,
            num_samples=judge_rows,
            sequence_length=seq_len,
            seed=1,
            vocab_size=source.config.vocab_size,
        )
        sets = [("held-out mix", torch.from_numpy(np.ascontiguousarray(held_out.tokens)))]
        sets += other_domains(texts, tokenizer, judge_rows, seq_len)
        rows = []
        for label, tokens in sets:
            scores = [
                compare_on_tokens(source, Checkpoint.open(folder / kind), tokens)[0]
                for kind in ("rtn", "gptq")
            ]
            rows.append(row(label, *scores))
            click.echo(f"judged on {label}: ratio {rows[-1][6]}", err=True)
    headers = (
        "text",
        "tokens",
        "ppl rtn",
        "ppl gptq",
        "KL rtn",
        "KL gptq",
        "ratio",
        "top-1 rtn",
        "top-1 gptq",
    )
    out = io.StringIO()
    out.write(f"{checkpoint.name}, {num_samples} x {seq_len} calibration tokens, ")
    out.write(f"act_order {act_order}, {platform.processor() or platform.machine()}, ")
    out.write(f"torch {torch.__version__}, quantize took {result.seconds:.0f} s\n\n")
    out.write(format_table(headers, rows))
    click.echo(out.getvalue())


if __name__ == "__main__":
    main()
