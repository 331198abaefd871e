"""The directory that a compile file names in ``frontend.checkpoint``, and what is in it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vacc_deploy.checkpoint.manifest import stored_layout, without_endings
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.layouts import INT8, LAYOUTS
from vacc_deploy.models.catalog import CatalogModel, known_model
from vacc_deploy.models.config import CONFIG_NAME, ModelConfig
from vacc_deploy.models.parse import read_config_values
from vacc_deploy.models.settle import preview_config


@dataclass(frozen=True)
class Named:
    """Where the path of a checkpoint leads to.

    Attributes:
        text: the path as the compile file has it.
        directory: what it leads to; None where no directory is there.
        found_from: the directories from which it was found; empty for an absolute path.
        looked_from: the directories from which it was looked for, likewise.
    """

    text: str
    directory: Path | None
    found_from: tuple[Path, ...] = ()
    looked_from: tuple[Path, ...] = ()


def find_named(text: str, folder: Path) -> Named:
    """Look for the checkpoint ``text`` of a compile file that lies in ``folder``.

    A relative path is looked for from the working directory, in which vamc would be started now,
    and then from ``folder``. That vamc resolves it by its working directory is our inference.
    """
    if os.path.isabs(text):
        return Named(text, Path(text) if os.path.isdir(text) else None)
    looked = tuple(dict.fromkeys((Path.cwd(), Path(os.path.abspath(folder)))))
    # isdir() is false for what is no path at all, such as a text with a zero byte.
    found = tuple(base for base in looked if text.strip() and os.path.isdir(base / text))
    return Named(text, found[0] / text if found else None, found, looked)


def describe_start(text: str, file: Path | None) -> str:
    """Return where vamc must be started to find the relative checkpoint ``text``; else nothing.

    Args:
        text: the path as the compile file has it.
        file: the compile file; None where it is printed.
    """
    here = Path.cwd()
    if os.path.isabs(text):
        return ""
    if not os.path.isdir(here / text):
        return (
            f"There is no directory {text} in {here}. vamc resolves the path by the directory in "
            "which it is started (our inference): start it where the directory lies."
        )
    if file is None or Path(os.path.abspath(file.parent)) == here:
        return ""
    return (
        f"{text} is found from {here}, not from {file.parent}, where the compile file lies: start "
        f"vamc in {here}."
    )


def model_of_path(text: str) -> CatalogModel | None:
    """Return the catalogue model after which a checkpoint is called, or None."""
    return known_model(without_endings(os.path.basename(os.path.normpath(text))))


def is_named_as_codes(text: str) -> bool:
    """Return whether a path ends as the directories do to which ``quantize`` writes int8 codes."""
    return os.path.normpath(text).endswith(f"-{LAYOUTS[INT8].ending}")


def read_model(directory: Path) -> tuple[ModelConfig, str]:
    """Return the configuration of a directory and the layout of its weights; reads no weights.

    Raises:
        CheckpointError, UnsupportedModelError: see ``models.parse.parse_config``.
    """
    values = read_config_values(directory)
    config = preview_config(values, where=str(directory / CONFIG_NAME))
    try:
        return config, stored_layout(directory, config)
    except CheckpointError:  # a damaged manifest, which the checks of the directory tell of
        return config, config.quantization_format
