"""Say why a directory is no usable checkpoint: one sentence with the cause, and what mends it.

``reader`` finds what is wrong, tensor by tensor. Here one cause is found for all of it, where there
is one: a link that leads nowhere, an unfinished download, another index, another program's files.
"""

from __future__ import annotations

import os
import shlex
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vacc_deploy.bounds import INDEX_BYTES
from vacc_deploy.checkpoint.adapters import ADAPTER_CONFIG, explain_adapter, is_adapter_file
from vacc_deploy.checkpoint.caches import MODELSCOPE_SIGNS, hub_repository, list_all_names
from vacc_deploy.checkpoint.foreign import explain_foreign_tensors, explain_training_state
from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.checkpoint.leftovers import find_control_file, find_unfinished
from vacc_deploy.checkpoint.manifest import REPORT_NAME
from vacc_deploy.checkpoint.normalize import normalize
from vacc_deploy.checkpoint.shard_names import find_sets
from vacc_deploy.errors import MAX_LISTED, CheckpointError, list_problems, name_some
from vacc_deploy.json_files import STAND_IN_BYTES, name_stand_in, read_json
from vacc_deploy.links import explain_outside
from vacc_deploy.models.catalog import known_model
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.models.parse import parse_config, read_config_values
from vacc_deploy.permissions import explain_dangling
from vacc_deploy.stamps import describe_odd, open_ordinary

if TYPE_CHECKING:
    from vacc_deploy.checkpoint.reader import Checkpoint

SINGLE_FILE = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# Of what was found, beside the cause: an example, not a list.
_EXAMPLES = 3
_META_FILES = "consolidated"
_DOWNLOAD_AGAIN = "Download the files named again from the model's repository, then rerun."


def explain(checkpoint: Checkpoint, problems: Sequence[str]) -> str:
    """Return the message for a checkpoint with problems.

    Args:
        checkpoint: what ``reader.examine`` has found.
        problems: a line for each.
    """
    directory = checkpoint.directory
    if (directory / REPORT_NAME).is_file():
        advice = "Move the directory away, then run the vacc-deploy quantize that wrote it again."
        return f"{directory} is not a usable checkpoint:\n{list_problems(problems)}\n{advice}"
    if cause := _find_cause(checkpoint):
        found = [problem for problem in problems if problem not in cause]
        examples = f"\nFound:\n{list_problems(found, limit=_EXAMPLES)}" if found else ""
        head = (
            "" if cause.startswith(str(directory)) else f"{directory} is not a usable checkpoint. "
        )
        return f"{head}{cause}{examples}"
    advice = _download(directory) or _DOWNLOAD_AGAIN
    # Whole files of other contents: a download might bring the same ones.
    if checkpoint.tensors:
        advice = (
            "Do config.json and the weights belong to the same model? If in doubt, download both "
            "again from the model's repository."
        )
    return f"{directory} is not a usable checkpoint:\n{list_problems(problems)}\n{advice}"


def explain_no_weights(directory: Path) -> str:
    """Return the message for a directory without safetensors."""
    if odd := describe_odd(directory / SINGLE_FILE):
        return (
            f"{directory / SINGLE_FILE} is {odd}, not a file, and is not read. Download the file "
            "again in its place, or remove it."
        )
    names = sorted(list_all_names(directory))
    if dangling := _explain_links(directory, filter(_is_weights, names)):
        return dangling
    if unfinished := find_unfinished(directory, [SINGLE_FILE]).get(SINGLE_FILE):
        return (
            f"{directory} holds no weights yet: {unfinished} is an unfinished download. "
            f"{_download(directory) or 'Finish it, then rerun.'}"
        )
    if ADAPTER_CONFIG in names or any(map(is_adapter_file, names)):
        return explain_adapter(directory)[0]
    if state := explain_training_state(directory, names):
        return state
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        return (
            f"{directory} holds pickled weights (.bin, .pt) and no safetensors. Pickle files can "
            "run code when read, so they are refused: convert them with transformers' "
            "save_pretrained on a machine you trust, or download the safetensors revision."
        )
    advice = _download(directory) or "Download the weights into it."
    return f"{directory} holds neither {SINGLE_FILE} nor {INDEX_NAME}. {advice}"


def find_weight_files(directory: Path) -> list[str]:
    """Return the files that count where no index names them: an adapter's do not.

    A link that leads out of the directory is among them, for the reader to refuse it.

    Raises:
        CheckpointError: see ``list_all_names``.
    """
    names = [name for name in sorted(list_all_names(directory)) if _is_weights(name)]
    paths = [directory / name for name in names]
    names = [path.name for path in paths if os.path.isfile(path) or explain_outside(path)]
    # The same weights under Meta's names, as some repositories have them beside the usual files.
    return [name for name in names if not name.startswith(_META_FILES)] or names


