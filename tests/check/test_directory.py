"""Every rule for a directory: what breaks it, and that sound directories break none."""

import json
import shutil

import pytest
from checked import above_notes, change, found, holder, make_prepared, poke
from checkpoint_builders import write_checkpoint

from vacc_deploy.check.directory import check_directory
from vacc_deploy.formats.layouts import LAYOUTS
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize

Q_PROJ = "model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Prepared directories of each architecture, and one of every layout; read only."""
    folder = tmp_path_factory.mktemp("made")
    directories = {
        kind: make_prepared(folder / kind, model_type=kind, shards=2, intermediate_size=128)
        for kind in ("qwen2", "qwen3", "llama")
    }
    for layout in LAYOUTS:
        if layout in ("gptq", "gguf", "gptq-one-group"):
            continue  # the sizes of the small model are no multiples of theirs
        options = QuantizeOptions("rtn", formats=(layout,))
        output = folder / layout
        directories[layout] = quantize(directories["qwen2"], options=options, output=output)
        directories[layout] = directories[layout].output_dir
    return directories


@pytest.fixture
def prepared(made, tmp_path):
    return shutil.copytree(made["qwen2"], tmp_path / "x")


@pytest.fixture
def vamc(made, tmp_path):
    return shutil.copytree(made["vamc"], tmp_path / "v")


def test_sound_directories_have_nothing_above_a_note(made):
    for directory in made.values():
        assert above_notes(directory) == []
        assert above_notes(directory, read_all=True) == []


def test_an_unprepared_checkpoint_lacks_the_vendors_files(tmp_path):
    problems = found(write_checkpoint(tmp_path / "raw"))
    assert len(problems["VD301"]) == 3
    assert problems.keys() >= {"VD110", "VD210", "VD301"}


def test_an_unprepared_llama_lacks_nothing(tmp_path):
    assert above_notes(write_checkpoint(tmp_path / "raw", model_type="llama")) == []


def test_codes_of_a_llama_model_are_a_note(made, tmp_path):
    options = QuantizeOptions("rtn", formats=("int8",))
    directory = quantize(made["llama"], options=options, output=tmp_path / "x").output_dir
    (problem,) = found(directory)["VD310"]
    assert "int8 codes of a Llama model, which vamc cannot read" in problem


def test_rope_scaling_is_shown_as_the_file_has_it(prepared):
    scaling = {"rope_type": "linear", "factor": 2.0}
    change(prepared / "config_vacc.json", rope_scaling=scaling)
    (problem,) = found(prepared)["VD211"]
    assert (
        "got {'type': 'linear', 'factor': 2.0}" in problem and "config.json has nothing" in problem
    )


def test_what_is_no_checkpoint_is_one_problem(tmp_path):
    (problem,) = check_directory(tmp_path).problems
    assert problem.rule.code == "VD100"
    assert "config.json is missing" in problem


# ---- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("model-00001-of-00002.safetensors", "VD101"),
        ("tokenizer.json", "VD120"),
        ("tokenizer_config.json", "VD121"),
        ("config_vacc.json", "VD210"),
        ("modeling_qwen2_vacc.py", "VD301"),
        ("generation_config.json", "VD122"),
        ("vacc_deploy.json", "VD110"),
    ],
)
def test_a_missing_file(prepared, name, code):
    (prepared / name).unlink()
    (problem,) = found(prepared)[code]
    assert problem.where == name


def test_several_shards_without_an_index(prepared):
    (prepared / "model.safetensors.index.json").unlink()
    assert "VD107" in found(prepared)


def test_a_damaged_file_that_needs_no_index(tmp_path):
    directory = make_prepared(tmp_path)
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    assert "VD102" in found(directory) and "VD107" not in found(directory)


@pytest.mark.parametrize("text", ["[]", '{"format_version": 99}'])
def test_a_manifest_that_cannot_be_used(prepared, text):
    (prepared / "vacc_deploy.json").write_text(text)
    assert [line[:5] for line in above_notes(prepared)] == ["VD113"]


def test_a_dtype_that_is_not_stated_is_no_other_one(prepared):
    change(prepared / "config.json", torch_dtype=...)
    assert "VD208" not in found(prepared)


def test_a_cut_shard(prepared):
    path = prepared / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    (problem,) = found(prepared)["VD102"]
    assert problem.where == path.name


