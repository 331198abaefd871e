"""The canonical node list of a graph: what a compiler that recognises patterns sees.

Imported by the test and by ``make_reference.py``, which runs with another version of transformers.
It needs torch and onnx only.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

DATA = Path(__file__).resolve().parents[1] / "data"
# The oldest transformers that has the architecture, and its graphs.
VERSIONS = {"qwen2": "4.37", "qwen3": "4.51"}
FIXTURES = {
    name: DATA / f"{name}_graph_{version.replace('.', '_')}.json"
    for name, version in VERSIONS.items()
}
PROMPT_LENGTH, PAST_LENGTH, OPSET = 16, 16, 17
QWEN2_SIZES = {
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
}
# Queries, keys and hidden states of Qwen3 have three different widths: 96, 48 and 64.
SIZES = {"qwen2": QWEN2_SIZES, "qwen3": {**QWEN2_SIZES, "head_dim": 24}}
# prefill; decode with a padding mask and positions; decode of the next token of a full past
STAGES = ("prefill", "decode", "decode_unmasked")
# Constant: a stored number is no operator. Identity: the exporter puts one where two weights
# happen to hold equal numbers.
IGNORED = {"Constant", "Identity"}


class Traced(nn.Module):
    """A model that takes and returns tuples, with plain tensors in and out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask=None, position_ids=None, *past):
        pairs = tuple(zip(past[::2], past[1::2]))  # noqa: B905 (Python 3.8 in old environments)
        logits, presents = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=pairs or None,
            use_cache=True,
            return_dict=False,
        )
        return (logits,) + tuple(states for layer in presents for states in layer)


def randomize(model):
    """Fill every parameter with different numbers, so that no two of them are equal."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return model.eval()


def inputs_of(stage, sizes):
    """Return example inputs of a stage."""
    if stage == "prefill":
        return (torch.arange(PROMPT_LENGTH).unsqueeze(0),)
    head_dim = sizes.get("head_dim") or sizes["hidden_size"] // sizes["num_attention_heads"]
    shape = (1, sizes["num_key_value_heads"], PAST_LENGTH, head_dim)
    past = tuple(torch.zeros(shape) for _ in range(2 * sizes["num_hidden_layers"]))
    mask = None if stage == "decode_unmasked" else torch.ones(1, PAST_LENGTH + 1, dtype=torch.int64)
    return (torch.tensor([[1]]), mask, torch.tensor([[PAST_LENGTH]]), *past)


def export(model, stage, path, sizes=QWEN2_SIZES):
    """Export one stage by torch's TorchScript exporter and return the file's model."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's deprecation, the tracer's constants
        options = {"dynamo": False} if "dynamo" in torch.onnx.export.__doc__ else {}
        torch.onnx.export(
            Traced(model), inputs_of(stage, sizes), str(path), opset_version=OPSET, **options
        )
    return onnx.load(str(path))


def canonical_nodes(model):
    """Return [operator, shape of its first output] of every node that computes something.

    The graph is run for the shapes: shape inference does not see through the exporter's Expand.
    """
    feeds = {}
    for value in model.graph.input:
        kind = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        feeds[value.name] = np.ones([dim.dim_value for dim in kind.shape.dim], dtype=dtype)
    nodes = [node for node in model.graph.node if node.op_type not in IGNORED]
    results = ReferenceEvaluator(model).run([node.output[0] for node in nodes], feeds)
    return [
        [node.op_type, list(result.shape)]
        for node, result in zip(nodes, results)  # noqa: B905
    ]
