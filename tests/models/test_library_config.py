"""What a configuration class of transformers is given of a stranger's ``config.json``."""

from copy import deepcopy

import pytest
from checkpoint_builders import LLAMA3_ROPE, build_config
from transformers import AutoConfig

from vacc_deploy.models.library_config import checked_ids, library_config, own_config
from vacc_deploy.models.parse import parse_config

# What both forms of a configuration class compute with.
COMPARED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
    *("num_attention_heads", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps"),
    *("rope_parameters", "sliding_window", "layer_types", "tie_word_embeddings", "hidden_act"),
    *("attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id"),
)


@pytest.mark.parametrize("model_type", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True, "eos_token_id": [5, 7], "pad_token_id": 3},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
        {"rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        {"rope_scaling": LLAMA3_ROPE},
    ],
)
def test_the_library_sees_the_model_that_the_file_describes(model_type, changes):
    is_qwen2_only, is_llama_only = "sliding_window" in changes, LLAMA3_ROPE in changes.values()
    if is_qwen2_only if model_type == "llama" else is_llama_only:
        return
    raw = {**build_config(model_type=model_type), **deepcopy(changes)}
    if "rope_parameters" in changes:
        del raw["rope_theta"]
    config = parse_config(raw, where="config.json")
    mine = AutoConfig.for_model(**library_config(config)).to_dict()
    whole = AutoConfig.for_model(**raw).to_dict()
    for name in COMPARED:
        if name == "rope_parameters":
            mine[name].pop("type", None)  # the older name of rope_type
        if name in whole:
            assert mine.get(name) == whole[name], name


def test_own_config_passes_on_what_the_file_writes_of_known_keys():
    raw = {
        **build_config(model_type="qwen2"),
        "num_labels": 9,
        "eos_token_id": "x",
        "pad_token_id": None,
    }
    values = own_config(raw, raw["vocab_size"])
    assert values.keys() <= raw.keys()
    assert not {"num_labels", "eos_token_id", "auto_map", "use_cache"} & values.keys()
    assert values["pad_token_id"] is None
    assert all(values[key] == raw[key] for key in values)


@pytest.mark.parametrize(
    "stated", [-1, 10, 10**30, "a", "3", 1.0, True, [], [1, 10], [[1]], [1, "a"], {"a": 1}]
)
def test_an_id_that_is_none_of_the_model_is_left_out(stated):
    assert checked_ids({"eos_token_id": stated}, 10) == {}


def test_one_begin_and_one_padding_but_several_ends():
    listed = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), [1, 9])
    assert checked_ids(listed, 10) == {"eos_token_id": [1, 9]}
    assert checked_ids({"bos_token_id": 0, "pad_token_id": None}, 10) == {
        "bos_token_id": 0,
        "pad_token_id": None,
    }


@pytest.mark.parametrize(
    ("stated", "given"), [(0, 0), (1, 1), (2, 2), (3, 2), (28, 2), (10**9, 2), (None, 2)]
)
def test_the_layers_without_a_window_are_layers_of_the_model(stated, given):
    raw = build_config(model_type="qwen2", num_layers=2)
    raw |= {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": stated}
    if stated is None:
        del raw["max_window_layers"]
    assert library_config(parse_config(raw, where="c"))["max_window_layers"] == given
