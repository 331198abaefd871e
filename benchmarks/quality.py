"""Measure int8 quality on text that calibration has not seen: rounding beside calibrated int8.

    python benchmarks/quality.py CHECKPOINT --c4 FILE --ceval FILE --alpaca FILE
        [--text NAME=FILE]... [--set FIELD=VALUE]... [--reuse DIR] [--json FILE]

Each published file is split in two: one half calibrates, the other judges ("held-out mix"). Further
texts judge other domains; ``python``, ``c`` and ``docstrings`` come from the Python that runs this.
Prints one row per text: perplexity change, mean KL with its standard error, the calibrated KL as a
ratio of rounding's with the paired standard error, and the share of equal top tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from domains import given_domains, library_domains, set_windows, split_sources
from judging import Judge, Paired, compare_paired
from measured import machine

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.datasets.sources import CalibrationSource, parse_source
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.next_tokens import NextTokenScores
from vacc_deploy.results import format_table
from vacc_deploy.text.tokenizer import Tokenizer

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
DIRECTORY = click.Path(file_okay=False, path_type=Path)
HEADERS = (
    *("text", "tokens", "ppl rtn", "ppl gptq", "KL rtn", "KL gptq"),
    *("ratio", "top-1 rtn", "top-1 gptq"),
)
_TRUTH = {"true": True, "yes": True, "on": True, "1": True}
_TRUTH |= {"false": False, "no": False, "off": False, "0": False}


def parse_settings(settings: tuple[str, ...]) -> dict[str, Any]:
    """Return FIELD=VALUE settings as values of the types that ``QuantizeOptions`` declares.

    Raises:
        click.ClickException: the field does not exist, or the value is not of its type.
    """
    hints = typing.get_type_hints(QuantizeOptions, localns={"CalibrationSource": CalibrationSource})
    values = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or name not in hints:
            raise click.ClickException(
                f"--set {setting}: expected FIELD=VALUE, FIELD one of {', '.join(sorted(hints))}."
            )
        try:
            values[name] = _convert(text, hints[name])
        except (ValueError, KeyError) as err:
            raise click.ClickException(f"--set {setting}: no {hints[name]}.") from err
    return values


def _convert(text: str, hint: Any) -> Any:
    """Return ``text`` as the type that a field declares.

    Raises:
        ValueError: it is not of that type.
        KeyError: it is not a truth value.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if text.lower() == "none":
            return None
        return _convert(text, next(a for a in arguments if a is not type(None)))
    if origin is tuple:
        return tuple(_convert(part, arguments[0]) for part in text.split(",") if part)
    if origin is typing.Literal:
        if text not in arguments:
            raise ValueError(text)
        return text
    if hint is bool:
        return _TRUTH[text.lower()]
    if hint in (int, float, str, Path):
        return hint(text)
    raise ValueError(f"{hint} cannot be set from text")


def table_row(
    name: str, rtn: NextTokenScores, gptq: NextTokenScores, paired: Paired
) -> tuple[object, ...]:
    """Return one line of the table."""
    return (
        name,
        f"{rtn.num_tokens}",
        f"{rtn.perplexity_change:+.3%}",
        f"{gptq.perplexity_change:+.3%}",
        f"{rtn.mean_kl:.6f} ± {rtn.kl_standard_error:.6f}",
        f"{gptq.mean_kl:.6f} ± {gptq.kl_standard_error:.6f}",
        f"{paired.ratio:.3f} ± {paired.ratio_standard_error:.3f}",
        f"{rtn.top1:.2%}",
        f"{gptq.top1:.2%}",
    )


