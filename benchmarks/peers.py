"""Run other quantizers on the same model, rows and metric, in turn with this one.

    python benchmarks/peers.py CHECKPOINT --calibration c4=FILE [--calibration ...]
        --peer llm-compressor=VENV/bin/python [--peer torchao=VENV/bin/python]
        [--text NAME=FILE]... [--runs 3] [--json FILE]

Each peer runs in an interpreter of its own (``NAME=PYTHON``, or ``NAME:METHOD=PYTHON`` for one of
its methods) by a script of ``benchmarks/peers/``. It gets the very token ids that ``vacc-deploy
quantize`` makes of the same sources. Our run and the peer's take turns, and each ratio compares the
two runs of one turn. The time is that of the whole process, from the float files to the tool's own
files. The weights that the codes stand for are then compared with the float model, by the same
measure, on text that was not used for calibration.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from domains import given_domains, library_domains
from judging import Judge, compare_paired
from measured import Measured, machine, run_measured
from quality import DIRECTORY, work_folder

from vacc_deploy.calibration.rows import build_rows
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.datasets.sources import parse_source
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.results import format_table
from vacc_deploy.text.tokenizer import Tokenizer

RUNNERS = Path(__file__).resolve().parent / "peers"
PEERS = {
    "llm-compressor": ("run_llm_compressor.py", ("gptq", "rtn")),
    "torchao": ("run_torchao.py", ("rtn",)),
}
SEED = 0


@dataclass
class Contest:
    """One method of one peer, and ours by the same method, in pairs."""

    name: str
    method: str
    python: str
    ours: list[Measured] = field(default_factory=list)
    peer: list[Measured] = field(default_factory=list)
    title: str = ""

    @property
    def ratios(self) -> list[float]:
        """The peer's seconds over ours, by pair."""
        return [p.seconds / o.seconds for p, o in zip(self.peer, self.ours, strict=True)]

    @property
    def folder(self) -> str:
        """The name of the directory that the peer writes."""
        return f"{self.name}-{self.method}"


def parse_peers(peers: tuple[str, ...]) -> list[Contest]:
    """Return the contests that NAME=PYTHON and NAME:METHOD=PYTHON ask for.

    Raises:
        click.ClickException: the peer, its method or the interpreter does not exist.
    """
    contests = []
    for peer in peers:
        left, _, python = peer.partition("=")
        name, _, method = left.partition(":")
        methods = PEERS.get(name, ("", ()))[1]
        if not methods or (method and method not in methods) or not shutil.which(python):
            raise click.ClickException(
                f"--peer {peer}: expected NAME[:METHOD]=PYTHON, NAME one of {', '.join(PEERS)}."
            )
        contests += [Contest(name, m, python) for m in ([method] if method else methods)]
    return contests


@dataclass(frozen=True)
class Job:
    """The task of every contestant."""

    checkpoint: Path
    folder: Path
    sources: tuple[str, ...]
    num_samples: int
    seq_len: int
    device: str
    extra: tuple[str, ...]

    def run_ours(self, method: str) -> Measured:
        """Quantize by our own command into ``ours-METHOD``."""
        output = self.folder / f"ours-{method}"
        command = [sys.executable, "-m", "vacc_deploy", "quantize", str(self.checkpoint)]
        command += ["--method", method, "--output", str(output), "--overwrite"]
        if self.device != "cpu":
            command += ["--device", self.device]
        if method == "gptq":
            for source in self.sources:
                command += ["--calibration", source]
            command += ["--num-samples", str(self.num_samples), "--seq-len", str(self.seq_len)]
            command += ["--seed", str(SEED), *self.extra]
        measured = run_measured(command, device=self.device)
        timing = json.loads((output / TIMING_NAME).read_text("utf-8"))
        # wait4's peak is not below this process's own, which holds torch.
        return replace(measured, peak_bytes=timing["peak_memory_bytes"])

    def run_peer(self, contest: Contest) -> Measured:
        """Quantize by the peer into its folder; the time of the export for us does not count."""
        output = self.folder / contest.folder
        shutil.rmtree(output, ignore_errors=True)
        output.mkdir()
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.device == "cpu":
            env["CUDA_VISIBLE_DEVICES"] = ""
        script = str(RUNNERS / PEERS[contest.name][0])
        ids = str(self.folder / "ids.npy")
        command = [contest.python, script, str(self.checkpoint), ids, str(output), contest.method]
        whole = run_measured(command, env=env, device=self.device)
        report = json.loads((output / "peer.json").read_text("utf-8"))
        contest.title = report["name"]
        shutil.rmtree(output / "own")
        return Measured(
            report["seconds"],
            report["peak_memory_bytes"],
            report["cpu_seconds"],
            whole.device_bytes,
        )

    def write_ids(self, source: Checkpoint, tokenizer: Tokenizer) -> None:
        """Write the calibration rows, the ones that our command builds for itself."""
        rows = build_rows(
            [parse_source(text) for text in self.sources],
            tokenizer,
            num_samples=self.num_samples,
            sequence_length=self.seq_len,
            seed=SEED,
            vocab_size=source.config.vocab_size,
        )
        np.save(self.folder / "ids.npy", rows.tokens)


def _mib(measured: list[Measured]) -> str:
    text = f"{max(m.peak_bytes for m in measured) / 2**20:,.0f}"
    device = [m.device_bytes for m in measured if m.device_bytes is not None]
    return f"{text} + {max(device) / 2**20:,.0f} on the device" if device else text


