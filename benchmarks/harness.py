"""Compare the model ``vacc`` of lm-evaluation-harness with the harness's own ``hf``.

    python benchmarks/harness.py MODEL --c4 FILE --harness PYTHON [--questions N] [--work FOLDER]

MODEL is a float directory, FILE a C4 file (``.json.gz``), PYTHON an interpreter that has lm-eval
and what this package needs. Questions in the form of HellaSwag are made of the documents: of four
texts, which one goes on? Prints both accuracies and how far the likelihoods are apart.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from measured import machine

TASK = "vacc_local_hellaswag"
_CONTEXT_WORDS, _ENDING_WORDS, _MIN_CHARACTERS = 45, 20, 700


def make_questions(texts: Sequence[str], count: int) -> list[dict[str, Any]]:
    """Return questions of the first long texts: a beginning, four endings, and the right one."""
    words = [text.split() for text in texts if len(" ".join(text.split())) > _MIN_CHARACTERS]
    words, generator = words[:count], random.Random(0)
    endings = [" ".join(w[_CONTEXT_WORDS : _CONTEXT_WORDS + _ENDING_WORDS]) for w in words]
    questions = []
    for number, own in enumerate(words):
        others = generator.sample([i for i in range(len(words)) if i != number], 3)
        choices, right = [endings[i] for i in others], generator.randrange(4)
        choices.insert(right, endings[number])
        questions.append(
            {"query": " ".join(own[:_CONTEXT_WORDS]), "choices": choices, "gold": right}
        )
    return questions


def write_task(folder: Path, questions: Sequence[dict[str, Any]]) -> None:
    """Write the questions and a task as ``hellaswag`` of the harness has it."""
    data = folder / "validation.jsonl"
    data.write_text("\n".join(map(json.dumps, questions)) + "\n", "utf-8")
    metrics = ("acc", "acc_norm")
    task = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(data)}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "{{query}}",
        "doc_to_target": "{{gold}}",
        "doc_to_choice": "choices",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics
        ],
    }
    (folder / "task.yaml").write_text(json.dumps(task), "utf-8")


def run(python: str, start: str, model_args: str, folder: Path) -> dict[str, Any]:
    """Return the accuracies, the seconds, and the likelihood of every choice."""
    name = {"lm_eval": "hf"}.get(start, "vacc")
    output = folder / f"out-{name}"
    command = [python, "-m", start, "--model", name, "--model_args", model_args]
    command += ["--device", "cpu", "--batch_size", "1", "--include_path", str(folder)]
    command += ["--tasks", TASK, "--log_samples", "--output_path", str(output)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    started = time.monotonic()
    subprocess.run(command, check=True, env={**os.environ, **offline}, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - started
    (path,) = output.rglob(f"samples_{TASK}_*.jsonl")
    samples = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    samples.sort(key=lambda sample: sample["doc_id"])
    scores = [float(choice[0]) for sample in samples for choice in sample["filtered_resps"]]
    figures = {m: sum(s[m] for s in samples) / len(samples) for m in ("acc", "acc_norm")}
    return {**figures, "seconds": round(seconds, 1), "scores": scores}


@click.command()
@click.argument("model", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--c4", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--harness", required=True, metavar="PYTHON", help="Has lm-eval.")
@click.option("--questions", default=24, show_default=True)
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keep files here.")
def main(model: Path, c4: Path, harness: str, questions: int, work: Path | None) -> None:
    """Print the accuracies of MODEL by both models of the harness."""
    with gzip.open(c4, "rt", encoding="utf-8") as file:
        made = make_questions([json.loads(line)["text"] for line in file], questions)
    with nullcontext(work) if work else tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_task(folder, made)
        ours = run(harness, "vacc_deploy.evaluation", f"pretrained={model}", folder)
        theirs = run(harness, "lm_eval", f"pretrained={model},dtype=float32", folder)
    pairs = list(zip(ours.pop("scores"), theirs.pop("scores"), strict=True))
    click.echo(f"{machine()}, {len(made)} questions\nvacc {ours}\nhf   {theirs}")
    click.echo(f"largest difference of a log-likelihood: {max(abs(a - b) for a, b in pairs):.2e}")


if __name__ == "__main__":
    main()
