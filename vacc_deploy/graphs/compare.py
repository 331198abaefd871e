"""Run exported graphs in onnxruntime and compare them with the model they were traced from.

One decode graph serves every step. Its past has a fixed length: the states so far stand at its
right end, ``attention_mask`` hides the rest, and the oldest position of what the graph returns is
dropped before the next step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from vacc_deploy.graphs.trace import GraphShape, StageGraph, compiled_as, state_names

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Reference:
    """What torch computes: the prompt, then one token after the other, each the most likely.

    Attributes:
        prompt: int64 [1, prompt].
        tokens: ids fed to the decode steps.
        logits: logits [vocab_size] after the prompt's last token, then after each of ``tokens``.
        states: key and value of each layer after the prompt, [1, heads, prompt, head_dim].
    """

    prompt: Array
    tokens: tuple[int, ...]
    logits: tuple[Array, ...]
    states: tuple[Array, ...]


@dataclass(frozen=True)
class Agreement:
    """How far the graphs are from torch.

    Attributes:
        num_tokens: logit vectors compared.
        max_difference: largest |difference| of a logit over the range of the logits (largest
            less smallest) of that vector in torch.
        same_top1: vectors with the same largest logit.
    """

    num_tokens: int
    max_difference: float
    same_top1: int


def run_reference(model: Any, prompt: torch.Tensor, num_steps: int) -> Reference:
    """Run the model in torch on a prompt [1, prompt], without padding or a fixed length."""
    graph, tokens, vectors = StageGraph(model), [], []
    with torch.inference_mode():
        with compiled_as(model, "prefill"):
            # logits [1, 1, vocab_size]; past: two a layer, each [1, heads, prompt, head_dim].
            logits, *past = graph(prompt)
        states = tuple(tensor.numpy() for tensor in past)
        vectors.append(logits[0, -1].numpy())
        with compiled_as(model, "decode"):
            for step in range(num_steps):
                tokens.append(int(vectors[-1].argmax()))
                position = torch.tensor([[prompt.shape[1] + step]])
                # Each step adds a position: [1, heads, past + 1, head_dim]. No padding, so no mask.
                logits, *past = graph(torch.tensor([tokens[-1:]]), None, position, *past)
                vectors.append(logits[0, -1].numpy())
    return Reference(prompt.numpy(), tuple(tokens), tuple(vectors), states)


def compare_graphs(files: Mapping[str, Path], shape: GraphShape, reference: Reference) -> Agreement:
    """Run the graphs on the reference's tokens and compare the logits.

    ``files`` are ``prefill`` and ``decode``, or one: decode alone starts from torch's states.
    """
    got, wanted, states = [], [], reference.states
    if "prefill" in files:
        logits, *found = open_session(files["prefill"]).run(None, {"input_ids": reference.prompt})
        got, wanted, states = [logits[0, -1]], [reference.logits[0]], tuple(found)
    if "decode" in files:
        got += _run_decode(files["decode"], shape, states, reference.tokens)
        wanted += reference.logits[1:]
    pairs = list(zip(wanted, got, strict=True))
    # Relative to the range of the vector's logits, which differs from model to model.
    differences = [float(np.abs(w - g).max() / np.ptp(w)) for w, g in pairs]
    # NaN never agrees, and max() would pass over it.
    largest = max(differences) if np.isfinite(differences).all() else float("nan")
    same = sum(int(w.argmax()) == int(g.argmax()) for w, g in pairs)
    return Agreement(len(pairs), largest, same)


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Open a graph as it is: folding its constants would hold the int8 weights as floats."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _run_decode(
    path: Path, shape: GraphShape, states: tuple[Array, ...], tokens: tuple[int, ...]
) -> list[Array]:
    """Return the logits [vocab_size] of each step."""
    session, vectors = open_session(path), []
    names = state_names("past_key_values", shape.num_layers)
    num_valid = states[0].shape[2]
    # [1, heads, prompt, head_dim] -> [1, heads, past, head_dim], the states at the right end
    padding = ((0, 0), (0, 0), (shape.past_length - num_valid, 0), (0, 0))
    past = [np.pad(state, padding) for state in states]
    for token in tokens:
        mask = np.zeros((1, shape.past_length + 1), dtype=np.int64)
        # The states so far and, in the last column, the token itself.
        mask[:, shape.past_length - num_valid :] = 1
        feeds = {
            "input_ids": np.array([[token]]),
            "attention_mask": mask,
            # Counted from the prompt's first token, not from the left end of the padded past.
            "position_ids": np.array([[num_valid]]),
            **dict(zip(names, past, strict=True)),
        }
        logits, *presents = session.run(None, feeds)
        vectors.append(logits[0, -1])  # [1, 1, vocab_size] -> [vocab_size]
        # [1, heads, past + 1, head_dim]: drop the oldest, which is padding while there is any.
        past, num_valid = [state[:, :, 1:] for state in presents], num_valid + 1
    return vectors
