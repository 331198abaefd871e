"""Runs the coverage-guided fuzzer over one target or all of them.

    python tests/fuzz --seconds 60
    python tests/fuzz --target header --runs 1000000 --work fuzz-work

Each target runs in a process of its own. A finding is saved with its traceback below ``--work``,
once for each place in the code, and the run goes on; at the end a table is printed, and the exit
code is 1 if there was a finding. What the fuzzer adds to the corpus stays below ``--work`` too, and
another run with the same ``--work`` and another ``--seed`` goes on from there. Runs side by side
get a ``--work`` each; ``--markdown`` adds up all that lie below the one it is given.
"""

import argparse
import hashlib
import importlib.util
import json
import platform
import random
import re
import resource
import subprocess
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path

from targets import CORPUS, REGRESSIONS, TARGETS, Target

MAX_INPUT_BYTES = 1 << 15
# For the whole process: what a reader may take is watched at every execution.
MAX_RESIDENT_MB, MAX_ADDRESSES = 3000, 16 << 30
HANG_SECONDS = 30
_MISSING = (
    "Skipped: the package atheris is not installed. It has wheels for CPython 3.10 to 3.14 on "
    "Linux x86_64:\n  python3 -m pip install atheris"
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python tests/fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--target", action="append", choices=TARGETS, help="one of them; repeat it")
    parser.add_argument("--seconds", type=float, help="for all targets together")
    parser.add_argument("--runs", type=int, help="executions of all targets together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--work", type=Path, help="for findings and corpus; default: a new one")
    parser.add_argument("--markdown", type=Path, help="only write the table of --work into a page")
    parser.add_argument("--child", choices=TARGETS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.markdown:
        _write_table(options.markdown, _table(add_totals(options.work)))
        return 0
    if importlib.util.find_spec("atheris") is None:
        sys.stderr.write(f"{_MISSING}\n")
        return 0
    work = options.work or Path(tempfile.mkdtemp(prefix="vacc-fuzz-"))
    if options.child:
        return _fuzz(TARGETS[options.child], work, options)
    chosen = [TARGETS[name] for name in options.target or TARGETS]
    failed = [_run_child(target, chosen, work, options) for target in chosen]
    rows = [*_read_totals(work).values()]
    sys.stdout.write(f"\n{_table(rows)}\nFindings, corpus and logs: {work}\n")
    return int(any(failed) or any(row["findings"] for row in rows))


def _run_child(target: Target, chosen: list[Target], work: Path, options) -> bool:
    """Run one target for its share, count what it did, and return whether it failed."""
    command = [sys.executable, str(Path(__file__).parent), "--child", target.name]
    command += ["--work", str(work), "--seed", str(options.seed)]
    if options.runs:
        share = target.share / sum(other.share for other in chosen)
        command += ["--runs", str(max(1, round(options.runs * share)))]
    if options.seconds or not options.runs:
        command += ["--seconds", str((options.seconds or 60) / len(chosen))]
    (work / "logs").mkdir(parents=True, exist_ok=True)
    log = work / "logs" / f"{target.name}.txt"
    with log.open("wb") as file:
        rc = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    text = log.read_text("utf-8", "replace")
    # libFuzzer's own figures; a process that was ended tells none.
    numbers = {name: int(value) for name, value in re.findall(r"stat::(\w+):\s+(\d+)", text)}
    told = re.findall(r"^told: (\S+) s, (\d+) MB$", text, re.MULTILINE)
    totals = _read_totals(work)
    row = totals.setdefault(target.name, {"target": target.name})
    row["executions"] = row.get("executions", 0) + numbers.get("number_of_executed_units", 0)
    row["findings"] = len(list((work / "findings" / target.name).glob("*.txt")))
    row["peak"] = max([row.get("peak", 0), *(int(megabytes) for _, megabytes in told)])
    row["slowest"] = max([row.get("slowest", 0.0), *(float(seconds) for seconds, _ in told)])
    (work / "totals.json").write_text(json.dumps(totals, indent=2), "utf-8")
    ended = f" (ended with {rc}: see {log})" if rc else ""
    sys.stderr.write(f"{_line(row)}{ended}\n")
    return rc != 0


def _read_totals(work: Path) -> dict[str, dict]:
    """Return the rows of the table, also of earlier runs with the same ``--work``."""
    path = work / "totals.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def add_totals(work: Path) -> list[dict]:
    """Return the rows of all runs at or below ``work``: counts added up, the worst of the rest."""
    rows = {name: {"target": name} for name in TARGETS}
    for path in sorted(work.rglob("totals.json")):
        for name, row in _read_totals(path.parent).items():
            total = rows[name]
            for key, join in (
                ("executions", sum),
                ("findings", sum),
                ("peak", max),
                ("slowest", max),
            ):
                total[key] = join((total.get(key, 0), row[key]))
    return [row for row in rows.values() if len(row) > 1]


def _line(row: dict) -> str:
    return (
        f"| {row['target']} | {row['executions']:,} | {row['findings']} | {row['peak']} MB | "
        f"{row['slowest']:.2f} s |"
    )


def _table(rows: list[dict]) -> str:
    head = "| target | executions | findings | peak memory | slowest input |\n|---|---|---|---|---|"
    total = sum(row["executions"] for row in rows), sum(row["findings"] for row in rows)
    peak, slowest = (max(row[key] for row in rows) for key in ("peak", "slowest"))
    last = f"| all | {total[0]:,} | {total[1]} | {peak} MB | {slowest:.2f} s |"
    return "\n".join([head, *map(_line, rows), last])


def _write_table(page: Path, table: str) -> None:
    marks = "<!-- fuzzing: begin -->\n", "\n<!-- fuzzing: end -->"
    head, _, rest = page.read_text("utf-8").partition(marks[0])
    about = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    tail = rest.partition(marks[1])[2]
    page.write_text(f"{head}{marks[0]}On {about}:\n\n{table}{marks[1]}{tail}", "utf-8")


# ---- one target --------------------------------------------------------------------------------


def _fuzz(target: Target, work: Path, options) -> int:
    """Run libFuzzer over one target; it ends the process."""
    import atheris

    with atheris.instrument_imports(include=["vacc_deploy"]):
        function = target.load()
    from files import clear
    from mutations import mutate
    from sandbox import Sandbox, peak_bytes, spent_seconds

    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESSES, MAX_ADDRESSES))
    box, slowest, peak = Sandbox(), 0.0, 0
    findings = Findings(work / "findings" / target.name)
    corpus = work / "corpus" / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    # Once without the watch: what is imported at the first use is no escape.
    for data in target.inputs():
        with suppress(Exception):
            function(data, box.directory)
    clear(box.directory)

    def one(data: bytes) -> None:
        nonlocal slowest, peak
        begin = spent_seconds()
        try:
            box.execute(function, data, allowed=target.allowed)
        except BaseException as err:
            if isinstance(err, KeyboardInterrupt):
                raise
            findings.add(err, data)
        seconds, num_bytes = spent_seconds() - begin, peak_bytes()
        if seconds > slowest or num_bytes > peak + (1 << 20):
            slowest, peak = max(seconds, slowest), max(num_bytes, peak)
            sys.stderr.write(f"told: {slowest} s, {peak >> 20} MB\n")

    def change(data: bytes, max_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.4:
            return atheris.Mutate(data, max_bytes)
        return mutate(bytes(data), chance, max_bytes)

    arguments = [sys.argv[0], f"-seed={options.seed}", f"-max_len={MAX_INPUT_BYTES}"]
    arguments += [f"-rss_limit_mb={MAX_RESIDENT_MB}", f"-timeout={HANG_SECONDS}"]
    arguments += ["-print_final_stats=1", "-close_fd_mask=0", f"-artifact_prefix={work}/"]
    if options.runs:
        arguments.append(f"-runs={options.runs}")
    if options.seconds:
        arguments.append(f"-max_total_time={max(1, round(options.seconds))}")
    folders = [corpus, *(folder / target.name for folder in (CORPUS, REGRESSIONS))]
    arguments += [str(folder) for folder in folders if folder.is_dir()]
    atheris.Setup(arguments, one, custom_mutator=change)
    atheris.Fuzz()
    return 0


class Findings:
    """The findings of one target on the disk: for each place in the code the shortest input."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._lengths = folder, dict[str, int]()

    def add(self, err: BaseException, data: bytes) -> None:
        """Save an input, unless a shorter one of the same kind and place is there."""
        frames = traceback.extract_tb(err.__traceback__)
        inner = [f for f in frames if "vacc_deploy" in Path(f.filename).parts] or frames
        place = f"{Path(inner[-1].filename).name}:{inner[-1].lineno}"
        kind = f"{type(err).__name__} {getattr(err, 'kind', '')} {place}"
        if self._lengths.get(kind, len(data) + 1) <= len(data):
            return
        self._lengths[kind] = len(data)
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / hashlib.sha256(kind.encode()).hexdigest()[:12]
        path.write_bytes(data)
        told = "".join(traceback.format_exception(err))[-6000:]
        path.with_suffix(".txt").write_text(f"{kind}\n{told}", "utf-8", "backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
