import copy
import json

import pytest

from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.models.catalog import find_model
from vacc_deploy.models.parse import parse_config
from vacc_deploy.models.vacc_config import (
    AUTO_MAP,
    check_vacc_config,
    needs_vacc_config,
    vacc_config,
    ways_to_the_card,
)

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


@pytest.mark.parametrize("flag", [False, None, ...])
def test_vacc_config_without_a_used_window_sets_it_null(flag):
    assert vacc_config(make(use_sliding_window=flag))["sliding_window"] is None
    # An absent key is 4096 in the configuration class.
    values = vacc_config(make(use_sliding_window=flag, sliding_window=...))
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


def test_vacc_config_never_carries_a_foreign_quantization_config():
    config = make(quantization_bit=8, quantization_config={"quant_method": "gptq"})
    values = vacc_config(config, quantization_bit=8)
    assert "quantization_config" not in values and values["quantization_bit"] == 8
    assert "quantization_bit" not in vacc_config(config)


def test_vacc_config_changes_no_input_and_shares_nothing():
    config = make()
    before = copy.deepcopy(config.raw)
    values = vacc_config(config)
    values["architectures"].append("x")
    values["auto_map"].clear()
    assert config.raw == before
    assert len(AUTO_MAP) == 3


def test_vacc_config_refuses_llama():
    llama = find_model("Distill-Llama-8B").config
    assert not needs_vacc_config(llama)
    with pytest.raises(ValueError, match="llama checkpoint needs no config_vacc.json"):
        vacc_config(llama)


def check(tmp_path, config, **changes):
    """Check the file that belongs to ``config`` after ``changes``; ``...`` takes a key out."""
    values = {**vacc_config(config, quantization_bit=config.quantization_bit), **changes}
    values = {key: value for key, value in values.items() if value is not ...}
    (tmp_path / "config_vacc.json").write_text(json.dumps(values))
    check_vacc_config(tmp_path, config)


WINDOW = {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 1}
ROPE_5 = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5000.0}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"quantization_bit": 8},
        WINDOW,
        {"rope_theta": ..., "torch_dtype": ..., "dtype": "float16", "rope_parameters": ROPE_5},
    ],
)
def test_check_vacc_config_accepts_what_is_written_and_harmless_keys(tmp_path, changes):
    check(tmp_path, make(**changes))
    check(tmp_path, make(**changes), my_key=1, torch_dtype="float16", initializer_range=0.5)


def test_check_vacc_config_without_the_file_and_for_llama(tmp_path):
    check_vacc_config(tmp_path, make())
    (tmp_path / "config_vacc.json").write_text("[]")
    check_vacc_config(tmp_path, find_model("Distill-Llama-8B").config)
    with pytest.raises(CheckpointError, match="holds list, expected a JSON object."):
        check_vacc_config(tmp_path, make())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_theta": 20000}, "rope_theta: got 20000.0, config.json has 10000.0"),
        ({"rms_norm_eps": None}, "rms_norm_eps: got null, expected a number"),
        ({"num_hidden_layers": 1}, "num_hidden_layers: got 1, config.json has 2"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings: got True, config.json has False"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling: got {"),
        ({"model_type": "llama"}, "model_type: got 'llama', config.json has 'qwen2'"),
        ({"auto_map": {"AutoConfig": "evil.C"}}, "auto_map: got {'AutoConfig': 'evil.C'}, "),
        ({"auto_map": ...}, "auto_map: got nothing, expected {"),
        ({"_attn_implementation": "evil/kernel"}, "_attn_implementation: got 'evil/kernel', "),
        ({"insert_slice": False}, "insert_slice: got False, expected True"),
        ({"quantization_bit": 8}, "quantization_bit: got 8, expected None"),
        ({"sliding_window": 4096}, "sliding_window: got 4096, expected None"),
        ({"sliding_window": ...}, "sliding_window: got nothing, expected None"),
        ({"use_sliding_window": True, "sliding_window": 64}, "sliding_window: got 64, "),
    ],
)
def test_check_vacc_config_names_what_differs(tmp_path, changes, message):
    with pytest.raises(CheckpointError) as caught:
        check(tmp_path, make(), **changes)
    path = tmp_path / "config_vacc.json"
    assert str(caught.value).startswith(f"{path} is not what vacc-deploy writes for this model")
    assert f"  - {message}" in str(caught.value)
    assert str(caught.value).endswith("\nPrepare the directory again.")


def test_check_vacc_config_lists_everything_at_once(tmp_path):
    config = make(**WINDOW, quantization_bit=8)
    with pytest.raises(CheckpointError) as caught:
        check(tmp_path, config, max_window_layers=0, quantization_bit=..., vocab_size=7)
    assert str(caught.value).split("\n")[1:-1] == [
        "  - max_window_layers: got 0, expected 1",
        "  - quantization_bit: got nothing, expected 8",
        "  - vocab_size: got 7, config.json has 512",
    ]


def test_check_vacc_config_refuses_what_the_configuration_class_refuses(tmp_path):
    with pytest.raises(UnsupportedModelError, match="config_vacc.json asks for rotary scaling"):
        check(tmp_path, make(), rope_scaling={"rope_type": "dynamic", "factor": 4.0})


def test_a_llama_has_fewer_ways_to_the_card():
    assert ways_to_the_card(find_model("Distill-Qwen-7B").config) == ""
    assert "int8 codes that --format int8 writes" in ways_to_the_card(
        find_model("Distill-Llama-8B").config
    )