@contextlib.contextmanager
def work_folder(reuse: Path | None) -> Iterator[Path]:
    """Yield the directory to work in: ``reuse``, or a temporary one."""
    if reuse is not None:
        reuse.mkdir(parents=True, exist_ok=True)
        yield reuse
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def judge_both(judge: Judge, folder: Path) -> tuple[list[tuple[object, ...]], dict[str, Any]]:
    """Return the table's rows and the same figures by domain."""
    rows, figures = [], {}
    for name, tokens in judge.domains.items():
        rtn, gptq = (judge.score(folder / kind, name) for kind in ("rtn", "gptq"))
        paired = compare_paired(gptq, rtn)
        rows.append(table_row(name, rtn, gptq, paired))
        figures[name] = {
            "windows": list(tokens.shape),
            "rtn": rtn.to_dict(),
            "gptq": gptq.to_dict(),
            "paired": paired.to_dict(),
        }
        click.echo(f"judged on {name}: ratio {rows[-1][6]}", err=True)
    return rows, figures


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--c4", type=FILE, required=True, help="C4 file, .json.gz.")
@click.option("--ceval", type=FILE, required=True, help="C-Eval archive, .zip.")
@click.option("--alpaca", type=FILE, required=True, help="Alpaca file, .json.")
@click.option("--calibration", multiple=True, metavar="NAME=PATH", help="Calibrate on this too.")
@click.option("--text", "texts", multiple=True, metavar="NAME=FILE", help="Judge on this too.")
@click.option("--library/--no-library", default=True, help="Judge on Python's own files.")
@click.option("--num-samples", default=32, show_default=True, help="Calibration rows.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens of a calibration row.")
@click.option("--judge-rows", default=18, show_default=True, help="Windows to judge on.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="Set a field of QuantizeOptions.",
)
@click.option(
    "--reuse", type=DIRECTORY, help="Save float states and scores here, and use them again."
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures here."
)
def main(
    checkpoint: Path,
    c4: Path,
    ceval: Path,
    alpaca: Path,
    calibration: tuple[str, ...],
    texts: tuple[str, ...],
    library: bool,
    num_samples: int,
    seq_len: int,
    judge_rows: int,
    settings: tuple[str, ...],
    reuse: Path | None,
    json_file: Path | None,
) -> None:
    """Print the quality table of CHECKPOINT."""
    source, tokenizer = Checkpoint.open(checkpoint), Tokenizer.from_dir(checkpoint)
    shape, vocab_size = (judge_rows, seq_len), source.config.vocab_size
    with work_folder(reuse) as folder:
        calibrate, held_out = split_sources(c4, ceval, alpaca, folder)
        calibrate += [parse_source(text) for text in calibration]
        values = {"method": "gptq", "sources": tuple(calibrate), "num_samples": num_samples}
        values |= {"sequence_length": seq_len, **parse_settings(settings)}
        options = QuantizeOptions(**values)
        domains = {"held-out mix": set_windows(held_out, tokenizer, shape, vocab_size)}
        domains |= given_domains(texts, tokenizer, shape, vocab_size)
        domains |= library_domains(tokenizer, shape) if library else {}
        result = quantize(checkpoint, options=options, output=folder / "gptq", overwrite=True)
        rounding = QuantizeOptions("rtn")
        quantize(checkpoint, options=rounding, output=folder / "rtn", overwrite=True)
        rows, figures = judge_both(Judge(source, domains, folder / "kept"), folder)
    chosen = {f.name: getattr(options, f.name) for f in dataclasses.fields(options)}
    chosen["sources"] = [f"{s.kind}={s.path.name}:{s.weight:g}" for s in options.sources]
    title = f"{checkpoint.name}, {num_samples} x {seq_len} calibration tokens"
    title += f"{', ' + ', '.join(settings) if settings else ''}, {machine()}"
    click.echo(f"{title}, quantize took {result.seconds:.0f} s\n\n{format_table(HEADERS, rows)}")
    if json_file:
        report = {"checkpoint": checkpoint.name, "machine": machine(), "options": chosen}
        report |= {"seconds": result.seconds, "totals": result.totals(), "domains": figures}
        json_file.write_text(json.dumps(report, indent=2, default=str) + "\n", "utf-8")


if __name__ == "__main__":
    main()
