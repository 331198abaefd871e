import importlib.util
import json
from pathlib import Path

import pytest
from checkpoint_builders import LLAMA3_ROPE, build_config, build_tensors

from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.models.config import LAYER_LINEARS, RopeScaling
from vacc_deploy.models.parse import parse_config, read_config


def parse(model_type="qwen2", **overrides):
    return parse_config(build_config(model_type=model_type, overrides=overrides), where="c.json")


def problems(model_type="qwen2", **overrides):
    """Return the problems, after seeing that the message names the file and what to do."""
    with pytest.raises(CheckpointError) as caught:
        parse(model_type, **overrides)
    message = str(caught.value)
    tail = "\nRestore the file from the model's original repository."
    assert message.startswith("c.json cannot be used:\n  - ")
    assert message.endswith(tail)
    lines = message.removeprefix("c.json cannot be used:\n").removesuffix(tail)
    return [line.removeprefix("  - ") for line in lines.split("\n")]


def test_qwen2_values():
    config = parse()
    assert (config.model_type, config.hidden_size, config.intermediate_size) == ("qwen2", 64, 160)
    assert (config.num_hidden_layers, config.head_dim, config.vocab_size) == (2, 16, 272)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert (config.rms_norm_eps, config.rope_theta, config.rope_scaling) == (1e-6, 10000.0, None)
    assert config.attention_bias
    assert not config.attention_output_bias
    assert not config.mlp_bias
    assert config.sliding_window is None
    assert (config.dtype, config.dtype_bytes, config.quantization_bit) == ("bfloat16", 2, 0)
    assert config.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert config.raw == build_config()


def test_llama_values():
    config = parse("llama")
    assert not config.attention_bias
    assert config.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    assert config.rope_theta == 500000.0
    biased = parse("llama", attention_bias=True)
    assert biased.attention_bias
    assert biased.attention_output_bias
    assert parse("llama", mlp_bias=True).has_bias("up_proj")
    assert parse("llama", head_dim=32).linear_shape("o_proj") == (64, 128)


def test_qwen3_values():
    config = parse("qwen3")
    assert (config.head_dim, config.has_head_norms) == (32, True)
    # The heads together are twice as wide as the hidden states.
    assert config.linear_shape("q_proj") == (128, 64)
    assert config.linear_shape("k_proj") == (64, 64)
    assert config.linear_shape("o_proj") == (64, 128)
    assert config.kv_bytes_per_token == 2 * 2 * 2 * 32 * 2
    assert not any(config.has_bias(name) for name in LAYER_LINEARS)
    assert config.layer_tensors(1)["model.layers.1.self_attn.k_norm.weight"] == (32,)
    assert list(config.expected_tensors()) == sorted(
        build_tensors(build_config(model_type="qwen3")), key=list(config.expected_tensors()).index
    )
    biased = parse("qwen3", attention_bias=True, mlp_bias=True)
    assert [n for n in LAYER_LINEARS if biased.has_bias(n)] == list(LAYER_LINEARS[:4])


def test_qwen3_defaults_are_those_of_its_class():
    config = parse("qwen3", head_dim=..., max_position_embeddings=..., rope_theta=...)
    assert (config.head_dim, config.max_position_embeddings) == (128, 32768)
    assert config.rope_theta == 10000.0
    assert parse("qwen3", hidden_size=66).hidden_size == 66  # no multiple of the heads
    assert problems("qwen3", head_dim=33) == ["head_dim 33 is odd; rotary needs pairs"]


def test_qwen2_bias_is_on_query_key_value_only_whatever_the_file_says():
    config = parse(attention_bias=False, mlp_bias=True)
    assert [n for n in LAYER_LINEARS if config.has_bias(n)] == ["q_proj", "k_proj", "v_proj"]


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("biases", [{}, {"attention_bias": True, "mlp_bias": True}])
def test_expected_tensors_are_those_of_the_model(model_type, tied, biases):
    raw = build_config(model_type=model_type, tied=tied, overrides=biases)
    config, tensors = parse_config(raw, where="c.json"), build_tensors(raw)
    expected = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    assert config.expected_tensors() == expected
    assert config.num_parameters() == sum(tensor.numel() for tensor in tensors.values())


