"""Finds the chat template of a checkpoint among the files that may hold it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import TEMPLATE_CHARACTERS
from vacc_deploy.errors import CheckpointError
from vacc_deploy.json_files import read_bounded
from vacc_deploy.text.chat_template import ChatTemplate
from vacc_deploy.text.files import RESTORE, TOKENIZER_CONFIG_NAME, damaged, read_object

TEMPLATE_NAME = "chat_template.jinja"
TEMPLATE_JSON_NAME = "chat_template.json"


def find_template(
    checkpoint_dir: Path, config: Mapping[str, Any]
) -> ChatTemplate | CheckpointError | None:
    """Return the chat template, None where there is none.

    A template that cannot be used is an error where it is used only, not for plain text: the error
    is returned, not raised.

    Args:
        checkpoint_dir: of the checkpoint. Its folder ``additional_chat_templates`` holds templates
            for other purposes and is not read.
        config: the content of its ``tokenizer_config.json``.
    """
    try:
        return _read_template(checkpoint_dir, config)
    except CheckpointError as err:
        return err


def _read_template(checkpoint_dir: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    """Return the template of the first file that has one; the order is that of transformers 5."""
    path = checkpoint_dir / TEMPLATE_NAME
    if path.is_file():
        # UTF-8 takes four bytes a character at the most.
        data = read_bounded(path, 4 * TEMPLATE_CHARACTERS, advice=RESTORE)
        try:
            return ChatTemplate(data.decode("utf-8-sig"), path)
        except UnicodeDecodeError as err:
            raise damaged(path, f"it is not UTF-8: {err}") from err
    found = _choose_template(config.get("chat_template"), checkpoint_dir / TOKENIZER_CONFIG_NAME)
    if found is None:
        path = checkpoint_dir / TEMPLATE_JSON_NAME
        found = _choose_template(read_object(path).get("chat_template"), path)
    return found


def _choose_template(value: Any, path: Path) -> ChatTemplate | None:
    """Return the template of a ``chat_template`` entry: a text, or named ones with a default.

    Of named templates transformers takes ``tool_use`` where tools are given, which nothing here
    does, and else ``default``.
    """
    if not value:
        return None
    if isinstance(value, list):
        value = {
            entry["name"]: entry.get("template")
            for entry in value
            if isinstance(entry, dict) and isinstance(entry.get("name"), str)
        }
    if isinstance(value, dict):
        if "default" not in value:
            names = ", ".join(sorted(value)) or "none"
            got = f"chat_template has no entry named default (got: {names})"
            raise damaged(path, got, "Give the template that is meant the name default.")
        value = value["default"]
    if not isinstance(value, str):
        raise damaged(path, f"chat_template is {type(value).__name__}, expected text")
    return ChatTemplate(value, path)
