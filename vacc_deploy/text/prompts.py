"""Prompts from a file: its whole text is one, or each line of a JSON-lines file holds one."""

from __future__ import annotations

from pathlib import Path

from vacc_deploy.bounds import PROMPT_BYTES
from vacc_deploy.errors import PromptError
from vacc_deploy.json_files import is_unicode, parse_json, read_bounded

LINES_SUFFIX = ".jsonl"
_EXPECTED = 'expected {"prompt": "..."}'


def read_prompt_file(path: Path) -> list[str]:
    """Return the prompt of a UTF-8 file, or the prompts of a file whose name ends in ``.jsonl``.

    Raises:
        PromptError: the file cannot be read, is blank, too large or not UTF-8, or a line is no
            object with a prompt.
    """
    data = read_bounded(
        path, PROMPT_BYTES, error=PromptError, advice="Give a text file.", is_users_own=True
    )
    return (
        parse_prompt_lines(data, path)
        if path.suffix == LINES_SUFFIX
        else [parse_prompt(data, str(path))]
    )


def parse_prompt(data: bytes, name: str) -> str:
    """Return text without its last line end.

    Args:
        data: UTF-8, at most ``PROMPT_BYTES``.
        name: where the data come from, for messages.

    Raises:
        PromptError: the text is blank, too large or not UTF-8.
    """
    if len(data) > PROMPT_BYTES:
        raise PromptError(f"{name} holds more than {PROMPT_BYTES:,} bytes. Give a shorter text.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise PromptError(
            f"{name} is not UTF-8: {err.reason} at byte {err.start}. Convert it to UTF-8."
        ) from err
    # An editor puts a line end behind the last line; it is no part of the question.
    text = text.removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise PromptError(f"{name} holds no text. Write the prompt into it.")
    return text


def parse_prompt_lines(data: bytes, path: Path) -> list[str]:
    """Return the prompts of JSON lines; blank lines are skipped."""
    prompts = []
    # By line feed alone: JSON may hold other signs that end a line.
    for number, line in enumerate(parse_prompt(data, str(path)).split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = parse_json(line)
        except ValueError as err:
            raise PromptError(
                f"{path}, line {number} is not JSON: {err}; {_EXPECTED}. Correct the line."
            ) from err
        prompt = value.get("prompt") if isinstance(value, dict) else None
        if not isinstance(prompt, str):
            raise PromptError(
                f'{path}, line {number} has no text under "prompt", {_EXPECTED}. Correct the line.'
            )
        if not is_unicode(prompt):
            raise PromptError(
                f'{path}, line {number} has half of a character under "prompt", such as \\ud800 '
                "alone. Correct the line."
            )
        if not prompt.strip():
            raise PromptError(
                f'{path}, line {number} has a blank text under "prompt". Write the prompt into it, '
                "or remove the line."
            )
        prompts.append(prompt)
    return prompts
