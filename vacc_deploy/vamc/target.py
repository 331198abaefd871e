"""What a compile file is made for: a checkpoint directory, or a catalogue model by name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vacc_deploy.checkpoint.manifest import model_name
from vacc_deploy.errors import UnsupportedModelError
from vacc_deploy.models.catalog import CatalogModel, find_model
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.parse import read_config
from vacc_deploy.models.vacc_config import (
    VACC_CONFIG_NAME,
    check_for_compiler,
    check_vacc_config,
    needs_vacc_config,
)


@dataclass(frozen=True)
class Target:
    """The model, where its weights are, and what to know about them.

    ``checkpoint`` is written into the compile file as it is.
    """

    model_name: str
    checkpoint: str
    config: ModelConfig
    notes: tuple[str, ...] = ()


def catalog_target(model: CatalogModel) -> Target:
    """Return the target of a catalogue model: the directory that ``prepare`` writes by default."""
    checkpoint = f"./{model.name}-vacc"
    note = f"{checkpoint} is what vacc-deploy prepare --model {model.name} writes."
    return Target(model.name, checkpoint, model.config, (note,))


def find_target(target: str) -> Target:
    """Return the target for a directory, or else for a model name.

    Raises:
        UnsupportedModelError: neither a directory nor a known name.
        CheckpointError: the directory's configuration cannot be used, its two files differ, or its
            layout is for stock loaders.
    """
    directory = Path(target)
    if not target or not directory.is_dir():
        try:
            return catalog_target(find_model(target))
        except UnsupportedModelError as err:
            raise UnsupportedModelError(f"There is no directory {target!r}. {err}") from err
    config = read_config(directory)
    check_for_compiler(directory, config)
    notes = []
    if (directory / VACC_CONFIG_NAME).is_file():
        check_vacc_config(directory, config)
    elif needs_vacc_config(config):
        notes.append(
            f"{VACC_CONFIG_NAME} is missing in {target}; vamc wants it for every model but Llama "
            "(the vendor's llm/README). vacc-deploy prepare --weights writes it."
        )
    return Target(model_name(directory), target, config, tuple(notes))
