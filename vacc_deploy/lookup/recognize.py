"""Recognize what is given in place of a checkpoint directory, and say what to give instead.

Owns the errors for what is no checkpoint in our layout. What is wrong inside one is ``reader``'s.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from vacc_deploy.bounds import SMALL_FILE_BYTES
from vacc_deploy.checkpoint.adapters import ADAPTER_CONFIG, explain_adapter, is_adapter_file
from vacc_deploy.checkpoint.caches import (
    hub_repository,
    list_all_names,
    list_names,
    modelscope_models,
)
from vacc_deploy.checkpoint.foreign import explain_training_state
from vacc_deploy.checkpoint.gguf_header import ENDING
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, read_manifest
from vacc_deploy.checkpoint.small_files import refuse_links
from vacc_deploy.errors import MAX_LISTED, CheckpointError
from vacc_deploy.formats.layouts import GGUF, LAYOUTS, VAMC
from vacc_deploy.formats.layouts import recognize as recognize_layout
from vacc_deploy.json_files import read_bounded
from vacc_deploy.lookup.finding import Finding
from vacc_deploy.models.catalog import known_model, near_names, official_models
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.models.parse import read_config_values
from vacc_deploy.outputs.run_files import MARKER
from vacc_deploy.permissions import is_circle, is_there, real_path
from vacc_deploy.results import command

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_CHECKPOINT_FILES = {
    *(CONFIG_NAME, "config_vacc.json", "generation_config.json", MANIFEST_NAME),
    *("tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"),
}


# What stands behind the name of the model: quantization, number of the part.
_GGUF_ENDING = re.compile(
    r"([-.](UD-)?(I?Q\d\w*|B?F16|F32))?(-\d{5}-of-\d{5})?\.gguf", re.IGNORECASE
)


def recognize(path: Path, *, needs_float: bool = False) -> Finding | None:
    """Return what ``path`` is, or None where it may be a checkpoint directory.

    Args:
        path: what the user gave; it need not exist.
        needs_float: quantized weights are of no use in its place.

    Raises:
        CheckpointError: a directory cannot be listed, or holds too many names; or a file in it is
            a link that leads out of it.
    """
    if os.path.isdir(path):
        return _recognize_directory(path, needs_float)
    return _recognize_file(path) if is_there(path) else recognize_missing(path)


# ---- paths that do not exist -------------------------------------------------------------------


def recognize_missing(path: Path) -> Finding:
    """Return what can be meant by a path that does not exist: names that are like it."""
    if os.path.islink(path):
        where = "leads back to itself" if is_circle(path) else "does not exist"
        return Finding(f"{path} is a link to {os.readlink(path)}, which {where}.")
    # The first name that is wrong may be that of a directory above.
    first, rest = path.absolute(), list[str]()
    while not os.path.isdir(first.parent):
        rest.insert(0, first.name)
        first = first.parent
    if not rest and (maker := _maker_of(path)):
        return Finding(f"{path} does not exist yet. Make it first:\n  {maker}")
    near = difflib.get_close_matches(first.name, list_names(first.parent), n=3, cutoff=0.7)
    places = [first.parent.joinpath(name, *rest) if rest else path.with_name(name) for name in near]
    instead: list[Path | str] = [place for place in places if os.path.exists(place)]
    instead += near_names(str(path), cutoff=0.7)
    what = f"{path} does not exist."
    if rest:
        why = f"{first} is a file" if os.path.exists(first) else f"there is no {first}"
        what = f"{path} does not exist: {why}."
    if instead:
        return Finding(what, tuple(instead), "Did you mean")
    return Finding(
        f"{what} Give the directory of a checkpoint, the id of a repository (owner/name), or a "
        "name that vacc-deploy models lists."
    )


def _maker_of(path: Path) -> str:
    """Return the command that writes ``path`` by default, where it is of a catalogue model."""
    name = path.name
    for layout, record in LAYOUTS.items():
        prepared = name.removesuffix(f"-{record.ending}")
        if prepared == name or not prepared.endswith("-vacc"):
            continue
        source = path.with_name(prepared)
        if not known_model(prepared.removesuffix("-vacc")) and not os.path.isdir(source):
            return ""
        options = () if layout == VAMC else ("--format", layout)
        made = command("quantize", source, *options)
        return made if os.path.isdir(source) else f"{_maker_of(source)}\n  {made}"
    model = known_model(name.removesuffix("-vacc"))
    return command("prepare", model.aliases[0]) if model and name.endswith("-vacc") else ""


# ---- files -------------------------------------------------------------------------------------


def _recognize_file(path: Path) -> Finding:
    name = path.name.lower()
    if name.endswith(ENDING):
        return _gguf(f"{path} is a GGUF file", [path.name])
    if name.endswith(ARCHIVES):
        return _archive(path)
    if name.endswith((".yaml", ".yml")):
        return _yaml(path)
    if name.endswith(".onnx"):
        return Finding(
            f"{path} is an ONNX graph. Give the directory of the checkpoint that it was exported "
            "from."
        )
    if name.startswith("adapter_") and (path.parent / ADAPTER_CONFIG).is_file():
        return _adapter(path.parent)
    if name.endswith(PICKLES) and not any(map(_is_safetensors, list_names(path.parent))):
        return Finding(
            f"{path} is a pickle file, which can run code when read, so it is refused. Convert it "
            "with transformers' save_pretrained on a machine you trust, or download the "
            "safetensors revision. Then give its directory."
        )
    if name.endswith((".safetensors", *PICKLES)) or name in _CHECKPOINT_FILES:
        return Finding(f"{path} is one file of a checkpoint.", (path.parent,), "Give its directory")
    return Finding(
        f"{path} is a file. Give the directory of a checkpoint, with {CONFIG_NAME} in it."
    )


def _gguf(what: str, names: Iterable[str]) -> Finding:
    names = list(names)
    # DeepSeek-R1-Distill-Qwen-7B-Q4_K_M.gguf: the name says which, also with more words around it.
    text = " ".join(names).lower()
    found = [model for model in official_models() if model.aliases[0].lower() in text]
    # A name that other models' names begin with, such as Qwen3-8B, has to be the whole.
    found += [m for name in names if (m := known_model(_GGUF_ENDING.sub("", name)))]
    models = dict.fromkeys(model.repository for model in found)
    lead = "Give the float checkpoint that it was made from"
    what += ", which holds weights for llama.cpp. vacc-deploy reads safetensors."
    return Finding(what if models else f"{what} {lead}.", tuple(models), lead)


def _archive(path: Path) -> Finding:
    tool = {".zip": ("unzip",), ".7z": ("7z", "x"), ".rar": ("unrar", "x")}
    words = tool.get(path.suffix.lower(), ("tar", "-xf"))
    return Finding(
        f"{path} is an archive. Unpack it, then give the directory that holds {CONFIG_NAME}:\n"
        f"  {_shell(*words, path)}"
    )


def _yaml(path: Path) -> Finding:
    what = f"{path} is a YAML file, as vamc reads it, not a checkpoint."
    data = read_bounded(path, SMALL_FILE_BYTES, is_users_own=True)
    text = data.decode("utf-8", errors="replace")
    stated = re.search(r"^[ \t]*checkpoint:[ \t]*['\"]?([^'\"\n]{1,1000})", text, re.MULTILINE)
    if stated and Path(stated[1].strip()).is_dir():
        return Finding(what, (Path(stated[1].strip()),), "It names this directory")
    return Finding(f"{what} Give the directory that its line 'checkpoint:' names.")


# ---- directories -------------------------------------------------------------------------------


def _recognize_directory(path: Path, needs_float: bool) -> Finding | None:
    names = list_all_names(path)
    refuse_links(path)
    if not names:
        return Finding(f"{path} is empty. Download the model into it, or check the path.")
    if cache := _hub_cache(path, names):
        return cache
    has_config = os.path.isfile(path / CONFIG_NAME)
    if has_config and any(_is_safetensors(name) for name in names):
        return None
    if has_config and any(name.lower().endswith(ENDING) for name in names) and _is_ours(path):
        return None
    if not has_config and (models := modelscope_models(path)):
        what = f"{path} is ModelScope's cache, which holds many models."
        return Finding(what, tuple(models), "Give the directory of one")
    if ADAPTER_CONFIG in names or any(name.startswith("adapter_model.") for name in names):
        return _adapter(path)
    if "model_index.json" in names:
        return Finding(
            f"{path} is a diffusers pipeline, which makes pictures, not text. vacc-deploy handles "
            "language models of the architectures qwen2, qwen3 (dense) and llama."
        )
    if inner := _trainer(path, names) or (None if has_config else _inner(path, names, needs_float)):
        return inner
    return _other_files(path, sorted(names), has_config)


def _is_ours(path: Path) -> bool:
    """Return whether ``config.json`` announces the GGUF file that ``quantize`` writes."""
    try:
        stated = read_config_values(path).get("quantization_config")
    except CheckpointError:  # what is wrong with it is the reader's to say
        return False
    return recognize_layout(stated) == GGUF


def _is_safetensors(name: str) -> bool:
    is_weights = name.endswith((".safetensors", ".safetensors.index.json"))
    return is_weights and not is_adapter_file(name)


def _other_files(path: Path, names: list[str], has_config: bool) -> Finding | None:
    """Recognize a directory by files that are no safetensors."""
    if MARKER in names:
        return Finding(
            f"{path} is what an unfinished run left. Run the same command again to finish it; "
            "quantize continues with --resume."
        )
    if state := explain_training_state(path, names):
        return Finding(state)
    if has_config and any(name.endswith(PICKLES) for name in names):
        return None  # a checkpoint, which its reader refuses
    if any(name.lower().endswith(ENDING) for name in names):
        return _gguf(f"{path} holds a model as a GGUF file", names)
    if any(name.endswith(".onnx") for name in names):
        source = _recorded_source(path)
        instead = (source,) if source else ()
        what = f"{path} holds ONNX graphs, not a checkpoint."
        return Finding(what, instead, "They were exported from")
    archives = [name for name in names if name.lower().endswith(ARCHIVES)]
    return _archive(path / archives[0]) if archives and not has_config else None


def _named(path: Path) -> Path:
    """Return ``path`` in a form that ends in the directory's own name, which ``.`` does not."""
    return path if path.name not in ("", "..") else Path(os.path.abspath(path))


