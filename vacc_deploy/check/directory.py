"""Check a directory: its weights, its configurations, and the files that are served beside them.

The single rules are those of ``prepare``, ``quantize`` and ``yaml``. Here they are run one after
the other, whatever the ones before have found.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vacc_deploy.bounds import INDEX_BYTES, MANIFEST_BYTES
from vacc_deploy.check.codes import find_code_problems
from vacc_deploy.check.collect import Collected, as_problems
from vacc_deploy.check.sources import find_source_problems
from vacc_deploy.check.tokenizer import find_token_problems
from vacc_deploy.checkpoint.generation_config import read_generation_config
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, read_manifest, stored_layout
from vacc_deploy.checkpoint.reader import INDEX_NAME, Checkpoint, examine
from vacc_deploy.checkpoint.soundness import find_unsound
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.layouts import INT8, LAYOUTS, VAMC
from vacc_deploy.json_files import read_bounded, read_json
from vacc_deploy.models.config import CONFIG_NAME, GENERATION_CONFIG_NAME, ModelConfig
from vacc_deploy.models.parse import read_config_values, read_object
from vacc_deploy.models.rope import YARN
from vacc_deploy.models.vacc_config import (
    VACC_CONFIG_NAME,
    find_other_keys,
    find_vacc_problems,
    is_template,
    needs_vacc_config,
)
from vacc_deploy.outputs.damages import find_damages
from vacc_deploy.outputs.seal import has_seal, is_sealed_json
from vacc_deploy.problems.configuration import (
    COMPILER_KEYS,
    CONFIG_VALUE,
    GENERATION_SAMPLING,
    GENERATION_UNREADABLE,
    GENERATION_VALUE,
    NOT_FOR_COMPILER,
    STATED_DTYPE,
    TEMPLATE,
    VACC_CONFIG_UNREADABLE,
    VACC_CONFIG_VALUE,
    VOCABULARY,
    YARN_ON_LLAMA,
)
from vacc_deploy.problems.files import (
    BROKEN_MANIFEST,
    EDITED_MANIFEST,
    NO_GENERATION_CONFIG,
    NO_MANIFEST,
    TOTAL_SIZE,
    UNREADABLE,
)
from vacc_deploy.problems.problem import Problem
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.sampling import SamplingOptions, choose_sampling, read_sampling
from vacc_deploy.text.library import start_library
from vacc_deploy.vamc.readiness import (
    find_missing_files,
    find_other_dtype,
    find_other_form,
    find_other_index,
)
from vacc_deploy.vamc.rules import LENGTH_MULTIPLE

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


@dataclass
class CheckedDirectory:
    """A directory that was checked.

    Attributes:
        path: of the directory.
        problems: what was found.
        checkpoint: what its headers say; None where it cannot be opened at all.
        layout: of its weights; empty for a float model.
    """

    path: Path
    problems: Collected = field(default_factory=Collected)
    checkpoint: Checkpoint | None = None
    layout: str = ""


def check_directory(
    directory: Path, *, read_all: bool = False, progress: Progress = SILENT
) -> CheckedDirectory:
    """Return everything that is wrong with a directory.

    Args:
        directory: a checkpoint, prepared or quantized or neither.
        read_all: read all weights and compare all hashes; else the headers, norms and scales, and
            some rows of the other tensors.
        progress: learns of the weight files.
    """
    checked = CheckedDirectory(directory)
    problems = checked.problems
    library = start_library(directory)

    def open_it() -> list[Problem]:
        checked.checkpoint, found = examine(directory)
        checked.layout = checked.checkpoint.config.quantization_format
        return found

    def read_layout() -> list[Problem]:
        assert checked.checkpoint is not None
        checked.layout = stored_layout(directory, checked.checkpoint.config)
        return []

    problems.add(open_it)
    if checked.checkpoint is None:
        return checked
    config, is_sound = checked.checkpoint.config, not problems
    problems.add(read_layout, otherwise=BROKEN_MANIFEST, where=MANIFEST_NAME)
    for find in (_find_form_problems, _find_config_problems, find_source_problems):
        problems.add(lambda find=find: find(checked))  # type: ignore[misc]
    problems.add(
        lambda: _find_vacc_problems(checked),
        otherwise=VACC_CONFIG_UNREADABLE,
        where=VACC_CONFIG_NAME,
    )
    problems.add(
        lambda: _find_generation_problems(directory, config),
        otherwise=GENERATION_UNREADABLE,
        where=GENERATION_CONFIG_NAME,
    )
    problems.add(
        lambda: _find_damages(directory, read_all, progress),
        otherwise=BROKEN_MANIFEST,
        where=MANIFEST_NAME,
    )
    # Values are read only where every tensor has its place.
    if is_sound:
        problems.add(lambda: _find_value_problems(checked, read_all, progress))
    # The last: transformers needs seconds to start.
    problems.add(lambda: find_token_problems(directory, config, library))
    checked.problems = Collected(_settle(problems))
    return checked


def _settle(problems: Collected) -> Iterator[Problem]:
    """Yield each problem once; where the whole file is a template, its values are not listed.

    A file that two checks could not read is told by the rule that knows the file.
    """
    has_template = any(problem.rule is TEMPLATE for problem in problems)
    known = {str(problem) for problem in problems if problem.rule is not UNREADABLE}
    seen = set[tuple[str, str]]()
    for problem in problems:
        is_told = (problem.rule.code, str(problem)) in seen
        is_told |= problem.rule is UNREADABLE and str(problem) in known
        is_value = problem.where.startswith(f"{VACC_CONFIG_NAME}: ")
        if not is_told and not (has_template and is_value):
            yield problem
        seen.add((problem.rule.code, str(problem)))


def _find_form_problems(checked: CheckedDirectory) -> Iterator[Problem]:
    """Yield what concerns the files as a whole: form, index, and what vamc and a server need."""
    checkpoint = checked.checkpoint
    assert checkpoint is not None
    if checked.layout and not LAYOUTS[checked.layout].for_compiler:
        purpose = LAYOUTS[checked.layout].purpose
        text = f"the weights are in the layout {checked.layout} ({purpose})"
        yield NOT_FOR_COMPILER.broken(text, where=CONFIG_NAME, got=checked.layout)
    else:
        yield from find_other_form(checkpoint)
        yield from find_other_index(checkpoint)
        yield from find_missing_files(checkpoint)
    if checked.layout == INT8 and not needs_vacc_config(checkpoint.config):
        text = "the weights are int8 codes of a Llama model, which vamc cannot read (our inference)"
        yield NOT_FOR_COMPILER.broken(text, where=CONFIG_NAME, got=checked.layout)
    if not (checkpoint.directory / GENERATION_CONFIG_NAME).is_file():
        text = f"{GENERATION_CONFIG_NAME} is missing"
        yield NO_GENERATION_CONFIG.broken(text, where=GENERATION_CONFIG_NAME)
    if checkpoint.has_index:
        yield from _find_total_size(checkpoint)


def _find_total_size(checkpoint: Checkpoint) -> Iterator[Problem]:
    raw = read_json(checkpoint.directory / INDEX_NAME, limit_bytes=INDEX_BYTES)
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    total = sum(info.num_bytes for shard in checkpoint.shards.values() for info in shard.tensors)
    if stated is not None and stated != total:
        shown = f"{stated!r:.40}"
        text = f"{INDEX_NAME}: total_size is {shown}, the tensors have {total:,} bytes"
        where = f"{INDEX_NAME}: metadata.total_size"
        yield TOTAL_SIZE.broken(text, where=where, got=shown, expected=total)


def _find_config_problems(checked: CheckedDirectory) -> Iterator[Problem]:
    """Yield what is wrong with ``config.json`` beside what keeps it from being used."""
    checkpoint = checked.checkpoint
    assert checkpoint is not None
    directory, config = checkpoint.directory, checkpoint.config
    raw = read_config_values(directory)
    auto_map = raw.get("auto_map")
    is_mapped = isinstance(auto_map, dict) and "modeling_qwen2_vacc" in str(auto_map)
    keys = [key for key in ("insert_slice", "iter_num") if raw.get(key)]
    keys += ["auto_map"] if is_mapped else []
    # A directory of int8 codes has them on purpose: it loads through our modeling file.
    if keys and checked.layout != INT8:
        text = f"{CONFIG_NAME} has {', '.join(keys)}, which belong into {VACC_CONFIG_NAME}"
        yield COMPILER_KEYS.broken(text, where=f"{CONFIG_NAME}: {keys[0]}", got=", ".join(keys))
    if not checked.layout:
        yield from _find_stated_dtype(checkpoint)
    if config.vocab_size % LENGTH_MULTIPLE:
        text = f"vocab_size is {config.vocab_size}, not a multiple of {LENGTH_MULTIPLE}"
        where = f"{CONFIG_NAME}: vocab_size"
        yield VOCABULARY.broken(text, where=where, got=config.vocab_size)
    has_yarn = config.rope_scaling is not None and config.rope_scaling.rope_type == YARN
    if has_yarn and not needs_vacc_config(config):
        text = "rope_scaling is yarn, which vamc computes by its own code for Llama, if it does"
        yield YARN_ON_LLAMA.broken(text, where=f"{CONFIG_NAME}: rope_scaling")


def _find_vacc_problems(checked: CheckedDirectory) -> Iterator[Problem]:
    """Yield what is wrong with ``config_vacc.json``."""
    checkpoint = checked.checkpoint
    assert checkpoint is not None
    directory, config = checkpoint.directory, checkpoint.config
    path = directory / VACC_CONFIG_NAME
    if needs_vacc_config(config) and path.is_file() and is_template(read_object(path), config):
        text = f"{VACC_CONFIG_NAME} is the vendor's template, of another model than {CONFIG_NAME}"
        yield TEMPLATE.broken(text, where=VACC_CONFIG_NAME)
    if checked.layout == VAMC:
        yield from find_other_dtype(directory)
    try:
        yield from find_vacc_problems(directory, config)
        yield from find_other_keys(directory, config)
    except CheckpointError as err:
        # The values are judged like those of config.json, which was read already.
        for problem in as_problems(err, VACC_CONFIG_UNREADABLE, VACC_CONFIG_NAME):
            is_value = problem.rule is CONFIG_VALUE
            rule = VACC_CONFIG_VALUE if is_value else problem.rule
            yield rule.broken(str(problem), where=problem.where)


def _find_stated_dtype(checkpoint: Checkpoint) -> Iterator[Problem]:
    stored = {_DTYPES[i.dtype] for i in checkpoint.tensors.values() if i.dtype in _DTYPES}
    stated = checkpoint.config.dtype
    # Without the key loaders take float32, which rounds nothing.
    is_stated = any(checkpoint.config.raw.get(key) for key in ("torch_dtype", "dtype"))
    if is_stated and stored and stated not in stored:
        got = ", ".join(sorted(stored))
        text = f"{CONFIG_NAME}: torch_dtype is {stated}, the weights are {got}"
        where = f"{CONFIG_NAME}: torch_dtype"
        yield STATED_DTYPE.broken(text, where=where, got=stated, expected=got)


def _find_generation_problems(directory: Path, config: ModelConfig) -> Iterator[Problem]:
    _, applied = read_generation_config(directory, config.vocab_size)
    for rule in applied:
        yield GENERATION_VALUE.broken(rule.note.removesuffix("."), where=GENERATION_CONFIG_NAME)
    try:
        read_sampling(directory)  # some servers take the numbers whatever do_sample says
        choose_sampling(directory, SamplingOptions())
    except CheckpointError as err:
        yield GENERATION_SAMPLING.broken(str(err).removesuffix("."), where=GENERATION_CONFIG_NAME)


def _find_damages(directory: Path, read_all: bool, progress: Progress) -> list[Problem]:
    manifest = read_manifest(directory)
    if manifest is None:
        return [NO_MANIFEST.broken(f"there is no {MANIFEST_NAME}", where=MANIFEST_NAME)]
    problems = find_damages(directory, progress, hash_weights=read_all)
    data = read_bounded(directory / MANIFEST_NAME, MANIFEST_BYTES)
    # Version 0.1.0 wrote none.
    if has_seal(manifest) and not is_sealed_json(data, manifest):
        text = f"{MANIFEST_NAME} is not as it was written: its seal does not fit"
        problems.append(EDITED_MANIFEST.broken(text, where=MANIFEST_NAME))
    return problems


def _find_value_problems(
    checked: CheckedDirectory, read_all: bool, progress: Progress
) -> list[Problem]:
    checkpoint = checked.checkpoint
    assert checkpoint is not None
    found = find_unsound(checkpoint, progress, whole=read_all, tables=read_all)
    codes = find_code_problems(checkpoint, checked.layout, read_all=read_all)
    return [*found.faults, *found.remarks, *codes]
