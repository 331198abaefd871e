import hashlib
import json

import pytest
from checkpoint_builders import build_config
from texts import ROOT, read_json

from vacc_deploy.assets import published_config
from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.models.catalog import (
    MODELS,
    OFFICIAL,
    VENDOR,
    CatalogModel,
    CatalogTable,
    find_model,
    known_model,
    match_config,
    near_names,
    official_models,
    plain_sizes,
)
from vacc_deploy.models.parse import parse_config

SHORT = ("Qwen-1.5B", "Qwen-7B", "Qwen-14B", "Qwen-32B", "Llama-8B", "Llama-70B")
DISTILLS = tuple(f"DeepSeek-R1-Distill-{short}" for short in SHORT)
R1_0528 = "DeepSeek-R1-0528-Qwen3-8B"
NAMES = (*DISTILLS, R1_0528)
VENDORS = tuple(name for name, model in MODELS.items() if model.group == VENDOR)
MODELS_BY_SHORT = {model.aliases[0]: model for model in MODELS.values()}


def test_the_official_models_come_first_and_in_order():
    assert tuple(MODELS) == (*NAMES, *VENDORS)
    assert tuple(model.name for model in official_models()) == NAMES
    assert all(model.name == name for name, model in MODELS.items())
    assert {model.organization for model in official_models()} == {"deepseek-ai"}


def test_the_models_of_the_vendor_stand_in_the_order_of_the_page():
    qwen = [*("0.5B-Instruct", "1.5B-Instruct", "3B-Instruct", "7B-Instruct", "14B")]
    qwen += ["14B-Instruct", "32B-Instruct", "72B-Instruct"]
    qwen = [f"Qwen2.5-{size}" for size in qwen]
    skywork = [f"Skywork-OR1-{size}" for size in ("7B-Preview", "7B", "32B")]
    four = ("4B", "4B-Instruct-2507", "4B-Thinking-2507")
    dense = [f"Qwen3-{size}" for size in ("0.6B", "1.7B", *four, "8B")]
    assert ("QwQ-32B", *skywork, *qwen, *dense) == VENDORS
    assert {MODELS[name].organization for name in VENDORS} == {"Qwen", "Skywork"}


def test_every_published_configuration_belongs_to_a_model():
    folder = published_config(NAMES[0]).parent
    own = sorted(f"{name}.json" for name, model in MODELS.items() if not model.shape_of)
    assert sorted(path.name for path in folder.iterdir()) == own


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.shape_of])
def test_a_model_of_a_known_shape_takes_any_length_and_is_never_matched(name):
    model = MODELS[name]
    assert model.base_model.endswith(model.shape_of)
    shorter = {**MODELS[model.shape_of].config_values, "max_position_embeddings": 4096}
    config = parse_config(shorter, where="c.json")
    assert not model.differences(config) and match_config(config) is None
    other = parse_config({**shorter, "num_hidden_layers": 1}, where="c.json")
    assert model.differences(other) == ["num_hidden_layers"]


def test_a_copy_has_the_bytes_of_the_published_file():
    # The hash that a user of the file has published; the file ends without a line break.
    text = published_config("Qwen3-4B-Instruct-2507").read_text("utf-8").rstrip("\n")
    digest = "5beea1a4a34c62782bfb2f911c606741a3bab8f92d80a118fa053c28af12e8ba"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        *(("QwQ-32B", 32.764), ("Skywork-OR1-7B-Preview", 7.616), (R1_0528, 8.191)),
        *(("Qwen2.5-0.5B-Instruct", 0.494), ("Qwen2.5-1.5B-Instruct", 1.544)),
        *(("Qwen2.5-3B-Instruct", 3.086), ("Qwen2.5-7B-Instruct", 7.616)),
        *(("Qwen2.5-14B", 14.77), ("Qwen2.5-32B-Instruct", 32.764)),
        *(("Qwen2.5-72B-Instruct", 72.706), ("Qwen3-0.6B", 0.596), ("Qwen3-1.7B", 1.721)),
        *(("Qwen3-4B", 4.022), ("Qwen3-8B", 8.191)),
        *(("Qwen3-4B-Instruct-2507", 4.022), ("Qwen3-4B-Thinking-2507", 4.022)),
    ],
)
def test_a_configuration_gives_the_published_number_of_parameters(name, billions):
    """A wrong size would give another number; a wrong base or length would not."""
    assert round(MODELS[name].config.num_parameters() / 1e9, 3) == billions


