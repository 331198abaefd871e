"""The committed files of the models that Qwen3 and yarn have brought."""

import json
import math

import pytest
from checkpoint_builders import build_config, write_checkpoint
from texts import read_json

from vacc_deploy.models.catalog import find_model, official_models
from vacc_deploy.models.parse import parse_config
from vacc_deploy.prepare import prepare
from vacc_deploy.vamc.cards import CARDS, FLOAT16_BYTES, plan_memory, weight_bytes
from vacc_deploy.vamc.committed import committed_configs, committed_files
from vacc_deploy.vamc.compile_file import make_compile_file
from vacc_deploy.vamc.notes import compile_notes
from vacc_deploy.vamc.options import CompileOptions
from vacc_deploy.vamc.target import catalog_target

R1_0528 = find_model("R1-0528-Qwen3-8B")
QWEN = [model for model in official_models() if model.config.model_type != "llama"]
# What makes a small checkpoint of a published configuration.
SMALL = build_config(model_type="qwen3")
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers")
SIZES += ("num_key_value_heads", "vocab_size", "max_window_layers", "bos_token_id", "eos_token_id")


@pytest.mark.parametrize("model", QWEN, ids=lambda model: model.name)
def test_a_committed_configuration_is_what_prepare_writes(tmp_path, model):
    sizes = {name: SMALL[name] for name in SIZES}
    values = {**model.config_values, **sizes}
    if "head_dim" in values:
        sizes["head_dim"] = values["head_dim"] = 16
    # A ... takes a key of the builder out: it writes those of Qwen2.
    overrides = {**dict.fromkeys(build_config(), ...), **values}
    source = write_checkpoint(tmp_path / "m", config_overrides=overrides)
    prepared = prepare(source, output=tmp_path / "p")
    written = read_json(prepared.output_dir / "config_vacc.json")
    committed = json.loads(committed_configs()[f"{model.name}/config_vacc.json"])
    assert written == committed | sizes


def test_yarn_is_as_the_makers_serve_it():
    committed = json.loads(committed_configs()[f"{R1_0528.name}/config_vacc.json"])
    yarn, published = committed["rope_scaling"], R1_0528.config_values["rope_scaling"]
    factor = (0.1 * math.log(published["factor"]) + 1) * published["attn_factor"]
    assert yarn["attention_factor"] == pytest.approx(factor, abs=1e-12)
    assert committed["max_position_embeddings"] == 4 * 32768


def test_the_files_of_the_seventh_model():
    files = committed_files()
    assert len(files) == 14
    for dtype in ("fp16", "int8"):
        text = files[f"hf_ds_r1_0528_qwen3_8b_{dtype}.yaml"]
        assert f"name: {R1_0528.name}-{dtype}-tp4-1024-2048\n" in text
        assert "rope_scaling yarn is computed by the modeling file" in " ".join(text.split("\n# "))


@pytest.mark.parametrize(
    ("model_type", "said"),
    [("qwen2", "computed by the modeling file"), ("llama", "vamc loads Llama through its own")],
)
def test_a_note_says_who_computes_yarn(model_type, said):
    rule = R1_0528.config_values["rope_scaling"]
    overrides = {"rope_scaling": rule, "vocab_size": 320, "max_position_embeddings": 131072}
    config = parse_config(build_config(model_type=model_type, overrides=overrides), where="c")
    content = make_compile_file(catalog_target(find_model("Distill-Qwen-7B"))).content
    (note,) = compile_notes(content, config)
    assert note.startswith("rope_scaling yarn") and said in note


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Qwen3-4B", "R1-0528-Qwen3-8B"])
def test_memory_counts_heads_that_are_not_as_wide_as_the_hidden_states(name):
    config = find_model(name).config
    heads, kv_heads, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    layers, hidden, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    matrices = hidden * size * (2 * heads + 2 * kv_heads) + 3 * hidden * inner
    rows = size * (heads + 2 * kv_heads) + 2 * hidden + 2 * inner
    norms = layers * (2 * hidden + 2 * size) + hidden
    tables = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    floats = norms + tables
    assert weight_bytes(config, "fp16") == FLOAT16_BYTES * (layers * matrices + floats)
    assert weight_bytes(config, "int8") == layers * (matrices + 2 * rows) + FLOAT16_BYTES * floats
    plan = plan_memory(
        CARDS["VA16"], config, dtype="fp16", tensor_parallel_size=4, lengths=(16, 1000)
    )
    assert plan.kv_bytes_per_die == 2 * layers * (kv_heads // 4) * size * 2 * 1000


def test_a_model_of_the_vendor_gets_a_compile_file_by_its_name():
    options = CompileOptions("int8", 8)
    made = make_compile_file(catalog_target(find_model("qwq-32b"), "int8"), options)
    assert made.content["name"] == "QwQ-32B-int8-tp8-1024-2048"
    assert made.content["frontend"]["checkpoint"] == "./QwQ-32B-vacc-int8"
    assert made.environment == {"VACC_STACK_SIZE": "256"}
