"""The tokens that differ most, in their text."""

import math

import pytest
import torch

from vacc_deploy.pages.page import Writer
from vacc_deploy.pages.passages import heat, passages_section
from vacc_deploy.pages.words import find_passages, join_tokens
from vacc_deploy.reference.next_tokens import NextTokenScores


def decode(ids):
    """One byte a token."""
    return bytes(ids).decode("utf-8", "replace")


def scores(token_kl, tops=None):
    kl = torch.tensor(token_kl, dtype=torch.float64)
    top = torch.tensor(tops or [[97, 97]] * len(kl))
    return NextTokenScores(
        len(kl), 3.0, 3.1, kl.mean().item(), 0.1, 2.0, 0.5, token_kl=kl, token_top=top
    )


def test_bytes_of_a_character_are_one_word_with_their_largest_kl():
    ids = list("a江b".encode())
    words = join_tokens(ids, [None, 0.1, 0.9, 0.2, 0.3], 2, decode)
    assert [word.text for word in words] == ["a", "江", "b"]
    assert [word.kl for word in words] == [None, 0.9, 0.3]
    assert [word.is_target for word in words] == [False, True, False]


def test_bytes_that_never_make_a_character_do_not_swallow_the_text():
    ids = [*b"a", 0xFF, 0xFE, 0xFF, 0xFE, *b"bc"]
    words = join_tokens(ids, [0.0] * 7, 0, decode)
    assert "".join(word.text for word in words) == decode(ids)
    assert [word.text for word in words][-2:] == ["b", "c"]


def test_a_tokenizer_that_drops_the_first_space_keeps_those_in_between():
    pieces = {1: " the", 2: " sun", 3: "day"}

    def stripped(ids):
        return "".join(pieces[i] for i in ids).removeprefix(" ")

    words = join_tokens([1, 2, 3], [None, 0.0, 0.0], 1, stripped)
    assert [word.text for word in words] == ["the", " sun", "day"]


def test_passages_begin_with_the_largest_kl_and_never_overlap_their_targets():
    tokens = torch.tensor([list(range(65, 65 + 100)), list(range(20, 120))])
    kl = [0.0] * 198
    kl[50], kl[52], kl[150] = 2.0, 1.9, 3.0
    found = find_passages(tokens, scores(kl), decode)
    assert [(one.row, one.at, one.kl) for one in found] == [(1, 52, 3.0), (0, 51, 2.0)]
    (target,) = [word for word in found[1].words if word.is_target]
    assert (target.text, target.kl) == (chr(65 + 51), 2.0)
    assert sorted(word.kl or 0 for word in found[1].words)[-2:] == [1.9, 2.0]


def test_a_passage_begins_and_ends_with_whole_characters():
    ids = list(("江" * 60).encode())
    kl = [0.0] * (len(ids) - 1)
    kl[90] = 1.0
    (found,) = find_passages(torch.tensor([ids]), scores(kl), decode)
    assert set("".join(word.text for word in found.words)) == {"江"}


def test_equal_models_have_no_passages():
    tokens = torch.tensor([list(range(65, 85))])
    assert find_passages(tokens, scores([0.0] * 19), decode) == []
    assert passages_section(Writer("en"), []) is None


def test_a_kl_that_is_no_number_comes_first_and_has_the_strongest_colour():
    tokens = torch.tensor([list(range(65, 85))])
    kl = [0.5] * 19
    kl[3] = math.nan
    found = find_passages(tokens, scores(kl, [[-1, 97]] * 19), decode, number=1)
    assert found[0].at == 4 and found[0].top_float is None and not found[0].is_same
    assert heat(math.nan) == 4 and heat(None) == 0


@pytest.mark.parametrize(
    ("language", "text"), [("en", "part of a character"), ("zh", "字符的一部分")]
)
def test_half_a_character_is_named_by_its_id(language, text):
    ids = list("a江b".encode())
    found = find_passages(
        torch.tensor([ids]), scores([0.0, 0.5, 0.0, 0.0], [[0xE6, 98]] * 4), decode
    )
    body = passages_section(Writer(language), found).body
    assert text in body and "230" in body and "“b”" in body


def test_special_tokens_and_controls_do_not_become_markup():
    ids = list("a<b>&\u202ex".encode())
    found = find_passages(torch.tensor([ids]), scores([0.5] * (len(ids) - 1)), decode)
    body = passages_section(Writer("en"), found).body
    assert "<b>" not in body and "\u202e" not in body and "&amp;" in body
