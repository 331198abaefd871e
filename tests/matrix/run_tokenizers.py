"""Try the tokenizer contract with many versions of transformers, and write the table of the page.

    python tests/matrix/run_tokenizers.py                    print the table
    python tests/matrix/run_tokenizers.py --markdown PAGE    write it between the marks of a page

The exit status is 1 where ``check`` finds nothing though the ids are wrong, or the reverse.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parent / "helpers"))

from run_matrix import Environment  # noqa: E402

VERSIONS = (
    *("4.43.4", "4.57.1", "5.0.0", "5.4.0", "5.5.4", "5.7.0", "5.9.0", "5.10.4", "5.12.1"),
    *("5.20.2", "5.21.1", "5.22.0", "5.24.0"),
)
BEGIN, END = "<!-- table of run_tokenizers.py -->", "<!-- end of the table -->"
# How the tokenizers of Qwen split a text, as published.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Column, the model_type, and the class that tokenizer_config.json names.
FORMS = {
    "R1-Distill-Llama": ("llama", "LlamaTokenizerFast"),
    "R1-Distill-Qwen": ("qwen2", "LlamaTokenizerFast"),
    "R1-0528-Qwen3": ("qwen3", "LlamaTokenizerFast"),
    "Llama, mended": ("llama", "PreTrainedTokenizerFast"),
    "Qwen, mended": ("qwen2", "PreTrainedTokenizerFast"),
    "Qwen3, mended": ("qwen3", "PreTrainedTokenizerFast"),
}


def write_directories(folder: Path) -> Path:
    """Write a directory of tokenizer files for each column: small, of bytes, with merges."""
    from checkpoint_builders import build_config
    from token_fixtures import train_backend, write_json
    from tokenizer_builders import ASSISTANT, BOS, EOS, USER, r1_0528_config, write_tokenizer
    from tokenizers import AddedToken, Regex, normalizers, pre_tokenizers, processors

    for name, (model_type, class_name) in FORMS.items():
        backend = train_backend()
        marks = (BOS, EOS, USER, ASSISTANT)
        backend.add_special_tokens([AddedToken(token, special=True) for token in marks])
        backend.add_tokens([AddedToken(token) for token in ("<think>", "</think>")])
        bos, eos = (backend.token_to_id(token) for token in (BOS, EOS))
        backend.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, bos)]
        )
        if model_type != "llama":
            backend.normalizer = normalizers.NFC()
            split = pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated")
            to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
        config = r1_0528_config(add_bos_token=True, tokenizer_class=class_name)
        target = write_tokenizer(folder / name, backend, config)
        # As published; tokenizers before 0.20 reads no other form of merges.
        path = target / "tokenizer.json"
        document = json.loads(path.read_text("utf-8"))
        document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]
        write_json(path, document)
        ids = {"bos_token_id": bos, "eos_token_id": eos}
        overrides = {**ids, "vocab_size": 480}
        model = build_config(model_type=model_type, overrides=overrides)
        write_json(target / "config.json", model)
        write_json(target / "generation_config.json", ids)
    return folder


def run(version: str, directories: Path, cache: Path) -> dict[str, Any]:
    """Build the environment of a version where it is missing, and return what it says."""
    environment = Environment(sys.executable, sys.version_info[:2], None, version)
    environment.build(cache)
    path = os.pathsep.join(str(folder) for folder in environment.folders(cache))
    command = [sys.executable, str(FOLDER / "check_tokenizers.py"), str(directories)]
    result = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)} failed for {version}:\n{result.stderr}")
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["transformers"] == version, report["transformers"]
    sys.stderr.write(f"{version}: {', '.join(map(cell, report['results'].values()))}\n")
    return report


def cell(result: dict[str, Any]) -> str:
    """Return what the table says of one directory."""
    if result["passed"] and not result["codes"]:
        return "holds"
    return f"**{', '.join(sorted(set(result['codes'])))}** ({result['class']})"


def to_markdown(reports: list[dict[str, Any]]) -> str:
    """Return the table: a row for each version."""
    lines = ["| transformers | " + " | ".join(FORMS) + " |", "|" + "---|" * (len(FORMS) + 1)]
    for report in reports:
        cells = [cell(report["results"][name]) for name in FORMS]
        lines.append(f"| {report['transformers']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def wrong_verdicts(reports: list[dict[str, Any]]) -> list[str]:
    """Return where the finding is not what the ids are."""
    return [
        f"{report['transformers']}, {name}: ids right: {result['right']}, passed: "
        f"{result['passed']}: {result['found']}"
        for report in reports
        for name, result in report["results"].items()
        if result["right"] != result["passed"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--versions", nargs="+", default=list(VERSIONS), help="of transformers")
    default = Path.home() / ".cache" / "vacc-deploy-matrix"
    parser.add_argument("--cache", type=Path, default=default, help="where environments are kept")
    parser.add_argument("--jobs", type=int, default=2, help="environments at a time")
    parser.add_argument("--markdown", type=Path, help="the page, with the two marks in it")
    arguments = parser.parse_args()
    cache = arguments.cache.resolve()
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="vacc-tokenizers-") as folder:
        directories = write_directories(Path(folder))
        with ThreadPoolExecutor(arguments.jobs) as pool:
            reports = list(
                pool.map(lambda version: run(version, directories, cache), arguments.versions)
            )
    table = to_markdown(reports)
    if arguments.markdown:
        text = arguments.markdown.read_text("utf-8")
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        arguments.markdown.write_text(f"{before}{BEGIN}\n{table}{END}{after}", "utf-8")
    else:
        sys.stdout.write(table)
    wrong = wrong_verdicts(reports)
    sys.stderr.write("".join(f"{line}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
