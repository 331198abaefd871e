"""``export-onnx``: what is in the files, that they compute what torch computes, what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from checkpoint_builders import YARN_ROPE, read_tensors, write_checkpoint, write_weights
from click.testing import CliRunner
from onnx.reference import ReferenceEvaluator
from texts import read_json
from transformers.utils import logging

from vacc_deploy.cli import cli
from vacc_deploy.errors import CheckpointError, ExportError, OutputError, UsageError
from vacc_deploy.graphs.compare import Agreement, compare_graphs, open_session, run_reference
from vacc_deploy.graphs.export import MAX_DIFFERENCE, export_onnx, find_failures
from vacc_deploy.graphs.result import ExportOptions
from vacc_deploy.graphs.trace import (
    DOMAIN,
    OPERATOR,
    STAGES,
    GraphShape,
    stage_inputs,
    trace_graph,
)
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.reference.loader import load_model

LAYERS = 2
SMALL = ExportOptions(sequence_length=16, max_sequence_length=32)
# Qwen3 with yarn, whose heads together are twice as wide as its hidden states.
CHANGES = {"qwen2": {}, "qwen3": {"rope_scaling": YARN_ROPE}, "llama": {}}
HEAD_DIMS = {"qwen2": 16, "qwen3": 32, "llama": 16}
KINDS = [(m, f) for m in CHANGES for f in ("float", "int8")]


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """Prepared and int8 directories of every architecture."""
    root, found = tmp_path_factory.mktemp("models"), {}
    for model_type, changes in CHANGES.items():
        options = {"model_type": model_type, "config_overrides": changes}
        source = write_checkpoint(root / model_type, scale=2.0, **options)
        found[model_type, "float"] = root / f"{model_type}-vacc"
        found[model_type, "int8"] = root / f"{model_type}-int8"
        prepare(weights=source, output=found[model_type, "float"])
        prepared, output = found[model_type, "float"], found[model_type, "int8"]
        quantize(prepared, options=QuantizeOptions("rtn", formats=("int8",)), output=output)
    return found


@pytest.fixture(scope="module")
def exports(directories, tmp_path_factory):
    """The result of the command for each kind of directory, made once."""
    root = tmp_path_factory.mktemp("graphs")
    return {
        kind: export_onnx(directory, output=root / "-".join(kind), options=SMALL)
        for kind, directory in directories.items()
    }


def load_graph(result, stage):
    return onnx.load(result.output_dir / f"{stage}.onnx")


# ---- what is in the files ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_export_agrees_with_torch(exports, kind):
    result = exports[kind]
    assert result.failures == ()
    assert (result.agreement.num_tokens, result.agreement.same_top1) == (9, 9)
    assert result.agreement.max_difference < 1e-5
    names = sorted(path.name for path in result.output_dir.iterdir())
    assert names == ["decode.onnx", "prefill.onnx", "vacc_deploy.json"]


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("stage", STAGES)
def test_graph_names_and_static_shapes(exports, kind, stage):
    graph = load_graph(exports[kind], stage).graph
    sizes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    expected = {"input_ids": [1, 16], "logits": [1, 1, 272]}
    length = 16
    if stage == "decode":
        length = 32
        expected |= {"input_ids": [1, 1], "attention_mask": [1, 32], "position_ids": [1, 1]}
    for layer in range(LAYERS):
        for part in ("key", "value"):
            head_dim = HEAD_DIMS[kind[0]]
            expected[f"present.{layer}.{part}"] = [1, 2, length, head_dim]
            if stage == "decode":
                expected[f"past_key_values.{layer}.{part}"] = [1, 2, 31, head_dim]
    assert sizes == expected


@pytest.mark.parametrize("model_type", CHANGES)
@pytest.mark.parametrize("stage", STAGES)
def test_int8_graph_has_seven_nodes_a_layer_and_the_bias_apart(exports, model_type, stage):
    model = load_graph(exports[model_type, "float"], stage)
    assert not model.functions and {entry.domain for entry in model.opset_import} == {""}
    model = load_graph(exports[model_type, "int8"], stage)
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    assert len(nodes) == 7 * LAYERS and {node.op_type for node in nodes} == {OPERATOR}
    added = [name for node in model.graph.node if node.op_type == "Add" for name in node.input]
    for node in nodes:
        codes, scale = stored[node.input[1]], stored[node.input[2]]
        assert codes.data_type == onnx.TensorProto.INT8 and len(codes.dims) == 2
        assert scale.data_type == onnx.TensorProto.FLOAT and list(scale.dims) == [codes.dims[0]]
        assert (len(node.input), list(node.attribute)) == (3, [])
    biased = [node for node in nodes if "_proj" in node.name and node.output[0] in added]
    assert len([n for n in biased if n.name.split("/")[-2][0] in "qkv"]) == (
        3 * LAYERS if model_type == "qwen2" else 0
    )
    assert [(f.domain, f.name) for f in model.functions] == [(DOMAIN, OPERATOR)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[0] != "llama"], ids="-".join)
def test_rotary_tables_are_stored_once_and_looked_up_in_every_layer(exports, kind):
    model = load_graph(exports[kind], "decode")
    lookups = [n for n in model.graph.node if n.op_type == "Gather" and "self_attn" in n.name]
    tables = {node.input[0] for node in lookups}
    assert len(lookups) == 2 * LAYERS and len(tables) == 2
    stored = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    assert [stored[name] for name in tables] == [[32, HEAD_DIMS[kind[0]]]] * 2


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
@pytest.mark.parametrize("stage", STAGES)
def test_onnx_s_own_reference_agrees_with_onnxruntime(exports, kind, stage):
    result = exports[kind]
    inputs, names = stage_inputs(stage, result.shape)
    generator = torch.Generator().manual_seed(0)
    feeds = {
        name: (
            torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        ).numpy()
        for name, tensor in zip(names, inputs, strict=True)
    }
    path = result.output_dir / f"{stage}.onnx"
    found = ReferenceEvaluator(str(path)).run(None, feeds)
    for left, right in zip(found, open_session(path).run(None, feeds), strict=True):
        assert np.abs(left - right).max() < 1e-4


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_decode_through_the_cache_equals_generate(directories, exports, kind):
    model, prompt = load_model(directories[kind]), (torch.arange(16).unsqueeze(0) * 7 + 3) % 272
    options = {"do_sample": False, "temperature": None, "top_p": None, "eos_token_id": None}
    options |= {"max_new_tokens": 9, "min_new_tokens": 9, "pad_token_id": 0}
    with torch.inference_mode():
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options)
    result = exports[kind]
    files = {stage: result.output_dir / f"{stage}.onnx" for stage in STAGES}
    reference = run_reference(model, prompt, 8)
    assert [*reference.tokens, int(reference.logits[-1].argmax())] == ids[0, 16:].tolist()
    agreement = compare_graphs(files, result.shape, reference)
    assert agreement.same_top1 == agreement.num_tokens == 9


def test_decode_graph_serves_until_its_past_is_full(directories, exports):
    kind = ("qwen2", "int8")
    model, prompt = load_model(directories[kind]), torch.arange(16).unsqueeze(0)
    files = {stage: exports[kind].output_dir / f"{stage}.onnx" for stage in STAGES}
    reference = run_reference(model, prompt, 16)
    agreement = compare_graphs(files, exports[kind].shape, reference)
    assert agreement.num_tokens == agreement.same_top1 == 17
    assert agreement.max_difference < 1e-5


def test_a_model_is_left_as_it_was(directories, tmp_path):
    model = load_model(directories["qwen2", "float"])
    before = model.config.to_dict()
    shape = GraphShape(16, 31, LAYERS, 2, 16)
    trace_graph(model, "decode", shape, 17, tmp_path)
    assert model.config.to_dict() == before and not any(tmp_path.iterdir())


# ---- options ----------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [11, 12, 13, 14, 15, 16])
def test_every_opset_agrees(directories, tmp_path, opset):
    options = replace(SMALL, opset=opset, num_steps=2)
    for kind in (("qwen2", "int8"), ("llama", "float")):
        output = tmp_path / kind[0]
        result = export_onnx(directories[kind], output=output, options=options)
        assert result.failures == ()
        versions = {e.domain: e.version for e in load_graph(result, "decode").opset_import}
        assert versions[""] == opset


def test_stripped_files_hold_the_same_graph_without_the_function(directories, exports, tmp_path):
    kind = ("qwen2", "int8")
    options = replace(SMALL, with_functions=False)
    result = export_onnx(directories[kind], output=tmp_path / "out", options=options)
    assert result.failures == ()
    for stage in STAGES:
        stripped, whole = load_graph(result, stage), load_graph(exports[kind], stage)
        assert not stripped.functions and stripped.graph == whole.graph
    for name, size in (file for graph in result.graphs for file in graph.files):
        assert size == (result.output_dir / name).stat().st_size


@pytest.mark.parametrize("stage", STAGES)
def test_one_stage_alone(directories, tmp_path, stage):
    options = replace(SMALL, stage=stage)
    result = export_onnx(directories["qwen2", "int8"], output=tmp_path / "out", options=options)
    assert result.failures == ()
    assert result.agreement.num_tokens == (1 if stage == "prefill" else 8)
    assert [path.name for path in result.output_dir.glob("*.onnx")] == [f"{stage}.onnx"]


def test_weights_beyond_the_bound_go_to_one_file(directories, exports, tmp_path):
    kind = ("qwen2", "int8")
    options = replace(SMALL, with_functions=False, max_inline_bytes=1000)
    result = export_onnx(directories[kind], output=tmp_path / "out", options=options)
    assert result.failures == ()
    names = [f"{stage}.onnx{end}" for stage in ("decode", "prefill") for end in ("", ".data")]
    files = {path.name: path for path in result.output_dir.iterdir()}
    assert sorted(files) == [*names, "vacc_deploy.json"]
    assert sorted(read_json(files["vacc_deploy.json"])["files"]) == names
    assert len({path.stat().st_mode for path in files.values()}) == 1
    moved = load_graph(result, "decode").graph.initializer
    inline = load_graph(exports[kind], "decode").graph.initializer
    for left, right in zip(moved, inline, strict=True):
        assert np.array_equal(onnx.numpy_helper.to_array(left), onnx.numpy_helper.to_array(right))


def test_the_same_inputs_give_the_same_bytes(directories, exports, tmp_path):
    kind = ("qwen2", "int8")
    result = export_onnx(directories[kind], output=tmp_path / "out", options=SMALL)
    for path in result.output_dir.glob("*.onnx"):
        assert path.read_bytes() == (exports[kind].output_dir / path.name).read_bytes()


def test_default_lengths_are_those_of_yaml_and_stay_in_the_context(directories, tmp_path):
    plan = export_onnx(directories["qwen2", "float"], output=tmp_path / "out", dry_run=True)
    assert (plan.shape.prompt_length, plan.shape.past_length) == (1024, 2047)
    assert plan.to_dict()["dry_run"] and not (tmp_path / "out").exists()
    text = plan.to_text()
    assert text.startswith("Would export")
    assert "nodes" not in text and "seconds" not in text and "Note" not in text
    (prefill, _) = plan.to_dict()["graphs"]
    assert prefill["nodes"] is prefill["custom_nodes"] is prefill["seconds"] is None


def test_a_dry_run_of_an_output_that_exists_says_what_the_run_needs(directories, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").touch()
    options = {"output": tmp_path / "out", "dry_run": True, "options": SMALL}
    (note,) = export_onnx(directories["qwen2", "float"], **options).notes
    assert note.startswith("without --dry-run this is refused: ") and "Give --overwrite" in note
    result = export_onnx(directories["qwen2", "float"], **options, overwrite=True)
    assert "was not written by vacc-deploy" in result.to_text()


# ---- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 24}, "--seq-len: got 24, expected a positive multiple of 16"),
        ({"max_sequence_length": 40}, "--max-seq-len: got 40, expected a positive multiple of 16"),
        ({"max_sequence_length": 16}, "--seq-len: got 16, expected less than --max-seq-len 16"),
        ({"sequence_length": 1 << 17, "max_sequence_length": None}, "less than --max-seq-len 1310"),
        ({"max_sequence_length": 131088}, "got 131088, expected at most the model's context, 1310"),
        ({"opset": 18}, "--opset: got 18, expected 11 to 17"),
    ],
)
def test_impossible_options_are_named(directories, tmp_path, options, message):
    with pytest.raises(UsageError) as caught:
        directory, options = directories["qwen2", "float"], replace(SMALL, **options)
        export_onnx(directory, output=tmp_path / "out", options=options)
    assert message in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_that_is_not_prepared_is_refused(tmp_path):
    source = write_checkpoint(tmp_path / "my source")
    with pytest.raises(CheckpointError) as caught:
        export_onnx(source, output=tmp_path / "out", options=SMALL)
    assert str(caught.value).endswith(f" Run: vacc-deploy prepare '{source}'")


def test_an_existing_output_needs_overwrite(directories, exports, tmp_path):
    output = tmp_path / "out"
    shutil.copytree(exports["qwen2", "int8"].output_dir, output)
    directory, options = directories["qwen2", "int8"], replace(SMALL, stage="prefill")
    with pytest.raises(OutputError, match="Give --overwrite"):
        export_onnx(directory, output=output, options=options)
    export_onnx(directory, output=output, options=options, overwrite=True)
    assert not (output / "decode.onnx").exists()


def test_a_model_that_cannot_be_expressed_leaves_nothing(directories, tmp_path, capfd):
    # onnx knows scaled_dot_product_attention from opset 14 on only
    model = load_model(directories["llama", "float"])
    model.set_attn_implementation("sdpa")
    shape = GraphShape(16, 31, LAYERS, 2, 16)
    with pytest.raises(ExportError, match="the prefill graph with opset 11: .*Try --opset 17"):
        trace_graph(model, "prefill", shape, 11, tmp_path)
    assert capfd.readouterr().out == "" and not any(tmp_path.iterdir())


# ---- the command ------------------------------------------------------------------------------


def run(*arguments):
    return CliRunner().invoke(cli, ["export-onnx", *(str(argument) for argument in arguments)])


def test_command_prints_one_json_object(directories, tmp_path):
    lengths = ("--seq-len", 16, "--max-seq-len", 32, "--strip-functions", "--stage", "decode")
    directory, output = directories["qwen2", "int8"], tmp_path / "out"
    logging.enable_progress_bar()  # as in a process of its own
    outcome = run(directory, "--output", output, *lengths, "--json")
    assert outcome.exit_code == 0, outcome.output
    values = json.loads(outcome.stdout)
    assert values["passed"] and values["failures"] == [] and values["same_top1"] == 8
    assert values["graphs"][0]["custom_nodes"] == 7 * LAYERS
    assert values["peak_memory_bytes"] > 0
    assert "Loading weights" not in outcome.stderr


def test_command_graph_without_agreement_is_printed_and_exits_3(tmp_path):
    source = write_checkpoint(tmp_path / "source", num_layers=1)
    prepared = prepare(source, output=tmp_path / "vacc", link_mode="copy").output_dir
    broken = {"model.norm.weight": torch.full((64,), float("nan"), dtype=torch.bfloat16)}
    write_weights(prepared, read_tensors(prepared) | broken)
    lengths = ("--seq-len", 16, "--max-seq-len", 32, "--stage", "prefill")
    outcome = run(prepared, "--output", tmp_path / "out", *lengths)
    assert outcome.exit_code == 3, outcome.output
    assert "Failed: a logit differs by nan of the range, the limit is 0.002" in outcome.stdout


# ---- the comparison sees what is wrong --------------------------------------------------------


@pytest.mark.parametrize("value", [7.0, float("nan")])
def test_a_damaged_graph_does_not_agree(directories, exports, tmp_path, value):
    kind = ("qwen2", "float")
    files = {stage: tmp_path / f"{stage}.onnx" for stage in STAGES}
    for stage, path in files.items():
        model = load_graph(exports[kind], stage)
        norm = next(
            t for t in model.graph.initializer if t.name.endswith("layers.0.input_layernorm.weight")
        )
        numbers = onnx.numpy_helper.to_array(norm).copy()
        numbers[0] = value
        norm.CopyFrom(onnx.numpy_helper.from_array(numbers, norm.name))
        onnx.save_model(model, path)
    reference = run_reference(load_model(directories[kind]), torch.arange(16).unsqueeze(0), 2)
    agreement = compare_graphs(files, exports[kind].shape, reference)
    assert not agreement.max_difference <= MAX_DIFFERENCE


def test_failures_name_a_missing_int8_node_and_what_differs(exports):
    result = exports["llama", "int8"]
    graphs = (replace(result.graphs[0], num_custom_nodes=13), result.graphs[1])
    wrong = Agreement(num_tokens=9, max_difference=0.5, same_top1=7)
    config = SimpleNamespace(quantization_bit=8, num_hidden_layers=LAYERS)
    assert find_failures(config, graphs, wrong) == (
        "the prefill graph has 13 int8 nodes, expected 14",
        "a logit differs by 5.0e-01 of the range, the limit is 0.002",
        "the top token is the same for 7 of 9",
    )
