"""Ids from all files of a checkpoint, compared with transformers id by id."""

import json

import pytest
import transformers
from token_fixtures import TEXT, added_token, their_ids, train_backend, write_files
from tokenizer_builders import build_backend

from vacc_deploy.errors import CheckpointError
from vacc_deploy.text.token_files import settle_tokens
from vacc_deploy.text.tokenizer import Tokenizer

FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
SIZE = train_backend().get_vocab_size()
END = "<|end_of_turn|>"
THINK = {str(SIZE): added_token("<think>"), str(SIZE + 1): added_token("</think>")}


def decoder(*tokens, first=SIZE):
    """Return an ``added_tokens_decoder`` with ids from ``first`` on."""
    return {str(first + number): token for number, token in enumerate(tokens)}


def check_against_transformers(directory):
    """Compare all ids, ours and theirs, before and after our tokenizer.json takes the place."""
    tokenizer, settled = Tokenizer.from_dir(directory), settle_tokens(directory)
    expected = their_ids(directory)
    assert len(expected) > 1000
    assert tokenizer.encode(TEXT, add_bos=False) == expected
    if settled.generated is not None:
        (directory / "tokenizer.json").write_bytes(settled.generated)
        assert their_ids(directory) == expected
        again = settle_tokens(directory)
        assert again.generated is None
        assert Tokenizer.from_dir(directory).encode(TEXT, add_bos=False) == expected
    return tokenizer


def test_files_that_agree_leave_the_tokenizer_as_it_is(tmp_path):
    backend = train_backend()
    backend.add_tokens(["<think>", "</think>"])
    added = {"<think>": SIZE, "</think>": SIZE + 1}
    config = {
        **FAST,
        "added_tokens_decoder": {k: {**v, "normalized": True} for k, v in THINK.items()},
    }
    directory = write_files(tmp_path, backend=backend, config=config, added=added)
    settled = settle_tokens(directory)
    assert (settled.generated, settled.notes) == (None, ())
    check_against_transformers(directory)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"special": True},
        {"lstrip": True, "rstrip": True},
        {"single_word": True},
        {"normalized": True},
    ],
)
def test_tokens_of_added_tokens_decoder_get_their_ids(tmp_path, flags):
    tokens = added_token("<think>", **flags), added_token("</think>", **flags)
    # In the file's order a token may come before one with a smaller id.
    listed = dict(reversed(decoder(*tokens).items()))
    directory = write_files(tmp_path, config={**FAST, "added_tokens_decoder": listed})
    before = (directory / "tokenizer.json").read_bytes()
    tokenizer = check_against_transformers(directory)
    assert [tokenizer.token_id(token) for token in ("<think>", "</think>")] == [SIZE, SIZE + 1]
    assert tokenizer.notes == (
        "tokenizer.json lacks 2 tokens of added_tokens_decoder of tokenizer_config.json: "
        f"'<think>' ({SIZE}), '</think>' ({SIZE + 1}). Each is added with its id.",
    )
    assert before != (directory / "tokenizer.json").read_bytes()


def test_eos_may_stand_in_added_tokens_decoder_only(tmp_path):
    listed = decoder(added_token(END, special=True), added_token("[PAD]", special=True))
    config = {**FAST, "eos_token": END, "pad_token": "[PAD]", "added_tokens_decoder": listed}
    tokenizer = check_against_transformers(write_files(tmp_path, config=config))
    assert (tokenizer.eos_token, tokenizer.eos_id) == (END, SIZE)
    ids = tokenizer.encode(f"a{END}b", add_bos=False)
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab"


def test_tokens_of_added_tokens_json_get_their_ids(tmp_path):
    added = {"[PAD]": SIZE + 2, "</think>": SIZE + 1, "<think>": SIZE}
    special = {"pad_token": "[PAD]"}
    directory = write_files(tmp_path, config=FAST, added=added, special=special)
    tokenizer = check_against_transformers(directory)
    assert tokenizer.token_id("[PAD]") == SIZE + 2
    assert "tokenizer.json lacks 3 tokens of added_tokens.json" in tokenizer.notes[0]
    ids = tokenizer.encode("[PAD]<think>", add_bos=False)
    # A token with a role is special, others are not.
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>"


