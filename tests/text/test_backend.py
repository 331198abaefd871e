"""Tokenizers that would take all memory, all time, or give other ids each time."""

import base64
import json

import pytest
import tokenizers
from tokenizer_builders import build_backend, tokenizer_config, write_tokenizer

from vacc_deploy.errors import CheckpointError, TokenConflictError
from vacc_deploy.text import backend as backend_module
from vacc_deploy.text.backend import Backend, parse_document
from vacc_deploy.text.token_files import settle_tokens
from vacc_deploy.text.tokenizer import Tokenizer

BASE = json.loads(build_backend().to_str())


def document(**changes):
    return {**json.loads(json.dumps(BASE)), **changes}


def load(tmp_path, content):
    write_tokenizer(tmp_path, config=tokenizer_config())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    return Tokenizer.from_dir(tmp_path)


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


def split(regex):
    pattern = {"Regex": regex}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


GROWING = [replace({"String": "a"}, "a" * 10)] * 9
LEAPING = [replace({"String": "a"}, "a" * 1000)] * 3
FIXED = {"direction": "Right", "pad_to_multiple_of": None, "pad_type_id": 0, "pad_token": "a"}


@pytest.mark.parametrize(
    ("changes", "text", "said"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": GROWING}}, "a", "MiB of memory"),
        ({"normalizer": {"type": "Prepend", "prepend": "a" * 3_000_000}}, "a", "MiB of memory"),
        ({"normalizer": replace({"String": ""}, "xx")}, "a", "index out of bounds"),
        ({"pre_tokenizer": split("(a+)+b")}, "a" * 100, "retry-limit-in-match over"),
        ({"pre_tokenizer": split("(?:(?:(?:a{999}){999}){999}){999}")}, "a", "big number"),
        (
            {"normalizer": {
                "type": "Precompiled",
                "precompiled_charsmap": base64.b64encode(b"\xff\xff\xff\x7fabc").decode(),
            }},
            "a",
            "tokenizers library",
        ),
        ({"decoder": {"type": "Sequence", "decoders": LEAPING}}, "a", "MiB of memory"),
        ({"decoder": {"type": "Strip", "content": "a", "start": 9, "stop": 10**18}}, "a", "bounds"),
    ],
    ids=["grows", "prepends", "empty", "backtracks", "repeats", "charsmap", "decoder", "strip"],
)  # fmt: skip
def test_a_hostile_pipeline_is_an_error_and_the_next_one_works(tmp_path, changes, text, said):
    with pytest.raises(CheckpointError, match=rf"tokenizer.json cannot be used: .*{said}"):
        tokenizer = load(tmp_path / "hostile", document(**changes))
        tokenizer.decode(tokenizer.encode(text, add_bos=False))
    assert load(tmp_path / "sound", document()).encode("Aa!", add_bos=False) == [32, 64, 0]


def test_a_pattern_that_searches_without_end_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(backend_module, "TOKENIZER_CPU_SECONDS", 1)
    tokenizer = load(tmp_path, document(pre_tokenizer=split(r"(?=(a+))\1b")))
    with pytest.raises(
        CheckpointError, match="the tokenizers library needs more than 1 s of processor time"
    ):
        tokenizer.encode("a" * 100_000, add_bos=False)


def test_padding_and_truncation_of_any_size_are_switched_off(tmp_path):
    padding = {"strategy": {"Fixed": 10**9}, "pad_id": 0, **FIXED}
    cut = {"direction": "Right", "max_length": 1, "strategy": "LongestFirst", "stride": 0}
    tokenizer = load(tmp_path, document(padding=padding, truncation=cut))
    assert tokenizer.encode("Aa!", add_bos=False) == [32, 64, 0]


def test_a_reply_of_the_library_is_bounded(tmp_path, monkeypatch):
    tokenizer = load(tmp_path, document())
    # Four bytes an id.
    monkeypatch.setattr(backend_module, "TOKENIZER_MEMORY", 1 << 20)
    assert len(tokenizer.encode("a" * (1 << 18), add_bos=False)) == 1 << 18
    with pytest.raises(CheckpointError, match="library gives a longer answer than it may"):
        tokenizer.encode("a" * ((1 << 18) + 1), add_bos=False)


def with_merges(**changes):
    backend = tokenizers.Tokenizer(
        tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2, "abab": 3}, [("a", "b"), ("ab", "ab")])
    )
    content = json.loads(backend.to_str())
    content["model"] |= changes
    return content


@pytest.mark.parametrize("dropout", [0.5, 1.0, "abc", [[1]]])
def test_dropout_is_left_out_and_said(tmp_path, dropout):
    (tmp_path / "tokenizer.json").write_text(json.dumps(with_merges(dropout=dropout)), "utf-8")
    settled = settle_tokens(tmp_path)
    assert [settled.backend.encode("abab" * 9) for _ in range(9)] == [[3] * 9] * 9
    (note,) = settled.notes
    assert note.startswith(f"tokenizer.json asks for a dropout of {dropout!r}: the same text")
    assert json.loads(settled.generated)["model"]["dropout"] is None


@pytest.mark.parametrize("dropout", [None, 0.0])
def test_a_file_without_dropout_is_as_it_is(tmp_path, dropout):
    (tmp_path / "tokenizer.json").write_text(json.dumps(with_merges(dropout=dropout)), "utf-8")
    assert settle_tokens(tmp_path).generated is None


def test_an_id_of_two_tokens_is_a_conflict(tmp_path):
    content = with_merges(vocab={"a": 0, "b": 1, "ab": 2, "abab": 2})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(TokenConflictError, match="gives the id 2 to two tokens: 'ab' and 'abab'"):
        settle_tokens(tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"model": 1, "version": "1.0", "model": 2}', "key 'model' appears twice"),
        (b'{"a": {"b": 1, "b": 1}}', "key 'b' appears twice"),
        (b"[" * 100_000, "nested more than 100 deep"),
        (b"[]", "it holds list"),
    ],
)
def test_a_document_says_each_thing_once(tmp_path, data, said):
    with pytest.raises(CheckpointError, match=f"tokenizer.json cannot be used: .*{said}"):
        parse_document(data, tmp_path / "tokenizer.json")


def make(model):
    library = tokenizers.Tokenizer(model)
    library.add_special_tokens(["<s>", "a"])
    content = json.loads(library.to_str())
    return library, Backend(content, library.to_str().encode(), "tokenizer.json")


@pytest.mark.parametrize(
    "model",
    [
        tokenizers.models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]),
        tokenizers.models.WordLevel({"a": 0, "b": 5}, unk_token="a"),
        tokenizers.models.Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0),
        tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "b": 2}),
    ],
    ids=["BPE", "WordLevel", "Unigram", "WordPiece"],
)
def test_lookups_are_those_of_the_library(model):
    library, ours = make(model)
    assert ours.size == library.get_vocab_size(with_added_tokens=True)
    assert len(ours.plain) == library.get_vocab_size(with_added_tokens=False)
    for token in ("a", "b", "ab", "<s>", "nowhere", "\ud800"):
        theirs = None if token == "\ud800" else library.token_to_id(token)
        assert ours.token_to_id(token) == theirs
    for token_id in range(9):
        assert ours.id_to_token(token_id) == library.id_to_token(token_id)
    assert ours.encode("a<s>b") == library.encode("a<s>b").ids
    assert ours.decode([0, 1, 2], skip_special=False) == library.decode([0, 1, 2], False)
