"""Write all that lies beside the weights of an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vacc_deploy.assets import source_file
from vacc_deploy.checkpoint.manifest import MANIFEST_NAME, model_name
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.formats.layouts import GGUF
from vacc_deploy.formats.linears import stored_linear_bytes
from vacc_deploy.gguf_file.assemble import assemble
from vacc_deploy.gguf_file.modelfile import MODELFILE
from vacc_deploy.gguf_file.plan import GgufPlan
from vacc_deploy.json_files import dump_json
from vacc_deploy.models.directory_config import format_files, format_source_files, layout_notes
from vacc_deploy.models.settle import Applied
from vacc_deploy.outputs.file_system import sync_directory
from vacc_deploy.outputs.files import copy_file
from vacc_deploy.outputs.manifests import relative_source, write_manifest
from vacc_deploy.outputs.run_files import GGUF_SCRATCH
from vacc_deploy.outputs.seal import seal_json
from vacc_deploy.outputs.side_files import SidePlan, plan_side_files
from vacc_deploy.outputs.writer import WrittenFile, write_index, write_text
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.records import Run, shard_path
from vacc_deploy.quantize.result import REPORT_NAME, TIMING_NAME, QuantizeResult, audit_notes
from vacc_deploy.quantize.standing import IDENTITY_KEY
from vacc_deploy.reference.ranges import audit_values


def finish_output(
    checkpoint: Checkpoint,
    run: Run,
    result: QuantizeResult,
    options: QuantizeOptions,
    files: Mapping[str, WrittenFile],
) -> None:
    """Write everything beside the weights.

    With one format the output is its directory. With several it holds a directory for each, whole
    in itself, and a manifest of their manifests.
    """
    _write_timing(run, result)
    # config.json is not copied but made anew: it describes the layout.
    beside = plan_side_files(checkpoint, with_config=False)
    manifests = []
    for layout in options.formats:
        # "" with one format: the directory is the output itself, and every file is in it.
        below = f"{layout}/" if len(options.formats) > 1 else ""
        directory, own = run.partial / below, replace(options, formats=(layout,))
        # The path after the rename: the manifest gives the source relative to it.
        inner = replace(result, output_dir=result.output_dir / below)
        if layout == GGUF:
            written = _write_gguf(checkpoint, run, options, directory)
        else:
            written = [file for name, file in sorted(files.items()) if name.startswith(below)]
            written.append(write_index(directory, written))
        manifest = _finish_format(checkpoint, directory, inner, own, written, beside=beside)
        manifests.append(replace(manifest, name=f"{below}{MANIFEST_NAME}"))
        sync_directory(directory)
    if len(manifests) > 1:
        _write_manifest(checkpoint, run.partial, result, options, manifests)


def _finish_format(
    checkpoint: Checkpoint,
    directory: Path,
    result: QuantizeResult,
    options: QuantizeOptions,
    weights: Sequence[WrittenFile],
    *,
    beside: SidePlan,
) -> WrittenFile:
    """Write what lies beside the weights of one format; return its manifest."""
    config, source, (layout,) = checkpoint.config, checkpoint.directory, options.formats
    files = [*weights]
    files += [file.write(directory) for file in beside.files]
    for name, text in format_files(layout, config, source).items():
        files.append(write_text(directory / name, text))
    for name in format_source_files(layout, config):
        files.append(copy_file(source_file(name), directory))
    report = {
        "model": result.model,
        "options": options.to_dict(),
        "calibration": result.calibration,
        "totals": result.totals(),
        "warnings": list(result.warnings),
        "notes": [*layout_notes(layout, config), *audit_notes(result.audit)],
        "linears": [asdict(record) for record in result.linears],
        **audit_values(result.audit),
    }
    files.append(write_text(directory / REPORT_NAME, dump_json(report)))
    # Last, since it lists every other file.
    return _write_manifest(checkpoint, directory, result, options, files, normalized=beside.applied)


def _write_manifest(
    checkpoint: Checkpoint,
    directory: Path,
    result: QuantizeResult,
    options: QuantizeOptions,
    files: Sequence[WrittenFile],
    *,
    normalized: Sequence[Applied] = (),
) -> WrittenFile:
    return write_manifest(
        directory,
        command="quantize",
        model=result.model,
        source={"path": relative_source(checkpoint.directory, result.output_dir)},
        options=options.to_dict(),
        files=files,
        normalized=normalized,
    )


def _write_timing(run: Run, result: QuantizeResult) -> None:
    """Write what differs from run to run: the one file that is in no manifest."""
    assert result.seconds is not None, "the run is over"
    timing: dict[str, Any] = {
        "seconds": round(result.seconds, 3),
        "layer_seconds": [round(layer.seconds, 3) for layer in run.layers],
        "linear_seconds": {
            name: round(seconds, 4)
            for layer in run.layers
            for name, seconds in layer.linear_seconds.items()
        },
        "peak_memory_bytes": result.peak_memory_bytes,
        "peak_device_memory_bytes": result.peak_device_memory_bytes,
        "phases": run.clock.to_dict(),
        "resumes": run.resumes,
        # A later --resume compares it with its own.
        IDENTITY_KEY: run.identity,
    }
    # With a seal, since no manifest has its hash: --overwrite deletes unchanged files only.
    write_text(run.partial / TIMING_NAME, seal_json(timing))


def plan_gguf(checkpoint: Checkpoint, options: QuantizeOptions) -> GgufPlan:
    """Return the plan of the GGUF file that a run writes."""
    return GgufPlan(
        checkpoint,
        model_name(checkpoint.directory),
        options.embedding_type,
        options.gguf_pre,
    )


def _write_gguf(
    checkpoint: Checkpoint, run: Run, options: QuantizeOptions, directory: Path
) -> list[WrittenFile]:
    """Make one file of the shards, which stay until the output stands, and the Modelfile."""
    plan, count = plan_gguf(checkpoint, options), run.num_layers + 2
    names = [shard_path(run.formats, GGUF, shard, run.num_layers) for shard in range(count)]
    paths = [run.partial / name for name in names]
    weights = assemble(plan, paths, directory, run.partial / GGUF_SCRATCH)
    return [weights, write_text(directory / MODELFILE, plan.modelfile())]


def output_bytes(checkpoint: Checkpoint, options: QuantizeOptions) -> int:
    """Return the bytes of the weights that ``checkpoint`` will give in all formats."""
    # Tensors only: headers, and the small files beside the weights, are not counted.
    return sum(
        plan_gguf(checkpoint, options).tensor_bytes
        if layout == GGUF
        else _shard_bytes(checkpoint, layout)
        for layout in options.formats
    )


def temporary_bytes(checkpoint: Checkpoint, options: QuantizeOptions) -> int:
    """Return the bytes of the shards of which a GGUF file is made while they are there."""
    return _shard_bytes(checkpoint, GGUF) if GGUF in options.formats else 0


def _shard_bytes(checkpoint: Checkpoint, layout: str) -> int:
    total = checkpoint.weight_bytes
    for name, shape in checkpoint.config.linear_names().items():
        stored = checkpoint.info(f"{name}.weight").num_bytes
        total += stored_linear_bytes(layout, *shape) - stored
    return total