def test_added_tokens_json_counts_beside_added_tokens_decoder(tmp_path):
    # transformers does not read the file then: the token, with which the model was trained, would
    # be cut into pieces.
    config, added = {**FAST, "added_tokens_decoder": THINK}, {"<tool>": SIZE + 2}
    directory = write_files(tmp_path, config=config, added=added)
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.encode("<think><tool>", add_bos=False) == [SIZE, SIZE + 2]


@pytest.mark.parametrize(
    ("config", "special", "added"),
    [
        ({"pad_token": "[PAD]", "eos_token": END}, None, [END, "[PAD]"]),
        ({"additional_special_tokens": ["<think>", "</think>"]}, None, ["<think>", "</think>"]),
        ({"extra_special_tokens": {"tool_token": "<tool>"}}, None, ["<tool>"]),
        ({"eos_token": "<s>"}, {"eos_token": END}, [END]),
        ({}, {"additional_special_tokens": ["<tool>"], "eos_token": END}, [END, "<tool>"]),
        (
            {
                "eos_token": {
                    "__type": "AddedToken",
                    "lstrip": True,
                    **added_token(END, rstrip=True),
                }
            },
            None,
            [END],
        ),
    ],
)
def test_special_tokens_without_an_id_get_the_next_ones(tmp_path, config, special, added):
    directory = write_files(tmp_path, config={**FAST, **config}, special=special)
    tokenizer = check_against_transformers(directory)
    assert [tokenizer.token_id(token) for token in added] == [SIZE + i for i in range(len(added))]
    assert "special tokens to which no file gives an id" in tokenizer.notes[0]


def test_eos_follows_special_tokens_map_only_without_added_tokens_decoder(tmp_path):
    tokens = [added_token(END, special=True), added_token("<s>", special=True)]
    special = {"eos_token": END}
    config = {**FAST, "eos_token": "<s>", "added_tokens_decoder": decoder(*tokens)}
    first = write_files(tmp_path / "first", config=config, special=special)
    assert check_against_transformers(first).eos_token == "<s>"
    backend = train_backend()
    backend.add_special_tokens([END, "<s>"])
    config = {**FAST, "eos_token": "<s>"}
    second = write_files(tmp_path / "second", backend=backend, config=config, special=special)
    tokenizer = check_against_transformers(second)
    theirs = transformers.AutoTokenizer.from_pretrained(str(second))
    assert tokenizer.eos_id == theirs.eos_token_id == SIZE
    assert tokenizer.notes == (
        "tokenizer_config.json and special_tokens_map.json name different tokens as eos_token: "
        f"'<s>' and '{END}'. '{END}' counts, as in transformers.",
    )


