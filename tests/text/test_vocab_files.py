"""``tokenizer.json`` made of ``vocab.json`` and ``merges.txt``, compared with transformers."""

import json

import pytest
from token_fixtures import TEXT, added_token, their_ids, their_tokenizer, train_backend, write_files

from vacc_deploy.bounds import TOKENIZER_BYTES
from vacc_deploy.errors import CheckpointError
from vacc_deploy.text.token_files import settle_tokens
from vacc_deploy.text.tokenizer import Tokenizer

SIZE = train_backend().get_vocab_size()
ADDED = {"<|endoftext|>": SIZE, "<think>": SIZE + 1, "</think>": SIZE + 2}


@pytest.mark.parametrize(
    ("model_type", "config"),
    [
        ("qwen2", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("qwen2", {"tokenizer_class": "Qwen2TokenizerFast", "add_prefix_space": None}),
        ("qwen2", {"tokenizer_class": "PreTrainedTokenizerFast"}),
        ("qwen2", {}),
        ("qwen2", None),
        ("qwen2", {"tokenizer_class": "Qwen2Tokenizer", "add_prefix_space": True}),
        ("qwen3", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("qwen3", None),
        ("llama", {"tokenizer_class": "Qwen2Tokenizer"}),
        ("llama", {"tokenizer_class": "GPT2TokenizerFast"}),
        ("llama", {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}),
        ("llama", {"tokenizer_class": "GPT2Tokenizer", "unk_token": "<s>", "pad_token": "[PAD]"}),
    ],
)
@pytest.mark.parametrize("added", [ADDED, None])
def test_ids_equal_those_of_transformers(tmp_path, model_type, config, added):
    parts = {"model_type": model_type, "config": config, "added": added}
    directory = write_files(tmp_path / "slow", slow=True, **parts)
    expected = their_ids(directory)
    tokenizer, theirs = Tokenizer.from_dir(directory), their_tokenizer(directory)
    assert tokenizer.encode(TEXT, add_bos=False) == expected
    assert (tokenizer.eos_id, tokenizer.bos_id) == (theirs.eos_token_id, theirs.bos_token_id)
    assert tokenizer.notes[0].startswith(
        "there is no tokenizer.json: it is made of vocab.json, merges.txt and the added tokens, as "
    )
    # What prepare writes gives the same, also to transformers, also beside the files it is made of.
    (directory / "tokenizer.json").write_bytes(settle_tokens(directory).generated)
    assert Tokenizer.from_dir(directory).encode(TEXT, add_bos=False) == expected
    assert their_ids(directory) == expected
    assert not any("there is no" in note for note in Tokenizer.from_dir(directory).notes)


def test_a_qwen3_model_without_a_class_of_its_own_is_read_as_qwen2(tmp_path):
    # transformers does not load these files, and no Qwen3 splits its text in another way.
    for name in ("PreTrainedTokenizerFast", "Qwen2Tokenizer"):
        config = {"tokenizer_class": name}
        write_files(tmp_path / name, slow=True, model_type="qwen3", config=config, added=ADDED)
    ids = {
        tuple(Tokenizer.from_dir(path).encode(TEXT, add_bos=False)) for path in tmp_path.iterdir()
    }
    assert len(ids) == 1


def test_added_tokens_decoder_counts_too(tmp_path):
    tokens = {
        str(SIZE): added_token("<|endoftext|>", special=True),
        str(SIZE + 1): added_token("<think>", rstrip=True),
    }
    config = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": tokens}
    directory = write_files(tmp_path, slow=True, model_type="qwen2", config=config)
    assert Tokenizer.from_dir(directory).encode(TEXT, add_bos=False) == their_ids(directory)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_bos_is_put_in_front_where_the_checkpoint_says_so(tmp_path, adds_bos):
    config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": adds_bos}
    directory = write_files(tmp_path, slow=True, config=config, added=ADDED)
    expected = their_tokenizer(directory)("a b").input_ids
    tokenizer = Tokenizer.from_dir(directory)
    assert tokenizer.encode("a b", add_bos=tokenizer.adds_bos) == expected
    # transformers does not read add_bos_token where there is a tokenizer.json.
    (directory / "tokenizer.json").write_bytes(settle_tokens(directory).generated)
    assert their_tokenizer(directory)("a b").input_ids == expected


def test_merges_are_written_as_every_release_of_the_library_reads_them(tmp_path):
    directory = write_files(tmp_path, slow=True, model_type="qwen2")
    merges = json.loads(settle_tokens(directory).generated)["model"]["merges"]
    assert merges and all(isinstance(merge, str) for merge in merges)


def test_blank_lines_and_line_ends_of_windows_are_no_merges(tmp_path):
    directory = write_files(tmp_path, slow=True, model_type="qwen2")
    expected = Tokenizer.from_dir(directory).encode(TEXT, add_bos=False)
    path = directory / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert Tokenizer.from_dir(directory).encode(TEXT, add_bos=False) == expected


@pytest.mark.parametrize(
    ("model_type", "config", "said"),
    [
        ("llama", {}, "no tokenizer class"),
        ("llama", {"tokenizer_class": "LlamaTokenizerFast"}, "class 'LlamaTokenizerFast'"),
        ("qwen2", {"tokenizer_class": "BloomTokenizer"}, "class 'BloomTokenizer'"),
        ("qwen3", {"tokenizer_class": "LlamaTokenizerFast"}, "class 'LlamaTokenizerFast'"),
        ("llama", {"tokenizer_class": "PreTrainedTokenizerFast"}, "'PreTrainedTokenizerFast'"),
    ],
)
def test_another_class_is_refused_with_what_to_do(tmp_path, model_type, config, said):
    directory = write_files(tmp_path, slow=True, model_type=model_type, config=config)
    with pytest.raises(CheckpointError, match=said) as caught:
        Tokenizer.from_dir(directory)
    advice = 'If the model was trained with one of "GPT2Tokenizer" or "Qwen2Tokenizer", write it as'
    assert advice in str(caught.value) and "save_pretrained" in str(caught.value)


@pytest.mark.parametrize("missing", ["vocab.json", "merges.txt"])
def test_one_of_the_two_files_is_not_enough(tmp_path, missing):
    directory = write_files(tmp_path, slow=True, model_type="qwen2")
    (directory / missing).unlink()
    text = f"of the two files that could replace it {missing} is missing too"
    with pytest.raises(CheckpointError, match=text):
        Tokenizer.from_dir(directory)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[]", "it holds no tokens"),
        ("{}", "it holds no tokens"),
        ('{"a": "0"}', "'a' has the id '0', expected a number below 2"),
        ('{"a": true}', "'a' has the id True, expected a number below 2"),
        ('{"a": 4000000000}', "'a' has the id 4000000000, expected a number below 2"),
        ('{"a": -1}', "'a' has the id -1, expected a number below 2"),
        ('{"a": 0, "b": 0}', "it gives the id 0 to two tokens, 'a' and 'b'"),
        ('{"": 0}', "expected a token"),
    ],
)
def test_damaged_vocab_json_is_refused(tmp_path, content, text):
    directory = write_files(tmp_path, slow=True, model_type="qwen2")
    (directory / "vocab.json").write_text(content, "utf-8")
    with pytest.raises(CheckpointError, match=f"vocab.json cannot be used: .*{text}"):
        Tokenizer.from_dir(directory)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"a b c\n", "line 1 is 'a b c', expected two tokens and a space"),
        (b"#version: 0.2\na  b\n", "line 2 is 'a  b', expected two tokens"),
        (b"ab\n", "line 1 is 'ab', expected two tokens"),
        (b"a zzzz\n", "line 1 needs 'zzzz', not in vocab.json"),
        (b"! !\n", "line 1 needs '!!', not in vocab.json"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b"", "it is empty"),
    ],
)
def test_damaged_merges_are_refused(tmp_path, content, text):
    directory = write_files(tmp_path, slow=True, model_type="qwen2")
    (directory / "merges.txt").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"merges.txt cannot be used: {text}"):
        Tokenizer.from_dir(directory)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_oversized_files_are_refused(tmp_path, name):
    directory = write_files(tmp_path, slow=True, model_type="qwen2")
    with (directory / name).open("wb") as file:
        file.truncate(TOKENIZER_BYTES + 1)  # sparse: takes no space
    with pytest.raises(CheckpointError, match=f"{name} holds more than 67,108,864 bytes"):
        Tokenizer.from_dir(directory)


def test_add_prefix_space_must_be_true_or_false(tmp_path):
    config = {"add_prefix_space": "yes"}
    directory = write_files(tmp_path, slow=True, model_type="qwen2", config=config)
    with pytest.raises(CheckpointError, match="add_prefix_space is 'yes', expected true or false"):
        Tokenizer.from_dir(directory)