def test_layer_tensors_in_the_order_of_use():
    names = [name.removeprefix("model.layers.1.") for name in parse().layer_tensors(1)]
    attention = [f"{n}_proj.{k}" for n in "qkv" for k in ("weight", "bias")] + ["o_proj.weight"]
    assert names == [
        "input_layernorm.weight",
        *(f"self_attn.{name}" for name in attention),
        "post_attention_layernorm.weight",
        *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    ]


def test_the_form_of_transformers_5():
    parameters = {"rope_type": "default", "rope_theta": 1000000.0}
    changes = {"rope_theta": ..., "rope_parameters": parameters}
    config = parse(torch_dtype=..., dtype="float16", **changes)
    assert (config.rope_theta, config.rope_scaling, config.dtype) == (1000000.0, None, "float16")
    parameters = {**LLAMA3_ROPE, "rope_theta": 500000.0}
    changes = {"rope_theta": ..., "rope_scaling": ..., "rope_parameters": parameters}
    assert parse("llama", **changes) == parse("llama")


def test_rope_linear_with_the_old_key_and_absent_values():
    scaling = {"type": "linear", "factor": 2}
    assert parse(rope_scaling=scaling).rope_scaling == RopeScaling("linear", 2.0)
    assert parse(rope_scaling=None, rope_theta=None).rope_theta == 10000.0


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", None, ["linear"]])
def test_another_rotary_rule_is_refused_with_the_reason(rope_type):
    with pytest.raises(UnsupportedModelError) as caught:
        parse(rope_scaling={"rope_type": rope_type, "factor": 4.0})
    assert str(caught.value) == (
        f"c.json asks for rotary scaling of type {rope_type!r}, expected one of default, linear, "
        "yarn. The compiled graph would not compute what the model computes: remove rope_scaling "
        "to use the trained context length only."
    )


def test_llama3_rope_needs_all_its_values():
    assert problems("llama", rope_scaling={"rope_type": "llama3"}) == [
        f"{key}: got None, expected a positive number"
        for key in (
            "factor",
            "high_freq_factor",
            "low_freq_factor",
            "original_max_position_embeddings",
        )
    ] + ["rope_scaling: high_freq_factor 1.0 is not above 1.0"]


def test_sliding_window_only_when_it_is_used():
    assert parse(use_sliding_window=True).sliding_window == 4096
    assert parse(use_sliding_window=True, sliding_window=...).sliding_window == 4096
    assert parse(use_sliding_window=True, sliding_window=None).sliding_window is None
    assert parse(use_sliding_window=None).sliding_window is None
    assert parse("llama", use_sliding_window=True, sliding_window=128).sliding_window is None


@pytest.mark.parametrize("model_type", ["mistral", "qwen3_moe", "Qwen2", None, 7, ["qwen2"], {}])
def test_another_model_type_is_refused_by_name(model_type):
    raw = {**build_config(), "model_type": model_type}
    with pytest.raises(UnsupportedModelError) as caught:
        parse_config(raw, where="c.json")
    assert f"c.json has model_type {model_type!r}, expected one of qwen2, qwen3, llama." in str(
        caught.value
    )


def test_a_quantized_source_is_refused_by_method():
    with pytest.raises(UnsupportedModelError) as caught:
        parse(quantization_config={"quant_method": "awq", "bits": 4})
    assert str(caught.value) == (
        "c.json has a quantization_config (quant_method 'awq'): the weights are quantized already. "
        "Start from the float checkpoint."
    )
    with pytest.raises(UnsupportedModelError, match="quant_method 'fp8'"):
        parse(quantization_config="fp8")
    both = parse(quantization_bit=8, quantization_config={"quant_method": "vacc"})
    assert both.quantization_bit == 8


