"""The pieces of a streamed answer: whole characters, and together the whole text."""

import pytest
import torch
from tokenizer_builders import EOS_ID, USER, USER_ID, write_tokenizer

from vacc_deploy.reference.streaming import TextStream, TokenStreamer
from vacc_deploy.text.tokenizer import Tokenizer


@pytest.fixture
def tokenizer(tmp_path):
    write_tokenizer(tmp_path)
    return Tokenizer.from_dir(tmp_path)


def stream(tokenizer, ids):
    """Return the pieces that were written before the last token, and all of them."""
    pieces = []
    writer = TextStream(tokenizer, {EOS_ID}, pieces.append)
    for token in ids:
        writer.add(token)
    before = list(pieces)
    writer.finish()
    return before, pieces


@pytest.mark.parametrize(
    "text", ["plain words", "你好，世界", "é🙂e\u0301 👩‍💻", f"a{USER}你", "  \n\t x"]
)
def test_pieces_are_whole_characters_and_come_at_once(tokenizer, text):
    ids = tokenizer.encode(text, add_bos=False)  # one id a byte
    before, pieces = stream(tokenizer, ids)
    assert "".join(pieces) == text and before == pieces
    assert "\ufffd" not in "".join(pieces)
    assert len(pieces) == len(text.replace(USER, "U"))  # a piece for each character


def test_a_special_token_is_one_piece_and_an_end_is_not_shown(tokenizer):
    assert stream(tokenizer, [USER_ID, *tokenizer.encode("x", add_bos=False), EOS_ID])[1] == [
        USER,
        "x",
    ]


def test_broken_bytes_are_shown_as_the_whole_text_shows_them(tokenizer):
    half, letter = tokenizer.encode("你", add_bos=False)[:2], tokenizer.encode("a", add_bos=False)
    for ids in (half, [*half, *letter], [*half[:1], *half, *letter], [*letter, *half]):
        assert "".join(stream(tokenizer, ids)[1]) == tokenizer.decode(ids)
    before, pieces = stream(tokenizer, [*letter, *half])  # half a character waits for the end
    assert before == ["a"] and pieces == ["a", "\ufffd"]


def test_the_streamer_passes_over_the_prompt():
    seen = []
    streamer = TokenStreamer(seen.append)
    streamer.put(torch.tensor([[5, 6, 7]]))
    streamer.put(torch.tensor([8]))
    streamer.put(torch.tensor([9]))
    streamer.end()
    assert seen == [8, 9]