@pytest.mark.parametrize("name", [name for name in DISTILLS if "Qwen" in name])
def test_a_published_configuration_is_what_the_committed_one_was_made_from(name):
    published = MODELS[name].config_values
    committed = read_json(ROOT / "build_in" / name / "config_vacc.json")
    for added in ("auto_map", "_attn_implementation", "insert_slice"):
        assert added not in published
        del committed[added]
    # The one value that the compiler's side needs otherwise: no window, since none is used.
    assert published["use_sliding_window"] is False
    assert committed == {**published, "sliding_window": None}


def test_the_committed_one_of_a_yarn_model_states_every_number():
    published = MODELS[R1_0528].config_values
    committed = read_json(ROOT / "build_in" / R1_0528 / "config_vacc.json")
    yarn = published["rope_scaling"]
    assert "attention_factor" not in yarn and yarn["attn_factor"] == 0.8782488562869419
    stated = {"attention_factor": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}
    expected = {key: value for key, value in yarn.items() if key != "attn_factor"} | stated
    assert committed["rope_scaling"] == expected
    same = {key: value for key, value in published.items() if key != "rope_scaling"}
    assert {key: committed[key] for key in same} == same


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
    ("name", "aliases"),
    [
        (R1_0528, ("R1-0528-Qwen3-8B", R1_0528, f"deepseek-ai/{R1_0528}")),
        ("QwQ-32B", ("QwQ-32B", "Qwen/QwQ-32B")),
        ("Qwen3-0.6B", ("Qwen3-0.6B", "Qwen/Qwen3-0.6B")),
        (
            "Skywork-OR1-7B-Preview",
            ("Skywork-OR1-7B-Preview", "Skywork/Skywork-OR1-7B-Preview"),
        ),
    ],
)
def test_the_names_of_the_others(name, aliases):
    assert MODELS[name].aliases == aliases
    assert {find_model(alias.upper()) for alias in aliases} == {MODELS[name]}
    assert MODELS[name].repository == aliases[-1]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("Distill-Qwen3-8B", "Distill-Qwen-"),
        ("R1-0528-Qwen3", "R1-0528-Qwen3-8B"),
        ("QwQ-32", "QwQ-32B"),
        ("qwen3-8b-instruct", "Qwen3-8B"),
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
    assert "Llama-70B, R1-0528-Qwen3-8B, and 18 others that vacc-deploy models lists. " in message
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


@pytest.mark.parametrize("name", ["Qwen/Qwen3-14B", "Qwen3-32B", "Qwen2.5-Math-1B", "QwQ-3B"])
def test_another_number_is_another_model_of_the_vendor(name):
    near = near_names(name)
    assert all(MODELS_BY_SHORT[short].group == OFFICIAL for short in near)


def test_near_names_of_a_group():
    assert near_names("QwQ-32", group=OFFICIAL, cutoff=0.7) == ()
    assert near_names("QwQ-32", group=VENDOR, cutoff=0.7) == ("QwQ-32B",)


def test_a_long_name_is_cut():
    with pytest.raises(UnsupportedModelError) as caught:
        find_model("x" * 10_000)
    assert len(str(caught.value)) < 500


def test_tensor_parallel_needs_the_mlp_to_divide():
    config = parse_config(build_config(intermediate_size=161), where="c.json")
    assert plain_sizes(config) == [1]


@pytest.mark.parametrize("name", MODELS)
def test_a_published_configuration_is_of_its_model(name):
    config = parse_config(MODELS[name].config_values, where="c.json")
    found = match_config(config)
    assert not MODELS[name].differences(config) and not found.differences(config)
    if name in NAMES:
        # Of models of one shape the official one.
        assert found is MODELS[name]


@pytest.mark.parametrize(
    ("name", "others"),
    [
        (DISTILLS[1], {"Skywork-OR1-7B-Preview", "Skywork-OR1-7B"}),
        (DISTILLS[2], {"Qwen2.5-14B", "Qwen2.5-14B-Instruct"}),
        ("Qwen3-4B-Instruct-2507", {"Qwen3-4B-Thinking-2507"}),
        ("QwQ-32B", {"Skywork-OR1-32B"}),
        ("Qwen3-8B", set()),
    ],
)
def test_the_models_of_one_shape(name, others):
    config = MODELS[name].config
    same = {other for other, model in MODELS.items() if not model.differences(config)}
    assert same == {name, *others}


