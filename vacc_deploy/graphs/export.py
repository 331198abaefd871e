"""Export the two graphs that are compiled, run them on this CPU and compare them with torch.

Owns the command's way: which directory and lengths are allowed, what is written, what fails.
``trace`` makes a graph and writes its file, ``compare`` runs it.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vacc_deploy.assets import default_text_file
from vacc_deploy.checkpoint.changes import unchanged
from vacc_deploy.checkpoint.manifest import model_name
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UsageError, list_problems
from vacc_deploy.graphs.compare import Agreement, compare_graphs, run_reference
from vacc_deploy.graphs.result import ExportedGraph, ExportOptions, ExportResult
from vacc_deploy.graphs.trace import (
    MAX_OPSET,
    MIN_OPSET,
    GraphShape,
    add_function,
    count_custom_nodes,
    save_graph,
    strip_functions,
    trace_graph,
)
from vacc_deploy.models.config import LAYER_LINEARS, ModelConfig
from vacc_deploy.models.vacc_config import VACC_CONFIG_NAME, check_for_compiler, needs_vacc_config
from vacc_deploy.outputs.file_system import check_space
from vacc_deploy.outputs.manifests import relative_source, write_manifest
from vacc_deploy.outputs.output import output_directory, try_output
from vacc_deploy.outputs.output_rules import check_output
from vacc_deploy.outputs.writer import record_file
from vacc_deploy.progress import SILENT, Progress
from vacc_deploy.reference.loader import load_model
from vacc_deploy.reference.windows import check_ids
from vacc_deploy.results import command
from vacc_deploy.system import peak_memory_bytes
from vacc_deploy.text.tokenizer import Tokenizer
from vacc_deploy.vamc.options import LENGTH_MULTIPLE

MAX_DIFFERENCE = 2e-3  # of the logits' range
_TEXT_BYTES_PER_TOKEN = 16  # more than a token of any language has on average


def export_onnx(
    directory: Path,
    *,
    output: Path,
    options: ExportOptions | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> ExportResult:
    """Write ``prefill.onnx`` and ``decode.onnx`` of a directory, run them, compare with torch.

    Args:
        directory: a prepared or int8 directory.
        output: the directory to write.
        overwrite: replace an output of an earlier run.
        dry_run: validate and plan only.
        progress: learns of every step.

    Raises:
        UsageError: lengths that no compiler takes, or another opset.
        CheckpointError: the directory is damaged, not prepared, for stock loaders, or its source
            files are not ours.
        CalibrationError: see ``Tokenizer``.
        OutputError: the output may not be written.
        ExportError: the exporter refuses the model.
    """
    options = options or ExportOptions()
    checkpoint = Checkpoint.open(directory)
    is_prepared = (directory / VACC_CONFIG_NAME).is_file()
    shape = _check_config(directory, checkpoint.config, options, is_prepared=is_prepared)
    rules: dict[str, Any] = {"overwrite": overwrite, "source": checkpoint, "progress": progress}
    notes = check_output(output, dry_run=dry_run, **rules)
    weight_bytes = _graph_bytes(checkpoint)
    # While a graph is written, the exporter's own file of it is there too.
    check_space(output, (len(options.stages) + 1) * weight_bytes)
    prompt = _read_prompt(checkpoint, shape.prompt_length)
    result = ExportResult(model_name(directory), directory, output, shape, options.opset)
    result = replace(result, notes=(*checkpoint.notes, *notes))
    if dry_run:
        plan = [ExportedGraph(s, ((f"{s}.onnx", weight_bytes),)) for s in options.stages]
        return replace(result, graphs=tuple(plan))
    try_output(output, **rules)  # before the model, which takes long to load
    model = load_model(checkpoint)
    folder = output_directory(output, overwrite=overwrite, source=checkpoint, say=progress.say)
    with folder as partial, unchanged(checkpoint):
        graphs, agreement = _export(model, prompt, shape, options, partial, progress=progress)
        _write_manifest(partial, result, options)
    return replace(
        result,
        graphs=graphs,
        agreement=agreement,
        peak_memory_bytes=peak_memory_bytes(),
        failures=find_failures(checkpoint.config, graphs, agreement),
    )


def check_repository(repository: str, config: ModelConfig, options: ExportOptions) -> None:
    """Refuse, before its weights are downloaded, what cannot be exported.

    Raises:
        UsageError: see ``export_onnx``.
        CheckpointError: the architecture wants a prepared directory, which no repository is.
    """
    _check_config(Path(repository), config, options, is_prepared=False)


def _check_config(
    directory: Path, config: ModelConfig, options: ExportOptions, *, is_prepared: bool
) -> GraphShape:
    """Return the sizes of the graphs, or refuse the model or the options."""
    check_for_compiler(directory, config)
    shape = _check_options(config, options)
    if needs_vacc_config(config) and not is_prepared:
        raise CheckpointError(
            f"{directory} has no {VACC_CONFIG_NAME}: it is not prepared, and its graph would be "
            f"another one than vamc builds. Run: {command('prepare', directory)}"
        )
    return shape


def _check_options(config: ModelConfig, options: ExportOptions) -> GraphShape:
    """Return the sizes of the graphs, or name every length that is wrong.

    The lengths keep the compiler's rules: a graph that cannot be compiled proves nothing.
    """
    prompt, context = options.sequence_length, config.max_position_embeddings
    total = options.max_sequence_length
    if total is None:
        # Rounded down, since the compiler takes multiples only.
        total = min(2 * prompt, context - context % LENGTH_MULTIPLE)
    problems = [
        f"{name}: got {length}, expected a positive multiple of {LENGTH_MULTIPLE}, as the compiler "
        "wants"
        for name, length in (("--seq-len", prompt), ("--max-seq-len", total))
        if length < 1 or length % LENGTH_MULTIPLE
    ]
    if prompt >= total:
        problems.append(f"--seq-len: got {prompt}, expected less than --max-seq-len {total}")
    if max(total, prompt) > context:
        problems.append(
            f"--max-seq-len: got {max(total, prompt)}, expected at most the model's context, "
            f"{context}"
        )
    if not MIN_OPSET <= options.opset <= MAX_OPSET:
        problems.append(f"--opset: got {options.opset}, expected {MIN_OPSET} to {MAX_OPSET}")
    if problems:
        raise UsageError(f"These graphs cannot be made:\n{list_problems(problems)}")
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    # The decode graph sees its past and the new token: `total` positions.
    return GraphShape(prompt, total - 1, layers, heads, config.head_dim)


def _graph_bytes(checkpoint: Checkpoint) -> int:
    """Return the bytes of a graph's weights: int8 codes as they are, all else in float32."""
    sizes = {
        name: math.prod(info.shape) * (1 if info.dtype == "I8" else 4)
        for name, info in checkpoint.tensors.items()
    }
    # The head is stored transposed, so a tied one is stored again.
    tied = sizes["model.embed_tokens.weight"] if checkpoint.config.tie_word_embeddings else 0
    return sum(sizes.values()) + tied


