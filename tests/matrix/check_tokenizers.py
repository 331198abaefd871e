"""Print, for directories of tokenizers, what this environment's transformers makes of them.

Two answers for each: what ``check`` finds, and whether the ids are right by a comparison that does
without the package. The package needs no torch for this.

    python tests/matrix/check_tokenizers.py DIRECTORY
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", HF_HOME="/nonexistent/huggingface")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import tokenizers  # noqa: E402
import transformers  # noqa: E402

from vacc_deploy.check.tokenizer import check_tokens  # noqa: E402
from vacc_deploy.models.parse import read_config  # noqa: E402
from vacc_deploy.problems.problem import NOTE  # noqa: E402

# None of the probes of the package.
TEXTS = (
    "A plain sentence, with  two spaces; it doesn't end here.\n\n\tNext.",
    "用户：请计算 12345 + 678。<think>\n嗯</think>",
)


def are_ids_right(directory: Path) -> bool:
    """Return whether transformers gives the ids of ``tokenizer.json`` for a local directory."""
    theirs = transformers.AutoTokenizer.from_pretrained(str(directory))
    plain = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    return all(
        theirs(text, add_special_tokens=False)["input_ids"]
        == plain.encode(text, add_special_tokens=False).ids
        for text in TEXTS
    )


def look(directory: Path) -> dict[str, Any]:
    """Return what is found of one directory, and what is so."""
    found = check_tokens(directory, read_config(directory))
    assert found.contract is not None, found.problems
    return {
        "passed": found.contract.passed,
        "class": found.contract.library_class,
        "found": [str(p) for p in found.problems if p.rule.severity != NOTE],
        "codes": [p.rule.code for p in found.problems if p.rule.severity != NOTE],
        "right": are_ids_right(directory),
    }


def main() -> None:
    transformers.logging.set_verbosity_error()
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
    results = {folder.name: look(folder) for folder in folders}
    json.dump({"transformers": transformers.__version__, "results": results}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
