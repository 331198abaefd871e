"""The traps of the vendor's flow that a compile file shows, one test each.

Their numbers are those of the list in the project's facts on the vendor, section 6.
"""

import pytest
from compile_files import (
    REMOVED,
    VENDOR_FP16,
    VENDOR_INT8,
    above_notes,
    change,
    check,
    make_prepared,
)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VACC_STACK_SIZE", raising=False)
    return tmp_path / "a.yaml"


def of_model(model, size=4, lengths=(1024, 2048), **changes):
    """Return the published file, adapted by hand to another model."""
    prefill, total = lengths
    return change(
        VENDOR_FP16,
        name=f"DeepSeek-R1-Distill-{model}-fp16-tp{size}-{prefill}-{total}",
        frontend__checkpoint=f"/path/to/DeepSeek-R1-Distill-{model}",
        frontend__model_kwargs__tp=size,
        frontend__shape__input_ids=[[prefill], [total]],
        **changes,
    )


def test_trap_8_lengths_that_are_no_multiples_of_16(path):
    problem = check(path, of_model("Qwen-7B", lengths=(1000, 2048)))["VD610"]
    assert (problem.got, problem.expected) == ("1000", "1008")


def test_trap_8_a_prompt_that_fills_the_total_length(path):
    assert (
        "leaves no tokens for an answer"
        in check(path, of_model("Qwen-7B", lengths=(2048, 2048)))["VD611"]
    )


def test_trap_8_more_dies_than_the_heads_allow(path):
    assert (
        "16 dies cannot share 12 attention heads" in check(path, of_model("Qwen-1.5B", 16))["VD641"]
    )


def test_trap_8_a_name_that_says_something_else(path):
    problem = check(path, VENDOR_FP16.replace("dtype: fp16", "dtype: int8"))["VD620"]
    assert problem.expected == "DeepSeek-R1-Distill-Qwen-7B-int8-tp4-1024-2048"


def test_trap_8_int8_without_a_method(path):
    assert "VD630" in check(path, change(VENDOR_INT8, frontend__quantize=REMOVED))


@pytest.mark.parametrize(
    ("model", "size"), [("Qwen-1.5B", 4), ("Qwen-7B", 8), ("Qwen-14B", 16), ("Qwen-32B", 16)]
)
def test_trap_9_heads_that_need_align_qkv(path, model, size):
    problem = check(path, of_model(model, size))["VD642"]
    assert problem.expected == "align_qkv: true" and problem.rule.severity == "error"
    aligned = of_model(model, size, frontend__model_kwargs__align_qkv=True)
    assert above_notes(check(path, aligned)) == []


@pytest.mark.parametrize("model", ["Qwen-32B", "Llama-70B"])
def test_trap_10_the_stack_size_of_large_models(path, model, monkeypatch):
    text = of_model(model, 8)
    note = check(path, text)["VD650"]
    assert note.rule.severity == "note" and "asks for 256 from 32B upwards" in note
    monkeypatch.setenv("VACC_STACK_SIZE", "128")
    wrong = check(path, text)["VD651"]
    assert wrong.rule.severity == "warning" and (wrong.got, wrong.expected) == ("128", "256")
    monkeypatch.setenv("VACC_STACK_SIZE", "256")
    assert not {"VD650", "VD651"} & set(check(path, text))


def test_trap_10_smaller_models_need_no_stack_size(path):
    assert "VD650" not in check(path, of_model("Qwen-14B"))


def test_trap_11_lengths_that_are_short_for_answers_of_r1(path):
    problem = check(path, VENDOR_FP16)["VD613"]
    assert "leaves 1024 for the answer" in problem and "16384" in problem
    assert "VD613" not in check(path, of_model("Qwen-7B", lengths=(1024, 17408)))


def test_trap_12_int8_without_calibration_text_and_device(path):
    problems = check(path, VENDOR_INT8)
    assert "There is no dataset block" in problems["VD634"]
    assert "cuda:5" in problems["VD635"]
    dataset = {"type": "huggingface", "name": "alpaca", "path": "/d/en_alpaca_data.json"}
    whole = change(
        VENDOR_INT8,
        frontend__quantize__device="cuda:0",
        dataset={**dataset, "nsamples": 128, "seqlen": 512},
    )
    assert not {"VD634", "VD635", "VD636"} & set(check(path, whole))
    without_device = change(VENDOR_INT8, dataset={**dataset, "nsamples": 128, "seqlen": 512})
    assert [code for code in check(path, without_device) if code == "VD635"] == ["VD635"]


def test_trap_18_the_file_of_qwen_reused_for_llama(path):
    text = VENDOR_FP16.replace(
        "/path/to/DeepSeek-R1-Distill-Qwen-7B", "/path/to/DeepSeek-R1-Distill-Llama-8B"
    )
    problem = check(path, text)["VD706"]
    assert problem.rule.severity == "warning" and "Distill-Llama-8B" in problem


def test_trap_18_the_file_of_qwen_reused_for_a_llama_that_is_here(path, tmp_path):
    directory = make_prepared(tmp_path, "llama")
    problem = check(path, change(VENDOR_FP16, frontend__checkpoint=str(directory)))["VD706"]
    assert "is another model's: model_type is llama, expected qwen2" in problem