def _read_prompt(checkpoint: Checkpoint, length: int) -> torch.Tensor:
    """Return int64 [1, length]: the package's text, repeated where it is too short."""
    with default_text_file().open("rb") as file:
        # "ignore": the limit in bytes may cut the last character.
        text = file.read(_TEXT_BYTES_PER_TOKEN * length).decode("utf-8", "ignore")
    ids = Tokenizer.from_dir(checkpoint.directory).encode(text, add_bos=True)
    check_ids(checkpoint, ids)
    # As many copies as fill the prompt, rounded up, then cut to it: [1, length].
    return torch.tensor([(ids * -(-length // len(ids)))[:length]])


def _export(
    model: Any,
    prompt: torch.Tensor,
    shape: GraphShape,
    options: ExportOptions,
    directory: Path,
    *,
    progress: Progress,
) -> tuple[tuple[ExportedGraph, ...], Agreement]:
    """Write the graphs, compare them, and only then take the functions away.

    Without its function onnxruntime cannot run the int8 operator.
    """
    progress.start("Exporting", len(options.stages) + 1, "steps")
    graphs = []
    for stage in options.stages:
        graphs.append(_export_stage(model, stage, shape, options, directory))
        progress.advance(1, f"{stage} graph written")
    # No more than the decode graph can hold behind the prompt.
    steps = min(options.num_steps, shape.past_length + 1 - shape.prompt_length)
    reference = run_reference(model, prompt, steps if "decode" in options.stages else 0)
    paths = {stage: directory / f"{stage}.onnx" for stage in options.stages}
    agreement = compare_graphs(paths, shape, reference)
    progress.advance(1, "compared with torch")
    progress.finish()
    for stage in options.stages if not options.with_functions else ():
        strip_functions(paths[stage])
    # Only now do the files have the bytes that stay.
    sized = [
        replace(graph, files=tuple((n, (directory / n).stat().st_size) for n, _ in graph.files))
        for graph in graphs
    ]
    return tuple(sized), agreement


def _export_stage(
    model: Any, stage: str, shape: GraphShape, options: ExportOptions, directory: Path
) -> ExportedGraph:
    """Trace one stage and write it; the sizes of its files are filled in later."""
    started = time.monotonic()
    graph = trace_graph(model, stage, shape, options.opset, directory)
    num_nodes, num_custom_nodes = len(graph.graph.node), count_custom_nodes(graph)
    # The operator is of the vendor's domain: onnxruntime has no kernel for it.
    if num_custom_nodes:
        add_function(graph)
    files = save_graph(graph, directory / f"{stage}.onnx", options.max_inline_bytes)
    sizes, seconds = tuple((path.name, 0) for path in files), time.monotonic() - started
    return ExportedGraph(stage, sizes, num_nodes, num_custom_nodes, seconds)


def _write_manifest(directory: Path, result: ExportResult, options: ExportOptions) -> None:
    write_manifest(
        directory,
        command="export-onnx",
        model=result.model,
        source={"path": relative_source(result.source_dir, result.output_dir)},
        options={
            "stage": options.stage,
            "sequence_length": result.shape.prompt_length,
            "max_sequence_length": result.shape.past_length + 1,
            "opset": options.opset,
            "with_functions": options.with_functions,
        },
        files=[record_file(path) for path in sorted(directory.glob("*.onnx*"))],
    )


def find_failures(
    config: ModelConfig, graphs: tuple[ExportedGraph, ...], agreement: Agreement
) -> tuple[str, ...]:
    """Return a line for each thing that is wrong; a NaN difference is too large."""
    # One int8 node for each linear of the layers; a float directory has none.
    expected = len(LAYER_LINEARS) * config.num_hidden_layers if config.quantization_bit else 0
    failures = [
        f"the {graph.stage} graph has {graph.num_custom_nodes} int8 nodes, expected {expected}"
        for graph in graphs
        if graph.num_custom_nodes != expected
    ]
    if not agreement.max_difference <= MAX_DIFFERENCE:
        failures.append(
            f"a logit differs by {agreement.max_difference:.1e} of the range, the limit is "
            f"{MAX_DIFFERENCE}"
        )
    if agreement.same_top1 != agreement.num_tokens:
        failures.append(
            f"the top token is the same for {agreement.same_top1} of {agreement.num_tokens}"
        )
    return tuple(failures)