def test_an_index_with_a_tensor_that_no_file_holds(prepared):
    path = prepared / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    name = "model.layers.0.self_attn.q_norm.weight"
    change(path, weight_map=weight_map | {name: weight_map[f"{Q_PROJ}.weight"]})
    (problem,) = found(prepared)["VD103"]
    assert name in problem.where


@pytest.mark.parametrize("other", ["another file", None])
def test_an_index_that_loaders_pass_over(prepared, other):
    path = prepared / "model.safetensors.index.json"
    weight_map = json.loads(path.read_text())["weight_map"]
    own = weight_map.pop(f"{Q_PROJ}.weight")
    if other:
        weight_map[f"{Q_PROJ}.weight"] = next(f for f in weight_map.values() if f != own)
    change(path, weight_map=weight_map)
    (problem,) = found(prepared)["VD108"]
    assert "index-places" in problem


def test_a_total_size_of_other_files(prepared):
    path = prepared / "model.safetensors.index.json"
    total = json.loads(path.read_text())["metadata"]["total_size"]
    change(path, metadata={"total_size": total + 1})
    (problem,) = found(prepared)["VD105"]
    assert (problem.got, problem.expected) == (str(total + 1), str(total))


def test_a_changed_file_and_a_foreign_one(prepared):
    (prepared / "tokenizer_config.json").write_text('{"a": 1}')
    shutil.copy(prepared / "model-00001-of-00002.safetensors", prepared / "extra.safetensors")
    problems = check_directory(prepared).problems
    where = {problem.rule.code: problem.where for problem in problems}
    assert where["VD111"] == "tokenizer_config.json"
    assert where["VD112"] == "extra.safetensors"


def test_a_manifest_that_was_edited(prepared):
    change(prepared / "vacc_deploy.json", model="Another-Model")
    (problem,) = found(prepared)["VD114"]
    assert problem.where == "vacc_deploy.json"
    # Version 0.1.0 wrote no seal.
    change(prepared / "vacc_deploy.json", seal=...)
    assert "VD114" not in found(prepared)


def test_weights_are_compared_by_hash_where_all_is_read(vamc):
    path = holder(vamc, "model.norm.weight")
    poke(path, "model.norm.weight", 0, b"\x01")
    assert "VD111" not in {p.rule.code for p in check_directory(vamc).problems}
    assert "VD111" in {p.rule.code for p in check_directory(vamc, read_all=True).problems}


# ---- configuration -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"num_hidden_layers": 1}, "VD207"),
        ({"num_hidden_layers": 3}, "VD203"),
        ({"intermediate_size": 96}, "VD204"),
        ({"vocab_size": 288}, "VD204"),
        ({"num_key_value_heads": 4}, "VD204"),
        ({"num_attention_heads": 3}, "VD201"),
        ({"model_type": "mistral"}, "VD202"),
        ({"insert_slice": True}, "VD218"),
        ({"torch_dtype": "float32"}, "VD208"),
        ({"hidden_act": "gelu"}, "VD201"),
    ],
)
def test_a_value_of_config_json(prepared, values, code):
    change(prepared / "config.json", **values)
    assert code in found(prepared)


@pytest.mark.parametrize(
    ("values", "code", "where"),
    [
        ({"num_hidden_layers": 28}, "VD211", "num_hidden_layers"),
        ({"rope_theta": 1000000.0}, "VD211", "rope_theta"),
        ({"rms_norm_eps": 1e-5}, "VD211", "rms_norm_eps"),
        ({"rms_norm_eps": 0}, "VD211", "rms_norm_eps"),
        ({"hidden_act": "gelu"}, "VD211", "hidden_act"),
        ({"eos_token_id": ...}, "VD211", "eos_token_id"),
        ({"an unknown\n\nkey": 1}, "VD224", "an unknown\\n\\nkey"),
        ({"auto_map": ...}, "VD212", "auto_map"),
        ({"insert_slice": ...}, "VD212", "insert_slice"),
        ({"_attn_implementation": "sdpa"}, "VD213", "_attn_implementation"),
        ({"sliding_window": 4096}, "VD214", "sliding_window"),
        ({"sliding_window": ...}, "VD214", "sliding_window"),
        ({"quantization_bit": 8}, "VD217", "quantization_bit"),
    ],
)
def test_a_value_of_config_vacc_json(prepared, values, code, where):
    change(prepared / "config_vacc.json", **values)
    (problem,) = found(prepared)[code]
    assert problem.where == f"config_vacc.json: {where}"


