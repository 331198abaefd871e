"""``vacc-deploy evaluate``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vacc_deploy.cli.model_options import activations_option, sampling_options
from vacc_deploy.cli.options import CHECKPOINT, common_options, emit, given_options
from vacc_deploy.cli.pair import locate_pair
from vacc_deploy.errors import UsageError

if TYPE_CHECKING:
    from vacc_deploy.results import Result

# Options that only some of the tasks have.
_OF_TASK = {
    "ceval": ("subjects", "limit", "shots", "activations"),
    "text": ("max_tokens", "seq_len", "activations"),
    "math": (
        *("limit", "max_new_tokens", "temperature", "top_p", "top_k", "seed"),
        "greedy",
    ),
}
_DATA = {
    "ceval": "ceval-exam.zip",
    "text": "english=english.txt --data code=code.txt",
    "math": "problems.jsonl",
}


@click.command("evaluate")
@click.argument("deployed_dir", metavar="DIR", type=CHECKPOINT)
@click.option(
    "--task",
    type=click.Choice(list(_OF_TASK)),
    required=True,
    help="ceval: choose the letters of C-Eval's questions; text: predict texts of several domains; "
    "math: write answers with a boxed result.",
)
@click.option(
    "--data",
    multiple=True,
    metavar="FILE",
    help="Evaluate on this: ceval-exam.zip; NAME=FILE for each domain of text; a file of JSON "
    'lines {"question": "...", "answer": "..."} for math.',
)
@click.option(
    "--reference",
    type=CHECKPOINT,
    metavar="DIR",
    help="Take this float model. Default: the directory that DIR was made from.",
)
@click.option(
    "--subjects",
    multiple=True,
    metavar="NAME[,NAME]...",
    help="Ask these subjects of C-Eval only. Default: all.",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    help="Ask at most this many questions, of C-Eval in each subject.",
)
@click.option(
    "--shots",
    type=click.IntRange(0, 5),
    default=5,
    help="Put this many solved examples in front of a question of C-Eval.",
)
@click.option(
    "--max-tokens", type=click.IntRange(16), default=2048, help="Limit the tokens of each text."
)
@click.option("--seq-len", type=click.IntRange(16), default=512, help="Set the tokens in a window.")
@activations_option
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=4096,
    help="Limit the number of new tokens of an answer to math.",
)
@sampling_options
@common_options
def evaluate_command(
    deployed_dir: str, task: str, data: tuple[str, ...], reference: str | None, **options: Any
) -> None:
    """Evaluate the model in DIR beside its float model, on this CPU.

    First every file is compared with the hash that its manifest gives. There is no verdict: the
    exit code is 0 whatever the figures are. ceval and text walk both models layer by layer, so that
    memory holds one stage of one layer. math loads each model as a whole.

    Example: vacc-deploy evaluate DeepSeek-R1-Distill-Qwen-7B-vacc-int8 --task ceval --data
    ceval-exam.zip
    """
    others = {name for names in _OF_TASK.values() for name in names} - {*_OF_TASK[task]}
    if unused := given_options(click.get_current_context(), others):
        raise UsageError(
            f"--task {task} does not use {', '.join(unused)}. Leave it out, or choose another task."
        )
    paths = _read_data(task, data)

    from vacc_deploy.datasets.files import check_file

    def check_data() -> None:
        for path in paths.values():
            check_file(path, or_directory=task == "ceval")

    deployed, float_model = locate_pair(deployed_dir, reference, check_data)
    emit(_RUN[task](deployed, float_model, paths, options))


def _read_data(task: str, data: tuple[str, ...]) -> dict[str, Path]:
    """Return the files by the names of their domains; one file of another task has no name."""
    example = f"for example --data {_DATA[task]}"
    if task != "text":
        if len(data) != 1:
            raise UsageError(f"--task {task} takes one --data, got {len(data)}; {example}")
        return {"": Path(data[0])}
    paths = dict[str, Path]()
    for given in data:
        name, _, path = given.partition("=")
        if not name or not path or name in paths:
            problem = (
                "names a domain a second time" if name in paths and path else "is no NAME=FILE"
            )
            raise UsageError(f"--data {given} {problem}; {example}")
        paths[name] = Path(path)
    if not paths:
        raise UsageError(f"--task text takes one --data or several; {example}")
    return paths


def _run_ceval(
    deployed: Path, reference: Path | None, paths: Mapping[str, Path], options: Mapping[str, Any]
) -> Result:
    from vacc_deploy.cli.terminal import terminal_progress
    from vacc_deploy.evaluation.ceval import evaluate_ceval

    names = [name.strip() for given in options["subjects"] for name in given.split(",")]
    subjects = list(dict.fromkeys(filter(None, names)))
    if names and not subjects:
        raise UsageError("--subjects names no subject; for example --subjects law,logic")
    return evaluate_ceval(
        deployed,
        paths[""],
        reference_dir=reference,
        subjects=subjects,
        limit=options["limit"],
        shots=options["shots"],
        activations=options["activations"],
        progress=terminal_progress(),
    )


def _run_text(
    deployed: Path, reference: Path | None, paths: Mapping[str, Path], options: Mapping[str, Any]
) -> Result:
    from vacc_deploy.cli.terminal import terminal_progress
    from vacc_deploy.evaluation.text import evaluate_text

    return evaluate_text(
        deployed,
        paths,
        reference_dir=reference,
        max_tokens=options["max_tokens"],
        sequence_length=options["seq_len"],
        activations=options["activations"],
        progress=terminal_progress(),
    )


def _run_math(
    deployed: Path, reference: Path | None, paths: Mapping[str, Path], options: Mapping[str, Any]
) -> Result:
    from vacc_deploy.cli.terminal import quiet_transformers, terminal_progress
    from vacc_deploy.evaluation.math import evaluate_math
    from vacc_deploy.reference.sampling import SamplingOptions

    quiet_transformers()
    names = ("temperature", "top_p", "top_k", "seed", "greedy")
    return evaluate_math(
        deployed,
        paths[""],
        reference_dir=reference,
        limit=options["limit"],
        max_new_tokens=options["max_new_tokens"],
        options=SamplingOptions(**{name: options[name] for name in names}),
        progress=terminal_progress(),
    )


_RUN = {"ceval": _run_ceval, "text": _run_text, "math": _run_math}
