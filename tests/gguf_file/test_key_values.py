"""Key-values literally, and the names that llama.cpp gives tensors."""

import math

import pytest
from checkpoint_builders import YARN_ROPE, build_config

from vacc_deploy.errors import UnsupportedModelError
from vacc_deploy.gguf_file.key_values import check_architecture, model_values, size_label
from vacc_deploy.models.gguf_names import gguf_names
from vacc_deploy.models.parse import parse_config


def config_of(model_type="qwen2", **kwargs):
    return parse_config(build_config(model_type=model_type, **kwargs), where="config.json")


def values_of(config, generation=None):
    return {k: v for k, (_, v) in model_values(config, "name", generation).items()}


def test_values_of_qwen2_literally():
    got = model_values(
        config_of(), "DeepSeek-R1", {"temperature": 0.6, "top_p": 0.95, "top_k": 1.5}
    )
    assert list(got.items()) == [
        ("general.architecture", ("STRING", "qwen2")),
        ("general.type", ("STRING", "model")),
        ("general.sampling.temp", ("FLOAT32", 0.6)),
        ("general.sampling.top_p", ("FLOAT32", 0.95)),
        ("general.name", ("STRING", "DeepSeek-R1")),
        ("general.size_label", ("STRING", "121K")),
        ("qwen2.block_count", ("UINT32", 2)),
        ("qwen2.context_length", ("UINT32", 131072)),
        ("qwen2.embedding_length", ("UINT32", 64)),
        ("qwen2.feed_forward_length", ("UINT32", 160)),
        ("qwen2.attention.head_count", ("UINT32", 4)),
        ("qwen2.attention.head_count_kv", ("UINT32", 2)),
        ("qwen2.rope.freq_base", ("FLOAT32", 10000.0)),
        ("qwen2.attention.layer_norm_rms_epsilon", ("FLOAT32", 1e-6)),
        ("general.file_type", ("UINT32", 7)),
        ("general.quantization_version", ("UINT32", 2)),
    ]


def test_llama_has_its_rows_and_its_rotary_size():
    got = values_of(config_of("llama"))
    assert (got["llama.vocab_size"], got["llama.rope.dimension_count"]) == (272, 16)
    assert "llama.attention.key_length" not in got and not any("scaling" in key for key in got)
    got = values_of(config_of("llama", overrides={"head_dim": 32}))
    assert got["llama.attention.key_length"] == got["llama.attention.value_length"] == 32
    assert got["llama.rope.dimension_count"] == 32


def test_scaling_is_what_llama_cpp_multiplies_with():
    linear = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
    got = values_of(config_of(overrides=linear))
    assert (got["qwen2.rope.scaling.type"], got["qwen2.rope.scaling.factor"]) == ("linear", 4.0)
    # As its makers serve DeepSeek-R1-0528-Qwen3-8B: factor 1, where llama.cpp has 0.1 ln 4 + 1.
    got = values_of(config_of("qwen3", overrides={"rope_scaling": YARN_ROPE}))
    assert got["qwen3.attention.key_length"] == 32
    assert got["qwen3.rope.scaling.original_context_length"] == 32
    assert got["qwen3.rope.scaling.attn_factor"] == pytest.approx(1 / (0.1 * math.log(4) + 1))
    plain = {key: value for key, value in YARN_ROPE.items() if key != "attn_factor"}
    got = values_of(config_of("qwen3", overrides={"rope_scaling": plain}))
    assert got["qwen3.rope.scaling.type"] == "yarn"
    assert not any(key.endswith("attn_factor") for key in got)


@pytest.mark.parametrize(
    ("model_type", "overrides", "what"),
    [
        ("qwen2", {"use_sliding_window": True, "max_window_layers": 0}, "a sliding window of 4096"),
        ("qwen3", {"attention_bias": True}, "biases of the attention"),
        ("qwen3", {"rope_scaling": YARN_ROPE | {"beta_fast": 16}}, "yarn with beta_fast 16 and"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(model_type, overrides, what):
    with pytest.raises(UnsupportedModelError) as caught:
        check_architecture(config_of(model_type, overrides=overrides))
    assert str(caught.value).startswith("llama.cpp would not compute what this model computes.")
    assert what in str(caught.value)
    check_architecture(config_of(model_type))


def test_size_label_is_that_of_the_library():
    utility = pytest.importorskip("gguf.utility")
    for count in (500, 12_345, 999_999, 10**6, 134_515_008, 1_777_088_000, 70_553_706_496, 10**13):
        assert size_label(count) == utility.size_label(count, count, 0, 0)


@pytest.mark.parametrize(
    ("model_type", "arch"), [("qwen2", "QWEN2"), ("llama", "LLAMA"), ("qwen3", "QWEN3")]
)
def test_names_are_those_of_the_library_s_map(model_type, arch):
    gguf = pytest.importorskip("gguf")
    overrides = {"attention_bias": True, "mlp_bias": True} if model_type == "llama" else {}
    config = config_of(model_type, overrides=overrides)
    their_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch], config.num_hidden_layers)
    for name, got in gguf_names(config).items():
        assert got == their_map.get_name(name, try_suffixes=(".weight", ".bias"))
