"""What keeps a directory from being given to vamc: files that it lacks, and forms that it misreads.

Each function returns problems. ``yaml`` refuses a directory that has one; ``check`` lists them.
"""

from __future__ import annotations

from pathlib import Path

from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.checkpoint.manifest import read_manifest
from vacc_deploy.checkpoint.normalize import INDEX_RULES
from vacc_deploy.checkpoint.reader import INDEX_NAME, SINGLE_FILE, Checkpoint
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.models.parse import read_object
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME, needs_vacc_config
from vacc_deploy.problems.configuration import NO_SOURCE_FILE, NO_VACC_CONFIG, VAMC_DTYPE
from vacc_deploy.problems.files import (
    INDEX_SETTLED,
    NO_INDEX,
    NO_TOKENIZER,
    NO_TOKENIZER_CONFIG,
    OTHER_FORM,
)
from vacc_deploy.problems.problem import Problem

# One of these sets is enough for a tokenizer.
_TOKENIZERS = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"))
_WEIGHT_DTYPE = "float16"


def find_other_form(checkpoint: Checkpoint) -> list[Problem]:
    """Return what the files say otherwise than they are used; empty for the published form."""
    if not checkpoint.changed_shards() and not checkpoint.is_config_changed:
        return []
    return [OTHER_FORM.broken(note) for note in checkpoint.notes]


def find_other_index(checkpoint: Checkpoint) -> list[Problem]:
    """Return what the index says otherwise than the files."""
    return [
        INDEX_SETTLED.broken(rule.to_text().removesuffix("."), where=INDEX_NAME)
        for rule in checkpoint.applied
        if rule.rule in INDEX_RULES
    ]


def find_missing_files(checkpoint: Checkpoint) -> list[Problem]:
    """Return the files that are missing and that the vendor's programs read beside the weights."""
    directory = checkpoint.directory
    problems = [
        (NO_VACC_CONFIG if name == VACC_CONFIG_NAME else NO_SOURCE_FILE).broken(
            f"{name} is missing (vamc wants it for every model but Llama: the vendor's llm/README)",
            where=name,
        )
        for name in _vendor_files(checkpoint)
        if not (directory / name).is_file()
    ]
    problems += find_missing_tokenizer(directory)
    if not (directory / "tokenizer_config.json").is_file():
        text = "tokenizer_config.json is missing (it tells the class and the template)"
        problems.append(NO_TOKENIZER_CONFIG.broken(text, where="tokenizer_config.json"))
    # A damaged file is none of the shards, and may be the one that needs no index.
    if not checkpoint.has_index and not set(checkpoint.shards) <= {SINGLE_FILE}:
        text = f"{INDEX_NAME} is missing (loaders find several shards by it only)"
        problems.append(NO_INDEX.broken(text, where=INDEX_NAME))
    return problems


def find_missing_tokenizer(directory: Path) -> list[Problem]:
    """Return that there is no tokenizer of any form, or nothing."""
    if any(all((directory / name).is_file() for name in names) for names in _TOKENIZERS):
        return []
    text = "tokenizer.json is missing (the served model needs its tokenizer)"
    return [NO_TOKENIZER.broken(text, where="tokenizer.json")]


def is_unprepared(checkpoint: Checkpoint) -> bool:
    """Return whether nobody has put the vendor's files beside the weights."""
    names = _vendor_files(checkpoint)
    is_bare = not any((checkpoint.directory / name).is_file() for name in names)
    return is_bare and read_manifest(checkpoint.directory) is None


def find_other_dtype(directory: Path) -> list[Problem]:
    """Return where the configurations of a vamc directory let a loader round the int8 values."""
    problems = []
    for name in (CONFIG_NAME, VACC_CONFIG_NAME):
        if not (directory / name).is_file():
            continue
        values = read_object(directory / name)
        # transformers 5 lets dtype win, older versions read torch_dtype only.
        stated = {"torch_dtype": values.get("torch_dtype"), "dtype": values.get("dtype")}
        if "dtype" not in values:
            del stated["dtype"]
        problems += [
            VAMC_DTYPE.broken(
                f"{name}: {key} is {dtype!r:.100}, expected {_WEIGHT_DTYPE!r}",
                where=f"{name}: {key}",
                got=f"{dtype!r:.100}",
                expected=repr(_WEIGHT_DTYPE),
            )
            for key, dtype in stated.items()
            if dtype != _WEIGHT_DTYPE
        ]
    return problems


def _vendor_files(checkpoint: Checkpoint) -> tuple[str, ...]:
    return (VACC_CONFIG_NAME, *SOURCE_FILES) if needs_vacc_config(checkpoint.config) else ()