WHOLE = "expected a whole number from 1 to"
WITHIN = "expected a number from 1e-30 to 1e+30"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"hidden_size": ...}, f"hidden_size: got None, {WHOLE} 65536"),
        ({"hidden_size": "64"}, f"hidden_size: got '64', {WHOLE} 65536"),
        ({"hidden_size": 64.0}, f"hidden_size: got 64.0, {WHOLE} 65536"),
        ({"num_hidden_layers": 0}, f"num_hidden_layers: got 0, {WHOLE} 1024"),
        ({"num_hidden_layers": -1}, f"num_hidden_layers: got -1, {WHOLE} 1024"),
        ({"vocab_size": 1 << 40}, f"vocab_size: got 1099511627776, {WHOLE} 4194304"),
        ({"intermediate_size": [1]}, f"intermediate_size: got [1], {WHOLE} 262144"),
        ({"head_dim": 0}, f"head_dim: got 0, {WHOLE} 8192"),
        ({"hidden_size": 66}, "hidden_size 66 is not a multiple of num_attention_heads 4"),
        ({"rms_norm_eps": 0}, "rms_norm_eps: got 0, expected a positive number"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps: got '1e-6', expected a positive number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps: got nan, expected a positive number"),
        ({"rope_theta": float("inf")}, f"rope_theta: got inf, {WITHIN}"),
        ({"rope_theta": True}, "rope_theta: got True, expected a positive number"),
        ({"rope_theta": 10**400}, f"rope_theta: got {10**79}, {WITHIN}"),
        ({"rope_theta": 1e300}, f"rope_theta: got 1e+300, {WITHIN}"),
        ({"rms_norm_eps": 1e-300}, f"rms_norm_eps: got 1e-300, {WITHIN}"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2, "x": [float("nan")]}},
            "rope_scaling: got {'rope_type': 'linear', 'factor': 2, 'x': [nan]}, expected numbers "
            "that JSON can write",
        ),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings: got 1, expected true or false"),
        ({"torch_dtype": "int8"}, "torch_dtype: got 'int8', expected float32, float16, bfloat16"),
        ({"torch_dtype": [1]}, "torch_dtype: got [1], expected float32, float16, bfloat16"),
        ({"pretraining_tp": 2}, "pretraining_tp: got 2, expected 1 (a rule of vamc)"),
    ],
)
def test_a_wrong_value_gives_key_got_and_expected(changes, problem):
    assert problems(**changes) == [problem]


def test_several_wrong_values_are_one_error():
    got = problems(hidden_size=0, vocab_size=None, rms_norm_eps=-1, torch_dtype="int4")
    keys = ["hidden_size", "rms_norm_eps", "torch_dtype", "vocab_size"]
    assert [line.partition(":")[0] for line in got] == keys


def test_absent_values_take_the_defaults_of_the_architecture():
    optional = ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "torch_dtype")
    config = parse(**dict.fromkeys(optional, ...), tie_word_embeddings=...)
    assert (config.num_key_value_heads, config.max_position_embeddings) == (4, 32768)
    assert (config.rms_norm_eps, config.dtype) == (1e-6, "float32")
    assert not config.tie_word_embeddings


def test_read_config_names_the_file(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError) as caught:
        read_config(tmp_path)
    assert str(caught.value).startswith(f"{path} is missing. Give a directory in the Hugging Face")
    path.write_text("[]")
    with pytest.raises(CheckpointError, match="config.json holds list, expected a JSON object."):
        read_config(tmp_path)
    path.write_text(json.dumps(build_config()))
    assert read_config(tmp_path) == parse()
    path.write_text(json.dumps(build_config(overrides={"hidden_size": 0})))
    with pytest.raises(CheckpointError, match="config.json cannot be used"):
        read_config(tmp_path)


# ---- what the shipped configuration class refuses, this package refuses ------------------------

WINDOW = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 1}
LINEAR = {"rope_type": "linear", "factor": 2.0}


