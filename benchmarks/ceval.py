"""Measure accuracy on C-Eval, and compare answer by answer with lm-evaluation-harness.

    python benchmarks/ceval.py DIR --data ceval-exam.zip [--subjects NAME,NAME] [--limit N]
        [--shots N] [--harness PYTHON] [--work FOLDER] [--json FILE]

DIR is what ``quantize`` wrote; its float model is the one that its manifest names. Without
``--harness`` only ``evaluate`` runs. With it, PYTHON is an interpreter that has lm-eval and torch:
its own model ``hf`` in float32 answers the same questions over both directories (DIR must be float
to a loader, as the format vamc is). Tasks with the form of ``ceval-valid`` are written for it,
which read the questions from files. Prints both accuracies, how many prompts are the same text,
how many questions are judged otherwise, and the time that each took.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
from measured import machine

from vacc_deploy.datasets.ceval import CHOICES, Question
from vacc_deploy.datasets.ceval_tables import SUBJECTS
from vacc_deploy.evaluation.ceval import CevalResult, evaluate_ceval
from vacc_deploy.evaluation.ceval_prompts import choose_questions, write_prompt

PREFIX = "vacc_local_ceval_"
_FIELDS = ("question", *CHOICES, "answer")


def write_tasks(
    folder: Path, questions: Sequence[Question], examples: dict[str, list[Question]]
) -> list[str]:
    """Write a task for each subject, with its questions and examples; return the tasks' names."""
    subjects = list(dict.fromkeys(question.subject for question in questions))
    for subject in subjects:
        tables = {
            "val": [question for question in questions if question.subject == subject],
            "dev": examples[subject],
        }
        for split, rows in tables.items():
            lines = [
                json.dumps({name: question.row[name] for name in _FIELDS}, ensure_ascii=False)
                for question in rows
            ]
            (folder / f"{subject}_{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        task = _task(folder, subject)
        # JSON is YAML, and needs no quoting of ours.
        (folder / f"{subject}.yaml").write_text(json.dumps(task, ensure_ascii=False), "utf-8")
    return [f"{PREFIX}{subject}" for subject in subjects]


def _task(folder: Path, subject: str) -> dict[str, Any]:
    """Return a task as ``ceval-valid`` of lm-evaluation-harness 0.4 has it, over local files."""
    return {
        "task": f"{PREFIX}{subject}",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {s: str(folder / f"{subject}_{s}.jsonl") for s in ("val", "dev")}
        },
        "validation_split": "val",
        "fewshot_split": "dev",
        "fewshot_config": {"sampler": "first_n"},
        "output_type": "multiple_choice",
        "description": f"以下是中国关于{SUBJECTS[subject]}的单项选择题，请选出其中的正确答案。\n\n",
        "doc_to_text": "{{question.strip()}}\nA. {{A}}\nB. {{B}}\nC. {{C}}\nD. {{D}}\n答案：",
        "doc_to_choice": list(CHOICES),
        "doc_to_target": "{{['A', 'B', 'C', 'D'].index(answer)}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def run_harness(
    python: str, model: Path, tasks: Sequence[str], shots: int, folder: Path
) -> tuple[dict[tuple[str, int], dict[str, Any]], float]:
    """Return the harness's samples, by subject and number of the question, and its seconds."""
    output = folder / f"out-{model.name}"
    command = [python, "-m", "lm_eval", "--model", "hf", "--device", "cpu", "--batch_size", "1"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--log_samples"]
    command += ["--num_fewshot", str(shots), "--include_path", str(folder)]
    command += ["--tasks", ",".join(tasks), "--output_path", str(output)]
    started = time.monotonic()
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    subprocess.run(command, check=True, env={**os.environ, **offline}, stdout=subprocess.DEVNULL)
    return read_samples(output), time.monotonic() - started


def read_samples(output: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return what the harness has logged: the prompt and whether its answer is right."""
    samples = {}
    for path in sorted(output.rglob(f"samples_{PREFIX}*.jsonl")):
        subject = path.name.removeprefix(f"samples_{PREFIX}").rpartition("_")[0]
        for line in path.read_text("utf-8").splitlines():
            sample = json.loads(line)
            prompt = sample["arguments"]["gen_args_0"]["arg_0"]
            kept = {"prompt": prompt, "right": bool(sample["acc"])}
            samples[subject, sample["doc_id"]] = kept
    return samples


def compare(
    result: CevalResult,
    prompts: Sequence[str],
    samples: dict[tuple[str, int], dict[str, Any]],
    name: str,
) -> dict[str, int]:
    """Return counts over all questions: of the harness, and where it and ``evaluate`` differ."""
    counts = {"questions": 0, "right": 0, "right_harness": 0, "judged_otherwise": 0}
    counts["other_prompts"] = 0
    numbers: dict[str, int] = {}
    for choice, prompt in zip(result.choices, prompts, strict=True):
        number = numbers.get(choice.subject, 0)
        numbers[choice.subject] = number + 1
        sample = samples[choice.subject, number]
        given = choice.float_choice if name == "float" else choice.deployed_choice
        right = given == choice.answer
        counts["questions"] += 1
        counts["right"] += right
        counts["right_harness"] += sample["right"]
        counts["judged_otherwise"] += right != sample["right"]
        counts["other_prompts"] += prompt != sample["prompt"]
    return counts


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--subjects", default="", help="Names with commas; default all.")
@click.option("--limit", type=int, help="The most questions of a subject.")
@click.option("--shots", default=5, show_default=True)
@click.option("--harness", metavar="PYTHON", help="An interpreter that has lm-eval.")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), help="Keep files here.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write figures here.")
def main(
    directory: Path,
    data: Path,
    subjects: str,
    limit: int | None,
    shots: int,
    harness: str | None,
    work: Path | None,
    json_file: Path | None,
) -> None:
    """Print the accuracy of DIRECTORY and of its float model."""
    names = [name for name in subjects.split(",") if name]
    result = evaluate_ceval(directory, data, subjects=names, limit=limit, shots=shots)
    click.echo(f"{machine()}\n\n{result.to_text()}")
    report = {"machine": machine(), **result.to_dict()}
    if harness:
        questions, examples = choose_questions(data, names, limit)
        prompts = [write_prompt(q, examples[q.subject][:shots] if shots else ()) for q in questions]
        with nullcontext(work) if work else tempfile.TemporaryDirectory() as place:
            folder = Path(place).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            tasks = write_tasks(folder, questions, examples)
            for name, checkpoint in result.pair.models():
                samples, seconds = run_harness(harness, checkpoint.directory, tasks, shots, folder)
                counts = compare(result, prompts, samples, name)
                report[f"harness_{name}"] = {**counts, "seconds": round(seconds, 1)}
                click.echo(f"\n{name} beside lm-evaluation-harness: {report[f'harness_{name}']}")
    if json_file:
        json_file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
