import copy
import dataclasses

import pytest

from vacc_deploy.errors import CompileFileError
from vacc_deploy.models.catalog import find_model
from vacc_deploy.models.parse import parse_config
from vacc_deploy.vamc.rules import check_compile_file, find_problems

INT8 = {
    "name": "Own-Model-int8-tp4-1024-2048",
    "frontend": {
        "checkpoint": "./own",
        "type": "huggingface",
        "shape": {"input_ids": [[1024], [2048]]},
        "model_kwargs": {"b2s": True, "tp": 4, "model_arch": "vacc"},
        "quantize": {"type": "w8a16_gptq"},
    },
    "backend": {
        "type": "tvm_vacc",
        "dtype": "int8",
        "merge_params": True,
        "compile": {"data_type": 0, "gather_data_vccl_dsp_enable": True},
    },
    "dataset": {"type": "huggingface", "name": "c4", "path": "p", "nsamples": 1, "seqlen": 64},
    "workspace": {"path": "./vacc_deploy", "workers": 4},
}
MISSING = object()


def changed(changes):
    values = copy.deepcopy(INT8)
    for path, value in changes.items():
        *parents, last = path.split(".")
        block = values
        for parent in parents:
            block = block[parent]
        if value is MISSING:
            del block[last]
        else:
            block[last] = value
    return values


def refusal(values, config=None):
    with pytest.raises(CompileFileError) as caught:
        check_compile_file(values, where="x.yaml", config=config)
    text = str(caught.value)
    assert text.startswith("x.yaml cannot be given to vamc:\n  - ")
    assert text.endswith("\nCorrect these values.")
    return text.splitlines()[1:-1]


def test_a_good_mapping_is_returned_as_it_is():
    assert find_problems(INT8) == []
    assert check_compile_file(INT8, where="x") is INT8


def test_the_keys_of_the_vendors_quantization_example_are_known():
    extra = {"device": "cuda:5", "calib_args": {"true_sequential": False}}
    values = changed({"frontend.quantize": {"type": "w8a16_gptq", **extra}})
    assert find_problems(values) == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("nmae", 1, "nmae: unknown key; did you mean name?"),
        ("frontend.checkpont", "x", "frontend.checkpont: unknown key; did you mean checkpoint?"),
        ("backend.compile.zzz", 1, "backend.compile.zzz: unknown key; known here: data_type"),
        ("workspace.\x1b[2J", 1, r"workspace.'\x1b[2J': unknown key"),
        ("backend.merge_params", MISSING, "backend.merge_params: missing; the vendor's files"),
        ("frontend", MISSING, "frontend: missing"),
        ("backend", None, "backend: got nothing, expected a block of keys"),
        ("frontend.shape", [], "frontend.shape: got [], expected a block of keys"),
        ("name", 7, "name: got 7, expected text"),
        ("workspace.workers", True, "workspace.workers: got true, expected a whole number"),
        ("workspace.workers", 1.5, "workspace.workers: got 1.5, expected a whole number"),
        ("workspace.workers", 1 << 40, "workspace.workers: got 1099511627776, which is far too"),
        pytest.param("workspace.workers", 1 << 20000, "got a number of 20001 bits", id="large"),
        ("workspace.workers", 0, "workspace.workers: got 0, expected 1 or more"),
        ("workspace.path", " ", "workspace.path: is empty, expected a path"),
        ("backend.merge_params", "yes", "backend.merge_params: got 'yes', expected true or false"),
        ("backend.type", "tvm", "backend.type: got 'tvm', expected tvm_vacc, as in every file"),
        ("backend.dtype", "bf16", "backend.dtype: got 'bf16', expected fp16 or int8"),
        ("backend.compile.data_type", 2, "backend.compile.data_type: got 2, expected 0"),
        ("frontend.quantize.calib_args", [1], "calib_args: got [1], expected keys with plain"),
        ("frontend.quantize.type", "w4", "quantize.type: got 'w4', expected w8a16_gptq"),
        ("frontend.quantize.type", "w16kv8", "the vendor has one for ChatGLM only"),
        ("frontend.quantize", MISSING, "backend.dtype: is int8 without frontend.quantize"),
        ("frontend.quantize", MISSING, "dataset: given without frontend.quantize"),
        ("backend.dtype", "fp16", "frontend.quantize: given with backend.dtype fp16"),
        ("dataset.name", "wiki", "dataset.name: got 'wiki', expected alpaca or c4 or ceval"),
        ("dataset.seqlen", -1, "dataset.seqlen: got -1, expected 1 or more"),
        ("frontend.model_kwargs.tp", 3, "tp: got 3, expected one of 1, 2, 4, 8, 16 (our inference"),
        ("frontend.model_kwargs.tp", 8, "expected Own-Model-int8-tp8-1024-2048"),
        ("name", "Own-Model-fp16-tp4-1024-2048", "expected Own-Model-int8-tp4-1024-2048"),
        ("name", "Own-Model-int8-tp4-1024-2048-kv8", "expected Own-Model-int8-tp4-1024-2048"),
        ("name", "Own-Model", "expected <Model>-int8-tp4-1024-2048: the published files"),
        ("name", "../x-int8-tp4-1024-2048", "expected <Model>-int8-tp4-1024-2048"),
        ("name", "a\nb-int8-tp4-1024-2048", "expected <Model>-int8-tp4-1024-2048"),
    ],
)
def test_every_wrong_value_is_refused_with_its_reason(path, value, message):
    assert message in "\n".join(refusal(changed({path: value})))


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([[1000], [2048]], "is 1000, expected a positive multiple of 16 (the vendor"),
        ([[1024], [2050]], "total length is 2050, expected a positive multiple of 16"),
        ([[0], [2048]], "prefill length is 0, expected a positive multiple of 16"),
        ([[-16], [2048]], "the next one is 16"),
        ([[2048], [2048]], "prefill length 2048 is not below the total length 2048"),
        ([[512], []], "got [[512], []], expected [[prefill], [total]]"),
        ([1024, 2048], "got [1024, 2048], expected [[prefill], [total]]"),
        ([["1024"], [2048]], "expected [[prefill], [total]]"),
        ([[True], [2048]], "expected [[prefill], [total]]"),
        pytest.param([[1 << 20000], [2048]], "a number of 20001 bits", id="large"),
        ([[[[[[1]]]]]], "expected [[prefill], [total]]"),
    ],
)
def test_wrong_lengths_are_refused(lengths, message):
    values = changed({"frontend.shape.input_ids": lengths})
    assert message in "\n".join(refusal(values))