@pytest.fixture(scope="module")
def shipped_class():
    path = Path(__file__).parents[2] / "source_code" / "configuration_qwen2_vacc.py"
    spec = importlib.util.spec_from_file_location("shipped_configuration_parity", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Qwen2Config


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"head_dim": 16},
        {"head_dim": None, "num_key_value_heads": None},
        {"rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_theta": ..., "rope_parameters": {"rope_theta": 5000.0}},
        {"rope_theta": 5000, "rope_parameters": {"rope_theta": 5000.0, "rope_type": "default"}},
        {"rope_theta": ..., "rope_parameters": {**LINEAR, "rope_theta": 5000.0}},
        {"rope_parameters": {**LINEAR, "factor": 3.0}, "rope_scaling": LINEAR},
        {"rope_theta": ..., "rope_scaling": {**LINEAR, "rope_theta": 700.0}},
        {"layer_types": ["full_attention"] * 2},
        {**WINDOW, "layer_types": ["full_attention", "sliding_attention"]},
        {**WINDOW, "sliding_window": None, "layer_types": ["full_attention"] * 2},
        {**WINDOW, "sliding_window": ...},
        {**WINDOW, "max_window_layers": ..., "layer_types": ["full_attention"] * 2},
    ],
)
def test_qwen2_accepted_equals_the_shipped_class(shipped_class, overrides):
    raw = build_config(overrides=overrides)
    ours, shipped = parse_config(raw, where="c.json"), shipped_class(**raw)
    for name in (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "vocab_size", "max_position_embeddings", "rms_norm_eps"),
        *("rope_theta", "tie_word_embeddings", "sliding_window", "quantization_bit"),
    ):
        assert getattr(ours, name) == getattr(shipped, name), name
    scaling = ours.rope_scaling or RopeScaling("default")
    assert scaling.rope_type == shipped.rope_parameters["rope_type"]
    assert scaling.factor == shipped.rope_parameters.get("factor", 1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"rope_scaling": LLAMA3_ROPE}, "rotary scaling of type 'llama3', expected one of default"),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "rotary scaling of type 'dynamic'"),
        ({"head_dim": 32}, "head_dim: got 32, expected hidden_size / num_attention_heads = 16"),
        ({"rope_parameters": {"rope_theta": 5000.0}}, "rope_theta: got 10000 and, in the rotary"),
        ({"rope_scaling": {**LINEAR, "rope_theta": 1}}, "rope_theta: got 10000 and, in the rotary"),
        ({"rope_parameters": {"full_attention": LINEAR}}, "a rotary rule of its own for each"),
        ({"layer_types": ["sliding_attention"] * 2}, "for the first 2 of the 2 layers and"),
        ({**WINDOW, "layer_types": ["full_attention"] * 2}, "layer_types: by use_sliding_window, "),
        ({**WINDOW, "sliding_window": 0}, "sliding_window: got 0"),
        ({"num_attention_heads": 3}, "hidden_size 64 is not a multiple of num_attention_heads 3"),
        ({"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple"),
        ({"num_attention_heads": 64, "num_key_value_heads": 1}, "head_dim 1 is odd"),
        ({"hidden_act": "gelu"}, "hidden_act: got 'gelu', expected 'silu'"),
        ({"hidden_act": None}, "hidden_act: got None"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor: got None"),
        ({"rope_scaling": "linear"}, "rope_scaling: got 'linear', expected an object"),
        ({"quantization_bit": 4}, "quantization_bit: got 4, expected 8 or none"),
        ({"num_hidden_layers": True}, "num_hidden_layers: got True, expected a whole number"),
    ],
)
def test_qwen2_refused_by_the_shipped_class_is_refused(shipped_class, overrides, message):
    raw = build_config(overrides=overrides)
    with pytest.raises(ValueError, match=":"):
        shipped_class(**raw)
    with pytest.raises((CheckpointError, UnsupportedModelError)) as caught:
        parse_config(raw, where="c.json")
    assert message in str(caught.value)


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_two_rotary_rules_that_disagree_are_refused(model_type):
    """Versions of transformers differ in which of the two they follow."""
    rules = {"rope_scaling": {"type": "linear", "factor": 2.0}}
    (line,) = problems(model_type, rope_parameters={"rope_type": "default"}, **rules)
    assert line == "rope_scaling has type 'linear', rope_parameters has 'default'"


def test_max_window_layers_that_is_no_number():
    (line,) = problems(max_window_layers="2")
    assert line == "max_window_layers: got '2', expected a whole number"