def describe_missing(directory: Path, names: list[str]) -> dict[str, str]:
    """Return why weight files may be missing: by name a clause to be put behind that it is.

    Args:
        directory: the checkpoint.
        names: of the missing files; so many are looked at as a message shows.
    """
    shown = names[:MAX_LISTED]
    unfinished = find_unfinished(directory, shown)
    found = {name: f": {path} is its unfinished download" for name, path in unfinished.items()}
    for path in (directory / name for name in shown):
        if os.path.islink(path) and not os.path.exists(path):
            found[path.name] = f": it is a link to {os.readlink(path)}, which does not exist"
    return found


def _is_weights(name: str) -> bool:
    return name.endswith(".safetensors") and not is_adapter_file(name) and name[0] != "."


# ---- one cause for many problems ---------------------------------------------------------------


def _find_cause(checkpoint: Checkpoint) -> str:
    directory = checkpoint.directory
    missing = missing_files(directory)
    used = _used_files(directory)
    if cause := _explain_stand_ins(directory, used) or _explain_links(directory, missing):
        return cause
    for name in used:
        if unfinished := find_control_file(directory / name):
            return f"{name}: {unfinished}"
    if missing:
        return _explain_other_index(directory, missing) or _explain_download(directory, missing)
    infos = [info for shard in checkpoint.shards.values() for info in shard.tensors]
    # As it stands in the file: the rules name another class.
    architectures = read_config_values(directory).get("architectures")
    if checkpoint.config.quantization_format:  # ours: its codes and scales are as they should be
        return ""
    is_part = bool(checkpoint.config.expected_tensors().keys() - checkpoint.tensors.keys())
    return (
        (_explain_single_file(directory) if is_part else "")
        or _explain_mixed_shards(checkpoint)
        or _explain_stale_index(checkpoint)
        or explain_foreign_tensors(directory, infos, architectures)
    )


def _indexed_files(directory: Path) -> set[str]:
    """Return the files that the index names; none without an index."""
    path = directory / INDEX_NAME
    try:
        raw = read_json(path, limit_bytes=INDEX_BYTES) if path.is_file() else None
    except CheckpointError:  # it lies beside a single file, and so nobody has read it
        raw = None
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    files = weight_map.values() if isinstance(weight_map, dict) else ()
    return {file for file in files if isinstance(file, str) and "/" not in file}


def _used_files(directory: Path) -> list[str]:
    """Return the weight files that are here and count."""
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE]
    named = _indexed_files(directory)
    return [name for name in find_weight_files(directory) if not named or name in named]


def missing_files(directory: Path) -> list[str]:
    """Return the weight files that should be here: by the index, or by the names of the others."""
    if (directory / SINGLE_FILE).is_file():
        return []
    named = _indexed_files(directory)
    if not (directory / INDEX_NAME).is_file():
        sets = find_sets(find_weight_files(directory))
        if len(sets) == 1:
            named = set(sets[0].all_names())
    return sorted(name for name in named if not (directory / name).is_file())


def _move_away(path: Path) -> str:
    return shlex.join(["mv", str(path), f"{path}.old"])


def _count(names: list[str]) -> str:
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} weight file{plural} ({name_some(names, _EXAMPLES)})"


def _explain_stand_ins(directory: Path, used: list[str]) -> str:
    """Return what stands in place of weight files, where none was downloaded."""
    found = dict[str, list[str]]()
    for name in used:
        try:
            with open_ordinary(directory / name) as file:
                what = name_stand_in(file.read(STAND_IN_BYTES))
        except OSError:
            continue
        if what:
            found.setdefault(what, []).append(name)
    if not found:
        return ""
    what, names = next(iter(found.items()))
    if "git lfs pull" in what:
        pull = shlex.join(["git", "-C", str(directory), "lfs", "pull"])
        return (
            f"Git LFS pointers stand in place of {_count(names)}. In a clone of the repository "
            f"run:\n  {pull}"
        )
    return f"{name_some(names, _EXAMPLES)}: it {what}"


def _explain_links(directory: Path, names: Iterable[str]) -> str:
    """Return which of some files is a link that leads nowhere, or nothing."""
    found = next(filter(None, (explain_dangling(directory / name) for name in names)), "")
    return f"{found} {_download(directory)}".rstrip() if found else ""


