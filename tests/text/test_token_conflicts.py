"""Files that disagree on an id: an error that names the token, both ids and both files."""

import json

import pytest
from token_fixtures import added_token, train_backend, write_files

from vacc_deploy.errors import CheckpointError, TokenConflictError
from vacc_deploy.text.token_files import settle_tokens

SIZE = train_backend().get_vocab_size()
DECODER = "added_tokens_decoder of tokenizer_config.json"
ADVICE = "The weights were trained with one of the two. Save the tokenizer of the training"


def with_think():
    backend = train_backend()
    backend.add_tokens(["<think>"])
    return backend


def conflict(directory):
    with pytest.raises(TokenConflictError) as caught:
        settle_tokens(directory)
    assert isinstance(caught.value, CheckpointError)
    assert str(directory) in str(caught.value) and ADVICE in str(caught.value)
    return str(caught.value)


def test_two_ids_by_tokenizer_json_and_the_decoder(tmp_path):
    config = {"added_tokens_decoder": {str(SIZE + 3): added_token("<think>")}}
    text = conflict(write_files(tmp_path, backend=with_think(), config=config))
    assert f"the token '<think>' two ids: {SIZE} by tokenizer.json, {SIZE + 3} by {DECODER}" in text


def test_two_ids_by_the_decoder_and_added_tokens_json(tmp_path):
    config = {"added_tokens_decoder": {str(SIZE): added_token("<think>")}}
    text = conflict(write_files(tmp_path, config=config, added={"<think>": SIZE + 1}))
    assert f"two ids: {SIZE} by {DECODER}, {SIZE + 1} by added_tokens.json" in text


def test_one_id_for_a_token_of_tokenizer_json_and_another(tmp_path):
    text = conflict(write_files(tmp_path, backend=with_think(), added={"<tool>": SIZE}))
    expected = f"the id {SIZE} to two tokens: '<think>' by tokenizer.json, '<tool>' by added_tokens"
    assert expected in text


def test_one_id_for_a_piece_of_the_vocabulary_and_another(tmp_path):
    text = conflict(write_files(tmp_path, added={"<tool>": 5}))
    assert "the id 5 to two tokens: '&' by tokenizer.json, '<tool>' by added_tokens.json" in text


def test_one_id_for_two_tokens_of_other_files(tmp_path):
    config = {"added_tokens_decoder": {str(SIZE): added_token("<think>")}}
    text = conflict(write_files(tmp_path, config=config, added={"<tool>": SIZE}))
    assert f"the id {SIZE} to two tokens: '<think>' by {DECODER}, '<tool>' by added" in text


def test_an_id_that_leaves_a_gap(tmp_path):
    config = {"added_tokens_decoder": {str(SIZE + 7): added_token("<think>")}}
    text = conflict(write_files(tmp_path, config=config))
    place = f"{SIZE} by its place behind the tokens of tokenizer.json"
    assert f"'<think>' two ids: {SIZE + 7} by {DECODER}, {place}" in text


def test_a_tokenizer_json_whose_ids_the_library_does_not_give(tmp_path):
    document = json.loads(with_think().to_str())
    document["added_tokens"][-1]["id"] = SIZE + 4
    directory = write_files(tmp_path)
    (directory / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    text = conflict(directory)
    assert f"two ids: {SIZE + 4} by tokenizer.json, {SIZE} by the tokenizers library" in text


def test_an_id_of_a_token_in_vocab_json(tmp_path):
    config = {"tokenizer_class": "GPT2Tokenizer"}
    text = conflict(write_files(tmp_path, slow=True, config=config, added={"<think>": 3}))
    assert "the id 3 to two tokens: '$' by vocab.json, '<think>' by added_tokens.json" in text


@pytest.mark.parametrize(("stated", "is_refused"), [(SIZE + 2, True), ([7, SIZE], False)])
def test_an_end_token_without_an_id_and_the_id_in_config_json(tmp_path, stated, is_refused):
    # transformers gives the token the next id, though the model ends its answers with another one.
    directory = write_files(tmp_path, config={"eos_token": "<|end_of_turn|>"})
    model_config = {"model_type": "llama", "vocab_size": 480, "eos_token_id": stated}
    (directory / "config.json").write_text(json.dumps(model_config), "utf-8")
    if is_refused:
        place = f"{SIZE} by its place behind the tokens of tokenizer.json"
        text = conflict(directory)
        assert f"two ids: {place}, {SIZE + 2} by eos_token_id of config.json" in text
    else:
        assert settle_tokens(directory).backend.token_to_id("<|end_of_turn|>") == SIZE
