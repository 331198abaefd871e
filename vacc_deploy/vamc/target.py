"""What a compile file is made for: a checkpoint directory, or a catalogue model by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vacc_deploy.assets import SOURCE_FILES, is_own_source
from vacc_deploy.checkpoint.changes import unchanged
from vacc_deploy.checkpoint.manifest import model_name, stored_layout
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, list_problems
from vacc_deploy.formats.layouts import LAYOUTS, VAMC
from vacc_deploy.lookup.locate import find_repository, locate
from vacc_deploy.models.catalog import CatalogModel, known_model
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.vacc_config import (
    check_for_compiler,
    check_vacc_config,
    needs_vacc_config,
)
from vacc_deploy.permissions import is_there
from vacc_deploy.results import command
from vacc_deploy.vamc.readiness import (
    find_missing_files,
    find_other_dtype,
    find_other_form,
    is_unprepared,
)


@dataclass(frozen=True)
class Target:
    """The model, where its weights are, and what to know about them.

    Attributes:
        model_name: the model's part of the file's ``name``.
        checkpoint: written into the compile file as it is.
        config: of the model.
        layout: of the weights, a name in ``LAYOUTS``; empty for a float model.
        notes: what a user should know.
    """

    model_name: str
    checkpoint: str
    config: ModelConfig
    layout: str = ""
    notes: tuple[str, ...] = ()


def catalog_target(model: CatalogModel, dtype: str | None = None) -> Target:
    """Return the target of a catalogue model: a default output of ``prepare`` or ``quantize``.

    Args:
        model: from the catalogue.
        dtype: ``int8`` for the directory that ``quantize`` writes; else the one of ``prepare``.
    """
    prepared = f"./{model.name}-vacc"
    if dtype != "int8":
        note = f"{prepared} is what vacc-deploy prepare --model {model.name} writes."
        return Target(model.name, prepared, model.config, notes=(note,))
    checkpoint = f"{prepared}-{LAYOUTS[VAMC].ending}"
    note = f"{checkpoint} is what vacc-deploy quantize {prepared} writes."
    return Target(model.name, checkpoint, model.config, VAMC, (note,))


def find_target(
    target: str, dtype: str | None = None, again: Callable[[Path | str], str] = str
) -> Target:
    """Return the target for a directory, or else for a model name.

    Args:
        target: what the user gave.
        dtype: precision asked for, which decides the directory of a model name.
        again: writes the user's command line with another target, for messages.

    Raises:
        UsageError: nothing was given.
        CheckpointError: neither a checkpoint nor a known name; a file that vamc or vastgenx needs
            is missing, damaged or contradicts the others; or the layout is for stock loaders.
    """
    model = known_model(target)
    if model is not None and not is_there(Path(target)):
        return catalog_target(model, dtype)
    if not is_there(Path(target)) and find_repository(target):
        raise CheckpointError(
            f"{target} is a repository of the hub; vamc reads a directory. Run first: "
            f"{command('prepare', target)}"
        )
    directory = locate(target, again=again, may_download=False).directory
    checkpoint = Checkpoint.open(directory)
    with unchanged(checkpoint):
        return _describe(checkpoint, target)


def _describe(checkpoint: Checkpoint, target: str) -> Target:
    """Return the target that a directory is, or refuse it; see ``find_target``."""
    directory, config = checkpoint.directory, checkpoint.config
    check_for_compiler(directory, config)
    _check_form(checkpoint)
    layout = stored_layout(directory, config)
    _check_complete(checkpoint)
    check_vacc_config(directory, config)
    if layout == VAMC:
        _check_float16(directory)
    return Target(model_name(directory), target, config, layout, _notes(directory, config))


def _check_form(checkpoint: Checkpoint) -> None:
    """Refuse files that say another model to vamc than this tool has read from them."""
    if problems := find_other_form(checkpoint):
        raise CheckpointError(
            f"{checkpoint.directory} is not in the published form, and vamc may read it "
            f"otherwise:\n{list_problems(problems)}\nPrepare it, which writes that form: "
            f"{command('prepare', checkpoint.directory)}",
            problems,
        )


def _check_complete(checkpoint: Checkpoint) -> None:
    """Refuse a directory without a file that the vendor's programs read beside the weights."""
    directory = checkpoint.directory
    if not (problems := find_missing_files(checkpoint)):
        return
    if is_unprepared(checkpoint):
        advice = f"It was not prepared. Run: {command('prepare', directory)}"
    else:
        advice = "Make the directory again with vacc-deploy prepare or quantize."
    raise CheckpointError(
        f"{directory} is not complete, and hours of vamc would be lost:\n"
        f"{list_problems(problems)}\n{advice}",
        problems,
    )


def _check_float16(directory: Path) -> None:
    """Refuse a vamc directory whose configuration would let a loader round the int8 values."""
    if problems := find_other_dtype(directory):
        raise CheckpointError(
            f"{directory / problems[0]}. The weights are int8 values stored as float16; in another "
            "dtype many of them would become other integers. Restore the file, or quantize again.",
            problems,
        )


def _notes(directory: Path, config: ModelConfig) -> tuple[str, ...]:
    notes = []
    if not directory.is_absolute():
        notes.append(
            f"checkpoint {directory} is a relative path: start vamc compile in the directory in "
            "which vacc-deploy yaml was run, or give TARGET as an absolute path."
        )
    other = [
        name
        for name in (SOURCE_FILES if needs_vacc_config(config) else ())
        if not is_own_source(directory / name)
    ]
    if other:
        notes.append(
            f"{', '.join(other)} differs from the file of this version of vacc-deploy; vamc will "
            "run it as it is."
        )
    return tuple(notes)