def time_table(contests: list[Contest]) -> str:
    """Return the medians of all pairs, and the ratios' median and range."""
    rows = []
    for contest in contests:
        ratios = contest.ratios
        rows.append(
            (
                contest.title,
                f"{statistics.median(m.seconds for m in contest.ours):.1f}",
                f"{statistics.median(m.seconds for m in contest.peer):.1f}",
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                f"{statistics.median(m.cpu_seconds for m in contest.ours):.1f}",
                f"{statistics.median(m.cpu_seconds for m in contest.peer):.1f}",
                _mib(contest.ours),
                _mib(contest.peer),
            )
        )
    headers = ("peer", "our s", "peer s", "peer / ours", "our CPU s", "peer CPU s")
    return format_table((*headers, "our MiB", "peer MiB"), rows)


def judge_all(
    judge: Judge, folder: Path, contestants: dict[str, Path]
) -> tuple[str, dict[str, Any]]:
    """Return the table of every contestant on every text, and the same figures.

    "of rounding" is the KL as a ratio of our rounding's, with the paired standard error.
    """
    rows, figures = [], dict[str, Any]()
    for domain in judge.domains:
        base = judge.score(folder / "ours-rtn", domain)
        figures[domain] = {}
        for title, directory in contestants.items():
            scores = judge.score(directory, domain)
            paired = compare_paired(scores, base)
            figures[domain][title] = {**scores.to_dict(), "of_rounding": paired.to_dict()}
            rows.append(
                (
                    domain,
                    title,
                    f"{scores.perplexity_change:+.3%}",
                    f"{scores.mean_kl:.6f} ± {scores.kl_standard_error:.6f}",
                    f"{paired.ratio:.3f} ± {paired.ratio_standard_error:.3f}",
                    f"{scores.top1:.2%}",
                )
            )
            click.echo(f"judged {title} on {domain}: {rows[-1][4]} of rounding", err=True)
    headers = ("text", "quantizer", "ppl change", "KL", "of rounding", "top-1")
    return format_table(headers, rows), figures


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--calibration",
    "sources",
    multiple=True,
    required=True,
    metavar="NAME=PATH",
    help="Calibrate on this.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    required=True,
    metavar="NAME[:METHOD]=PYTHON",
    help="Compare with this.",
)
@click.option("--text", "texts", multiple=True, metavar="NAME=FILE", help="Judge on this.")
@click.option("--library/--no-library", default=True, help="Judge on Python's own files.")
@click.option("--num-samples", default=32, show_default=True, help="Calibration rows.")
@click.option("--seq-len", default=512, show_default=True, help="Tokens of a calibration row.")
@click.option("--judge-rows", default=8, show_default=True, help="Windows to judge on.")
@click.option("--judge-seq-len", default=512, show_default=True, help="Tokens of a window.")
@click.option("--runs", default=1, show_default=True, help="Pairs of each contest.")
@click.option("--device", default="cpu", show_default=True, help="Device to quantize on.")
@click.option("--reuse", type=DIRECTORY, help="Save states and scores here, and use them again.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), help="Write all figures here."
)
@click.argument("extra", nargs=-1, type=click.UNPROCESSED)
def main(
    checkpoint: Path,
    sources: tuple[str, ...],
    peers: tuple[str, ...],
    texts: tuple[str, ...],
    library: bool,
    num_samples: int,
    seq_len: int,
    judge_rows: int,
    judge_seq_len: int,
    runs: int,
    device: str,
    reuse: Path | None,
    json_file: Path | None,
    extra: tuple[str, ...],
) -> None:
    """Compare peers with this quantizer on CHECKPOINT; pass EXTRA (after --) to our quantize."""
    contests = parse_peers(peers)
    source, tokenizer = Checkpoint.open(checkpoint), Tokenizer.from_dir(checkpoint)
    shape = (judge_rows, judge_seq_len)
    domains = given_domains(texts, tokenizer, shape, source.config.vocab_size)
    domains |= library_domains(tokenizer, shape) if library else {}
    with work_folder(reuse) as folder:
        job = Job(checkpoint, folder, sources, num_samples, seq_len, device, extra)
        job.write_ids(source, tokenizer)
        job.run_ours("rtn")
        for contest in contests:
            for _ in range(runs):
                contest.ours.append(job.run_ours(contest.method))
                contest.peer.append(job.run_peer(contest))
                click.echo(f"{contest.title}: {contest.ratios[-1]:.2f} times ours", err=True)
        methods = dict.fromkeys(("rtn", *(contest.method for contest in contests)))
        contestants = {f"ours {method}": folder / f"ours-{method}" for method in methods}
        contestants |= {c.title: folder / c.folder / "stock" for c in contests}
        times = time_table(contests)
        judged, figures = judge_all(Judge(source, domains, folder / "kept"), folder, contestants)
    tokens = f"{num_samples} x {seq_len} calibration tokens"
    title = f"{checkpoint.name}, {tokens}, {runs} pairs, {device}, {machine()}"
    click.echo(f"{title}\n\n{times}\n\n{judged}")
    if json_file:
        pairs = {
            c.title: [[vars(o), vars(p)] for o, p in zip(c.ours, c.peer, strict=True)]
            for c in contests
        }
        report = {"title": title, "pairs": pairs, "domains": figures}
        json_file.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
