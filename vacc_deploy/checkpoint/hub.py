"""Find a catalogue model in the Hugging Face cache, or download it there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vacc_deploy.checkpoint.files import SIDE_FILES
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.models.catalog import CatalogModel
from vacc_deploy.models.config import CONFIG_NAME

_WEIGHTS = [CONFIG_NAME, "*.safetensors", "*.safetensors.index.json"]
_PATTERNS = [*SIDE_FILES, *_WEIGHTS]
# A cache without README or licence, as another tool leaves it, is still good to use.
_NEEDED = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", *_WEIGHTS]


@dataclass(frozen=True)
class Source:
    """Where the weights are; ``revision`` is the repository's commit, if it came from the hub."""

    directory: Path
    revision: str | None = None


def fetch(model: CatalogModel, *, may_download: bool = True) -> Source:
    """Return the newest complete snapshot in the cache, downloading what is missing.

    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` are honoured by
    huggingface_hub, which also resumes an interrupted download.

    Raises:
        CheckpointError: the hub cannot be reached; names the command to download elsewhere. Or the
            cache lacks the model and ``may_download`` is false.
    """
    cached = find_in_cache(model)
    if cached or may_download:
        return cached or _download(model)
    raise CheckpointError(
        f"{model.name} is not in the Hugging Face cache, and a dry run downloads nothing. Run it "
        "without --dry-run, or give --weights DIR."
    )


def find_in_cache(model: CatalogModel) -> Source | None:
    """Return a complete snapshot of ``model`` from the cache, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        # Without the patterns a snapshot of our own download counts as incomplete: the repository
        # holds files (figures, .gitattributes) that were never asked for.
        directory = Path(
            snapshot_download(model.repository, allow_patterns=_NEEDED, local_files_only=True)
        )
        # Refuses a snapshot that lacks a shard, as a download that was cut short leaves it.
        Checkpoint.open(directory)
    except (EntryNotFoundError, FileNotFoundError, CheckpointError):
        return None
    return Source(directory, directory.name)


def _download(model: CatalogModel) -> Source:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    # Its base classes are those of the HTTP library in use, whichever that is.
    transport_errors = (OSError, HfHubHTTPError, *HfHubHTTPError.__bases__)
    try:
        directory = Path(snapshot_download(model.repository, allow_patterns=_PATTERNS))
    except transport_errors as err:
        lines = str(err.__cause__ or err).strip().splitlines()
        reason = lines[0] if lines else type(err.__cause__ or err).__name__
        where = f"{constants.ENDPOINT} ({reason})"
        raise CheckpointError(
            f"{model.name} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}) and cannot "
            f"be downloaded from {where}.\n"
            "On a machine with network access run:\n"
            f"  hf download {model.repository} --local-dir {model.name}\n"
            "copy that directory here, then run:\n"
            f"  vacc-deploy prepare --model {model.aliases[0]} --weights {model.name}\n"
            "A mirror is set with HF_ENDPOINT."
        ) from err
    return Source(directory, directory.name)