def _shell(*words: object) -> str:
    return shlex.join(map(str, words))


def _hub_cache(path: Path, names: list[str]) -> Finding | None:
    """Recognize the hub's cache, a model's folder in it, and the three folders within that one."""
    whole = _named(path)
    folder = whole.parent if whole.name in ("snapshots", "refs", "blobs") else whole
    if hub_repository(folder.name) and os.path.isdir(folder / "snapshots"):
        return _model_in_cache(path, folder)
    hub = path if any(map(hub_repository, names)) else path / "hub"
    folders = [hub / n for n in list_names(hub) if hub_repository(n)] if os.path.isdir(hub) else []
    if not folders:
        return None
    found = [snapshots[0] for folder in sorted(folders) if (snapshots := _snapshots(folder))]
    what = f"{path} is the Hugging Face cache, which holds many models."
    return Finding(what, tuple(found), "Give the snapshot of one" if found else "")


def _model_in_cache(path: Path, folder: Path) -> Finding:
    repository = hub_repository(folder.name)
    what = f"{path} is the folder of {repository} in the Hugging Face cache."
    if found := _snapshots(folder):
        return Finding(what, tuple(found[:1]), "The checkpoint is its snapshot")
    return Finding(
        f"{what} It holds no finished download. Run:\n  {_shell('hf', 'download', repository)}"
    )


