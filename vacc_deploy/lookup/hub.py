"""Find a model in the caches of Hugging Face and ModelScope, or download it to the former."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext, redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import INDEX_BYTES
from vacc_deploy.checkpoint.caches import hub_folder, modelscope_places
from vacc_deploy.checkpoint.causes import find_weight_files, missing_files
from vacc_deploy.checkpoint.manifest import model_name
from vacc_deploy.checkpoint.reader import INDEX_NAME, SINGLE_FILE, Checkpoint
from vacc_deploy.checkpoint.small_files import SIDE_FILES
from vacc_deploy.errors import CheckpointError, name_some
from vacc_deploy.json_files import read_bounded, read_json
from vacc_deploy.lookup.recognize import ADAPTER_CONFIG, recognize
from vacc_deploy.lookup.transport import explain_failure
from vacc_deploy.models.config import CONFIG_NAME, ModelConfig
from vacc_deploy.models.parse import parse_config, read_config_values
from vacc_deploy.models.settle import preview_config

_WEIGHTS = [CONFIG_NAME, "*.safetensors", "*.safetensors.index.json"]
_PATTERNS = [*SIDE_FILES, *_WEIGHTS]
# A cache without README or licence, as another tool leaves it, is still good to use.
_NEEDED = ["generation_config.json", "tokenizer.json", "tokenizer_config.json", *_WEIGHTS]

# One of these makes a tokenizer.
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")

# Other formats of the same weights lie in folders: what is read lies at the top.
_UNREAD = ["*/*"]


@dataclass(frozen=True)
class Source:
    """Where a model's weights are.

    Attributes:
        directory: the checkpoint directory.
        repository: its id on the hub, None for a directory of the user's own.
        revision: the repository's commit.
        is_modelscope: whether the directory lies in ModelScope's cache.
    """

    directory: Path
    repository: str | None = None
    revision: str | None = None
    is_modelscope: bool = False

    @property
    def name(self) -> str:
        """The model's name: the repository's, or what the directory says."""
        return _name(self.repository) if self.repository else model_name(self.directory)

    @property
    def note(self) -> str:
        """What the user should know of the source, or an empty text."""
        if not self.is_modelscope:
            return ""
        return (
            f"{self.repository} is not in the Hugging Face cache, so the copy in ModelScope's "
            f"cache is used: {self.directory}"
        )


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

    A complete copy in ModelScope's cache (``MODELSCOPE_CACHE``) is used before a download begins.
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
    if cached := find_in_cache(repository) or find_in_modelscope(repository):
        return cached
    if not may_download:
        whole = "whole " if find_missing(_snapshot(repository)) else ""
        raise CheckpointError(
            f"{prefix}{repository} is not {whole}in the Hugging Face cache, and a dry run "
            "downloads nothing. Run it without --dry-run, or give a directory."
        )
    before_download(_name(repository))
    download = partial(_download_whole, repository, again=again, prefix=prefix)
    with downloading():
        # The configuration comes first: a model that is no use is refused before its gigabytes.
        directory = download([CONFIG_NAME, ADAPTER_CONFIG])
        check_config(_read_config(directory, repository, again))
        directory = download(_PATTERNS)
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{repository} has no .safetensors files. Pickled weights (.bin) can run code when "
            "read, so they are not downloaded. Give a repository or a revision with safetensors."
        )
    return Source(directory, repository, directory.name)


def find_in_cache(repository: str) -> Source | None:
    """Return a complete snapshot of ``repository`` from the cache, or None."""
    try:
        # Without the patterns a snapshot of our own download counts as incomplete: the repository
        # holds files (figures, .gitattributes) that were never asked for.
        directory = _snapshot_of(repository, _NEEDED, local_files_only=True)
    except _LibraryError:  # the download that follows meets it again, and says so
        return None
    return Source(directory, repository, directory.name) if _is_whole(directory) else None


def find_in_modelscope(repository: str) -> Source | None:
    """Return a complete copy of ``repository`` from ModelScope's cache, or None."""
    for directory in modelscope_places(repository):
        if _is_whole(directory):
            return Source(directory, repository, is_modelscope=True)
    return None


def _is_whole(directory: Path) -> bool:
    """Return whether a snapshot has every shard; a download that was cut short lacks some."""
    try:
        Checkpoint.open(directory)
    except (FileNotFoundError, CheckpointError):
        return False
    return True


def find_missing(directory: Path | None, *, only_config: bool = False) -> list[str]:
    """Return the names of the files that an unfinished snapshot lacks."""
    if directory is None or not directory.is_dir():
        return []
    configs = (CONFIG_NAME, ADAPTER_CONFIG)
    # Of each group one file is enough.
    groups = (configs,) if only_config else (configs, _TOKENIZERS)
    missing = [g[0] for g in groups if not any((directory / name).is_file() for name in g)]
    if only_config:
        return missing
    try:
        weights = missing_files(directory)
    except CheckpointError:
        weights = [INDEX_NAME]
    if not weights and not find_weight_files(directory):
        weights = [f"{SINGLE_FILE} or {INDEX_NAME}"]
    return missing + weights