def test_a_plain_token_that_other_files_add_is_found_in_text(tmp_path):
    backend = train_backend()
    vocab = json.loads(backend.to_str())["model"]
    vocab["vocab"]["<think>"] = SIZE
    document = {**json.loads(backend.to_str()), "model": vocab}
    directory = write_files(tmp_path, config={**FAST, "added_tokens_decoder": THINK})
    (directory / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    tokenizer = check_against_transformers(directory)
    assert tokenizer.encode("<think>", add_bos=False) == [SIZE]
    assert any("in its plain vocabulary only" in note for note in tokenizer.notes)


def test_added_tokens_decoder_says_how_a_token_is_matched(tmp_path):
    backend = train_backend()
    backend.add_tokens(["<think>", "</think>"])
    tokens = added_token("<think>", rstrip=True), added_token("</think>", normalized=True)
    config = {**FAST, "added_tokens_decoder": decoder(*tokens)}
    tokenizer = check_against_transformers(write_files(tmp_path, backend=backend, config=config))
    assert tokenizer.notes == (
        "tokenizer_config.json and tokenizer.json match 1 token in different ways: '<think>' "
        "(rstrip, normalized). tokenizer_config.json counts, as in transformers.",
    )


def test_a_placeholder_gives_way_to_the_stated_token(tmp_path):
    # Converters write [PAD421] for a row without a token. transformers would put the token behind
    # them all, where the model has no row.
    document = json.loads(train_backend().to_str())
    document["model"]["vocab"] |= {f"[PAD{i}]": i for i in range(SIZE, SIZE + 9)}
    directory = write_files(tmp_path, config={**FAST, "added_tokens_decoder": THINK})
    (directory / "tokenizer.json").write_text(json.dumps(document), "utf-8")
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.encode("<think></think>", add_bos=False) == [SIZE, SIZE + 1]
    assert f"[PAD{SIZE}] is '<think>'" in tokenizer.notes[1]
    generated = settle_tokens(directory).generated
    (directory / "tokenizer.json").write_bytes(generated)
    assert their_ids(directory, "<think></think>") == [SIZE, SIZE + 1]


def test_tokens_without_a_row_of_the_model_are_noted(tmp_path):
    config = {**FAST, "added_tokens_decoder": THINK}
    directory = write_files(tmp_path, config=config, vocab_size=SIZE + 1)
    notes = Tokenizer.from_dir(directory).notes
    assert notes[-1].startswith(
        f"the model has {SIZE + 1} rows (vocab_size in config.json), none of them for 1 token: "
        f"'</think>' ({SIZE + 1}). A text that holds such a token is refused."
    )
    write_files(directory, config=config, vocab_size=SIZE + 2)
    assert len(Tokenizer.from_dir(directory).notes) == 1


def test_partial_added_tokens_decoder_keeps_the_tokens_of_tokenizer_json(tmp_path):
    # transformers 5 rebuilds the tokenizer of a Qwen2 from the decoder alone and gives <think> the
    # id of the first token that it dropped.
    backend = train_backend()
    backend.add_special_tokens([END, "[PAD]"])
    config = {"added_tokens_decoder": decoder(added_token("<think>"), first=SIZE + 2)}
    config["tokenizer_class"] = "Qwen2Tokenizer"
    directory = write_files(tmp_path, backend=backend, config=config, model_type="qwen2")
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.encode(f"{END}<think>", add_bos=False) == [SIZE, SIZE + 2]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"added_tokens_decoder": []}, None),
        ({"added_tokens_decoder": [1]}, "added_tokens_decoder is list, expected an object"),
        ({"added_tokens_decoder": {"x": added_token("a")}}, "has the entry 'x', expected id and"),
        ({"added_tokens_decoder": {"-1": added_token("a")}}, "has the entry '-1', expected id"),
        ({"added_tokens_decoder": {"9" * 5000: added_token("a")}}, "has the entry '9999"),
        ({"added_tokens_decoder": {"1": "a"}}, "has the entry '1', expected id and token"),
        ({"added_tokens_decoder": {"1": {}}}, "added_tokens_decoder 1 is None, expected a token"),
        ({"added_tokens_decoder": {"1": added_token("\ud800")}}, r"is '\\ud800', expected a token"),
        (
            {"added_tokens_decoder": {"1": added_token("a", lstrip=1)}},
            "lstrip of .* is 1, expected",
        ),
        ({"additional_special_tokens": "abc"}, "additional_special_tokens is str, expected a list"),
        ({"additional_special_tokens": [7]}, "an entry of additional_special_tokens is 7"),
        ({"pad_token": ["x"]}, r"pad_token is \['x'\], expected a token"),
    ],
)
def test_damaged_statements_are_refused(tmp_path, config, text):
    directory = write_files(tmp_path, backend=build_backend())
    (directory / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    if text is None:
        assert settle_tokens(directory).generated is None
        return
    with pytest.raises(CheckpointError, match=f"tokenizer_config.json cannot be used: .*{text}"):
        Tokenizer.from_dir(directory)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"<think>": "5"}', "'<think>' has the id '5', expected a number"),
        ('{"<think>": true}', "has the id True, expected a number"),
        ('{"<think>": -1}', "has the id -1, expected a number"),
        ('{"<think>": 1000000000000}', "has the id 1000000000000, expected a number"),
        ('{"": 5}', "a token is '', expected a token"),
        ('["<think>"]', "it holds list, expected a JSON object"),
    ],
)
def test_damaged_added_tokens_json_is_refused(tmp_path, content, text):
    directory = write_files(tmp_path, backend=build_backend())
    (directory / "added_tokens.json").write_text(content, "utf-8")
    with pytest.raises(CheckpointError, match=f"added_tokens.json cannot be used: .*{text}"):
        Tokenizer.from_dir(directory)
