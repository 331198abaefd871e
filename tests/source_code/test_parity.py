"""Our Qwen2 against the library's: same numbers, same tokens, same ways in and out."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, DynamicCache

TOLERANCE = 1e-5


def assert_close(actual, expected):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_logits_prefill_equal_library(make_pair, ids, tied):
    stock, own = make_pair(tie_word_embeddings=tied)
    assert type(own).__module__.startswith("transformers_modules.")
    assert_close(own(ids).logits, stock(ids).logits)
    assert (own.lm_head.weight is own.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("tied", [False, True])
def test_loading_keeps_every_weight_and_has_no_other_state(make_pair, tied):
    stock, own = make_pair(tie_word_embeddings=tied)
    expected, actual = stock.state_dict(), own.state_dict()
    assert sorted(actual) == sorted(expected)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert list(own.named_buffers()) == []


@torch.no_grad()
def test_logits_left_padded_equal_library(make_pair, left_padded):
    stock, own = make_pair()
    ids, mask, positions = left_padded
    inputs = {"attention_mask": mask, "position_ids": positions}
    real = mask.bool()
    assert_close(own(ids, **inputs).logits[real], stock(ids, **inputs).logits[real])


@torch.no_grad()
def test_decode_tuple_past_equals_library(make_pair, ids):
    stock, own = make_pair()
    expected = stock(ids).logits
    first = own(ids[:, :20], use_cache=True)
    assert isinstance(first.past_key_values, tuple)
    assert first.past_key_values[1][0].shape == (2, 2, 20, 16)
    second = own(ids[:, 20:], past_key_values=first.past_key_values, use_cache=True)
    assert isinstance(second.past_key_values, tuple)
    assert second.past_key_values[0][1].shape == (2, 2, 24, 16)
    assert_close(second.logits, expected[:, 20:])


@torch.no_grad()
def test_decode_library_cache_equals_library(make_pair, ids):
    stock, own = make_pair()
    expected = stock(ids).logits
    cache = DynamicCache()
    first = own(ids[:, :20], past_key_values=cache, use_cache=True)
    assert first.past_key_values is cache
    assert_close(first.logits, expected[:, :20])
    for step in range(20, 24):
        output = own(ids[:, step : step + 1], past_key_values=cache, use_cache=True)
        assert output.past_key_values is cache
        assert_close(output.logits, expected[:, step : step + 1])
    assert own(ids, use_cache=False).past_key_values is None


@torch.no_grad()
def test_decode_left_padded_tuple_past_equals_library(make_pair, left_padded):
    stock, own = make_pair()
    ids, mask, positions = left_padded
    expected = stock(ids, attention_mask=mask, position_ids=positions).logits
    past = own(
        ids[:, :23], attention_mask=mask[:, :23], position_ids=positions[:, :23], use_cache=True
    ).past_key_values
    last = own(
        ids[:, 23:], attention_mask=mask, position_ids=positions[:, 23:], past_key_values=past
    )
    assert_close(last.logits, expected[:, 23:])


@torch.no_grad()
def test_logits_4d_mask_is_used_as_given(make_pair, ids):
    stock, own = make_pair()
    blocked = torch.ones(24, 24).triu(1).bool()[None, None].expand(2, 1, 24, 24)
    mask = torch.zeros(2, 1, 24, 24).masked_fill(blocked, torch.finfo(torch.float32).min)
    assert_close(own(ids, attention_mask=mask).logits, stock(ids).logits)


def test_forward_mask_of_wrong_length_names_both(make_own, ids):
    with pytest.raises(ValueError, match="got 23 columns, expected 24"):
        make_own()(ids, attention_mask=torch.ones(2, 23))


@torch.no_grad()
def test_forward_float16_padding_gives_no_nan(flat, make_pair, left_padded):
    _, own = make_pair()
    ids, mask, positions = left_padded
    logits = own.half()(ids, attention_mask=mask, position_ids=positions).logits
    assert torch.isfinite(logits).all()
    # a row without any visible key would be NaN once the scores overflow float16
    additive = flat.modeling.build_causal_mask(torch.zeros(2, 24, 1).half(), mask, 0)
    assert additive.shape == (2, 1, 24, 24)
    assert (additive == 0).any(dim=-1).all()


@torch.no_grad()
@pytest.mark.parametrize("arguments", [{}, {"use_cache": False}, {"num_beams": 2}])
def test_generate_equals_library(make_pair, left_padded, arguments):
    stock, own = make_pair()
    ids, mask, _ = left_padded
    arguments = dict(arguments, max_new_tokens=8, do_sample=False, pad_token_id=0)
    batch = own.generate(ids, attention_mask=mask, **arguments)
    assert torch.equal(batch, stock.generate(ids, attention_mask=mask, **arguments))
    single = own.generate(ids[1:], attention_mask=mask[1:], **arguments)
    assert torch.equal(single[0], batch[1])


@torch.no_grad()
@pytest.mark.parametrize(("use_cache", "expected"), [(True, [24, 1, 1]), (False, [24, 25, 26])])
def test_generate_with_a_cache_runs_each_token_once(make_pair, ids, use_cache, expected):
    _, own = make_pair()
    lengths = []
    own.model.layers[0].register_forward_pre_hook(
        lambda _, inputs: lengths.append(inputs[0].shape[1])
    )
    own.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0, use_cache=use_cache)
    assert lengths == expected


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
def test_generate_from_embeddings_equals_from_ids(make_pair, ids, use_cache):
    _, own = make_pair()
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    arguments.update(use_cache=use_cache, attention_mask=torch.ones_like(ids))
    expected = own.generate(ids, **arguments)[:, 24:]
    embedded = own.get_input_embeddings()(ids)
    assert torch.equal(own.generate(inputs_embeds=embedded, **arguments), expected)


@torch.no_grad()
def test_forward_hidden_states_and_attentions_equal_library(make_pair, ids):
    stock, own = make_pair()
    wanted = {"output_hidden_states": True, "output_attentions": True}
    expected, actual = stock(ids, **wanted), own(ids, **wanted)
    assert len(actual.hidden_states) == len(expected.hidden_states) == 3
    assert len(actual.attentions) == len(expected.attentions) == 2
    for name in ("hidden_states", "attentions"):
        for idx, other in enumerate(getattr(expected, name)):
            assert_close(getattr(actual, name)[idx], other)


@torch.no_grad()
def test_forward_tuple_and_embeddings_and_labels(make_pair, ids):
    stock, own = make_pair()
    expected = stock(ids, labels=ids)
    output = own(inputs_embeds=own.get_input_embeddings()(ids), labels=ids, return_dict=False)
    assert isinstance(output, tuple)
    assert abs(output[0].item() - expected.loss.item()) <= TOLERANCE
    assert_close(output[1], expected.logits)
    with pytest.raises(ValueError, match="exactly one"):
        own()


@torch.no_grad()
def test_auto_model_gives_the_decoder(make_stock, make_dir, ids):
    stock = make_stock()
    model = AutoModel.from_pretrained(make_dir(stock), trust_remote_code=True).eval()
    assert type(model).__name__ == "Qwen2Model"
    assert_close(model(ids).last_hidden_state, stock.model(ids).last_hidden_state)


@torch.no_grad()
def test_insert_slice_keeps_the_last_position(make_stock, make_dir, load, ids):
    stock = make_stock()
    own = load(make_dir(stock, insert_slice=True))
    output = own(ids, output_hidden_states=True)
    assert_close(output.logits, stock(ids).logits[:, -1:])
    assert [states.shape[1] for states in output.hidden_states] == [24, 24, 1]
    arguments = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    expected = stock.generate(ids, attention_mask=mask, **arguments)
    assert torch.equal(own.generate(ids, attention_mask=mask, **arguments), expected)
    own.config.iter_num = 1  # a decode graph
    assert_close(own(ids).logits, stock(ids).logits)


def test_insert_slice_labels_raise(make_own, ids):
    own = make_own(insert_slice=True)
    with pytest.raises(ValueError, match="set insert_slice to false"):
        own(ids, labels=ids)
    own.config.iter_num = 1
    assert torch.isfinite(own(ids, labels=ids).loss)


@torch.no_grad()
@pytest.mark.parametrize("max_window_layers", [0, 1])
def test_sliding_window_equals_library(make_pair, ids, max_window_layers):
    unused = {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 0}
    stock, own = make_pair(**unused)
    assert own.config.sliding_window is None
    assert_close(own(ids).logits, stock(ids).logits)
    stock, own = make_pair(
        use_sliding_window=True, sliding_window=8, max_window_layers=max_window_layers
    )
    expected = stock(ids, use_cache=False).logits
    assert_close(own(ids, use_cache=False).logits, expected)
    past = own(ids[:, :20], use_cache=True).past_key_values
    assert_close(own(ids[:, 20:], past_key_values=past).logits, expected[:, 20:])
    arguments = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    made = own.generate(ids, attention_mask=mask, **arguments)
    assert torch.equal(made, stock.generate(ids, attention_mask=mask, **arguments))


@torch.no_grad()
@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}])
def test_rope_of_the_config_equals_library(make_pair, ids, rope):
    stock, own = make_pair(rope_parameters={**rope, "rope_theta": 1e6})
    assert own.config.rope_theta == 1e6
    assert_close(own(ids).logits, stock(ids).logits)


@torch.no_grad()
def test_rotary_tables_are_shared_and_short(make_own, ids):
    own = make_own()
    seen = []
    for layer in own.model.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda module, inputs: seen.append(tuple(table.data_ptr() for table in inputs[3]))
        )
    own(ids)
    assert len(seen) == 2 and seen[0] == seen[1]
    rotary = own.model.rotary
    (tables,) = rotary.cached.values()
    assert all(table.numel() <= 256 * 16 for table in tables)
    own(ids[:, :1], position_ids=torch.full((2, 1), 300))
    (tables,) = rotary.cached.values()
    assert all(256 < table.shape[0] <= 1024 for table in tables)


@torch.no_grad()
def test_rotary_tables_survive_inference_mode_and_positions(make_pair, ids):
    stock, own = make_pair()
    with torch.inference_mode():
        own(ids)
    with torch.enable_grad():
        own(ids, labels=ids).loss.backward()
    positions = torch.arange(3000, 3024).expand(2, 24)
    assert_close(own(ids, position_ids=positions).logits, stock(ids, position_ids=positions).logits)


CONFIG_ERRORS = [
    ({"hidden_size": 0}, "hidden_size: got 0, expected a positive integer"),
    ({"hidden_size": 66}, "expected a multiple of num_attention_heads = 4"),
    ({"num_key_value_heads": 3}, "expected a multiple of num_key_value_heads = 3"),
    ({"quantization_bit": 4}, "quantization_bit: got 4"),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, "'dynamic', which is not supported"),
    ({"rope_scaling": {"type": "linear"}}, "rope factor: got None"),
    ({"rope_parameters": {"full_attention": {}}}, "one dict per layer type"),
    ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "expected the same number"),
    ({"hidden_act": "gelu"}, "hidden_act: got 'gelu'"),
    ({"head_dim": 32}, "head_dim: got 32"),
    ({"layer_types": ["sliding_attention"]}, "layer_types: got"),
    ({"use_sliding_window": True, "sliding_window": 0}, "sliding_window: got 0"),
    ({"quantization_config": {"format": "vacc-int8"}}, "expected 8 because"),
    (
        {"quantization_bit": 8, "quantization_config": {"quant_method": "gptq"}},
        "expected format 'vacc-int8'",
    ),
]


@pytest.mark.parametrize("fields, message", CONFIG_ERRORS, ids=[text for _, text in CONFIG_ERRORS])
def test_config_bad_field_raises(flat, fields, message):
    arguments = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    arguments.update(fields)
    with pytest.raises(ValueError, match=message):
        flat.configuration.Qwen2Config(**arguments)


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 1e6, "rope_scaling": None, "torch_dtype": "bfloat16"},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "dtype": "bfloat16"},
    ],
    ids=["transformers 4", "transformers 5"],
)
def test_config_both_generations_round_trip(flat, tmp_path, fields):
    own_class = flat.configuration.Qwen2Config
    config = own_class(insert_slice=True, iter_num=1, eos_token_id=151643, **fields)
    assert config.rope_theta == 1e6
    assert str(config.dtype) == "torch.bfloat16"
    config.save_pretrained(tmp_path)
    again = own_class.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert (again.insert_slice, again.iter_num, again.eos_token_id) == (True, 1, 151643)
    assert again.rope_theta == 1e6 and again.sliding_window is None


def test_config_int8_guard_is_absorbed_and_written(flat, tmp_path):
    guard = flat.configuration.INT8_GUARD
    assert "quant_method" not in guard
    config = flat.configuration.Qwen2Config(quantization_bit=8, quantization_config=dict(guard))
    assert not hasattr(config, "quantization_config")
    assert config.to_dict()["quantization_config"] == guard
    assert config.to_diff_dict()["quantization_config"] == guard
    config.save_pretrained(tmp_path)
    again = flat.configuration.Qwen2Config.from_pretrained(tmp_path)
    assert again.quantization_bit == 8 and not hasattr(again, "quantization_config")
    assert "quantization_config" not in flat.configuration.Qwen2Config().to_dict()