def _library() -> Any:
    """Return the module huggingface_hub, which reads its variables while it is loaded."""
    try:
        # It prints what fails while it is loaded, which would stand before a JSON object.
        with redirect_stdout(sys.stderr):
            import huggingface_hub
            from huggingface_hub import constants, snapshot_download  # noqa: F401
    except Exception as err:
        names = ", ".join(sorted(name for name in os.environ if name.startswith("HF_")))
        advice = "Install it again:\n  python3 -m pip install --force-reinstall huggingface_hub"
        # What cannot be imported is not installed; else it is a variable that it cannot read.
        if names and not isinstance(err, ImportError):
            advice = (
                f"It reads the variables that begin with HF_, and these are set: {names}. Correct "
                "the one that is wrong."
            )
        raise CheckpointError(
            f"The Python package huggingface_hub cannot be loaded: {err}. {advice}"
        ) from err
    return huggingface_hub


def _snapshot(repository: str) -> Path | None:
    """Return the snapshot of the branch main in the cache, whole or not."""
    folder = Path(_library().constants.HF_HUB_CACHE) / hub_folder(repository)
    try:
        commit = read_bounded(folder / "refs" / "main", 1024).decode("ascii").strip()
    except (CheckpointError, UnicodeDecodeError):
        return None
    directory = folder / "snapshots" / commit
    return directory if commit.isalnum() and directory.is_dir() else None


class _LibraryError(Exception):
    """An error of huggingface_hub or of what it uses, which is its cause."""


def _call(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call a function of huggingface_hub.

    The one place that catches whatever it raises: the errors of its HTTP libraries, of the system
    and of bad settings have no common class.

    Raises:
        _LibraryError: from the error.
    """
    try:
        return function(*args, **options)
    except Exception as err:
        raise _LibraryError from err


def _ask_hub(repository: str) -> None:
    """Fail where the hub cannot be reached or lacks the repository; see ``_call``."""
    _call(_library().HfApi().model_info, repository, revision="main")


def _name(repository: str) -> str:
    return repository.rpartition("/")[2]


def _read_config(
    directory: Path, repository: str, again: Callable[[Path | str], str]
) -> ModelConfig:
    if (directory / CONFIG_NAME).is_file():
        values, where = read_config_values(directory), str(directory / CONFIG_NAME)
        # Of float weights a quantization_config is left over; codes and scales have other names.
        stated = values.get("quantization_config")
        names = _tensor_names(directory, repository) if stated else ()
        is_plain = all(name.endswith((".weight", ".bias")) for name in names)
        return (preview_config if is_plain else parse_config)(values, where=where)
    if (directory / ADAPTER_CONFIG).is_file() and (finding := recognize(directory)):
        raise CheckpointError(finding.to_text(again))
    raise CheckpointError(
        f"{repository} has no {CONFIG_NAME}, so it is not a checkpoint (it may hold GGUF files, "
        "for example). Give the repository of the float model."
    )


def _tensor_names(directory: Path, repository: str) -> Collection[str]:
    """Return the names of a repository's tensors before it is downloaded; none if not known."""
    # Without an index, or with a damaged one, the download will tell.
    with suppress(_LibraryError, CheckpointError, TypeError, KeyError):
        _download(repository, [INDEX_NAME])
        return list(read_json(directory / INDEX_NAME, limit_bytes=INDEX_BYTES)["weight_map"])
    with suppress(_LibraryError):
        read = _library().HfApi().parse_safetensors_file_metadata
        return list(_call(read, repository, SINGLE_FILE).tensors)
    return ()


def _download_whole(
    repository: str, patterns: list[str], *, again: Callable[[Path | str], str], prefix: str
) -> Path:
    """Download and see that nothing is missing, or say why it cannot be downloaded."""
    try:
        directory = _download(repository, patterns)
        # Where the hub cannot be reached, an unfinished snapshot is returned without a word.
        if find_missing(directory, only_config=patterns is not _PATTERNS):
            _ask_hub(repository)
        return directory
    except _LibraryError as err:
        cause = err.__cause__ or err
        raise CheckpointError(prefix + _advise(repository, cause, again)) from cause


def _download(repository: str, patterns: list[str]) -> Path:
    """Return the snapshot with the files of ``patterns``, downloaded if need be; see ``_call``."""
    return _snapshot_of(repository, patterns, local_files_only=False)


def _snapshot_of(repository: str, patterns: list[str], *, local_files_only: bool) -> Path:
    options: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": _UNREAD}
    options["local_files_only"] = local_files_only
    return Path(_call(_library().snapshot_download, repository, **options))


def _advise(repository: str, err: BaseException, again: Callable[[Path | str], str]) -> str:
    """Return what could not be downloaded, why, and how to get it on another machine."""
    constants, name = _library().constants, _name(repository)
    reason, cure = explain_failure(err, constants.ENDPOINT)
    snapshot = _snapshot(repository)
    missing = find_missing(snapshot)
    whole, lacking, newline = "", "", "\n" if cure else ""
    if missing:
        whole, lacking = "whole ", f"{snapshot} lacks {name_some(missing)}.\n"
    return (
        f"{repository} is not {whole}in the Hugging Face cache ({constants.HF_HUB_CACHE}) and "
        f"cannot be downloaded from {constants.ENDPOINT} ({reason}).\n"
        f"{lacking}{cure}{newline}"
        "On a machine with network access run one of these:\n"
        f"  hf download {repository} --local-dir {name}\n"
        f"  modelscope download --model {repository} --local_dir {name}\n"
        "copy that directory here, then use it:\n"
        f"  {again(name)}\n"
        "A mirror is set with HF_ENDPOINT."
    )
