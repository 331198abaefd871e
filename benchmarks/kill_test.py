"""Kill ``quantize`` at random moments, resume it, and compare every byte with a whole run's.

    python benchmarks/kill_test.py CHECKPOINT [--runs 20] [--seed 0] [-- OPTIONS OF QUANTIZE]

Each run is killed (SIGKILL) at a random moment from its start to a little after the time of a whole
run, and resumed; every second resumption may be killed too, at most three times. Ends with exit
code 1 where a file differs, or where a file remains that the whole run does not have.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
from measured import machine

TIMING_NAME = "quantize_timing.json"  # times differ from run to run
MAX_KILLS = 4


@dataclass(frozen=True)
class Kill:
    """One kill: after how many seconds, and how far the run had come."""

    seconds: float
    state: str


def hash_files(directory: Path) -> dict[str, str]:
    """Return the SHA-256 of every file below ``directory``, the times aside."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != TIMING_NAME
    }


def run_whole(command: list[str]) -> float:
    """Run ``command`` to its end; return its seconds.

    Raises:
        click.ClickException: it failed.
    """
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{command} failed:\n{done.stderr}")
    return time.monotonic() - started


def run_killed(command: list[str], seconds: float) -> bool:
    """Run ``command`` and kill it after ``seconds``; return whether it was still running.

    Raises:
        click.ClickException: it failed before.
    """
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        _, errors = process.communicate()
    if process.returncode not in (0, -signal.SIGKILL):
        raise click.ClickException(f"{command} failed:\n{errors.decode(errors='replace')}")
    return process.returncode != 0


def describe(output: Path) -> str:
    """Return in a few words how far a killed run had come."""
    partial = output.with_name(f"{output.name}.partial")
    if output.exists():
        return "after the rename" if not partial.exists() else "while replacing"
    if not partial.exists():
        return "start-up"
    records = len(list(partial.glob(".vacc-deploy-shard-*.json")))
    is_last = (partial / "config.json").exists() or any(partial.glob("*/config.json"))
    return "finish" if is_last else f"{records} shards on disk"


def try_once(command: list[str], output: Path, limit: float, rng: random.Random) -> list[Kill]:
    """Kill and resume until a run comes to its end; return the kills."""
    kills: list[Kill] = []
    while True:
        again = [*command, "--resume"] if kills else command
        wants_kill = not kills or (len(kills) < MAX_KILLS and rng.random() < 0.5)
        seconds = rng.uniform(0.0, limit)
        if not wants_kill:
            run_whole(again)
            return kills
        if run_killed(again, seconds):
            kills.append(Kill(seconds, describe(output)))
        elif kills:
            return kills
        else:
            shutil.rmtree(output)  # it was faster than the moment drawn


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("options", nargs=-1)
@click.option("--runs", default=20, show_default=True, help="How many runs to kill.")
@click.option("--seed", default=0, show_default=True, help="Random seed for choosing moments.")
@click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="Directory to write in.  [default: beside CHECKPOINT]",
)
def main(
    checkpoint: Path, options: tuple[str, ...], runs: int, seed: int, directory: Path | None
) -> None:
    """Kill ``quantize CHECKPOINT OPTIONS`` and compare what its resumption writes."""
    rng, failed = random.Random(seed), 0
    with tempfile.TemporaryDirectory(dir=directory or checkpoint.resolve().parent) as name:
        folder = Path(name)
        base = [sys.executable, "-m", "vacc_deploy", "quantize", str(checkpoint.resolve())]
        base += [*options, "--output"]
        whole = run_whole([*base, str(folder / "whole")])
        expected = hash_files(folder / "whole")
        click.echo(f"{checkpoint.name}, {' '.join(options)}, {machine()}")
        click.echo(f"whole run: {whole:.1f} s, {len(expected)} files")
        for number in range(1, runs + 1):
            # As deep as the whole run: the manifest holds the relative path of the source.
            output = folder / f"killed-{number}"
            kills = try_once([*base, str(output)], output, 1.05 * whole, rng)
            got = hash_files(output)
            different = sorted(
                path for path in expected.keys() | got.keys() if expected.get(path) != got.get(path)
            )
            known = ("whole", output.name)
            others = sorted(path.name for path in folder.iterdir() if path.name not in known)
            failed += bool(different or others)
            moments = ", ".join(f"{kill.seconds:.1f} s ({kill.state})" for kill in kills) or "none"
            result = f"DIFFERENT: {different + others}" if different or others else "equal"
            click.echo(f"{number:3}  {result:9}  killed at {moments}")
            shutil.rmtree(output)
    click.echo(f"{runs - failed} of {runs} runs gave the bytes of the whole run")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
