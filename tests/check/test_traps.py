"""The traps of deploying by hand that can be seen in a directory, one test each.

The numbers are those of the list of traps in docs/check.md. Those of compile files are in
``test_traps_yaml.py``.
"""

import json
import shutil

import pytest
from checked import above_notes, change, found, make_prepared
from checkpoint_builders import YARN_ROPE, write_checkpoint

from vacc_deploy.check import sources
from vacc_deploy.check.directory import check_directory
from vacc_deploy.checkpoint.fingerprint import fingerprint_file

# The vendor's config_vacc.json for DeepSeek-R1-Distill: the sizes of Qwen1.5-14B.
TEMPLATE = {
    "architectures": ["Qwen2ForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_qwen2_vacc.Qwen2Config",
        "AutoModel": "modeling_qwen2_vacc.Qwen2ForCausalLM",
        "AutoModelForCausalLM": "modeling_qwen2_vacc.Qwen2ForCausalLM",
    },
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 13696,
    "max_position_embeddings": 32768,
    "max_window_layers": 35,
    "model_type": "qwen2",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 40,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.37.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 152064,
    "_attn_implementation": "eager",
    "insert_slice": True,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_prepared(tmp_path_factory.mktemp("made"))


@pytest.fixture
def prepared(made, tmp_path):
    return shutil.copytree(made, tmp_path / "x")


def as_vendors(monkeypatch, path):
    """Let a file stand for the vendor's, whose text is not ours to keep."""
    path.write_text(f"# the vendor's {path.name}\n")
    known = {**sources._VENDOR, path.name: (fingerprint_file(path),)}
    monkeypatch.setattr(sources, "_VENDOR", known)


def test_the_vendors_files_are_known_by_their_hashes():
    hashes = [value for values in sources._VENDOR.values() for value in values]
    assert len(set(hashes)) == len(hashes) == 17
    assert all(len(value) == 64 and set(value) <= set("0123456789abcdef") for value in hashes)


def test_trap_2_config_vacc_json_was_copied_over_config_json(prepared):
    shutil.copy(prepared / "config_vacc.json", prepared / "config.json")
    (problem,) = found(prepared)["VD218"]
    assert "insert_slice, auto_map" in problem


def test_trap_2_a_file_of_the_four_was_forgotten(prepared):
    (prepared / "quantization_vacc.py").unlink()
    assert found(prepared)["VD301"][0].where == "quantization_vacc.py"


def test_trap_3_the_vendors_template_is_used_as_it_is(prepared):
    (prepared / "config_vacc.json").write_text(json.dumps(TEMPLATE))
    problems = found(prepared)
    assert len(problems["VD215"]) == 1
    # The values of the template are not listed one by one.
    assert not problems.keys() & {"VD211", "VD214"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", 151645),
        ("rope_theta", 1000000.0),
        ("rms_norm_eps", 1e-5),
        ("num_hidden_layers", 40),
        ("num_attention_heads", 2),
        ("max_position_embeddings", 32768),
    ],
)
def test_trap_3_a_value_of_the_template_that_fails_silently(prepared, key, value):
    change(prepared / "config_vacc.json", **{key: value})
    assert any(key in p.where for p in found(prepared).get("VD211", [])), key


def test_trap_4_attn_implementation_without_its_underscore(prepared):
    path = prepared / "config_vacc.json"
    change(path, _attn_implementation=..., attn_implementation="eager")
    (problem,) = found(prepared)["VD213"]
    assert "without the leading underscore" in problem


def test_trap_5_a_sliding_window_that_the_model_does_not_use(prepared):
    change(prepared / "config_vacc.json", sliding_window=4096)
    assert found(prepared)["VD214"][0].got == "4096"


def test_trap_6_and_19_the_vendors_modeling_file(prepared, monkeypatch):
    as_vendors(monkeypatch, prepared / "modeling_qwen2_vacc.py")
    (problem,) = found(prepared)["VD303"]
    assert "4.42" in problem.rule.why
    assert "does not define" in problem.rule.why


def test_trap_7_insert_slice_in_the_configuration_of_every_other_program(prepared):
    change(prepared / "config.json", insert_slice=True)
    assert "insert_slice" in found(prepared)["VD218"][0]


def test_trap_13_the_vendors_rounding_of_bfloat16_weights(prepared, monkeypatch):
    as_vendors(monkeypatch, prepared / "quantization_vacc.py")
    (problem,) = found(prepared)["VD304"]
    assert problem.rule.severity == "error"
    assert "changes its sign" in problem.rule.why


def test_trap_13_the_vendors_rounding_of_other_weights(tmp_path, monkeypatch):
    import torch

    directory = make_prepared(tmp_path, dtype=torch.float32)
    as_vendors(monkeypatch, directory / "quantization_vacc.py")
    assert found(directory)["VD307"][0].rule.severity == "warning"


def test_trap_15_the_tokenizer_is_not_there(prepared):
    (prepared / "tokenizer.json").unlink()
    assert "VD120" in found(prepared)


def test_trap_22_the_vendors_modeling_file_ignores_yarn(tmp_path, monkeypatch):
    more = {"rope_scaling": YARN_ROPE, "max_position_embeddings": 128}
    directory = make_prepared(tmp_path, model_type="qwen3", config_overrides=more)
    as_vendors(monkeypatch, directory / "modeling_qwen2_vacc.py")
    assert "ignores rope_scaling" in found(directory)["VD306"][0].rule.why


def test_the_vendors_configuration_class(prepared, monkeypatch):
    as_vendors(monkeypatch, prepared / "configuration_qwen2_vacc.py")
    assert "VD305" in found(prepared)


def test_an_edited_source_file(prepared):
    with (prepared / "modeling_qwen2_vacc.py").open("a") as file:
        file.write("# mine\n")
    assert found(prepared)["VD302"][0].where == "modeling_qwen2_vacc.py"


def test_yarn_of_a_llama_model_is_worth_a_note(tmp_path):
    more = {"rope_scaling": YARN_ROPE, "max_position_embeddings": 128}
    directory = make_prepared(tmp_path, model_type="llama", config_overrides=more)
    assert [p.rule.severity for p in found(directory)["VD222"]] == ["note"]
    assert above_notes(directory) == []


def test_one_fault_does_not_hide_another(prepared):
    change(prepared / "config_vacc.json", insert_slice=...)
    (prepared / "quantization_vacc.py").unlink()
    (prepared / "tokenizer.json").unlink()
    path = prepared / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    codes = {problem.rule.code for problem in check_directory(prepared).problems}
    assert codes >= {"VD102", "VD120", "VD212", "VD301"}


def test_a_directory_that_is_not_read_from_is_not_written_to(prepared):
    before = {path.name: path.read_bytes() for path in prepared.iterdir()}
    change(prepared / "config_vacc.json", insert_slice=...)
    changed = {path.name: path.read_bytes() for path in prepared.iterdir()}
    check_directory(prepared, read_all=True)
    assert {path.name: path.read_bytes() for path in prepared.iterdir()} == changed
    assert before.keys() == changed.keys()


def test_a_checkpoint_of_another_form(tmp_path):
    directory = write_checkpoint(tmp_path / "x", config_overrides={"output_attentions": True})
    assert "run-flags" in found(directory)["VD106"][0]
