"""Trace a model into the two graphs that a compiler builds, and write them as ONNX files.

The exporter is torch's TorchScript one: the only one that knows the ``symbolic`` of our int8 op.
This module knows models, tensors and files; ``export`` knows which directory, which lengths and
what to compare.
"""

from __future__ import annotations

import inspect
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import nn

from vacc_deploy.errors import ExportError
from vacc_deploy.outputs.file_system import naming

STAGES = ("prefill", "decode")
DOMAIN, OPERATOR = "Vastai", "QuantizedLinearPerChannel"
MIN_OPSET, MAX_OPSET = 11, 17
# Weights above this go to one file beside the graph: a protobuf file ends at 2 GiB.
MAX_INLINE_BYTES = 1 << 30
MIN_EXTERNAL_BYTES = 1024  # smaller tensors stay in the graph's own file


@dataclass(frozen=True)
class GraphShape:
    """The static sizes of the two graphs.

    Attributes:
        prompt_length: tokens that the prefill graph takes.
        past_length: positions of the decode graph's past; it sees one token more.
    """

    prompt_length: int
    past_length: int
    num_layers: int
    num_key_value_heads: int
    head_dim: int


class StageGraph(nn.Module):
    """A model whose inputs and outputs are plain tensors, as an exporter wants them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        *past: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        """Return the last position's logits, then key and value of every layer.

        Args:
            input_ids: int64 [1, seq].
            attention_mask: int64 [1, past + seq], 0 on padding; None when nothing is padding.
            position_ids: int64 [1, seq]; None to count from 0.
            past: key, value, key, value, ... each [1, heads, past, head_dim]; none in prefill.
        Returns:
            logits [1, 1, vocab_size]; each state [1, heads, past + seq, head_dim].
        """
        if not is_ours(self.model):
            return run_library_model(self.model, input_ids, attention_mask, position_ids, past)
        logits, presents = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            # [key, value, key, value, ...] -> a pair for each layer; None in prefill.
            past_key_values=tuple(zip(past[::2], past[1::2], strict=True)) or None,
            use_cache=True,
            return_dict=False,
        )
        return logits, *(states for layer in presents for states in layer)


def is_ours(model: Any) -> bool:
    """Return whether this is our modeling file, which takes and returns tuples."""
    return hasattr(model.config, "iter_num")


def run_library_model(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    past: tuple[torch.Tensor, ...],
) -> tuple[torch.Tensor, ...]:
    """Do what ``StageGraph.forward`` says with transformers' Llama.

    The mask is made here, 4-D: how transformers makes its own differs from version to version,
    and some ways cannot be traced.
    """
    from transformers import DynamicCache

    cache = DynamicCache()
    for idx in range(0, len(past), 2):
        # Two tensors a layer, key before value.
        cache.update(past[idx], past[idx + 1], idx // 2)
    past_length = past[0].shape[2] if past else 0
    # Newer 5.x renamed the argument.
    names = inspect.signature(model.model.forward).parameters
    cache_name = "cache" if "cache" in names else "past_key_values"
    output = model.model(
        input_ids,
        attention_mask=additive_mask(model.dtype, input_ids.shape[1], past_length, attention_mask),
        position_ids=position_ids,
        use_cache=True,
        **{cache_name: cache},
    )
    # [1, seq, hidden] -> [1, 1, vocab_size]: the last position only.
    logits = model.lm_head(output.last_hidden_state[:, -1:, :]).float()
    if hasattr(cache, "layers"):
        return logits, *(s for layer in cache.layers for s in (layer.keys, layer.values))
    pairs = zip(cache.key_cache, cache.value_cache, strict=True)  # transformers before 4.54
    return logits, *(states for pair in pairs for states in pair)


def additive_mask(
    dtype: torch.dtype, seq: int, past_length: int, attention_mask: torch.Tensor | None
) -> torch.Tensor:
    """Return [1, 1, seq, past + seq]: 0 where a query sees a key, else the lowest number.

    ``attention_mask`` is for a single query; several see all keys up to their own.
    """
    lowest = torch.finfo(dtype).min
    if attention_mask is not None:
        padding = 1.0 - attention_mask[:, None, None, :].to(dtype)  # [1, 1, 1, past + seq]
        # 1 on padding, which becomes the lowest number; 0 on what is seen stays.
        return padding.masked_fill(padding.to(torch.bool), lowest)
    # Query i sees the keys 0 to past + i: behind them `triu` leaves the lowest number.
    mask = torch.full((int(seq), int(past_length + seq)), lowest, dtype=dtype)
    # `.data` is not traced: the graph holds the numbers, not the nodes that make them.
    # [seq, past + seq] -> [1, 1, seq, past + seq]
    return mask.triu(int(past_length) + 1).data[None, None]


def trace_graph(model: Any, stage: str, shape: GraphShape, opset: int, work: Path) -> Any:
    """Return the ONNX model of one stage, its weights in memory.

    Args:
        model: a causal language model in evaluation mode, on the CPU.
        stage: ``prefill`` or ``decode``.
        shape: the static sizes.
        opset: version of the standard operators.
        work: an existing directory for the exporter's files, which are removed.

    Raises:
        ExportError: the exporter refuses the model.
    """
    with tempfile.TemporaryDirectory(dir=work) as folder:
        path = Path(folder) / "model.onnx"
        caught = warnings.catch_warnings()
        with naming(path), torch.no_grad(), compiled_as(model, stage), caught:
            # Static sizes become constants on purpose; what they compute is compared afterwards.
            warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx")
            # The exporter prints a graph that it refuses. stdout belongs to the result.
            set_log_stream = getattr(torch._C, "_jit_set_onnx_log_output_stream", None)
            if set_log_stream is not None:
                set_log_stream("stderr")
            inputs, names = stage_inputs(stage, shape)
            try:
                torch.onnx.export(
                    StageGraph(model).eval(),
                    inputs,
                    str(path),
                    dynamo=False,
                    opset_version=opset,
                    input_names=names,
                    output_names=["logits", *state_names("present", shape.num_layers)],
                )
            except torch.onnx.errors.OnnxExporterError as err:
                raise ExportError(
                    f"torch cannot export the {stage} graph with opset {opset}: {err}. "
                    f"Try --opset {MAX_OPSET}."
                ) from err
        graph = onnx.load(path)
    share_constants(graph)
    return graph


def share_constants(model: Any) -> None:
    """Store equal constants once: the exporter gives each layer its own rotary tables.

    The nodes that use them stay as they are.
    """
    graph, remaining = model.graph, []
    shared: dict[tuple[Any, ...], str] = {}
    renamed: dict[str, str] = {}
    for node in graph.node:
        value = node.attribute[0].t if node.op_type == "Constant" else None
        if value is None or len(value.raw_data) < MIN_EXTERNAL_BYTES:
            remaining.append(node)
            continue
        (name,) = node.output
        first = shared.setdefault((value.data_type, tuple(value.dims), value.raw_data), name)
        if first == name:
            graph.initializer.add().CopyFrom(value)
            graph.initializer[-1].name = name
        renamed[name] = first
    for node in remaining:
        for idx, name in enumerate(node.input):
            node.input[idx] = renamed.get(name, name)
    del graph.node[:]
    graph.node.extend(remaining)


@contextmanager
def compiled_as(model: Any, stage: str) -> Iterator[None]:
    """Set the compiler's two switches of our modeling file for a stage, and set them back.

    Its ``iter0`` is the prefill graph and ``iter1`` the decode graph.
    """
    if not is_ours(model):
        yield
        return
    config = model.config
    before = config.insert_slice, config.iter_num
    config.insert_slice, config.iter_num = True, STAGES.index(stage)
    try:
        yield
    finally:
        config.insert_slice, config.iter_num = before


def stage_inputs(stage: str, shape: GraphShape) -> tuple[tuple[torch.Tensor, ...], list[str]]:
    """Return example inputs of a stage, and their names."""
    if stage == "prefill":
        return (torch.zeros(1, shape.prompt_length, dtype=torch.int64),), ["input_ids"]
    token = torch.zeros(1, 1, dtype=torch.int64)
    mask = torch.ones(1, shape.past_length + 1, dtype=torch.int64)
    sizes = (1, shape.num_key_value_heads, shape.past_length, shape.head_dim)
    # Key and value of each layer, float32 [1, heads, past, head_dim].
    past = tuple(torch.zeros(sizes) for _ in range(2 * shape.num_layers))
    names = ["input_ids", "attention_mask", "position_ids"]
    names += state_names("past_key_values", shape.num_layers)
    # The last position that the graph has: its past is full.
    position = torch.full((1, 1), shape.past_length)
    return (token, mask, position, *past), names


def state_names(prefix: str, num_layers: int) -> list[str]:
    """Return the names of the keys and values, as Optimum has them."""
    return [f"{prefix}.{idx}.{kind}" for idx in range(num_layers) for kind in ("key", "value")]


def add_function(model: Any) -> None:
    """Give the model a local function for the int8 operator, so that any runtime can run it.

    It says in standard operators what the operator is: ``x @ (codes * scale).T``. A compiler that
    knows the operator does not look at it.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    nodes = [
        helper.make_node("Cast", ["codes"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["numbers"], ["columns"], perm=[1, 0]),
        helper.make_node("Mul", ["columns", "scale"], ["weight"]),  # [K, N] by [N]
        helper.make_node("MatMul", ["x", "weight"], ["y"]),
    ]
    imports = [helper.make_opsetid("", opset)]
    names = ["x", "codes", "scale"]
    model.functions.append(helper.make_function(DOMAIN, OPERATOR, names, ["y"], nodes, imports))
    model.ir_version = max(model.ir_version, 8)  # the first that has model-local functions


def count_custom_nodes(model: Any) -> int:
    """Return how many nodes of the graph are the int8 operator."""
    return sum((node.domain, node.op_type) == (DOMAIN, OPERATOR) for node in model.graph.node)


def save_graph(model: Any, path: Path, max_inline_bytes: int) -> list[Path]:
    """Write a model and return its files: weights above the bound go to one file beside it.

    In that case the weights are no longer in ``model``.
    """
    stored = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if stored <= max_inline_bytes:
        with naming(path):
            onnx.save_model(model, path)
        return [path]
    data = path.with_name(f"{path.name}.data")
    with naming(data):
        onnx.save_model(
            model,
            path,
            save_as_external_data=True,
            all_tensors_to_one_file=True,
            location=data.name,
            size_threshold=MIN_EXTERNAL_BYTES,
        )
    with suppress(OSError):  # where the file system gives every file the same mode
        data.chmod(path.stat().st_mode & 0o777)  # onnx makes it readable by its owner only
    return [path, data]


def strip_functions(path: Path) -> None:
    """Take the local functions out of a written model; its weights are not touched."""
    model = onnx.load(path, load_external_data=False)
    del model.functions[:]
    with naming(path):
        onnx.save_model(model, path)