def _snapshots(folder: Path) -> list[Path]:
    """Return the snapshots in a model's folder of the cache; that of the branch main is first."""
    inside = folder / "snapshots"
    names = sorted(list_names(inside)) if os.path.isdir(inside) else []
    main = ""
    if os.path.isfile(folder / "refs" / "main"):
        data = read_bounded(folder / "refs" / "main", SMALL_FILE_BYTES)
        main = data.decode("ascii", errors="replace").strip()
    names.sort(key=lambda name: name != main)
    return [inside / name for name in names if os.path.isdir(inside / name)]


def _adapter(path: Path) -> Finding:
    what, merged = explain_adapter(path)
    return Finding(what, (merged,) if merged else (), "Then use it")


def _trainer(path: Path, names: list[str]) -> Finding | None:
    steps = {
        int(m[1]): m[0] for name in names if (m := re.fullmatch(r"checkpoint-(\d{1,12})", name))
    }
    inner = [path / steps[step] for step in sorted(steps, reverse=True)]
    what = f"{path} holds the checkpoints that a trainer left, each in a directory of its own."
    return Finding(what, tuple(inner), "Give one, for example the last") if inner else None


def _inner(path: Path, names: list[str], needs_float: bool) -> Finding | None:
    """Recognize a directory of checkpoints: the formats of one run, or models."""
    inner = [path / name for name in sorted(names) if os.path.isfile(path / name / CONFIG_NAME)]
    if not inner:
        return None
    if MANIFEST_NAME not in names:
        what = f"{path} is not a checkpoint, but holds some."
        return Finding(what, tuple(inner), "Give one of them")
    listed = ", ".join(f"{folder.name}/" for folder in inner[:MAX_LISTED])
    what = f"{path} holds a run of quantize in several formats, each in its directory: {listed}."
    if not needs_float:
        return Finding(what, tuple(inner), "Give one of them")
    what += " They are quantized already."
    source = _recorded_source(path)
    return Finding(what, (source,) if source else (), "Give the float model they were made from")


def _recorded_source(path: Path) -> Path | None:
    """Return the directory that the manifest in ``path`` names as its source, if it is there."""
    try:
        source = (read_manifest(path) or {}).get("source")
    except CheckpointError:
        return None
    stated = source.get("path") if isinstance(source, dict) else None
    if not isinstance(stated, str):
        return None
    directory = Path(os.path.normpath(real_path(path) / stated))
    return directory if os.path.isdir(directory) else None
