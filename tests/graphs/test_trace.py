"""The exported graphs: the operators of transformers 4.37, in its order and with its shapes."""

from __future__ import annotations

import importlib.util
import sys

import onnx
import pytest
from canonical import FIXTURE, SIZES, STAGES, canonical_nodes, export, randomize
from texts import SOURCE_DIR, read_json

REFERENCE = read_json(FIXTURE)
# The one difference on purpose: the compiler's insert_slice cuts the prefill graph to its last
# position before the head, whose two nodes then work on one position.
ALLOWED_TAIL = {
    "prefill": (
        [["MatMul", [1, 16, 256]], ["Cast", [1, 16, 256]]],
        [["Slice", [1, 1, 64]], ["MatMul", [1, 1, 256]], ["Cast", [1, 1, 256]]],
    ),
}


@pytest.fixture(scope="module")
def modeling():
    """Our modeling file, loaded as a plain file."""
    name = "graph_test_modeling_qwen2_vacc"
    path = SOURCE_DIR / "modeling_qwen2_vacc.py"
    spec = importlib.util.spec_from_file_location(name, path)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    yield sys.modules.pop(name)


def make_model(modeling, stage, **changes):
    config = modeling.Qwen2Config(**{**SIZES, **changes}, insert_slice=True)
    config.iter_num = int(stage != "prefill")
    config._attn_implementation = "eager"
    return randomize(modeling.Qwen2ForCausalLM(config))


@pytest.mark.parametrize("stage", STAGES)
def test_graph_has_the_operators_of_transformers_4_37_in_its_order(modeling, tmp_path, stage):
    found = canonical_nodes(export(make_model(modeling, stage), stage, tmp_path / "model.onnx"))
    expected = REFERENCE[stage]
    theirs, ours = ALLOWED_TAIL.get(stage, ([], []))
    if theirs:
        assert expected[-len(theirs) :] == theirs
        expected = expected[: -len(theirs)] + ours
    assert found == expected


@pytest.mark.parametrize("stage", STAGES)
def test_file_does_not_grow_with_the_context(modeling, tmp_path, stage):
    sizes = []
    for context in (64, 131072):
        path = tmp_path / f"{context}.onnx"
        export(make_model(modeling, stage, max_position_embeddings=context), stage, path)
        sizes.append(path.stat().st_size)
    assert sizes[0] == sizes[1] < 1_000_000


@pytest.mark.parametrize("stage", STAGES)
def test_graph_has_no_control_flow_and_static_shapes(modeling, tmp_path, stage):
    model = export(make_model(modeling, stage), stage, tmp_path / "model.onnx")
    assert not {"If", "Loop", "Scan"} & {node.op_type for node in model.graph.node}
    for value in (*model.graph.input, *model.graph.output):
        assert all(dim.dim_value > 0 for dim in value.type.tensor_type.shape.dim), value.name
    onnx.checker.check_model(model, full_check=True)
