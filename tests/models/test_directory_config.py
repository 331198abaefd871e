"""The files beside the weights of each layout, and how a configuration names its layout."""

import copy
import json

import pytest
from checkpoint_builders import build_config, write_checkpoint

from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.formats.layouts import FORMATS, LAYOUTS, recognize
from vacc_deploy.models.directory_config import check_format, format_files, format_source_files
from vacc_deploy.models.parse import parse_config, read_config
from vacc_deploy.prepare import prepare

EXPECTED_GPTQ = {
    "bits": 8,
    "group_size": -1,
    "desc_act": False,
    "static_groups": False,
    "sym": True,
    "lm_head": False,
    "true_sequential": True,
    "damp_percent": 0.01,
    "quant_method": "gptq",
    "checkpoint_format": "gptq",
    "pack_dtype": "int32",
}


def files_of(tmp_path, layout, model_type="qwen2", *, prepared=False, **overrides):
    source = write_checkpoint(
        tmp_path / "model", model_type=model_type, config_overrides=overrides or None
    )
    if prepared:
        source = prepare(weights=source, output=tmp_path / "prepared").output_dir
    config = read_config(source)
    files = format_files(layout, config, source)
    return config, {name: json.loads(text) for name, text in files.items()}


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_gptq_configuration(tmp_path, model_type):
    overrides = {"auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    config, files = files_of(tmp_path, "gptq", model_type, **overrides)
    assert files.keys() == {"config.json", "quantize_config.json"}
    stated = files["config.json"].pop("quantization_config")
    assert stated == files["quantize_config.json"]
    assert stated.pop("meta")["quantizer"][0].startswith("vacc-deploy:")
    assert stated == EXPECTED_GPTQ
    raw = {key: value for key, value in config.raw.items() if key != "auto_map"}
    assert files["config.json"] == {**raw, "torch_dtype": "float16"}
    assert format_source_files("gptq", config) == ()


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_compressed_tensors_configuration(tmp_path, model_type):
    overrides = {"auto_map": {"AutoConfig": "evil.Config"}, "dtype": "bfloat16"}
    config, files = files_of(tmp_path, "compressed-tensors", model_type, **overrides)
    assert files.keys() == {"config.json"}
    stated = files["config.json"].pop("quantization_config")
    # What stock transformers make of it is in tests/formats/test_consumers.py.
    assert stated == LAYOUTS["compressed-tensors"].config
    assert "auto_map" not in files["config.json"]
    assert files["config.json"]["torch_dtype"] == files["config.json"]["dtype"] == "float16"
    assert format_source_files("compressed-tensors", config) == ()


@pytest.mark.parametrize("prepared", [False, True])
def test_vamc_configuration_of_qwen2(tmp_path, prepared):
    config, files = files_of(tmp_path, "vamc", prepared=prepared)
    assert files.keys() == {"config.json", "config_vacc.json"}
    assert files["config.json"] == {**config.raw, "torch_dtype": "float16"}
    for values in files.values():
        assert values["torch_dtype"] == "float16"
        assert not {"quantization_bit", "quantization_config"} & values.keys()
    assert files["config_vacc.json"]["insert_slice"] is True
    assert len(format_source_files("vamc", config)) == 3


def test_vamc_configuration_of_llama(tmp_path):
    config, files = files_of(tmp_path, "vamc", "llama")
    assert files == {"config.json": {**config.raw, "torch_dtype": "float16"}}
    assert format_source_files("vamc", config) == format_source_files("int8", config) == ()


@pytest.mark.parametrize("layout", FORMATS)
def test_the_compiler_s_file_is_beside_the_layouts_that_it_reads(tmp_path, layout):
    _, files = files_of(tmp_path, layout)
    assert ("config_vacc.json" in files) is LAYOUTS[layout].for_compiler


@pytest.mark.parametrize("layout", ["int8", "vamc"])
def test_a_config_vacc_of_another_model_is_refused(tmp_path, layout):
    source = write_checkpoint(tmp_path / "model")
    source = prepare(weights=source, output=tmp_path / "prepared").output_dir
    path = source / "config_vacc.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_size": 128}))
    with pytest.raises(CheckpointError, match="config_vacc.json is not what vacc-deploy writes"):
        format_files(layout, read_config(source), source)


@pytest.mark.parametrize("layout", ["gptq", "compressed-tensors", "gguf"])
def test_recognize_takes_this_tool_s_layouts_of_any_version(layout):
    stated = copy.deepcopy(LAYOUTS[layout].config)
    assert recognize(stated) == layout
    if layout == "gptq":
        stated["meta"]["quantizer"] = ["vacc-deploy:99.0"]
        assert recognize(stated) == "gptq"


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        ("gptq", {"group_size": 128}),
        ("gptq", {"desc_act": True}),
        ("gptq", {"checkpoint_format": "gptq_v2"}),
        ("gptq", {"meta": {"quantizer": ["gptqmodel:7.7.0"]}}),
        ("gptq", {"meta": {"quantizer": "vacc-deploy:0.1"}}),
        ("gptq", {"meta": None}),
        ("compressed-tensors", {"format": "int-quantized"}),
        ("compressed-tensors", {"ignore": []}),
        ("compressed-tensors", {"config_groups": {"group_0": []}}),
        ("gguf", {"format": "q4_0"}),
        ("gguf", {"meta": {"quantizer": ["llama.cpp"]}}),
    ],
)
def test_a_foreign_quantization_is_refused(layout, change):
    stated = {**LAYOUTS[layout].config, **change}
    assert recognize(stated) is None
    with pytest.raises(UnsupportedModelError, match=f"quant_method '{layout}'.*quantized already"):
        parse_config(build_config(overrides={"quantization_config": stated}), where="c.json")


def test_the_config_names_its_layout():
    for layout in ("gptq", "compressed-tensors"):
        raw = build_config(overrides={"quantization_config": LAYOUTS[layout].config})
        config = parse_config(raw, where="c.json")
        assert (config.quantization_format, config.quantization_bit) == (layout, 0)
    config = parse_config(build_config(overrides={"quantization_bit": 8}), where="c.json")
    assert (config.quantization_format, config.quantization_bit) == ("int8", 8)
    config = parse_config(build_config(), where="c.json")
    assert (config.quantization_format, config.quantization_bit) == ("", 0)


def test_check_format_lists_what_gptq_cannot_hold():
    odd = parse_config(build_config(intermediate_size=162), where="c.json")
    check_format("compressed-tensors", odd)
    check_format("gptq", parse_config(build_config(), where="c.json"))
    with pytest.raises(UnsupportedModelError) as caught:
        check_format("gptq", odd)
    assert str(caught.value) == (
        "The gptq layout holds linears [out_features, in_features] with out_features a multiple of "
        "4 and in_features a multiple of 4. These are others:\n"
        "  - down_proj: [64, 162]\n  - gate_proj: [162, 64]\n  - up_proj: [162, 64]\n"
        "Use another --format."
    )


def test_check_format_asks_gguf_for_blocks_of_32_inputs_only():
    """SmolLM2 has 192 key rows; any number of rows does."""
    odd_rows = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 24}
    config = build_config(model_type="llama", overrides={**odd_rows, "hidden_size": 96})
    check_format("gguf", parse_config(config, where="c.json"))
    config = build_config(model_type="llama", intermediate_size=48)
    with pytest.raises(UnsupportedModelError) as caught:
        check_format("gguf", parse_config(config, where="c.json"))
    assert str(caught.value) == (
        "The gguf layout holds linears [out_features, in_features] with in_features a multiple of "
        "32. These are others:\n  - down_proj: [64, 48]\nUse another --format."
    )
