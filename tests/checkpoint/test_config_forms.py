"""Configurations with values that some loaders refuse: what is prepared loads everywhere."""

import json

import pytest
import torch
from checkpoint_builders import build_config, write_checkpoint, write_json
from reference_logits import decoder_logits, make_tokens
from texts import read_json
from tokenizer_builders import EOS_ID
from transformers import AutoModelForCausalLM

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.models.settle import settle_config
from vacc_deploy.prepare import prepare
from vacc_deploy.reference.loader import load_model

TOKENS = make_tokens()
NULLS = (
    *("attention_dropout", "hidden_act", "initializer_range", "max_position_embeddings"),
    *("rms_norm_eps", "rope_theta", "tie_word_embeddings", "use_cache", "return_dict"),
)
QWEN2_NULLS = ("head_dim", "max_window_layers", "use_return_dict", "use_sliding_window")
OTHERS = [
    ({"attention_dropout": "none"}, "run-flags"),
    ({"initializer_range": [0.02]}, "run-flags"),
    ({"text_config": {"output_attentions": True}, "decoder": {}}, "parts"),
    ({"torch_dtype": {"": "bfloat16"}}, "dtype-name"),
    ({"dtype": ["bfloat16"]}, "dtype-name"),
    ({"bos_token_id": [EOS_ID], "pad_token_id": [EOS_ID, 1]}, "token-ids"),
    ({"quantization_config": {}}, "left-over-quantization"),
    ({"quantization_bit": 4}, "left-over-quantization"),
    ({"quantization_bit": "8", "quantization_config": {"bits": 8}}, "left-over-quantization"),
]


def check_everywhere(tmp_path, changes, model_type):
    """Prepare a checkpoint with these values; return the rules that were applied."""
    source = write_checkpoint(tmp_path / "m", model_type=model_type, config_overrides=changes)
    before = Checkpoint.open(source)
    out = prepare(source, output=tmp_path / "out").output_dir
    stock = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    with torch.inference_mode():
        expected = decoder_logits(source, TOKENS)[:, -1]
        for model in (load_model(source), load_model(out), stock):
            assert torch.allclose(model(TOKENS).logits[:, -1], expected, atol=1e-4)
    assert not Checkpoint.open(out).is_config_changed
    return [rule.rule for rule in before.applied]


@pytest.mark.parametrize("key", [*NULLS, *QWEN2_NULLS])
def test_a_null_where_a_value_is_wanted_counts_as_not_stated(tmp_path, key):
    model_type = "qwen2" if key in QWEN2_NULLS else "llama"
    assert check_everywhere(tmp_path, {key: None}, model_type) == ["null-values"]
    assert key not in read_json(tmp_path / "out" / "config.json")


@pytest.mark.parametrize(("changes", "rule"), OTHERS)
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_a_value_that_loaders_refuse_is_settled(tmp_path, changes, rule, model_type):
    assert set(check_everywhere(tmp_path, changes, model_type)) == {rule}


def test_a_model_that_rounds_when_it_runs_is_no_float_model(tmp_path):
    stated = {"quant_method": "bitnet", "linear_class": "autobitlinear"}
    source = write_checkpoint(
        tmp_path / "m", model_type="llama", config_overrides={"quantization_config": stated}
    )
    with pytest.raises(UnsupportedModelError, match=r"'bitnet'\): its linears round weights and"):
        Checkpoint.open(source)


@pytest.mark.parametrize("key", ["sliding_window", "rope_scaling", "pad_token_id", "torch_dtype"])
def test_a_null_that_is_a_value_stays(key):
    values = {**build_config(), key: None}
    assert not settle_config(values, "bfloat16", lambda token: None).applied


def test_the_end_tokens_stay_a_list_and_the_padding_becomes_one_id():
    stated = {"vocab_size": 9, "eos_token_id": [3, 4], "pad_token_id": [3, 4], "bos_token_id": [1]}
    settler = settle_config(stated, "bfloat16", lambda token: None)
    assert settler.values == {**stated, "pad_token_id": 3, "bos_token_id": 1}
    assert [rule.note for rule in settler.applied] == [
        "config.json: bos_token_id [1] is read as 1.",
        "config.json: pad_token_id [3, 4] is read as 3.",
    ]


def test_a_missing_file_is_told_before_what_weights_would_decide(tmp_path):
    changes = {"quantization_config": {"quant_method": "awq"}, "pretraining_tp": 2}
    source = write_checkpoint(tmp_path / "m", shards=2, config_overrides=changes)
    (source / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match="model-00002-of-00002.safetensors"):
        Checkpoint.open(source)


@pytest.mark.parametrize("key", ["intermediate_size", "hidden_act", "model_type"])
def test_a_value_of_half_a_megabyte_is_cut_in_the_message(tmp_path, key):
    source = write_checkpoint(tmp_path / "m")
    write_json(source / "config.json", {**build_config(), key: "x" * (1 << 19)})
    with pytest.raises(Exception, match=key) as caught:
        Checkpoint.open(source)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_json_that_is_nested_too_deeply_is_an_error(tmp_path, name):
    source = write_checkpoint(tmp_path / "m")
    text = json.dumps(read_json(source / name))
    (source / name).write_text(f'{text[:-1]}, "x": {"[" * 900}{"]" * 900}}}')
    if name.startswith("tokenizer"):
        notes = prepare(source, output=tmp_path / "out").notes
        assert any("nested more than 100 deep" in note for note in notes)
        return
    with pytest.raises(CheckpointError, match="nested more than 100 deep"):
        prepare(source, output=tmp_path / "out")


@pytest.mark.parametrize(
    ("stated", "settled", "rules"),
    [
        (
            {"do_sample": "true", "temperature": "0.6", "top_k": "50", "top_p": 0.9},
            {"do_sample": True, "temperature": 0.6, "top_k": 50, "top_p": 0.9},
            ["sampling-values"] * 3,
        ),
        ({"do_sample": True, "temperature": 0.0}, {"do_sample": False}, ["greedy"]),
        ({"do_sample": 1, "top_k": "-1"}, {"do_sample": True, "top_k": 0}, ["sampling-values"] * 2),
        ({"temperature": 0}, {"temperature": 0}, []),
        ({"temperature": "1" * 5000, "top_p": "nan"}, {"temperature": "1" * 5000}, []),
        ({"pad_token_id": [EOS_ID]}, {"pad_token_id": EOS_ID}, ["token-ids"]),
    ],
)
def test_what_generation_config_says_is_read_by_every_loader(tmp_path, stated, settled, rules):
    source = write_checkpoint(tmp_path / "m", model_type="llama")
    write_json(source / "generation_config.json", stated)
    out = prepare(source, output=tmp_path / "out").output_dir
    written = read_json(out / "generation_config.json")
    assert {key: written[key] for key in settled} == settled
    entries = read_json(out / "vacc_deploy.json")["normalized"]
    expected = [*rules, "top-k"] if stated.get("top_k") == "-1" else rules
    assert [entry["rule"] for entry in entries] == expected
    if all(not isinstance(value, str) for value in written.values()):
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        model.generate(TOKENS, max_new_tokens=2)
