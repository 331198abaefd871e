"""Check the source files against many versions of transformers, each in an environment of its own.

An environment is one folder of packages, put before those of a Python that has torch; building them
needs the package index, everything else is local. ``check_version.py`` is what runs in each.

    python tests/matrix/run_matrix.py                          all versions, on this Python's torch
    python tests/matrix/run_matrix.py --short                  the oldest, one between, the newest
    python tests/matrix/run_matrix.py --old-torch python3.8    torch 2.1.0 as well (4 GB)
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
VERSIONS = (
    *("4.37.2", "4.40.2", "4.41.2", "4.42.4", "4.43.4", "4.44.2", "4.45.2", "4.48.3"),
    *("4.49.0", "4.51.3", "4.55.4", "4.56.2", "4.57.1", "5.0.0", "5.23.0"),
)
SHORT = (VERSIONS[0], "4.48.3", VERSIONS[-1])
# What runs on torch 2.1, by Python: 4.46 is the last for Python 3.8, 4.50 the last for torch 2.1.
OLD_TORCH = "2.1.0"
OLD_TORCH_VERSIONS = {(3, 8): ("4.37.2", "4.45.2")}
OLD_TORCH_OTHERS = ("4.37.2", "4.43.4", "4.48.3")
# accelerate is asked for by low_cpu_mem_usage; without its dependencies, which include torch.
ACCELERATE = {True: ("accelerate==1.0.1", "psutil"), False: ("accelerate==1.15.0", "psutil")}

INTRODUCTION = """\
# Compatibility

Which versions of torch, transformers and Python the files of `source_code/` run with. This table is
measured, not promised. The command that wrote this page:

```
python tests/matrix/run_matrix.py --markdown docs/compatibility.md
```

It builds one environment for each row, loads directories that `prepare` and `quantize` wrote, and
compares with that version's own Qwen2, Qwen3 and Llama. Where a version has no Qwen3 or does not
read yarn, the reference is what a newer transformers computed when the directories were written.
The models are small and random; everything runs on a CPU.

"""


@dataclass(frozen=True)
class Environment:
    """One row of the table.

    Attributes:
        python: the interpreter.
        python_version: its major and minor number.
        torch: the version to install, or None for the interpreter's own.
        transformers: the version to install.
    """

    python: str
    python_version: tuple[int, int]
    torch: str | None
    transformers: str

    def folders(self, cache: Path) -> list[Path]:
        """Return the folders that go on the module path, first come first served."""
        prefix = "python" + ".".join(str(part) for part in self.python_version)
        torch = "" if self.torch is None else f"torch-{self.torch}-"
        folders = [cache / f"{prefix}-{torch}transformers-{self.transformers}"]
        return folders + ([cache / f"{prefix}-torch-{self.torch}"] if self.torch else [])

    def build(self, cache: Path) -> None:
        """Install what is missing in ``cache``.

        Raises:
            subprocess.CalledProcessError: pip failed; its words are in ``stderr``.
        """
        overlay, *torch = self.folders(cache)
        packages = [f"transformers=={self.transformers}", *(["numpy<2"] if torch else [])]
        accelerate = ACCELERATE[self.python_version < (3, 10)]
        self._install(overlay, [packages, ["--no-deps", *accelerate]])
        for folder in torch:
            self._install(folder, [[f"torch=={self.torch}"]])

    def _install(self, folder: Path, calls: list[list[str]]) -> None:
        complete = folder / ".complete"
        if complete.exists():
            return
        shutil.rmtree(folder, ignore_errors=True)
        for arguments in calls:
            command = [self.python, "-m", "pip", "install", "--quiet", "--target", str(folder)]
            subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)
        complete.touch()

    def check(self, cache: Path, directories: Path) -> dict[str, Any]:
        """Run ``check_version.py`` and return its report."""
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            path = os.pathsep.join(str(item) for item in self.folders(cache))
            command = [self.python, str(FOLDER / "check_version.py"), str(directories)]
            result = subprocess.run(
                [*command, "--json", str(report)],
                env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
            )
            if not report.exists():
                raise RuntimeError(f"{' '.join(command)} failed:\n{result.stderr}")
            return json.loads(report.read_text("utf-8"))


def python_version(python: str) -> tuple[int, int]:
    """Return the major and minor version of an interpreter."""
    code = "import sys; print(*sys.version_info[:2])"
    result = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    major, minor = result.stdout.split()
    return int(major), int(minor)


def choose_environments(versions: list[str], old_torch: list[str]) -> list[Environment]:
    """Return the rows: ``versions`` on this Python, and torch 2.1 on the others."""
    rows = [Environment(sys.executable, sys.version_info[:2], None, name) for name in versions]
    for python in old_torch:
        number = python_version(python)
        for name in OLD_TORCH_VERSIONS.get(number, OLD_TORCH_OTHERS):
            rows.append(Environment(python, number, OLD_TORCH, name))
    return rows


def run_matrix(
    environments: list[Environment], cache: Path, *, jobs: int = 2
) -> list[dict[str, Any]]:
    """Build and check every environment and return the reports in the same order."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vacc-matrix-") as folder:
        command = [sys.executable, str(FOLDER / "directories.py"), folder]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        # Folders of torch are shared between rows: built before anything runs side by side.
        for environment in environments:
            if environment.torch:
                environment.build(cache)

        def work(environment: Environment) -> dict[str, Any]:
            environment.build(cache)
            report = environment.check(cache, Path(folder))
            found = [result["ok"] for result in report["checks"].values()]
            counts = f"{found.count(True)} yes, {found.count(False)} no, {found.count(None)} -"
            sys.stderr.write(f"{title(report)}: {counts}\n")
            return report

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(work, environments))


