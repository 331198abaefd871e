"""Find a model in the Hugging Face cache, or download it there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from vacc_deploy.checkpoint.files import SIDE_FILES
from vacc_deploy.checkpoint.manifest import model_name
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.recognize import ADAPTER_CONFIG, recognize
from vacc_deploy.errors import CheckpointError
from vacc_deploy.models.config import CONFIG_NAME, ModelConfig
from vacc_deploy.models.parse import read_config

_WEIGHTS = [CONFIG_NAME, "*.safetensors", "*.safetensors.index.json"]
_PATTERNS = [*SIDE_FILES, *_WEIGHTS]
# A cache without README or licence, as another tool leaves it, is still good to use.
_NEEDED = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", *_WEIGHTS]

# Other formats of the same weights lie in folders: what is read lies at the top.
_UNREAD = ["*/*"]


@dataclass(frozen=True)
class Source:
    """Where a model's weights are.

    Attributes:
        directory: the checkpoint directory.
        repository: its id on the hub, None for a directory of the user's own.
        revision: the repository's commit.
    """

    directory: Path
    repository: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """The model's name: the repository's, or what the directory says."""
        return _name(self.repository) if self.repository else model_name(self.directory)


def fetch(
    repository: str,
    *,
    again: Callable[[Path | str], str] = str,
    may_download: bool = True,
    before_download: Callable[[str], object] = lambda name: None,
    check_config: Callable[[ModelConfig], object] = lambda config: None,
    downloading: Callable[[], AbstractContextManager[None]] = nullcontext,
    prefix: str = "",
) -> Source:
    """Return the newest complete snapshot in the cache, downloading what is missing.

    ``HF_ENDPOINT``, ``HF_HOME``, ``HF_HUB_OFFLINE`` and ``HF_TOKEN`` are honoured by
    huggingface_hub, which also resumes an interrupted download.

    Args:
        repository: its id, ``owner/name``.
        again: writes the user's command line with another directory, for messages.
        may_download: false for a dry run.
        before_download: called with the model's name before anything is downloaded.
        check_config: called with the configuration before the weights are downloaded.
        downloading: entered while files are downloaded.
        prefix: begins the message that the repository cannot be had.

    Raises:
        CheckpointError: the hub cannot be reached; names the command to download elsewhere. Or the
            repository has no safetensors. Or the cache lacks the model and ``may_download`` is
            false.
        UnsupportedModelError: another architecture; its weights are not downloaded.
    """
    if cached := find_in_cache(repository):
        return cached
    if not may_download:
        raise CheckpointError(
            f"{prefix}{repository} is not in the Hugging Face cache, and a dry run downloads "
            "nothing. Run it without --dry-run, or give a directory."
        )
    before_download(_name(repository))
    try:
        with downloading():
            # The configuration comes first: a model that is no use is refused before its gigabytes.
            directory = _download(repository, [CONFIG_NAME, ADAPTER_CONFIG])
            check_config(_read_config(directory, repository, again))
            directory = _download(repository, _PATTERNS)
    except _transport_errors() as err:
        raise CheckpointError(prefix + _advise(repository, err, again)) from err
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{repository} has no .safetensors files. Pickled weights (.bin) can run code when "
            "read, so they are not downloaded. Give a repository or a revision with safetensors."
        )
    return Source(directory, repository, directory.name)


def find_in_cache(repository: str) -> Source | None:
    """Return a complete snapshot of ``repository`` from the cache, or None."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        # Without the patterns a snapshot of our own download counts as incomplete: the repository
        # holds files (figures, .gitattributes) that were never asked for.
        directory = Path(
            snapshot_download(
                repository,
                allow_patterns=_NEEDED,
                ignore_patterns=_UNREAD,
                local_files_only=True,
            )
        )
        # Refuses a snapshot that lacks a shard, as a download that was cut short leaves it.
        Checkpoint.open(directory)
    except (EntryNotFoundError, FileNotFoundError, CheckpointError):
        return None
    return Source(directory, repository, directory.name)


def _name(repository: str) -> str:
    return repository.rpartition("/")[2]


def _read_config(
    directory: Path, repository: str, again: Callable[[Path | str], str]
) -> ModelConfig:
    if (directory / CONFIG_NAME).is_file():
        return read_config(directory)
    if (directory / ADAPTER_CONFIG).is_file() and (finding := recognize(directory)):
        raise CheckpointError(finding.to_text(again))
    raise CheckpointError(
        f"{repository} has no {CONFIG_NAME}, so it is not a checkpoint (it may hold GGUF files, "
        "for example). Give the repository of the float model."
    )


def _download(repository: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(repository, allow_patterns=patterns, ignore_patterns=_UNREAD))


def _transport_errors() -> tuple[type[BaseException], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # Its base classes are those of the HTTP library in use, whichever that is.
    return (OSError, HfHubHTTPError, *HfHubHTTPError.__bases__)


def _advise(repository: str, err: BaseException, again: Callable[[Path | str], str]) -> str:
    """Return what could not be downloaded, why, and how to get it on another machine."""
    from huggingface_hub import constants

    name = _name(repository)
    return (
        f"{repository} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}) and cannot be "
        f"downloaded from {constants.ENDPOINT} ({_reason(err)}).\n"
        "On a machine with network access run one of these:\n"
        f"  hf download {repository} --local-dir {name}\n"
        f"  modelscope download --model {repository} --local_dir {name}\n"
        "copy that directory here, then use it:\n"
        f"  {again(name)}\n"
        "A mirror is set with HF_ENDPOINT."
    )


def _reason(err: BaseException) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(err, GatedRepoError):
        return "its owner grants access on its page; then set HF_TOKEN"
    if isinstance(err, RepositoryNotFoundError):
        return "no such repository; for a private one set HF_TOKEN"
    lines = str(err.__cause__ or err).strip().splitlines()
    return lines[0] if lines else type(err.__cause__ or err).__name__
