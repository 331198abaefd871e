"""The files beside the weights: their names, and what stands in their places when one is opened."""

from __future__ import annotations

from pathlib import Path

from vacc_deploy.assets import SOURCE_FILES
from vacc_deploy.checkpoint.adapters import ADAPTER_CONFIG
from vacc_deploy.checkpoint.causes import INDEX_NAME
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, REPORT_NAME
from vacc_deploy.checkpoint.weight_links import join_outside
from vacc_deploy.errors import CheckpointError
from vacc_deploy.links import explain_outside
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME
from vacc_deploy.stamps import FileStamp, describe_odd, take_stamp

# Files for people: no program reads them, so a user may edit them.
DOCUMENTS = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "README.md")
# Tokenizer and generation files. A list of names, so that nothing a stranger put into the directory
# (code above all) travels along.
SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    *DOCUMENTS,
)
# All that any command reads beside the weights.
_READ = (
    *SIDE_FILES,
    *(CONFIG_NAME, VACC_CONFIG_NAME, INDEX_NAME, MANIFEST_NAME, REPORT_NAME, ADAPTER_CONFIG),
    *SOURCE_FILES,
)


def refuse_links(directory: Path) -> None:
    """Refuse links of the files beside the weights that lead out of the directory.

    Before anything asks whether such a file is there: the system may refuse to tell.

    Raises:
        CheckpointError: names all of them.
    """
    if outside := join_outside({name: explain_outside(directory / name) for name in _READ}):
        raise CheckpointError(outside)


def stamp_small_files(directory: Path) -> dict[str, FileStamp | None]:
    """Return the stamp of every file that may be read beside the weights; None for an absent one.

    Raises:
        CheckpointError: one is a link that leads out of the directory, or no ordinary file.
    """
    refuse_links(directory)
    for name in _READ:
        path = directory / name
        # A folder of licences is nobody's file.
        if odd := describe_odd(path, ("a directory",) if name in DOCUMENTS else ()):
            raise CheckpointError(
                f"{path} is {odd}, not a file, and is not read. Put the file of the model's "
                "original repository in its place, or remove it."
            )
    return {name: take_stamp(directory / name) for name in _READ}