def title(report: dict[str, Any]) -> str:
    """Return the three versions in words."""
    return (
        f"transformers {report['transformers']}, torch {report['torch']}, Python {report['python']}"
    )


def to_markdown(reports: list[dict[str, Any]]) -> str:
    """Return the table, what its columns mean, and every cell that is not a plain yes."""
    names = list(reports[0]["checks"])
    words = {True: "yes", False: "**no**", None: "-"}
    lines = ["| transformers | torch | Python | " + " | ".join(names) + " |"]
    lines.append("|" + "---|" * (len(names) + 3))
    for report in reports:
        cells = [words[report["checks"][name]["ok"]] for name in names]
        versions = [report["transformers"], report["torch"], report["python"]]
        lines.append("| " + " | ".join(versions + cells) + " |")
    lines += ["", "## What the columns mean", ""]
    lines += [f"* **{name}**: {reports[0]['checks'][name]['about']}" for name in names]
    lines += ["", "## Cells that are not yes", ""]
    notes: dict[str, list[str]] = {}
    for report in reports:
        for name, result in report["checks"].items():
            if result["ok"] is not True:
                word = "no" if result["ok"] is False else "not applicable"
                notes.setdefault(f"{name}: {word}. {result['error']}", []).append(title(report))
    lines += [f"* {text}\n  ({'; '.join(rows)})" for text, rows in notes.items()] or ["None."]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line; the exit status is 1 where a cell is an unexpected no."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS), help="of transformers")
    parser.add_argument("--short", action="store_true", help=f"only {', '.join(SHORT)}")
    parser.add_argument(
        "--old-torch",
        action="append",
        default=[],
        metavar="PYTHON",
        help=f"check torch {OLD_TORCH} too, with this interpreter; may be repeated",
    )
    default = Path.home() / ".cache" / "vacc-deploy-matrix"
    parser.add_argument("--cache", type=Path, default=default, help="where environments are kept")
    parser.add_argument("--jobs", type=int, default=2, help="environments at a time")
    parser.add_argument("--json", type=Path, help="write the reports here")
    parser.add_argument("--markdown", type=Path, help="write the page here, not to stdout")
    arguments = parser.parse_args()
    versions = list(SHORT) if arguments.short else arguments.versions
    try:
        environments = choose_environments(versions, arguments.old_torch)
        reports = run_matrix(environments, arguments.cache.resolve(), jobs=arguments.jobs)
    except subprocess.CalledProcessError as err:
        sys.stderr.write(f"{err}\n{err.stderr or ''}\n")
        return 2
    if arguments.json:
        arguments.json.write_text(json.dumps(reports, indent=2) + "\n", "utf-8")
    page = INTRODUCTION + to_markdown(reports)
    if arguments.markdown:
        arguments.markdown.write_text(page, "utf-8")
    else:
        sys.stdout.write(page)
    results = [result for report in reports for result in report["checks"].values()]
    return 1 if any(result["ok"] is False and not result["known"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
