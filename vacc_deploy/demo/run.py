"""The whole chain on the small trained model that the package carries.

The model adds two numbers in R1 style: it thinks digit by digit, then answers. So accuracy means
something: the float and the int8 model both answer sums they were never trained on.
"""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.assets import demo_model_dir
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME
from vacc_deploy.datasets.sources import CalibrationSource
from vacc_deploy.demo.task import THINK_START, Problem, sample_problems, share_correct
from vacc_deploy.formats.layouts import VAMC
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.parse import read_config
from vacc_deploy.outputs.manifests import write_manifest
from vacc_deploy.outputs.output import output_directory
from vacc_deploy.outputs.writer import WrittenFile, write_text
from vacc_deploy.prepare import prepare
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.generate import continue_prompts
from vacc_deploy.reference.limits import DEFAULT_LIMITS
from vacc_deploy.reference.loader import load_model
from vacc_deploy.reference.next_tokens import NextTokenScores
from vacc_deploy.reference.threads import torch_threads
from vacc_deploy.reference.verify import verify
from vacc_deploy.results import command, format_pairs, format_seconds
from vacc_deploy.solver import GPTQ
from vacc_deploy.text.tokenizer import Tokenizer
from vacc_deploy.vamc.compile_file import make_compile_file, write_compile_file
from vacc_deploy.vamc.options import CompileOptions
from vacc_deploy.vamc.target import Target

