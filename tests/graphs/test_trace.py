"""The exported graphs: the library's operators, in its order and with its shapes.

Qwen2 is held to transformers 4.37, Qwen3 to 4.51, each the oldest that has it.
"""

from __future__ import annotations

import importlib.util
import math
import sys

import onnx
import pytest
from canonical import (
    FIXTURES,
    PAST_LENGTH,
    PROMPT_LENGTH,
    SIZES,
    STAGES,
    canonical_nodes,
    export,
    randomize,
)
from texts import SOURCE_DIR, read_json

REFERENCES = {name: read_json(path) for name, path in FIXTURES.items()}
# The compiler's insert_slice cuts the prefill graph to its last position before the head, whose two
# nodes then work on one position.
HEAD = [["MatMul", [1, 1, 256]], ["Cast", [1, 1, 256]]]
KINDS = [(name, stage) for name in SIZES for stage in STAGES]
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}


def split_graph(nodes, seq):
    """Return what is before the first layer's norm, the layers with the last norm, the head."""
    first = nodes.index(["Cast", [1, seq, 64]])
    last = nodes.index(["MatMul", [1, seq, 256]])
    return nodes[:first], nodes[first:last], nodes[last:]


def expect_qwen2(stage, seq):
    """Return the list of transformers 4.37 with the one difference on purpose: the slice."""
    start, layers, head = split_graph(REFERENCES["qwen2"][stage], seq)
    assert head == [["MatMul", [1, seq, 256]], ["Cast", [1, seq, 256]]]
    return start + layers + ([["Slice", [1, 1, 64]]] if seq > 1 else []) + HEAD


def expect_qwen3(stage, seq):
    """Return the list of transformers 4.51, in which this is different on purpose.

    Its start is 4.37's: 4.51 builds its mask and the cosines and sines by nodes there. Each layer
    looks its angles up in stored tables, projects key and value next to query (which is 4.37's
    order of the same nodes), divides by a constant where 4.51 multiplies with its inverse, and adds
    the mask as it is, which 4.51 cuts to the length it has; a single query without a mask input
    needs none. The head is 4.37's, whose logits are float32 whatever the model is.
    """
    start, _, _ = split_graph(REFERENCES["qwen2"][stage], seq)
    _, layers, head = split_graph(REFERENCES["qwen3"][stage], seq)
    assert head == [["MatMul", [1, seq, 256]]]
    angles, tables = ["Unsqueeze", [1, 1, seq, 24]], ["Gather", [1, seq, 24]]
    query, key = ["MatMul", [1, seq, 96]], ["MatMul", [1, seq, 48]]
    length = PROMPT_LENGTH if stage == "prefill" else PAST_LENGTH + 1
    scores, mask = [1, 4, seq, length], ["Slice", [1, 1, seq, length]]
    value = [["Reshape", [1, seq, 2, 24]], ["Transpose", [1, 2, seq, 24]]]
    dropped = [angles, key, mask] + ([["Add", scores]] if stage == "decode_unmasked" else [])
    assert all(node in layers for node in [*dropped, query, ["Mul", scores], *value])
    nodes = []
    for node in layers:
        nodes += [] if node in dropped else [["Div", scores] if node == ["Mul", scores] else node]
        if node == query:
            nodes += [key, key]
        elif nodes[-2:] == value and node == value[-1]:
            nodes += [tables, angles, tables, angles]
    return start + nodes + ([["Slice", [1, 1, 64]]] if seq > 1 else []) + HEAD


EXPECT = {"qwen2": expect_qwen2, "qwen3": expect_qwen3}


@pytest.fixture(scope="module")
def modeling():
    """Our modeling file, loaded as a plain file."""
    name = "graph_test_modeling_qwen2_vacc"
    path = SOURCE_DIR / "modeling_qwen2_vacc.py"
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    yield sys.modules.pop(name)


def export_own(modeling, kind, path, **changes):
    name, stage = kind
    config = modeling.Qwen2Config(
        **{**SIZES[name], "model_type": name, **changes}, insert_slice=True
    )
    config.iter_num = int(stage != "prefill")
    config._attn_implementation = "eager"
    return export(randomize(modeling.Qwen2ForCausalLM(config)), stage, path, SIZES[name])


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_graph_has_the_operators_of_the_library_in_its_order(modeling, tmp_path, kind):
    name, stage = kind
    found = canonical_nodes(export_own(modeling, kind, tmp_path / "model.onnx"))
    assert found == EXPECT[name](stage, PROMPT_LENGTH if stage == "prefill" else 1)


@pytest.mark.parametrize("name", SIZES)
def test_yarn_adds_no_node(modeling, tmp_path, name):
    kind = (name, "decode")
    graphs = [
        export_own(modeling, kind, tmp_path / "model.onnx", rope_scaling=rope).graph
        for rope in (None, YARN)
    ]
    plain, scaled = ([node.op_type for node in graph.node] for graph in graphs)
    assert plain == scaled


def test_yarn_is_in_the_stored_tables_of_the_graph(modeling, tmp_path):
    found = []
    for rope in (None, YARN):
        path = tmp_path / "model.onnx"
        graph = export_own(modeling, ("qwen3", "prefill"), path, rope_scaling=rope).graph
        constants = {
            node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
            for node in graph.node
            if node.op_type == "Constant"
        }
        lookups = [node for node in graph.node if node.op_type == "Gather"]
        tables = [constants[n.input[0]] for n in lookups if n.input[0] in constants]
        found.append([table for table in tables if table.shape == (PROMPT_LENGTH, 24)])
    assert [len(tables) for tables in found] == [4, 4]
    plain, scaled = (tables[0] for tables in found)  # cosines, which are 1 at position 0
    assert (plain[0] == 1.0).all()
    assert scaled[0] == pytest.approx(0.1 * math.log(4) + 1)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_file_does_not_grow_with_the_context(modeling, tmp_path, kind):
    sizes = []
    for context in (64, 131072):
        path = tmp_path / f"{context}.onnx"
        export_own(modeling, kind, path, max_position_embeddings=context)
        sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1] < 1_000_000


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_graph_has_no_control_flow_and_static_shapes(modeling, tmp_path, kind):
    model = export_own(modeling, kind, tmp_path / "model.onnx")
    assert not {"If", "Loop", "Scan"} & {node.op_type for node in model.graph.node}
    for value in (*model.graph.input, *model.graph.output):
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim), value.name
    onnx.checker.check_model(model, full_check=True)
