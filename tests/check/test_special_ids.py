"""The ids of BOS, EOS and padding in three files, each broken once."""

import pytest
from token_checks import CHATML, GENERATION, find, only, write
from tokenizer_builders import BOS_ID, EOS, EOS_ID, build_backend, tokenizer_config

from vacc_deploy.problems import tokens


def test_the_published_bos_of_r1_is_a_note(tmp_path):
    folder = write(tmp_path, bos_token_id=EOS_ID)
    problem = only(folder, tokens.KNOWN_BOS)
    assert str(problem) == (
        f"bos_token_id of config.json is {EOS_ID}, but {BOS_ID} in the tokenizer"
    )
    assert problem.rule.severity == "note"


@pytest.mark.parametrize(
    ("model", "generation", "where"),
    [
        ({"bos_token_id": 5}, GENERATION, "config.json: bos_token_id"),
        ({"eos_token_id": [5, 6]}, GENERATION, "config.json: eos_token_id"),
        ({}, {**GENERATION, "bos_token_id": EOS_ID}, "generation_config.json: bos_token_id"),
    ],
)
def test_other_special_ids_are_a_warning(tmp_path, model, generation, where):
    folder = write(tmp_path, generation=generation, **model)
    assert only(folder, tokens.SPECIAL_IDS).where == where


def test_an_end_among_several_agrees(tmp_path):
    ends = {**GENERATION, "eos_token_id": [1, EOS_ID]}
    assert set(find(write(tmp_path, generation=ends, eos_token_id=[EOS_ID, 3]))[1]) == {
        tokens.BOS_BY_BOTH
    }


def test_another_padding_is_a_note(tmp_path):
    folder = write(tmp_path, config=tokenizer_config(pad_token=EOS), pad_token_id=3)
    assert only(folder, tokens.PAD_IDS).rule.severity == "note"


def test_an_answer_that_never_ends_is_one_error(tmp_path):
    problem = only(write(tmp_path, generation={"eos_token_id": 7}), tokens.ENDLESS_ANSWERS)
    assert str(problem) == (
        f"an answer ends with the id {EOS_ID}, but eos_token_id of generation_config.json is 7"
    )


def test_without_a_generation_config_the_end_is_that_of_the_config(tmp_path):
    problem = only(write(tmp_path, generation=None, eos_token_id=7), tokens.ENDLESS_ANSWERS)
    assert problem.where == "config.json: eos_token_id"
    sound = find(write(tmp_path / "sound", generation=None))[1]
    assert set(sound) == {tokens.BOS_BY_BOTH}


def test_a_template_with_an_end_of_its_own_needs_that_end(tmp_path):
    backend = build_backend()
    backend.add_special_tokens(["<|im_end|>"])
    folder = write(
        tmp_path,
        backend=backend,
        config=tokenizer_config(chat_template=CHATML, add_bos_token=False),
    )
    _, problems = find(folder)
    assert problems[tokens.ENDLESS_ANSWERS].expected == str(backend.token_to_id("<|im_end|>"))


def test_a_token_without_a_row_is_an_error_and_told_once(tmp_path):
    folder = write(tmp_path, vocab_size=258)
    problem = only(folder, tokens.OUTSIDE_VOCABULARY)
    assert "the model has 258 rows" in problem and "2 tokens" in problem
