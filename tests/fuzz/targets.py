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


# The tokenizers library and pyarrow run in processes of their own, started anew where they ended.
_CHILD = ("subprocess.Popen", "os.posix_spawn", "signal.pthread_kill", "os.kill")
# jinja compiles a template to code of Python, which its sandbox bounds.
_COMPILES = ("compile", "exec", "signal.setitimer", "signal.signal")
# The option is the user's own, and may name any directory.
_LISTS = ("os.listdir", "os.scandir", "open")
_ROWS = (
    *(("weight_targets", "header", 240), ("weight_targets", "checkpoint", 30)),
    *(("weight_targets", "config", 120), ("weight_targets", "generation_config", 160)),
    *(("weight_targets", "adapter", 200), ("weight_targets", "directory_names", 30)),
    *(("weight_targets", "hub_cache", 30), ("weight_targets", "gguf_header", 240)),
    ("weight_targets", "gguf_directory", 30),
    *(("text_targets", "tokenizer", 12, _CHILD), ("text_targets", "vocabulary", 8, _CHILD)),
    *(("text_targets", "template", 30, _COMPILES), ("text_targets", "prompts", 240)),
    # Any calibration file may begin as a Parquet file does.
    *(("data_targets", name, 100, _CHILD) for name in ("c4", "alpaca", "chat", "ceval_csv")),
    *(("data_targets", "text", 200, _CHILD), ("data_targets", "traces", 280, _CHILD)),
    *(("data_targets", "ceval_archive", 30, _CHILD), ("data_targets", "parquet", 20, _CHILD)),
    ("data_targets", "source_option", 120, (*_LISTS, *_CHILD)),
    *(("output_targets", "manifest", 30), ("output_targets", "compile_yaml", 12)),
    *(("output_targets", "lock_file", 160, ("os.kill",)), ("output_targets", "answers", 120)),
    *(("output_targets", "repository", 20), ("output_targets", "run_records", 30)),
    ("output_targets", "finished_run", 30),
)
TARGETS = {name: Target(name, module, *rest) for module, name, *rest in _ROWS}
