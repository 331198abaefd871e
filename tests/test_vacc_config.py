import copy
import json

import pytest

from vacc_deploy.catalog import find_model
from vacc_deploy.model_config import parse_config
from vacc_deploy.vacc_config import AUTO_MAP, dump_config, needs_vacc_config, vacc_config

SOURCE = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 160,
    "max_position_embeddings": 512,
    "model_type": "qwen2",
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rope_theta": 10000,
    "sliding_window": 4096,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "vocab_size": 512,
}


def make(**changes):
    values = {**SOURCE, **changes}
    values = {key: value for key, value in values.items() if value is not ...}
    return parse_config(values, where="config.json")


def test_vacc_config_is_the_source_and_five_values():
    assert vacc_config(make()) == {
        **SOURCE,
        "sliding_window": None,
        "auto_map": {
            "AutoConfig": "configuration_qwen2_vacc.Qwen2Config",
            "AutoModel": "modeling_qwen2_vacc.Qwen2Model",
            "AutoModelForCausalLM": "modeling_qwen2_vacc.Qwen2ForCausalLM",
        },
        "_attn_implementation": "eager",
        "insert_slice": True,
    }


def test_vacc_config_keeps_the_published_values_of_the_14b():
    values = vacc_config(find_model("Distill-Qwen-14B").config)
    assert (values["rms_norm_eps"], values["rope_theta"], values["eos_token_id"]) == (
        1e-05,
        1000000.0,
        151643,
    )


@pytest.mark.parametrize("flag", [False, None, ...])
def test_vacc_config_without_a_used_window_sets_it_null(flag):
    assert vacc_config(make(use_sliding_window=flag))["sliding_window"] is None


def test_vacc_config_without_the_key_writes_null_because_the_class_default_is_4096():
    values = vacc_config(make(sliding_window=..., use_sliding_window=...))
    assert "sliding_window" in values
    assert values["sliding_window"] is None


def test_vacc_config_with_a_used_window_keeps_it():
    values = vacc_config(make(use_sliding_window=True, sliding_window=128))
    assert values["sliding_window"] == 128


def test_vacc_config_repeats_the_names_of_transformers_5_for_older_versions():
    parameters = {"rope_type": "default", "rope_theta": 1000000.0}
    config = make(rope_theta=..., torch_dtype=..., rope_parameters=parameters, dtype="float16")
    values = vacc_config(config)
    assert (values["rope_theta"], values["torch_dtype"]) == (1000000.0, "float16")
    assert "rope_scaling" not in values
    assert values["rope_parameters"] == parameters
    again = parse_config(
        {k: v for k, v in values.items() if k not in ("rope_parameters", "dtype")}, where="x"
    )
    assert (again.rope_theta, again.dtype) == (config.rope_theta, config.dtype)


def test_vacc_config_writes_rope_scaling_when_it_is_not_the_default():
    parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}
    values = vacc_config(make(rope_theta=..., rope_parameters=parameters))
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}
    assert values["rope_theta"] == 5000.0


def test_vacc_config_int8_adds_quantization_bit_only_then():
    assert vacc_config(make(), quantization_bit=8)["quantization_bit"] == 8
    assert "quantization_bit" not in vacc_config(make())


def test_vacc_config_never_carries_a_foreign_quantization_config():
    config = make(quantization_bit=8, quantization_config={"quant_method": "gptq"})
    assert "quantization_config" not in vacc_config(config, quantization_bit=8)
    assert "quantization_bit" not in vacc_config(config)


def test_vacc_config_changes_no_input_and_shares_nothing():
    config = make()
    before = copy.deepcopy(config.raw)
    values = vacc_config(config)
    values["architectures"].append("x")
    values["auto_map"].clear()
    assert config.raw == before
    assert len(AUTO_MAP) == 3


def test_vacc_config_refuses_llama_and_other_bits():
    llama = find_model("Distill-Llama-8B").config
    assert not needs_vacc_config(llama)
    with pytest.raises(ValueError, match="llama checkpoint needs no config_vacc.json"):
        vacc_config(llama)
    with pytest.raises(ValueError, match="must be 0 or 8, got 4"):
        vacc_config(make(), quantization_bit=4)


def test_dump_config_literal_text():
    text = dump_config({"b": "é", "a": None})
    assert text == '{\n  "b": "é",\n  "a": null\n}\n'
    assert json.loads(text) == {"b": "é", "a": None}
