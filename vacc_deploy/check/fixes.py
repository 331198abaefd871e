"""Write a mended copy of a directory or of a compile file: what is safe, and nothing else.

Safe is what follows from the rest of the target: the vendor's files from ``config.json``, the index
from the headers. Weights are linked or copied as they are, never changed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vacc_deploy.check.directory import CheckedDirectory, check_directory
from vacc_deploy.check.result import CheckResult
from vacc_deploy.check.run import CheckOptions, check, find_directory, is_compile_file
from vacc_deploy.checkpoint.changes import unchanged
from vacc_deploy.checkpoint.manifest import REPORT_NAME, model_name, read_manifest
from vacc_deploy.checkpoint.reader import INDEX_NAME, Checkpoint
from vacc_deploy.errors import CheckpointError, OutputError, UsageError, list_problems
from vacc_deploy.formats.layouts import INT8, LAYOUTS, VAMC
from vacc_deploy.json_files import dump_json
from vacc_deploy.models.config import CONFIG_NAME
from vacc_deploy.models.parse import read_config_values
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME, needs_vacc_config, vacc_config
from vacc_deploy.outputs.manifests import relative_source, write_manifest
from vacc_deploy.outputs.output import output_directory
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.outputs.place import COPY, Placement
from vacc_deploy.outputs.side_files import SideFile, plan_side_files
from vacc_deploy.outputs.text_file import replace_text
from vacc_deploy.prepare import vendor_files
from vacc_deploy.problems.problem import ERROR, Problem
from vacc_deploy.problems.tokens import OF_TRANSFORMERS
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.vamc.compile_file import FILE_HEAD
from vacc_deploy.vamc.repair import fix_compile_file


def fix_target(
    targets: Sequence[str],
    output: Path,
    options: CheckOptions,
    *,
    progress: Progress = SILENT,
) -> CheckResult:
    """Write a mended copy of one target, and check the copy.

    Args:
        targets: one directory or compile file.
        output: the directory or file to write; it does not exist yet.
        options: of the check.
        progress: learns of the weight files.

    Returns:
        the findings of the copy: what could not be mended.

    Raises:
        UsageError: several targets, or a compile file would be called otherwise.
        CheckpointError: the weights or ``config.json`` are at fault, which nothing here can mend.
        CompileFileError: the compile file cannot be read.
        OutputError: the output exists or cannot be written.
    """
    if len(targets) != 1:
        raise UsageError(f"--fix mends one TARGET at a time, got {len(targets)}.")
    # What the writers say of an output that exists names an option that check has not.
    if os.path.lexists(output):
        raise OutputError(f"{output} exists already. Choose another --output.")
    if is_compile_file(targets[0]):
        if not is_compile_file(str(output)):
            raise UsageError(
                f"--output {output} is not called like a compile file: end it in .yaml."
            )
        applied = write_mended_file(Path(targets[0]), output)
    else:
        directory = find_directory(targets[0])
        applied = fix_directory(directory, output, progress=progress)
    result = check([str(output)], options, progress=progress)
    return replace(result, fixed=str(output), applied=tuple(applied))


def fix_directory(directory: Path, output: Path, *, progress: Progress = SILENT) -> list[str]:
    """Write a mended copy of a directory; return what was mended, sentences.

    Raises:
        CheckpointError: see ``fix_target``.
        OutputError: the output exists or cannot be written.
    """
    checked = check_directory(directory)
    if checked.layout and not LAYOUTS[checked.layout].for_compiler:
        purpose = LAYOUTS[checked.layout].purpose
        raise CheckpointError(
            f"{directory} holds weights in the layout {checked.layout} ({purpose}). --fix mends "
            "directories for vamc only. Quantize the model again."
        )
    mended, blocking = _part(checked)
    if blocking:
        raise CheckpointError(
            f"{directory} cannot be mended, because these are faults of the weights or of files "
            f"that say what the model is:\n{list_problems(blocking)}\nMend them first: "
            f"{blocking[0].rule.fix}",
            blocking,
        )
    checkpoint = checked.checkpoint
    assert checkpoint is not None, "what cannot be opened is a blocking problem"
    said = list[str]()
    check_output(output, source=checkpoint, overwrite=False, dry_run=False, progress=progress)
    with (
        output_directory(output, overwrite=False, source=checkpoint, say=said.append) as folder,
        unchanged(checkpoint),
    ):
        placement = Placement(checkpoint, output, "auto")
        files = placement.place(folder, progress, said.append)
        small = _small_files(checked, placement)
        files += [(file.write(folder), COPY) for file in small.values()]
        manifest = read_manifest(directory) or {}
        write_manifest(
            folder,
            command=str(manifest.get("command", "prepare")),
            model=model_name(directory),
            source=_move_source(manifest, checkpoint, output),
            options=_options(manifest),
            files=[file for file, _ in files],
        )
    return [f"{problem.rule.code} {problem}" for problem in mended] + said


def write_mended_file(path: Path, output: Path) -> list[str]:
    """Write a mended copy of a compile file; return what was mended, sentences.

    Raises:
        CompileFileError: it cannot be read, or is that of no language model.
        OutputError: the output exists or cannot be written.
    """
    text, applied = fix_compile_file(path)
    replace_text(output, text, overwrite=False, head=FILE_HEAD, say=applied.append)
    return applied


def _part(checked: CheckedDirectory) -> tuple[list[Problem], list[Problem]]:
    """Return the problems that are mended, and those that keep the copy from being written."""
    mended = [problem for problem in checked.problems if problem.rule.is_fixable]
    # Whether files have changed since they were written is judged before: a mended one has.
    names = {problem.where.partition(": ")[0] for problem in mended}
    blocking = [
        problem
        for problem in checked.problems
        if problem.rule.severity == ERROR
        and not problem.rule.is_fixable
        and problem.rule not in OF_TRANSFORMERS
        and problem.where not in names
    ]
    return mended, blocking


def _small_files(checked: CheckedDirectory, placement: Placement) -> dict[str, SideFile]:
    """Return the files beside the weights by name, the mended ones in place of the others."""
    checkpoint, layout = checked.checkpoint, checked.layout
    assert checkpoint is not None
    directory, config = checkpoint.directory, checkpoint.config
    files = [*plan_side_files(checkpoint, with_config=True).files, *placement.plan_index()]
    if any(problem.where.startswith(INDEX_NAME) for problem in checked.problems):
        files += placement.write_index()
    if (directory / REPORT_NAME).is_file():
        files.append(SideFile.copied(directory / REPORT_NAME))
    raw = read_config_values(directory)
    if layout == VAMC:
        raw = _as_float16(raw)
        files.append(SideFile.generated(CONFIG_NAME, dump_json(raw)))
    files += vendor_files(checkpoint)
    if needs_vacc_config(config) and layout in (VAMC, INT8):
        bits = config.quantization_bit
        values = vacc_config(replace(config, raw=raw), quantization_bit=bits)
        files.append(SideFile.generated(VACC_CONFIG_NAME, dump_json(values)))
    # The last of a name wins.
    return {file.name: file for file in files}


def _as_float16(raw: Mapping[str, Any]) -> dict[str, Any]:
    values = {**raw, "torch_dtype": "float16"}
    if "dtype" in values:
        values["dtype"] = "float16"
    return values


def _options(manifest: Mapping[str, Any]) -> dict[str, Any]:
    options = manifest.get("options")
    return dict(options) if isinstance(options, dict) else {"link_mode": "auto"}


def _move_source(
    manifest: Mapping[str, Any], checkpoint: Checkpoint, output: Path
) -> dict[str, Any]:
    """Return the manifest's entry of the source as it reads from the copy."""
    source = manifest.get("source")
    values = dict(source) if isinstance(source, dict) else {}
    path, directory = values.get("path"), checkpoint.directory
    origin = directory / path if isinstance(path, str) else directory
    return {**values, "path": relative_source(origin, output)}