def test_a_config_vacc_json_that_is_no_json(prepared):
    (prepared / "config_vacc.json").write_text("{")
    (problem,) = found(prepared)["VD219"]
    assert problem.where == "config_vacc.json"


def test_the_dtype_of_a_vamc_directory(vamc):
    change(vamc / "config.json", torch_dtype="bfloat16")
    change(vamc / "config_vacc.json", dtype="float32")
    assert [p.got for p in found(vamc)["VD216"]] == ["'bfloat16'", "'float32'"]


def test_a_generation_config_that_programs_refuse(prepared):
    change(prepared / "generation_config.json", do_sample=False, temperature=0.6, top_p=None)
    (prepared / "generation_config.json").write_text('{"do_sample": true, "temperature": 0}')
    assert "VD220" in found(prepared)
    (prepared / "generation_config.json").write_text("[]")
    assert "VD221" in found(prepared)


@pytest.mark.parametrize(
    "values",
    [{"temperature": "hot"}, {"temperature": -1}, {"top_p": 2}, {"do_sample": []}]
    + [{"do_sample": True, "repetition_penalty": 0}],
)
def test_a_generation_config_that_nothing_can_be_drawn_with(prepared, values):
    change(prepared / "generation_config.json", **values)
    (problem,) = found(prepared)["VD225"]
    assert f"{list(values)[-1]} is " in problem and problem.where == "generation_config.json"


def test_a_vocabulary_that_is_no_multiple_of_16(tmp_path):
    directory = make_prepared(tmp_path, vocab_size=273)
    assert found(directory)["VD223"][0].got == "273"


# ---- values ------------------------------------------------------------------------------------


def test_a_weight_that_is_not_finite(prepared):
    path = holder(prepared, "model.norm.weight")
    poke(path, "model.norm.weight", 2, b"\xff\x7f")  # bfloat16: NaN
    (problem,) = found(prepared)["VD501"]
    assert "row 1 holds NaN" in problem


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", f"{Q_PROJ}.weight"])
def test_nan_in_a_row_that_is_read_of_a_large_tensor(prepared, name):
    poke(holder(prepared, name), name, 2, b"\xff\x7f")
    (problem,) = found(prepared)["VD501"]
    assert name in problem and "row 0 holds NaN" in problem


def test_a_dead_tensor(prepared):
    name = f"{Q_PROJ}.weight"
    poke(holder(prepared, name), name, 0, bytes(64 * 64 * 2))
    assert name in found(prepared)["VD502"][0]


@pytest.mark.parametrize("layout", ["int8", "int-quantized", "compressed-tensors"])
def test_a_zero_or_negative_scale(made, tmp_path, layout):
    directory = shutil.copytree(made[layout], tmp_path / "x")
    name = f"{Q_PROJ}.weight_scale"
    path = holder(directory, name)
    poke(path, name, 0, bytes(2))
    assert "row 0 is a scale of zero" in found(directory)["VD503"][0]
    poke(path, name, 0, b"\x00\xbc")  # -1 as float16
    assert "negative scale" in found(directory)["VD505"][0]


@pytest.mark.parametrize(
    ("layout", "suffix", "lowest", "largest"),
    [
        ("int8", "weight", b"\x80", b"\x7f"),
        ("int-quantized", "weight", b"\x80", b"\x81"),
        ("compressed-tensors", "weight_packed", b"\x00", b"\xff"),
    ],
)
def test_codes_at_and_beyond_the_end_of_their_range(
    made, tmp_path, layout, suffix, lowest, largest
):
    directory = shutil.copytree(made[layout], tmp_path / "x")
    name = f"{Q_PROJ}.{suffix}"
    path = holder(directory, name)
    poke(path, name, 5, lowest)
    assert "1 code is -128" in found(directory)["VD506"][0]
    poke(path, name, 0, largest * 600)
    problem = found(directory)["VD507"][0]
    assert name in problem
    assert "% of the codes are ±127" in problem


def test_a_row_of_a_vamc_directory_that_holds_no_int8_values(vamc):
    name = f"{Q_PROJ}.weight"
    path = holder(vamc, name)
    poke(path, name, 2 * 64 * 5, bytes([0x00, 0x38, 0x01, 0x31, 0x77, 0x32]))
    (problem,) = found(vamc)["VD508"]
    assert "row 5 is no row of int8 values" in problem
