"""A text as token windows: how much is read, where windows begin, what is left out."""

import gzip
import json

import pytest
import torch
from checkpoint_builders import write_checkpoint
from tokenizer_builders import BOS_ID, build_backend, byte_ids, tokenizer_config, write_tokenizer

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CalibrationError, CheckpointError
from vacc_deploy.reference import windows
from vacc_deploy.reference.windows import cut_text, read_windows
from vacc_deploy.text import backend


@pytest.fixture
def read(tmp_path):
    """Return a function that writes a text and reads it with the tokenizer of one byte a token."""
    source = write_checkpoint(tmp_path / "m")

    def read(content, max_tokens=2048, sequence_length=512, **tokenizer):
        if tokenizer:
            write_tokenizer(source, **tokenizer)
        path = tmp_path / "text.txt"
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        checkpoint = Checkpoint.open(source)
        return read_windows(
            checkpoint, path, max_tokens=max_tokens, sequence_length=sequence_length
        )

    return read


def test_read_windows_begin_with_the_bos_and_hold_the_text_in_order(read):
    text = "abcdefghij" * 5
    tokens, notes = read(text, sequence_length=21)
    assert tokens.dtype == torch.int64
    expected = [[BOS_ID, *byte_ids(text[start : start + 20])] for start in (0, 20)]
    assert tokens.tolist() == expected
    assert notes == ["text.txt has 50 tokens: the last 10 fill no window of 20 and were left out."]


def test_notes_tell_what_the_tokenizer_files_lack(read, tmp_path):
    (tmp_path / "m/added_tokens.json").write_text('{"<think>": 260}')
    tokens, notes = read("a<think>" * 20)
    assert tokens.tolist() == [[BOS_ID] + [*byte_ids("a"), 260] * 20]
    assert notes == [
        "tokenizer.json lacks 1 token of added_tokens.json: '<think>' (260). Each is added with "
        "its id."
    ]


def test_read_windows_without_bos_use_the_whole_width(read):
    tokens, _ = read("a" * 64, sequence_length=32, config=tokenizer_config(add_bos_token=False))
    assert tokens.tolist() == [byte_ids("a") * 32] * 2


@pytest.mark.parametrize(("max_tokens", "expected"), [(2048, 40), (16, 16)])
def test_read_windows_short_text_is_one_short_window(read, max_tokens, expected):
    tokens, notes = read("a" * 40, max_tokens=max_tokens)
    assert (tokens.shape, notes) == ((1, 1 + expected), [])


@pytest.mark.parametrize(
    ("length", "max_tokens", "notes"),
    [
        (62, 2048, []),
        (65, 2048, ["text.txt has 65 tokens: the last 3 fill no window of 31 and were left out."]),
        (400, 64, []),
        (400, 82, ["--max-tokens 82: the last 20 fill no window of 31 and were left out."]),
    ],
)
def test_read_windows_note_what_fills_none(read, length, max_tokens, notes):
    tokens, got = read("a" * length, max_tokens=max_tokens, sequence_length=32)
    assert (tokens.shape, got) == ((2, 32), notes)


def test_read_windows_drop_a_byte_order_mark(read):
    text = "one two three four five six"
    assert torch.equal(read(text)[0], read(b"\xef\xbb\xbf" + text.encode())[0])


def test_read_windows_unpack_gzip(read):
    text = b"one two three four five six"
    assert torch.equal(read(text)[0], read(gzip.compress(text))[0])


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_read_windows_refuse_a_data_set(read, tmp_path, pack):
    data = json.dumps({"text": "a" * 99, "url": "u"}).encode()
    with pytest.raises(CalibrationError) as err:
        read(pack(data))
    assert str(err.value) == (
        f"{tmp_path / 'text.txt'} is a C4 file, not plain text. Give a UTF-8 file that holds "
        "nothing but text."
    )


@pytest.mark.parametrize(("max_tokens", "expected"), [(16, 16), (64, 64), (90, 90), (200, 90)])
def test_read_windows_read_on_until_there_are_enough(read, max_tokens, expected):
    """A token may stand for many more bytes than are read for it at first."""
    backend = build_backend()
    backend.add_tokens(["x" * 100])
    tokens, notes = read("x" * 100 * 90, max_tokens=max_tokens, backend=backend)
    assert (tokens.shape, notes) == ((1, 1 + expected), [])


def test_read_windows_of_very_many_tokens_take_no_more_memory_than_the_text(read):
    tokens, notes = read("x" * 90, max_tokens=10**15)
    assert (tokens.shape, notes) == ((1, 91), [])


@pytest.mark.parametrize("first", ["", "a", "ab"])
def test_read_windows_character_cut_at_the_read_limit_is_fine(read, first):
    # 16 bytes are read for each token; three-byte characters end at 256 at most once in three.
    tokens, _ = read(first + "中" * 400, max_tokens=16, sequence_length=32)
    assert tokens.shape == (1, 17)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "gives 0 tokens (at most 2048 used), expected at least 16. Use a longer text."),
        (b"too short", "gives 9 tokens (at most 2048 used), expected at least 16. Use a longer"),
        (
            b"abc\xff" + b"d" * 99,
            "is not UTF-8 text: invalid start byte, byte 3. Convert it, then give the new file:\n"
            "  iconv -f GB18030 -t UTF-8 ",
        ),
        (
            b"a" * 40 + "中".encode()[:2],
            "is not UTF-8 text: unexpected end of data, byte 40. The file "
            "ends in the middle of a character. Copy or download it again.",
        ),
        (None, "cannot be read: No such file or directory."),
    ],
)
def test_read_windows_unusable_text_is_named(read, tmp_path, content, message):
    with pytest.raises(CalibrationError) as err:
        read(content)
    assert str(err.value).startswith(f"{tmp_path / 'text.txt'} {message}")


def test_read_windows_token_beyond_the_vocabulary(tmp_path):
    source = write_checkpoint(tmp_path / "m", vocab_size=256)
    (tmp_path / "text.txt").write_text("<｜User｜>" + "a" * 40, "utf-8")
    options = {"max_tokens": 64, "sequence_length": 64}
    with pytest.raises(CheckpointError, match="gives the id 258, but the model has vocab_size 256"):
        read_windows(Checkpoint.open(source), tmp_path / "text.txt", **options)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", [""]),
        ("abcdefgh", ["abcdefgh"]),
        ("abcdefghi", ["abcdefgh", "i"]),
        ("ab\ncd\nefgh\n", ["ab\ncd\n", "efgh\n"]),
        ("\n" * 9, ["\n" * 8, "\n"]),
        ("\u0439" * 5, ["\u0439" * 4, "\u0439"]),
        ("a" + "\U0001f600" * 4, ["a\U0001f600", "\U0001f600" * 2, "\U0001f600"]),
    ],
)
def test_a_text_is_cut_behind_line_ends_and_never_in_a_character(text, pieces):
    assert list(cut_text(text, 8)) == pieces


def test_a_text_longer_than_one_request_is_read_in_pieces(read, monkeypatch):
    monkeypatch.setattr(windows, "TOKENIZED_BYTES", 20)
    monkeypatch.setattr(backend, "TOKENIZED_BYTES", 20)
    text = "abcdefghij" * 5
    tokens, _ = read(text, sequence_length=21)
    assert tokens.tolist() == [[BOS_ID, *byte_ids(text[start : start + 20])] for start in (0, 20)]
