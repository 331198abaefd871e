"""The table of targets: each reader of a stranger's bytes by name, imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
CORPUS, REGRESSIONS = HERE / "corpus", HERE / "regressions"


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        module: where its function is; imported by ``load`` alone, so that a cheap reader starts
            without the libraries of the others.
        share: of the executions of a long run; cheap readers get more.
        allowed: what it may do beside reading its own files, as events of Python's audit.
    """

    name: str
    module: str
    share: int
    allowed: tuple[str, ...] = ()

    def load(self) -> Callable[[bytes, Path], None]:
        """Return the function."""
        return getattr(importlib.import_module(self.module), self.name)

    def inputs(self) -> list[bytes]:
        """Return the corpus, and the inputs that once were a finding."""
        folders = (CORPUS / self.name, REGRESSIONS / self.name)
        return [path.read_bytes() for folder in folders for path in sorted(folder.glob("*"))]


# The tokenizers library runs in a process of its own, started anew where it has ended.
_CHILD = ("subprocess.Popen", "os.posix_spawn", "signal.pthread_kill", "os.kill")
# jinja compiles a template to code of Python, which its sandbox bounds.
_COMPILES = ("compile", "exec", "signal.setitimer", "signal.signal")
# The option is the user's own, and may name any directory.
_LISTS = ("os.listdir", "os.scandir", "open")
_ROWS = (
    *(("weight_targets", "header", 12), ("weight_targets", "checkpoint", 3)),
    *(("weight_targets", "config", 12), ("weight_targets", "generation_config", 12)),
    *(("weight_targets", "adapter", 8), ("weight_targets", "directory_names", 2)),
    *(("text_targets", "tokenizer", 3, _CHILD), ("text_targets", "vocabulary", 2, _CHILD)),
    *(("text_targets", "template", 4, _COMPILES), ("text_targets", "prompts", 10)),
    *(("data_targets", "c4", 6), ("data_targets", "alpaca", 6), ("data_targets", "chat", 8)),
    *(("data_targets", "text", 4), ("data_targets", "traces", 6)),
    *(("data_targets", "ceval_csv", 5), ("data_targets", "ceval_archive", 3)),
    *(("data_targets", "parquet", 1), ("data_targets", "source_option", 10, _LISTS)),
    *(("output_targets", "manifest", 6), ("output_targets", "compile_yaml", 3)),
    *(("output_targets", "lock_file", 8, ("os.kill",)), ("output_targets", "answers", 5)),
    *(("output_targets", "repository", 4), ("output_targets", "run_records", 3)),
    ("output_targets", "finished_run", 3),
)
TARGETS = {name: Target(name, module, *rest) for module, name, *rest in _ROWS}
