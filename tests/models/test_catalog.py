import json

import pytest
from checkpoint_builders import build_config
from texts import ROOT, read_json

from vacc_deploy.assets import published_config
from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.models.catalog import (
    MODELS,
    CatalogModel,
    CatalogTable,
    find_model,
    known_model,
    match_config,
    near_names,
    plain_sizes,
)
from vacc_deploy.models.parse import parse_config

SHORT = ("Qwen-1.5B", "Qwen-7B", "Qwen-14B", "Qwen-32B", "Llama-8B", "Llama-70B")
NAMES = tuple(f"DeepSeek-R1-Distill-{short}" for short in SHORT)


def test_the_six_models_in_order():
    assert tuple(MODELS) == NAMES
    assert all(model.name == name for name, model in MODELS.items())


def test_every_published_configuration_belongs_to_a_model():
    folder = published_config(NAMES[0]).parent
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{n}.json" for n in NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if "Qwen" in name])
def test_a_published_configuration_is_what_the_committed_one_was_made_from(name):
    published = MODELS[name].config_values
    committed = read_json(ROOT / "build_in" / name / "config_vacc.json")
    for added in ("auto_map", "_attn_implementation", "insert_slice"):
        assert added not in published
        del committed[added]
    # The one value that the compiler's side needs otherwise: no window, since none is used.
    assert published["use_sliding_window"] is False
    assert committed == {**published, "sliding_window": None}


def test_a_published_configuration_that_is_lost_is_named():
    with pytest.raises(CheckpointError, match="No-Model.json cannot be read"):
        _ = CatalogModel("No-Model", "x/y").config


@pytest.mark.parametrize("short", SHORT)
def test_every_alias_in_every_case_finds_the_model(short):
    model = MODELS[f"DeepSeek-R1-Distill-{short}"]
    aliases = (
        f"Distill-{short}",
        f"R1-Distill-{short}",
        f"DeepSeek-R1-Distill-{short}",
        f"deepseek-ai/DeepSeek-R1-Distill-{short}",
    )
    assert model.aliases == aliases
    for alias in aliases:
        for name in (alias, alias.lower(), alias.upper(), f" {alias} ", f"{alias}/"):
            assert find_model(name) is model


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Distill-Qwen-8B", "Distill-Qwen-"),
        ("qwen-1.5b", "Distill-Qwen-1.5B"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-14", "Distill-Qwen-14B"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, nearest):
    with pytest.raises(UnsupportedModelError) as caught:
        find_model(name)
    message = str(caught.value)
    assert message.startswith(f"Unknown model {name!r}. Did you mean {nearest}")
    assert "Known models: Distill-Qwen-1.5B, Distill-Qwen-7B, Distill-Qwen-14B, " in message
    assert message.endswith("is given by its directory or its repository id.")


@pytest.mark.parametrize("name", ["", "zzz"])
def test_a_name_like_no_other_suggests_nothing(name):
    with pytest.raises(UnsupportedModelError, match=f"^Unknown model '{name}'. Known models: "):
        find_model(name)


def test_known_model_finds_names_and_nothing_else():
    assert known_model("r1-distill-qwen-7B") is MODELS["DeepSeek-R1-Distill-Qwen-7B"]
    assert known_model("Distill-Qwen-8B") is None


def test_near_names_are_few_distinct_and_begin_with_the_nearest():
    assert near_names("distil-llama-70b")[0] == "Distill-Llama-70B"
    assert len(set(near_names("distill-qwen"))) == 3
    assert near_names("Qwen2.5-Coder", cutoff=0.8) == ()


def test_a_long_name_is_cut():
    with pytest.raises(UnsupportedModelError) as caught:
        find_model("x" * 10_000)
    assert len(str(caught.value)) < 500


def test_tensor_parallel_needs_the_mlp_to_divide():
    config = parse_config(build_config(intermediate_size=161), where="c.json")
    assert plain_sizes(config) == [1]


@pytest.mark.parametrize("name", NAMES)
def test_match_config_finds_each_model(name):
    values = read_json(published_config(name))
    assert match_config(parse_config(values, where="c.json")) is MODELS[name]


@pytest.mark.parametrize(
    "change", [{"rms_norm_eps": 1e-5}, {"vocab_size": 152065}, {"tie_word_embeddings": True}]
)
def test_match_config_sees_each_difference(change):
    values = {**MODELS["DeepSeek-R1-Distill-Qwen-7B"].config_values, **change}
    assert match_config(parse_config(values, where="c.json")) is None


def test_catalog_table_text():
    lines = CatalogTable().to_text().splitlines()
    assert len(lines) == 11
    assert lines[0].split("  ")[0] == "model"
    assert [" ".join(line.split()) for line in lines[2:8]] == [
        "Distill-Qwen-1.5B 28 1536 12/2 3.6 28 1 2 4 8",
        "Distill-Qwen-7B 28 3584 28/4 15.2 56 1 2 4 8 16",
        "Distill-Qwen-14B 48 5120 40/8 29.5 192 1 2 4 8 16",
        "Distill-Qwen-32B 64 5120 40/8 65.5 256 1 2 4 8 16",
        "Distill-Llama-8B 32 4096 32/8 16.1 128 1 2 4 8 16",
        "Distill-Llama-70B 80 8192 64/8 141.1 320 1 2 4 8 16",
    ]
    assert all(len(line) <= 100 and line == line.rstrip() for line in lines)


def test_catalog_table_dict():
    models = CatalogTable().to_dict()["models"]
    assert [model["name"] for model in models] == list(NAMES)
    seven = models[1]
    assert seven["repository"] == "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"
    assert seven["base_model"] == "Qwen/Qwen2.5-Math-7B"
    assert seven["num_parameters"] == 7_615_616_512
    assert (seven["weight_bytes"], seven["kv_bytes_per_token"]) == (15_231_233_024, 57_344)
    assert (seven["rms_norm_eps"], seven["rope_theta"], seven["head_dim"]) == (1e-6, 10000.0, 128)
    rules = ["plain", "plain", "plain", "align_qkv", "align_qkv"]
    assert seven["tensor_parallel"] == dict(zip(["1", "2", "4", "8", "16"], rules, strict=True))
    assert models[0]["tensor_parallel"]["16"] == "impossible"
    json.dumps(models)
