"""What ``export-onnx`` is asked and what it answers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.graphs.compare import Agreement
from vacc_deploy.graphs.trace import MAX_INLINE_BYTES, MAX_OPSET, STAGES, GraphShape
from vacc_deploy.results import format_bytes, format_pairs, format_seconds, format_table

MAX_STEPS = 8


@dataclass(frozen=True)
class ExportOptions:
    """What to export.

    Attributes:
        stage: ``prefill``, ``decode`` or ``both``.
        sequence_length: tokens of the prefill graph.
        max_sequence_length: tokens that the decode graph sees, the new one included; default
            twice ``sequence_length``, at most the model's context.
        opset: version of the standard operators, 11 to 17.
        with_functions: keep the local function that says what the int8 operator is.
        num_steps: decode steps to compare; fewer where the decode graph is too short.
        max_inline_bytes: the most bytes of weights to hold in the graph's own file.
    """

    stage: str = "both"
    sequence_length: int = 1024
    max_sequence_length: int | None = None
    opset: int = MAX_OPSET
    with_functions: bool = True
    num_steps: int = MAX_STEPS
    max_inline_bytes: int = MAX_INLINE_BYTES

    @property
    def stages(self) -> tuple[str, ...]:
        """The graphs to write."""
        return STAGES if self.stage == "both" else (self.stage,)


@dataclass(frozen=True)
class ExportedGraph:
    """One graph: its files with their bytes, its nodes, and how many are the int8 operator.

    A dry run knows neither nodes nor seconds.
    """

    stage: str
    files: tuple[tuple[str, int], ...]
    num_nodes: int | None = None
    num_custom_nodes: int | None = None
    seconds: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        return {
            "stage": self.stage,
            "files": [{"name": name, "bytes": size} for name, size in self.files],
            "nodes": self.num_nodes,
            "custom_nodes": self.num_custom_nodes,
            "seconds": None if self.seconds is None else round(self.seconds, 3),
        }


@dataclass(frozen=True)
class ExportResult:
    """What ``export_onnx`` wrote and how it compares; ``agreement`` is None in a dry run.

    Attributes:
        graphs: what was written, or would be.
        peak_memory_bytes: largest resident size of this process so far.
        failures: a line for each thing that is wrong.
        notes: by which rules the directory is read; in a dry run also what the run itself would be
            refused for.
    """

    model: str
    source_dir: Path
    output_dir: Path
    shape: GraphShape
    opset: int
    graphs: tuple[ExportedGraph, ...] = ()
    agreement: Agreement | None = None
    peak_memory_bytes: int = 0
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``--json``."""
        values: dict[str, Any] = {
            "model": self.model,
            "source_dir": str(self.source_dir),
            "output_dir": str(self.output_dir),
            "dry_run": self.agreement is None,
            "prefill_length": self.shape.prompt_length,
            "past_length": self.shape.past_length,
            "opset": self.opset,
            "graphs": [graph.to_dict() for graph in self.graphs],
            "notes": list(self.notes),
        }
        if self.agreement is not None:
            largest = self.agreement.max_difference
            values |= {
                "tokens_compared": self.agreement.num_tokens,
                "max_difference": largest if math.isfinite(largest) else None,
                "same_top1": self.agreement.same_top1,
                "peak_memory_bytes": self.peak_memory_bytes,
                "passed": not self.failures,
                "failures": list(self.failures),
            }
        return values

    def to_text(self) -> str:
        """Return the graphs as a table, and the comparison."""
        if self.agreement is None:
            files = [
                (name, format_bytes(size)) for graph in self.graphs for name, size in graph.files
            ]
            text = f"Would export {self.model} to {self.output_dir}\n"
            text += format_table(("file", "size"), files)
            return text + "".join(f"\nNote: {note}" for note in self.notes)
        rows: list[tuple[object, ...]] = []
        for graph in self.graphs:
            seconds = format_seconds(graph.seconds or 0.0)
            figures = (graph.num_nodes, graph.num_custom_nodes, seconds)
            for index, (name, size) in enumerate(graph.files):
                # The graph's figures stand once, beside its first file.
                rows.append((name, format_bytes(size), *(("", "", "") if index else figures)))
        table = format_table(("file", "size", "nodes", "int8 nodes", "seconds"), rows)
        text = f"Exported {self.model} to {self.output_dir}\n{table}"
        compared = self.agreement.num_tokens
        shape = self.shape
        pairs = [
            ("prefill length, past length", f"{shape.prompt_length}, {shape.past_length}"),
            ("compared with torch", f"{compared} tokens"),
            ("largest difference", f"{self.agreement.max_difference:.1e} of the logits' range"),
            ("same top token", f"{self.agreement.same_top1} of {compared}"),
            ("peak memory", format_bytes(self.peak_memory_bytes)),
        ]
        text += f"\n\n{format_pairs(pairs)}"
        return text + "".join(f"\nFailed: {failure}" for failure in self.failures)
