"""``vacc-deploy generate``."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vacc_deploy.bounds import PROMPT_BYTES
from vacc_deploy.cli.model_options import sampling_options
from vacc_deploy.cli.options import (
    CHECKPOINT,
    again_with,
    common_options,
    downloading,
    emit,
    is_json,
    print_out,
    say,
)
from vacc_deploy.errors import UsageError
from vacc_deploy.results import command, escape_controls
from vacc_deploy.text.prompts import (
    LINES_SUFFIX,
    parse_prompt,
    read_prompt_file,
)

if TYPE_CHECKING:
    from vacc_deploy.reference.generate import Responder

_PROMPT_FILE = click.Path(dir_okay=False, allow_dash=True, path_type=Path)
_EXAMPLE = "What is 7 x 8?"


@click.command("generate")
@click.argument("directory", metavar="DIR", type=CHECKPOINT)
@click.option("--prompt", metavar="TEXT", help="Ask this; the chat template is applied.")
@click.option(
    "--prompt-file",
    type=_PROMPT_FILE,
    metavar="FILE",
    help="Ask the whole UTF-8 text of FILE, - for stdin. Of a file whose name ends in .jsonl, ask "
    'each line, {"prompt": "..."}, by itself.',
)
@click.option(
    "--interactive", is_flag=True, help="Chat on the terminal; /exit, Ctrl-D or Ctrl-C ends it."
)
@click.option(
    "--max-new-tokens",
    type=click.IntRange(1),
    default=256,
    help="Limit the number of new tokens of an answer.",
)
@sampling_options
@common_options
def generate_command(
    directory: str,
    prompt: str | None,
    prompt_file: Path | None,
    interactive: bool,
    max_new_tokens: int,
    temperature: float | None,
    top_p: float | None,
    top_k: int | None,
    seed: int | None,
    greedy: bool,
) -> None:
    """Let the model in DIR answer on this CPU: one prompt, several, or a chat.

    Tokens are sampled as generation_config.json in DIR says, or as the options say; greedy if
    neither asks for sampling. On a terminal the answer appears while it is written.

    Example: vacc-deploy generate DeepSeek-R1-Distill-Qwen-1.5B-vacc-int8 --prompt "What is 7 x 8?"
    """
    _check_way(directory, prompt, prompt_file, interactive)
    prompts = [prompt] if prompt is not None else _read_prompts(prompt_file)

    from vacc_deploy.cli.chat import chat
    from vacc_deploy.cli.terminal import quiet_transformers
    from vacc_deploy.lookup.locate import locate
    from vacc_deploy.reference.generate import Responder
    from vacc_deploy.reference.sampling import SamplingOptions

    quiet_transformers()
    options = SamplingOptions(temperature, top_p, top_k, seed, greedy)
    again = partial(again_with, "directory")
    source = locate(directory, again=again, downloading=downloading, say=say)
    responder = Responder(source.directory, max_new_tokens=max_new_tokens, options=options)
    for note in responder.notes:
        say(note)
    if interactive:
        chat(responder, show=_show)
    else:
        is_one = prompt_file is None or prompt_file.suffix != LINES_SUFFIX
        _answer(responder, prompts, is_one=is_one)


def _check_way(
    directory: str, prompt: str | None, prompt_file: Path | None, interactive: bool
) -> None:
    """Refuse all but one way of asking, and a chat where there is nobody to chat with."""
    given = {
        "--prompt": prompt is not None,
        "--prompt-file": prompt_file is not None,
        "--interactive": interactive,
    }
    names = [name for name, is_given in given.items() if is_given]
    example = command("generate", directory, "--prompt", _EXAMPLE)
    if len(names) != 1:
        got = " and ".join(names) or "none of them"
        raise UsageError(
            f"Give exactly one of --prompt, --prompt-file and --interactive; got {got}. For "
            f"example: {example}"
        )
    if prompt is not None and not prompt.strip():
        raise UsageError(
            f"--prompt holds no text. Is a shell variable not set? Give a question, for example: "
            f"{example}"
        )
    if interactive and is_json():
        raise UsageError(f"--interactive cannot be used with --json. Run: {example} --json")
    if interactive and not sys.stdin.isatty():
        raise UsageError(
            "--interactive needs a terminal, and stdin is none. To ask one question, run: "
            f"{example}"
        )


def _read_prompts(path: Path | None) -> list[str]:
    if path is None:
        return []
    if str(path) == "-":
        # One byte more than allowed tells a text that is too long, without reading all of it.
        data = sys.stdin.buffer.read(PROMPT_BYTES + 1)
        return [parse_prompt(data, "stdin")]
    return read_prompt_file(path)


def _answer(responder: Responder, prompts: list[str], *, is_one: bool) -> None:
    """Answer the prompts; on a terminal the text appears while it is written."""
    from vacc_deploy.cli.terminal import terminal_progress
    from vacc_deploy.progress import SILENT
    from vacc_deploy.reference.generate import Answers, prompt_heading

    responder.check_prompts(prompts)
    is_shown = sys.stdout.isatty() and not is_json()
    progress = SILENT if is_one or is_shown else terminal_progress()
    progress.start("Answering", len(prompts), "prompts")
    answers = []
    for number, prompt in enumerate(prompts, 1):
        if is_shown and not is_one:
            _show(f"{prompt_heading(number, len(prompts), prompt)}\n")
        answer = responder.answer(prompt, on_text=_show if is_shown else None)
        if is_shown:
            _show(f"\n\n{answer.figures()}\n" + "\n" * (number < len(prompts)))
        answers.append(answer)
        progress.advance(note=f"{answer.num_new_tokens} tokens")
    progress.finish()
    if not is_shown:
        emit(answers[0] if is_one else Answers(tuple(answers)))


def _show(text: str) -> None:
    """Print text as it is, at once, but for control characters."""
    print_out(escape_controls(text), nl=False)