MODEL_NAME = "vacc-deploy-demo"
PREPARED_DIR, INT8_DIR = f"{MODEL_NAME}-vacc", f"{MODEL_NAME}-vacc-int8"
CALIBRATION_FILE, VERIFY_FILE = "calibration.txt", "held-out.txt"
NUM_PROBLEMS = 200
MAX_NEW_TOKENS = 192
# The matrices are so small that two threads would spend their time waiting for each other.
NUM_THREADS = 1
_BATCH = 200


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured, and where its files are.

    Attributes:
        steps: each command of the chain and the seconds it took.
        problems: held-out sums that both models were asked.
        accuracy_float, accuracy_int8: share that a model answered exactly, 0 to 1.
        example: the longest sum, and the int8 model's thought and answer.
        failures: what verify found fault with, a line each.
        seconds: time that the whole chain took.
    """

    output_dir: Path
    steps: tuple[tuple[str, float], ...]
    problems: tuple[Problem, ...]
    accuracy_float: float
    accuracy_int8: float
    example: tuple[str, str]
    scores: NextTokenScores
    failures: tuple[str, ...]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "output_dir": str(self.output_dir),
            "steps": [{"command": name, "seconds": round(s, 3)} for name, s in self.steps],
            "num_problems": len(self.problems),
            "accuracy_float": self.accuracy_float,
            "accuracy_int8": self.accuracy_int8,
            "example": {"question": self.example[0], "answer": self.example[1]},
            "verify": {
                **self.scores.to_dict(),
                "passed": not self.failures,
                "failures": list(self.failures),
            },
            "seconds": round(self.seconds, 3),
        }

    def to_text(self) -> str:
        """Return the chain, the figures, the files and what to run next."""
        scores = self.scores
        steps = format_pairs([(name, format_seconds(s)) for name, s in self.steps])
        figures = [
            ("exact answers, float", f"{self.accuracy_float:.1%} of {len(self.problems)} sums"),
            ("exact answers, int8", f"{self.accuracy_int8:.1%} of the same"),
            ("KL(float ‖ int8)", f"{scores.mean_kl:.6f} mean over {scores.num_tokens:,} tokens"),
            ("same top token", f"{scores.top1:.2%}"),
        ]
        prepared, deployed = self.output_dir / PREPARED_DIR, self.output_dir / INT8_DIR
        files = [
            (f"{prepared}/", "weights, source files and config_vacc.json"),
            (f"{deployed}/", "int8 values stored as float16 for vamc, quantize_report.json"),
            (f"{deployed}.yaml", "the compile file for vamc"),
        ]
        again = command("verify", deployed, "--text", self.output_dir / VERIFY_FILE)
        question, answer = self.example
        indented = "\n".join(f"    {line}" for line in answer.splitlines())
        passed = f"Passed: {DEFAULT_LIMITS.describe(scores)}"
        verdict = "\n".join(f"Failed: {failure}" for failure in self.failures) or passed
        return (
            f"{steps}\n\nThe int8 model on {question}\n{indented}\n\n{format_pairs(figures)}\n"
            f"{verdict}\n\n{format_pairs(files)}\n\n"
            f"To verify it again:\n  {again}\n\n"
            f"All of it took {format_seconds(self.seconds)}. Next, on a real model:\n"
            "  vacc-deploy prepare --model Distill-Qwen-1.5B\n"
            "  vacc-deploy quantize DeepSeek-R1-Distill-Qwen-1.5B-vacc\n"
            "  vacc-deploy verify DeepSeek-R1-Distill-Qwen-1.5B-vacc-int8\n"
            "  vacc-deploy yaml DeepSeek-R1-Distill-Qwen-1.5B-vacc-int8 --tp 2"
        )


class _Clock:
    """Notes how long each step took."""

    def __init__(self) -> None:
        self.started = self._last = time.monotonic()
        self.steps: list[tuple[str, float]] = []

    def note(self, step: str) -> None:
        now = time.monotonic()
        self.steps.append((step, now - self._last))
        self._last = now


def demo(
    *,
    output: Path,
    overwrite: bool = False,
    num_problems: int = NUM_PROBLEMS,
    progress: Progress = SILENT,
) -> DemoResult:
    """Run prepare, quantize, yaml and verify on the carried model, then let both models add.

    Args:
        output: the directory to write.
        overwrite: replace a directory that an earlier demo wrote.
        num_problems: sums to ask each model.
        progress: learns of every step.

    Raises:
        OutputError: the output exists or cannot be written.
    """
    clock = _Clock()
    folder = output_directory(output, overwrite=overwrite, source=None, say=progress.say)
    with torch_threads(NUM_THREADS), folder as partial:
        prepared, deployed = partial / PREPARED_DIR, partial / INT8_DIR
        prepare(weights=demo_model_dir(), output=prepared, link_mode="copy", progress=progress)
        clock.note("prepare")
        _write_texts(partial, Tokenizer.from_dir(prepared))
        quantize(
            prepared,
            options=_quantize_options(partial / CALIBRATION_FILE),
            output=deployed,
            progress=progress,
        )
        clock.note("quantize --method gptq")
        write_yaml(partial, output, read_config(deployed))
        clock.note("yaml")
        verified = verify(deployed, text_file=partial / VERIFY_FILE, progress=progress)
        clock.note("verify")
        problems = sample_problems(num_problems, seed=0, held_out=True)
        # The prepared directory holds the float weights that the codes were made from.
        texts_float = answer_problems(prepared, problems, progress)
        texts_int8 = answer_problems(deployed, problems, progress)
        clock.note(f"{len(problems)} sums by each model")
        _write_manifest(partial)
    longest = max(range(len(problems)), key=lambda index: len(problems[index].question))
    assert verified.scores is not None, "its files are fresh"
    # The prompt ends with the tag, so the model's own text begins behind it.
    example = problems[longest].question, f"{THINK_START}\n{texts_int8[longest]}"
    return DemoResult(
        output_dir=output,
        steps=tuple(clock.steps),
        problems=tuple(problems),
        accuracy_float=share_correct(problems, texts_float),
        accuracy_int8=share_correct(problems, texts_int8),
        example=example,
        scores=verified.scores,
        failures=verified.failures,
        seconds=time.monotonic() - clock.started,
    )


def _quantize_options(text: Path) -> QuantizeOptions:
    source = CalibrationSource("text", text, 1.0)
    return QuantizeOptions(GPTQ, sources=(source,), num_samples=32, sequence_length=256)


def answer_problems(
    directory: Path, problems: list[Problem], progress: Progress = SILENT
) -> list[str]:
    """Return what the model in ``directory`` writes for each sum, greedily."""
    tokenizer = Tokenizer.from_dir(directory)
    model = load_model(directory)
    progress.start(f"Adding with {directory.name}", len(problems), "sums")
    texts = []
    for start in range(0, len(problems), _BATCH):
        prompts = [
            tokenizer.encode_chat(_question(problem), add_generation_prompt=True)
            for problem in problems[start : start + _BATCH]
        ]
        answers = continue_prompts(model, tokenizer, prompts, max_new_tokens=MAX_NEW_TOKENS)
        texts += [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
        progress.advance(len(prompts), directory.name)
    progress.finish()
    return texts


def _write_texts(directory: Path, tokenizer: Tokenizer) -> None:
    """Write the calibration text, and a text of held-out sums for ``verify``."""
    for name, count, held_out in (
        (CALIBRATION_FILE, 256, False),
        (VERIFY_FILE, 24, True),
    ):
        problems = sample_problems(count, seed=1, held_out=held_out)
        texts = [
            tokenizer.render_chat(_question(problem), add_generation_prompt=True)
            + f"{problem.completion}{tokenizer.eos_token}"
            for problem in problems
        ]
        write_text(directory / name, "\n".join(texts))


def _question(problem: Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question}]


def write_yaml(directory: Path, output: Path, config: ModelConfig) -> None:
    """Write the compile file into ``directory``; it names the int8 directory as ``output`` does."""
    target = Target(MODEL_NAME, os.path.join(".", output, INT8_DIR), config, VAMC)
    options = CompileOptions(tensor_parallel_size=2, prefill=128, total=512)
    write_compile_file(make_compile_file(target, options), directory / f"{INT8_DIR}.yaml")


def _write_manifest(directory: Path) -> None:
    """List the demo's own files, and the manifests of the directories that it made."""
    manifests = (f"{name}/{MANIFEST_NAME}" for name in (PREPARED_DIR, INT8_DIR))
    files = []
    for name in (CALIBRATION_FILE, VERIFY_FILE, f"{INT8_DIR}.yaml", *manifests):
        data = (directory / name).read_bytes()
        files.append(WrittenFile(name, len(data), hashlib.sha256(data).hexdigest()))
    write_manifest(directory, command="demo", model=MODEL_NAME, source={}, options={}, files=files)
