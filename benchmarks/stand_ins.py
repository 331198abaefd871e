"""Stand-ins for what a checkpoint of random weights lacks: a tokenizer, and text that it can read.

Light to import: see ``measured``.
"""

from __future__ import annotations

from pathlib import Path

from vacc_deploy.assets import demo_model_dir
from vacc_deploy.demo_task import sample_problems

# The tokenizers at hand make about 80 tokens of a problem and its answer, on average.
_TOKENS_PER_PROBLEM = 40


def link_checkpoint(source: Path, target: Path) -> None:
    """Link a checkpoint's files into ``target`` and give it a tokenizer if it has none."""
    target.mkdir()
    for path in source.resolve().iterdir():
        (target / path.name).symlink_to(path)
    if not (target / "tokenizer.json").exists():
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (target / name).write_bytes((demo_model_dir() / name).read_bytes())


def write_sums(path: Path, num_tokens: int) -> None:
    """Write a text of at least ``num_tokens`` tokens: sums and their answers."""
    problems = sample_problems(num_tokens // _TOKENS_PER_PROBLEM + 1, seed=0, held_out=False)
    path.write_text("\n".join(p.question + p.response for p in problems), "utf-8")