def test_all_problems_come_in_one_error():
    values = changed(
        {
            "backend.dtyp": "x",
            "workspace.workers": "four",
            "frontend.shape.input_ids": [[1000], [999]],
            "frontend.model_kwargs.tp": 5,
            "backend.type": "x",
        }
    )
    text = "\n".join(refusal(values))
    for part in ("dtyp: unknown", "got 'four'", "is 1000", "is 999", "not below", "got 5", "tvm"):
        assert part in text


@pytest.mark.parametrize("values", [None, [], "text", 5])
def test_no_mapping_is_refused(values):
    assert "the file: got" in refusal(values)[0]


def test_the_keys_of_an_absent_block_are_not_missed_one_by_one():
    (line,) = refusal(changed({"workspace": MISSING}))
    assert "workspace: missing" in line


def catalog_values(alias, *, size, lengths=(1024, 2048), **kwargs):
    name = f"{find_model(alias).name}-int8-tp{size}-{lengths[0]}-{lengths[1]}"
    return changed(
        {
            "name": name,
            "frontend.shape.input_ids": [[n] for n in lengths],
            "frontend.model_kwargs": {"b2s": True, "tp": size, "model_arch": "vacc", **kwargs},
        }
    )


def test_heads_that_do_not_divide_need_align_qkv():
    (line,) = refusal(catalog_values("Distill-Qwen-1.5B", size=4))
    assert "4 does not divide 12 attention heads, 2 key-value heads" in line
    assert "add align_qkv: true (the vendor's llm/README" in line
    assert line.endswith("or use 1, 2")
    check_compile_file(catalog_values("Distill-Qwen-1.5B", size=4, align_qkv=True), where="x")
    assert refusal(catalog_values("Distill-Qwen-1.5B", size=4, align_qkv=False)) == [line]


def test_more_dies_than_heads_are_impossible():
    (line,) = refusal(catalog_values("Distill-Qwen-1.5B", size=16, align_qkv=True))
    assert "16 dies cannot share 12 attention heads" in line


def test_the_total_length_stays_within_the_models():
    (line,) = refusal(catalog_values("Distill-Qwen-7B", size=4, lengths=(1024, 131088)))
    assert "131088 is above max_position_embeddings 131072 of the model's config.json" in line


def test_a_given_configuration_goes_before_the_name():
    values = catalog_values("Distill-Qwen-7B", size=4)
    small = dict(find_model("Distill-Qwen-7B").config_values, max_position_embeddings=1024)
    (line,) = refusal(values, parse_config(small, where="c"))
    assert "above max_position_embeddings 1024 of the model's config.json; the most is 1024" in line
    assert line.endswith("1024, and less for the prefill length")


def test_an_unknown_model_skips_the_rules_that_need_it():
    values = changed({"name": "Own-Model-int8-tp16-1024-2048", "frontend.model_kwargs.tp": 16})
    check_compile_file(values, where="x")


def test_int8_codes_cannot_be_compiled_as_fp16():
    config = dataclasses.replace(find_model("Distill-Qwen-7B").config, quantization_bit=8)
    fp16 = {"name": "Own-fp16-tp4-1024-2048", "backend.dtype": "fp16"}
    values = changed({**fp16, "frontend.quantize": MISSING, "dataset": MISSING})
    check_compile_file(values, where="x")
    (line,) = refusal(values, config)
    assert "quantization_bit 8: it holds int8 codes" in line


