"""Accuracy on C-Eval: the prompts, the letters, both models, and what is told of them."""

import json

import pytest
import torch
from ceval_archives import LETTERS, write_archive
from checkpoint_builders import read_tensors, write_checkpoint
from click.testing import CliRunner
from reference_logits import edit_json
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from vacc_deploy.cli import cli
from vacc_deploy.errors import CalibrationError, CheckpointError, UsageError
from vacc_deploy.evaluation import ceval_prompts
from vacc_deploy.evaluation.ceval import evaluate_ceval
from vacc_deploy.evaluation.ceval_prompts import choose_questions
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.run import quantize
from vacc_deploy.text.tokenizer import Tokenizer

# As lm-evaluation-harness writes it, with one example.
WRITTEN = (
    "以下是中国关于法学的单项选择题，请选出其中的正确答案。\n\n"
    "例0\nA. 甲0\nB. 乙\nC. 丙\nD. 丁\n答案： A\n\n"
    "问0\nA. 甲0\nB. 乙\nC. 丙\nD. 丁\n答案："
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A float directory and its int8 directory; large weights make the letters differ."""
    folder = tmp_path_factory.mktemp("pair")
    source = write_checkpoint(folder / "model", scale=3.0)
    return source, quantize(source, options=QuantizeOptions("rtn", formats=("int8",))).output_dir


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    return write_archive(tmp_path_factory.mktemp("data") / "ceval-exam.zip")


def run_json(*arguments):
    result = CliRunner().invoke(cli, [*map(str, arguments), "--json"])
    return result.exit_code, json.loads(result.stdout)


def their_choice(model, tokenizer, text):
    """Return the letter that transformers finds most likely behind a text."""
    # The tokenizer of these tests has one token a byte, the space in front of a letter too.
    ids = tokenizer.encode(f"{text} ", add_bos=True)
    with torch.inference_mode():
        logits = model(torch.tensor([ids])).logits[0, -1]
    return max(LETTERS, key=lambda letter: logits[tokenizer.token_id(letter)])


def test_the_prompt_is_that_of_the_harness_and_the_letters_those_of_transformers(pair, archive):
    source, deployed = pair
    questions, examples = choose_questions(archive, ["law"], None)
    texts = [ceval_prompts.write_prompt(q, examples["law"][:1]) for q in questions]
    assert texts[0] == WRITTEN
    result = evaluate_ceval(deployed, archive, subjects=["law"], shots=1).to_dict()
    model = AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = Tokenizer.from_dir(source)
    theirs = [their_choice(model, tokenizer, text) for text in texts]
    assert [a["float"] for a in result["answers"]] == theirs
    assert [a["answer"] for a in result["answers"]] == ["A", "B", "C"]


def test_the_result_counts_by_subject_and_together(pair, archive):
    source, deployed = pair
    result = evaluate_ceval(deployed, archive, shots=2)
    values = result.to_dict()
    right = [a["float"] == a["answer"] for a in values["answers"]]
    assert values["questions"] == 6 and values["accuracy_float"] == sum(right) / 6
    assert {n: s["questions"] for n, s in values["subjects"].items()} == {"law": 3, "logic": 3}
    halves = [sum(right[:3]) / 3, sum(right[3:]) / 3]
    assert [s["accuracy_float"] for s in values["subjects"].values()] == halves
    assert values["subject_mean_float"] == pytest.approx(sum(halves) / 2)
    assert values["prompts_with_fewer_shots"] == 0 and values["activations"] == "float"
    text = result.to_text()
    assert f"{values['accuracy_float']:.2%} float" in text and "exact McNemar p" in text
    assert str(source) in text and "Note" not in text


def test_a_directory_beside_itself_differs_nowhere(pair, archive):
    source, _ = pair
    values = evaluate_ceval(source, archive, reference_dir=source, limit=1).to_dict()
    assert (values["questions"], values["same_choice"], values["mcnemar_p"]) == (2, 1.0, 1.0)
    assert any("has no vacc_deploy.json" in note for note in values["notes"])


def test_too_long_prompts_lose_their_first_examples_and_it_is_told(tmp_path, archive):
    """The window of a model is a bound of the prompt, as its context is."""
    config = {"use_sliding_window": True, "sliding_window": 300, "max_window_layers": 0}
    source = write_checkpoint(tmp_path / "model", config_overrides=config)
    result = evaluate_ceval(source, archive, reference_dir=source, subjects=["law"])
    assert result.num_short == 3
    assert "Note: the first examples were left out of 3 of 3 prompts" in result.to_text()
    questions, examples = choose_questions(archive, ["law"], None)
    (first, *_) = ceval_prompts.build_prompts(
        questions, examples, shots=5, tokenizer=Tokenizer.from_dir(source), longest=300
    )
    shown = examples["law"]
    # A byte is a token; so are the BOS and the space before the letter.
    kept = len(ceval_prompts.write_prompt(questions[0], shown[5 - first.shots :]).encode()) + 2
    more = len(ceval_prompts.write_prompt(questions[0], shown[4 - first.shots :]).encode()) + 2
    assert first.shots > 0 and len(first.ids) == kept <= 300 < more


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"subjects": ["law", "nosuch"]}, UsageError, "nosuch is no subject of C-Eval"),
        ({"subjects": ["marxism"]}, CalibrationError, "has no val questions of marxism"),
    ],
)
def test_unknown_and_missing_subjects_are_refused(pair, archive, options, error, message):
    with pytest.raises(error, match=message):
        evaluate_ceval(pair[1], archive, **options)


def test_a_subject_that_is_named_twice_is_asked_once(archive):
    questions, _ = choose_questions(archive, ["law", "law"], 2)
    assert [question.row["question"].strip() for question in questions] == ["问0", "问1"]


def test_fewer_examples_than_asked_for_are_refused(pair, tmp_path):
    short = write_archive(tmp_path / "short.zip", subjects=("law",), examples=3)
    with pytest.raises(CalibrationError, match="law has 3 examples, --shots 5 asks for more"):
        evaluate_ceval(pair[1], short)


def test_a_damaged_directory_is_refused_with_its_files(pair, archive, tmp_path):
    source = write_checkpoint(tmp_path / "model")
    deployed = quantize(source, options=QuantizeOptions("rtn", formats=("int8",))).output_dir
    edit_json(deployed / "generation_config.json", temperature=0.1)
    with pytest.raises(CheckpointError, match="is not what was written:\n.*generation_config"):
        evaluate_ceval(deployed, archive)


def test_a_model_that_gives_nan_is_refused(tmp_path, archive):
    source = write_checkpoint(tmp_path / "model")
    tensors = read_tensors(source)
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(CheckpointError, match="gives NaN or infinity for an answer"):
        evaluate_ceval(source, archive, reference_dir=source, limit=1)


def test_the_command_prints_one_object_and_gives_no_verdict(pair, archive):
    command = ("evaluate", pair[1], "--task", "ceval", "--data", archive)
    code, values = run_json(*command, "--subjects", "law,logic", "--limit", "2", "--shots", "0")
    assert (code, values["task"], values["questions"], values["shots"]) == (0, "ceval", 4, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--task ceval takes one --data, got 0; for example --data ceval-exam.zip"),
        (("--data", "a", "--data", "b"), "takes one --data, got 2"),
        (("--data", "a", "--subjects", " , "), "--subjects names no subject; for example"),
        (("--data", "a", "--greedy"), "--task ceval does not use --greedy"),
        (("--data", "/nosuch/ceval-exam.zip"), "/nosuch/ceval-exam.zip does not exist"),
    ],
)
def test_what_cannot_be_meant_is_refused_at_once(pair, arguments, message):
    code, values = run_json("evaluate", pair[1], "--task", "ceval", *arguments)
    assert code in (1, 2) and message in values["error"]["message"]