def test_another_published_length_is_the_same_model():
    first = dict(MODELS["QwQ-32B"].config_values, max_position_embeddings=131072)
    config = parse_config(first, where="c.json")
    assert not MODELS["QwQ-32B"].differences(config)
    # In all that counts it has the shape of the official one.
    assert match_config(config) is MODELS[DISTILLS[3]]
    other = parse_config({**first, "max_position_embeddings": 65536}, where="c.json")
    assert MODELS["QwQ-32B"].differences(other) == ["max_position_embeddings"]


@pytest.mark.parametrize("attention_factor", [1.0, 1.138629436111989])
def test_how_the_factor_of_yarn_is_read_is_no_other_model(attention_factor):
    values = MODELS[R1_0528].config_values
    stated = {key: value for key, value in values["rope_scaling"].items() if key != "attn_factor"}
    stated["attention_factor"] = attention_factor
    config = parse_config({**values, "rope_scaling": stated}, where="c.json")
    assert match_config(config) is MODELS[R1_0528]
    config = parse_config({**values, "rope_scaling": {**stated, "factor": 2.0}}, where="c.json")
    assert MODELS[R1_0528].differences(config) == ["rope_scaling"]


@pytest.mark.parametrize(
    "change", [{"rms_norm_eps": 1e-5}, {"vocab_size": 152065}, {"tie_word_embeddings": True}]
)
def test_match_config_sees_each_difference(change):
    values = {**MODELS["DeepSeek-R1-Distill-Qwen-7B"].config_values, **change}
    assert match_config(parse_config(values, where="c.json")) is None


def test_catalog_table_text():
    lines = CatalogTable().to_text().splitlines()
    assert len(lines) == 2 * 4 + len(MODELS) + 3
    assert lines[0] == "The official distills of DeepSeek-R1:"
    assert lines[1].split("  ")[0] == "model"
    assert [" ".join(line.split()) for line in lines[3:10]] == [
        "Distill-Qwen-1.5B 28 1536 12/2 3.6 28 1 2 4 8",
        "Distill-Qwen-7B 28 3584 28/4 15.2 56 1 2 4 8 16",
        "Distill-Qwen-14B 48 5120 40/8 29.5 192 1 2 4 8 16",
        "Distill-Qwen-32B 64 5120 40/8 65.5 256 1 2 4 8 16",
        "Distill-Llama-8B 32 4096 32/8 16.1 128 1 2 4 8 16",
        "Distill-Llama-70B 80 8192 64/8 141.1 320 1 2 4 8 16",
        "R1-0528-Qwen3-8B 36 4096 32/8 16.4 144 1 2 4 8 16",
    ]
    assert lines[10:13] == ["", lines[11], lines[1]] and "the vendor documents" in lines[11]
    assert lines[14].split()[:4] == ["QwQ-32B", "64", "5120", "40/8"]
    # Where the heads are not as wide as the hidden states, the size of a head.
    (small,) = (line for line in lines if line.startswith("Qwen3-0.6B"))
    assert " ".join(small.split()) == "Qwen3-0.6B 28 1024 16/8 x 128 1.2 112 1 2 4 8 16"
    assert all(len(line) <= 100 and line == line.rstrip() for line in lines)


def test_catalog_table_dict():
    models = CatalogTable().to_dict()["models"]
    assert [model["name"] for model in models] == list(MODELS)
    assert [model["group"] for model in models] == ["official"] * 7 + ["vendor"] * 18
    last = models[-1]
    assert (last["organization"], last["base_model"]) == ("Qwen", "Qwen/Qwen3-8B-Base")
    by_name = {model["name"]: model for model in models}
    base, tuned = by_name["Qwen2.5-14B"], by_name["Qwen2.5-14B-Instruct"]
    assert (base["base_model"], base["shape_of"]) == (None, None)
    assert (tuned["base_model"], tuned["shape_of"]) == ("Qwen/Qwen2.5-14B", "Qwen2.5-14B")
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