def test_a_hostile_name_takes_no_time():
    refusal(changed({"name": "-int8-tp" * 500}))


# ---- the rule of each problem -----------------------------------------------------------------


def codes(values, config=None):
    return {(p.rule.code, p.where) for p in find_problems(values, config)}


@pytest.mark.parametrize(
    ("path", "value", "code", "where"),
    [
        ("nmae", 1, "VD601", "nmae"),
        ("workspace.env_recheck", False, "VD602", "workspace.env_recheck"),
        ("workspace.path", MISSING, "VD603", "workspace.path"),
        ("frontend.model_kwargs.b2s", MISSING, "VD604", "frontend.model_kwargs.b2s"),
        ("workspace.workers", "four", "VD605", "workspace.workers"),
        ("backend.type", "tvm", "VD606", "backend.type"),
        ("frontend.quantize.type", "w4", "VD606", "frontend.quantize.type"),
        ("workspace.workers", 0, "VD607", "workspace.workers"),
        ("frontend.shape.input_ids", [[1000], [2048]], "VD610", "frontend.shape.input_ids"),
        ("frontend.shape.input_ids", [[2048], [2048]], "VD611", "frontend.shape.input_ids"),
        ("name", "Own-Model-fp16-tp4-1024-2048", "VD620", "name"),
        ("name", "../x-int8-tp4-1024-2048", "VD621", "name"),
        ("name", "..", "VD621", "name"),
        ("frontend.quantize", MISSING, "VD630", "backend.dtype"),
        ("backend.dtype", "fp16", "VD631", "frontend.quantize"),
        ("frontend.quantize.type", "w16kv8", "VD632", "frontend.quantize.type"),
        ("frontend.quantize", MISSING, "VD633", "dataset"),
        ("frontend.model_kwargs.tp", 3, "VD640", "frontend.model_kwargs.tp"),
    ],
)
def test_every_problem_knows_its_rule_and_its_key(path, value, code, where):
    assert (code, where) in codes(changed({path: value}))


def test_problems_of_the_model_know_their_rules():
    tp = "frontend.model_kwargs.tp"
    assert codes(catalog_values("Distill-Qwen-1.5B", size=4)) == {("VD642", tp)}
    assert codes(catalog_values("Distill-Qwen-1.5B", size=16)) == {("VD641", tp)}
    long = catalog_values("Distill-Qwen-7B", size=4, lengths=(1024, 131088))
    assert codes(long) == {("VD612", "frontend.shape.input_ids")}
    codes_of = dataclasses.replace(find_model("Distill-Qwen-7B").config, quantization_bit=8)
    assert codes(INT8, codes_of) == {("VD715", "frontend.quantize")}


def test_a_problem_says_what_is_there_and_what_should_be():
    (problem,) = find_problems(changed({"frontend.shape.input_ids": [[1000], [2048]]}))[:1]
    assert (problem.got, problem.expected) == ("1000", "1008")
    (problem,) = find_problems(changed({"backend.type": MISSING}))
    assert (problem.got, problem.expected) == ("", "tvm_vacc")
    (problem,) = find_problems(changed({"frontend.checkpont": "x"}))
    assert (problem.got, problem.expected) == ("frontend.checkpont", "checkpoint")


# ---- what the vendor publishes for others ------------------------------------------------------


def test_keys_that_the_vendor_publishes_for_other_models_are_noted_and_pass():
    values = changed(
        {
            "backend.remove_params": False,
            "backend.compile.attention_split_num": 16,
            "backend.compile.ffn_split_num": 16,
            "backend.compile.stream_mode": True,
            "backend.compile.enable_kv_share": True,
            "workspace.env_recheck": False,
            "workspace.pyenv": {"transformers": "4.51.3", "huggingface-hub": "0.30.2"},
        }
    )
    assert {p.rule.code for p in find_problems(values)} == {"VD602"}
    assert check_compile_file(values, where="x") is values


def test_keys_that_some_published_files_do_without_are_warned_of_and_refused():
    values = changed({"backend.type": MISSING, "frontend.model_kwargs": {"tp": 4}})
    missing = find_problems(values)
    assert {p.rule.severity for p in missing} == {"warning"} and len(missing) == 3
    assert len(refusal(values)) == 3


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("frontend.model_kwargs.build_visual", True),
        ("frontend.shape", {"pixel_values": [4096, 1176], "cos": [4096, 80]}),
        ("frontend.shape.input_ids", [[512], []]),
    ],
)
def test_a_file_of_no_language_model_is_told_so_and_nothing_else(path, value):
    (problem,) = find_problems(changed({path: value, "backend.merge_params": MISSING}))
    assert problem.rule.code == "VD608" and "language models" in problem
