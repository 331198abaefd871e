"""Dense Qwen3 and yarn scaling in the same files: against the library, and what is refused."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from transformers import DynamicCache, Qwen3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

TOLERANCE = 1e-5
THETA = {"rope_theta": 1e6}
ROPES = {
    "plain": {"rope_type": "default", **THETA},
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32768,
        "attention_factor": 1.0,
        **THETA,
    },
    # With 16 numbers a head the ramp lies between pairs 2 and 5, and the factor is the paper's.
    "yarn, own betas": {
        "rope_type": "yarn",
        "factor": 3.7,
        "original_max_position_embeddings": 35425,
        "beta_fast": 20.0,
        "beta_slow": 2.0,
        **THETA,
    },
}
# 4 heads of 16 are the hidden size 64, 4 heads of 32 are not.
KINDS = {
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "qwen3, wide heads": {"model_type": "qwen3", "head_dim": 32},
    "qwen3, biased": {"model_type": "qwen3", "head_dim": 32, "attention_bias": True},
}
QWEN3 = KINDS["qwen3, wide heads"]
# What DeepSeek-R1-0528-Qwen3-8B publishes.
PUBLISHED = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
    "attn_factor": 0.8782488562869419,
}


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("kind", KINDS)
def test_prefill_and_decode_equal_library(make_pair, ids, kind, rope, tied):
    fields = {**KINDS[kind], "rope_parameters": dict(ROPES[rope]), "tie_word_embeddings": tied}
    stock, own = make_pair(**fields)
    expected = stock(ids).logits
    assert_close(own(ids).logits, expected)
    assert (own.lm_head.weight is own.model.embed_tokens.weight) == tied
    first = own(ids[:, :20], use_cache=True)
    assert isinstance(first.past_key_values, tuple)
    assert first.past_key_values[1][0].shape == (2, 2, 20, own.config.head_dim)
    last = own(ids[:, 20:], past_key_values=first.past_key_values)
    assert_close(last.logits, expected[:, 20:])
    cache = DynamicCache()
    own(ids[:, :20], past_key_values=cache, use_cache=True)
    assert_close(own(ids[:, 20:], past_key_values=cache).logits, expected[:, 20:])
    far = torch.arange(100_000, 100_024).expand(2, 24)
    assert_close(own(ids, position_ids=far).logits, stock(ids, position_ids=far).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_loading_keeps_every_weight_and_has_no_other_state(make_pair, kind):
    stock, own = make_pair(**KINDS[kind])
    expected, actual = stock.state_dict(), own.state_dict()
    assert sorted(actual) == sorted(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert list(own.named_buffers()) == []


@torch.no_grad()
def test_qwen3_left_padded_generate_equals_library(make_pair, left_padded):
    stock, own = make_pair(**QWEN3, rope_parameters=dict(ROPES["yarn"]))
    ids, mask, positions = left_padded
    inputs = {"attention_mask": mask, "position_ids": positions}
    real = mask.bool()
    assert_close(own(ids, **inputs).logits[real], stock(ids, **inputs).logits[real])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(own.generate(ids, **options), stock.generate(ids, **options))


@torch.no_grad()
def test_qwen3_sliding_window_equals_library(make_pair, ids):
    window = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    stock, own = make_pair(**QWEN3, **window)
    expected = stock(ids, use_cache=False).logits
    assert_close(own(ids, use_cache=False).logits, expected)
    past = own(ids[:, :20], use_cache=True).past_key_values
    assert_close(own(ids[:, 20:], past_key_values=past).logits, expected[:, 20:])


@torch.no_grad()
def test_qwen3_quantized_keeps_norms_and_the_bias_of_o(flat, make_pair, make_dir, load, ids):
    stock, own = make_pair(**KINDS["qwen3, biased"])
    expected = flat.quantization.quantize(stock)(ids).logits
    attention = own.quantize(8).model.layers[0].self_attn
    assert attention.o_proj.weight.dtype == torch.int8 and attention.o_proj.bias is not None
    assert attention.q_norm.weight.dtype == torch.float32
    assert_close(own(ids).logits, expected)
    again = load(make_dir(own, name="int8"))
    assert (again.config.model_type, again.config.quantization_bit) == ("qwen3", 8)
    assert torch.equal(again(ids).logits, own(ids).logits)


# ---- the configuration ------------------------------------------------------------------------


def test_config_keeps_its_model_type_without_a_warning(flat, tmp_path, caplog):
    own_class = flat.configuration.Qwen2Config
    config = own_class(model_type="qwen3", head_dim=64, attention_bias=True, rope_scaling=PUBLISHED)
    assert config.model_type == "qwen3"
    assert config.to_dict()["model_type"] == config.to_diff_dict()["model_type"] == "qwen3"
    config.save_pretrained(tmp_path)
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        again = own_class.from_pretrained(tmp_path)
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.records == []
    assert again.to_dict() == config.to_dict()
    assert (again.head_dim, again.attention_bias) == (64, True)
    assert again.rope_parameters["attention_factor"] == pytest.approx(1.0)
    assert not [name for name in again.to_dict() if name.startswith("_file")]


def test_config_of_qwen2_has_neither_a_bias_field_nor_another_model_type(flat, tmp_path):
    own_class = flat.configuration.Qwen2Config
    own_class(attention_bias=True).save_pretrained(tmp_path)
    again = own_class.from_pretrained(tmp_path)
    assert again.to_dict()["model_type"] == own_class.model_type == "qwen2"
    assert "attention_bias" not in again.to_dict()


def test_config_of_qwen3_has_the_defaults_of_the_library(flat):
    unsaid = {"model_type": "qwen3", "head_dim": None, "attention_bias": None}
    own, stock = flat.configuration.Qwen2Config(**unsaid), Qwen3Config()
    for name in ("head_dim", "attention_bias", "hidden_size", "num_attention_heads"):
        assert getattr(own, name) == getattr(stock, name), name


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (PUBLISHED, 1.0),
        ({**PUBLISHED, "attention_factor": 1.5}, 1.5),
        ({**PUBLISHED, "attn_factor": None, "attention_factor": None}, 0.1 * math.log(4) + 1),
        ({**PUBLISHED, "attn_factor": 1, "factor": 0.5}, 1.0),
    ],
    ids=["attn_factor", "attention_factor", "neither", "no stretch"],
)
def test_yarn_factor_of_the_tables(flat, make_own, entries, expected):
    config = flat.configuration.Qwen2Config(rope_scaling=entries)
    assert config.rope_parameters["attention_factor"] == pytest.approx(expected, abs=1e-15)
    cos, sin = make_own(rope_scaling=entries).model.rotary.lookup_tables(4, torch.float32, "cpu")
    length = (cos**2 + sin**2).sqrt()
    assert length == pytest.approx(torch.full((4, 16), expected).numpy(), rel=1e-6)


@pytest.mark.parametrize("head_dim", [2, 16, 128])
@pytest.mark.parametrize(
    "changes",
    [{}, {"factor": 3.3}, {"beta_fast": 4.0, "beta_slow": 3.0}, {"rope_theta": 5e5}]
    + [{"original_max_position_embeddings": length} for length in (4, 300, 10**9)],
    ids=str,
)
def test_yarn_frequencies_equal_library(flat, head_dim, changes):
    rope = {**ROPES["yarn"], **changes}
    sizes = {"head_dim": head_dim, "max_position_embeddings": 131072}
    stock = Qwen3Config(**sizes, rope_parameters=dict(rope))
    expected, _ = ROPE_INIT_FUNCTIONS["yarn"](stock)
    config = flat.configuration.Qwen2Config(**sizes, model_type="qwen3", rope_parameters=rope)
    assert torch.equal(flat.modeling.RotaryTables(config)._frequencies(), expected)


YARN_ERRORS = [
    ({"factor": None}, "yarn factor: got None, expected a positive number"),
    ({"original_max_position_embeddings": ...}, "yarn original_max_position_embeddings: got None"),
    ({"beta_fast": "32"}, "yarn beta_fast: got '32'"),
    ({"beta_slow": 0}, "yarn beta_slow: got 0"),
    ({"attention_factor": math.inf}, "yarn attention_factor: got inf"),
    ({"attn_factor": math.nan}, "yarn attn_factor: got nan"),
    ({"truncate": False}, "yarn truncate: got False, which is not supported"),
    ({"mscale": 1.0}, "yarn mscale: got 1.0, which is not supported"),
    ({"mscale_all_dim": 1.0}, "yarn mscale_all_dim: got 1.0, which is not supported"),
    ({"rope_theta": 1}, "rope_theta: got 1, expected more than 1 for yarn"),
]


@pytest.mark.parametrize("key", ["rope_type", "type"])
@pytest.mark.parametrize("changes, message", YARN_ERRORS, ids=[text for _, text in YARN_ERRORS])
def test_yarn_bad_number_or_other_variant_raises(flat, key, changes, message):
    entries = {**PUBLISHED, "truncate": True, "mscale": None, key: "yarn", **changes}
    entries = {name: value for name, value in entries.items() if value is not ...}
    if key == "type":
        del entries["rope_type"]
    with pytest.raises(ValueError) as caught:
        flat.configuration.Qwen2Config(rope_scaling=entries)
    assert message in str(caught.value)


MODEL_ERRORS = [
    ({"model_type": "llama"}, "model_type: got 'llama', expected 'qwen2' or 'qwen3'"),
    ({"model_type": None}, "model_type: got None"),
    ({"model_type": "qwen3", "head_dim": 15}, "head_dim: got 15, expected an even"),
    ({"model_type": "qwen3", "head_dim": 0}, "head_dim: got 0, expected a positive integer"),
    ({"model_type": "qwen3", "attention_bias": "no"}, "attention_bias: got 'no', expected False"),
    ({"model_type": "qwen3", "num_key_value_heads": 3}, "expected a multiple of num_key_value"),
    ({"head_dim": 32}, "head_dim: got 32, expected hidden_size / num_attention_heads = 16"),
    ({"hidden_size": 60}, "head_dim: got 15, expected an even head size"),
]


@pytest.mark.parametrize("fields, message", MODEL_ERRORS, ids=[text for _, text in MODEL_ERRORS])
def test_config_bad_architecture_raises(flat, fields, message):
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    with pytest.raises(ValueError) as caught:
        flat.configuration.Qwen2Config(**{**sizes, **fields})
    assert message in str(caught.value)


def test_qwen3_hidden_size_need_not_be_a_multiple_of_the_heads(make_own, ids):
    own = make_own(model_type="qwen3", hidden_size=66, head_dim=16)
    assert torch.isfinite(own(ids).logits).all()