def _explain_other_index(directory: Path, missing: list[str]) -> str:
    """Return that the index is another saving's than the shards beside it, where that is so."""
    named = _indexed_files(directory)
    sets = find_sets(name for name in find_weight_files(directory) if name not in named)
    whole = next((found for found in sets if found.is_whole), None)
    if whole is None:
        return ""
    return (
        f"{INDEX_NAME} belongs to another saving than the weight files: it names {len(named)} "
        f"files, {len(missing)} of them missing, and {whole.describe()} "
        "stand here complete. Download the index that belongs to these files; or move it away, and "
        f"every weight file here counts and is checked:\n  {_move_away(directory / INDEX_NAME)}"
    )


def _explain_stale_index(checkpoint: Checkpoint) -> str:
    """Return that the index alone is wrong, where the files hold the whole model without it."""
    directory, shards = checkpoint.directory, dict(checkpoint.shards)
    if not checkpoint.has_index:
        return ""
    # It may also leave out some of the files.
    for name in find_weight_files(directory):
        if name not in shards and explain_outside(directory / name):
            return ""
        try:
            shards[name] = shards.get(name) or read_header(directory / name)
        except CheckpointError:
            return ""
    stored = [info.name for shard in shards.values() for info in shard.tensors]
    found, _ = normalize(read_config_values(directory), shards, None, directory)
    config = parse_config(found.raw, where=str(directory / CONFIG_NAME))
    shapes = {name: info.shape for name, info in found.tensors.items()}
    if found.problems or len(stored) > len(set(stored)) or shapes != config.expected_tensors():
        return ""
    return (
        f"{INDEX_NAME} does not fit the weight files, as after a merge or a conversion that left "
        "the old one; the files hold the whole model without it. Move it away, and every weight "
        f"file here counts and is checked:\n  {_move_away(directory / INDEX_NAME)}"
    )


def _explain_single_file(directory: Path) -> str:
    """Return that a single file hides a complete set of shards, where it does."""
    named = _indexed_files(directory)
    beside = [name for name in named if os.path.isfile(directory / name) and name != SINGLE_FILE]
    if not (directory / SINGLE_FILE).is_file() or not named or len(beside) < len(named):
        return ""
    return (
        f"{SINGLE_FILE} is not the whole model, but hides the {len(named)} files that "
        f"{INDEX_NAME} names: every loader takes the single file first. If those are the model, "
        f"move it away:\n  {_move_away(directory / SINGLE_FILE)}"
    )


def _explain_mixed_shards(checkpoint: Checkpoint) -> str:
    """Return that a tensor is stored twice and why, where no index says which file counts."""
    directory = checkpoint.directory
    if (directory / INDEX_NAME).is_file() or (directory / SINGLE_FILE).is_file():
        return ""
    sets = find_sets(find_weight_files(directory))
    if len(sets) > 1:
        listed = "; ".join(found.describe() for found in sets[:MAX_LISTED])
        return (
            f"It holds the weight files of {len(sets)} savings, and no index that says which "
            f"count: {listed}. Move all but those of one complete saving away."
        )
    contents = defaultdict[frozenset[str], list[str]](list)
    for name, shard in checkpoint.shards.items():
        contents[frozenset(info.name for info in shard.tensors)].append(name)
    for names in contents.values():
        if len(names) > 1:
            # A browser writes the second copy as NAME (1).safetensors.
            first, *others = sorted(names, key=lambda name: (len(name), name))
            moves = "".join(f"\n  {_move_away(directory / name)}" for name in others)
            return (
                f"{name_some(names, _EXAMPLES)} hold the same tensors, as copies of one file do. "
                f"Keep one of them, for example {first}, and move the others away:{moves}"
            )
    return ""


# ---- downloads ---------------------------------------------------------------------------------


def _explain_download(directory: Path, missing: list[str]) -> str:
    advice = _download(directory) or _DOWNLOAD_AGAIN
    return (
        f"It lacks {_count(missing)}: the download was interrupted, or not all of it was copied. "
        f"{advice}"
    )


def _download(directory: Path) -> str:
    """Return the command that downloads what is missing, where the repository is known."""
    path = Path(os.path.abspath(directory))
    repository = hub_repository(path.parent.parent.name)
    if path.parent.name == "snapshots" and repository:
        return f"Run:\n  {shlex.join(['hf', 'download', repository])}"
    if any(os.path.exists(path / sign) for sign in MODELSCOPE_SIGNS):
        repository = f"{path.parent.name}/{path.name}".replace("___", ".")
        words = ["modelscope", "download", "--model", repository, "--local_dir", str(directory)]
        return f"Run, if {repository} is its repository:\n  {shlex.join(words)}"
    if model := known_model(path.name):
        hub = ["hf", "download", model.repository, "--local-dir", str(directory)]
        scope = ["modelscope", "download", "--model", model.repository]
        scope += ["--local_dir", str(directory)]
        return f"Run one of these:\n  {shlex.join(hub)}\n  {shlex.join(scope)}"
    return ""
