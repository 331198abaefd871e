import gzip
import json
import os
import re
from pathlib import Path

import pytest
from closed_files import OWNER, as_user, open_directory

from vacc_deploy.bounds import RECORD_BYTES
from vacc_deploy.datasets import KIND_NAMES, sources
from vacc_deploy.datasets.sources import CalibrationSource, parse_source, read_documents
from vacc_deploy.errors import CalibrationError, UsageError

SPECIAL = dict(
    zip("BEUA", ("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant"), strict=True)
)


def read(kind, path, data=None):
    """Return the documents of a file, which is written first where ``data`` is given."""
    if data is not None:
        path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return list(read_documents(CalibrationSource(kind, path)))


def check_refused(kind, path, message, data=None):
    with pytest.raises(CalibrationError, match=message) as caught:
        read(kind, path, data)
    assert str(path) in str(caught.value)


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def chat(*contents):
    """Return the turns of user and assistant."""
    roles = ("user", "assistant") * len(contents)
    return tuple(
        {"role": role, "content": text} for role, text in zip(roles, contents, strict=False)
    )


def marked(text):
    """Return a text with its ``[U]`` written as R1 marks users, and so on."""
    return re.sub(r"\[([BEUA])\]", lambda match: f"<｜{SPECIAL[match[1]]}｜>", text)


# ---- parse_source ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "path", "weight"),
    [
        ("c4=a/b.json.gz", "c4", "a/b.json.gz", 1.0),
        ("C4=b.gz", "c4", "b.gz", 1.0),
        ("ceval=/data/ceval-exam.zip:0.5", "ceval", "/data/ceval-exam.zip", 0.5),
        ("text=a=b.txt:2", "text", "a=b.txt", 2.0),
        ("text=C:notes.txt", "text", "C:notes.txt", 1.0),
        ("text=a:b:3", "text", "a:b", 3.0),
        ("text=a:1e-3", "text", "a", 0.001),
        ("text=a:", "text", "a:", 1.0),
        ("text=:5", "text", ":5", 1.0),
    ],
)
def test_parse_source_takes_the_last_part_as_weight_only_if_it_is_a_number(
    text, kind, path, weight
):
    assert parse_source(text) == CalibrationSource(kind, Path(path), weight)


def test_parse_source_prefers_an_existing_file_to_a_weight(tmp_path):
    path = tmp_path / "part:2"
    path.touch()
    assert parse_source(f"text={path}") == CalibrationSource("text", path)
    assert parse_source(f"text={path}:3") == CalibrationSource("text", path, 3.0)


def test_parse_source_knows_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_source("text=~/a.txt:2") == CalibrationSource("text", tmp_path / "a.txt", 2.0)


def test_parse_source_of_a_file_without_its_kind_gives_the_whole_option(tmp_path):
    path = tmp_path / "my c4"
    path.write_text(lines({"text": "a", "url": "u"}))
    option = f"Give --calibration 'c4={path}"
    for text, expected in (
        (f"{path}", f"{str(path)!r} names no kind. {path} is a C4 file. {option}'."),
        (f"{path}:2", f"names no kind. {path} is a C4 file. {option}:2'."),
        (f"c5={path}", f"has the unknown kind 'c5', .* {path} is a C4 file. {option}'."),
    ):
        with pytest.raises(UsageError, match=expected):
            parse_source(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c4", "not of the form NAME=PATH.*c4, ceval, alpaca, chat, text"),
        ("c4=", "not of the form NAME=PATH"),
        ("=a.json", "unknown kind '', expected one of c4, ceval, alpaca, chat, text"),
        ("wikitext=a.txt", "unknown kind 'wikitext'.*write text=PATH"),
        ("c4=a.json:0", "has the weight 0, expected a number above zero"),
        ("c4=a.json:-1", "has the weight -1, expected a number above zero"),
        ("c4=a.json:nan", "has the weight nan"),
        ("c4=a.json:inf", "has the weight inf"),
        ("c4=a\0b", "zero byte"),
    ],
)
def test_parse_source_refuses_what_it_does_not_know(text, message):
    with pytest.raises(UsageError, match=message):
        parse_source(text)


@pytest.mark.parametrize("word", ["two", "1,5", "50%", ""])
def test_a_weight_that_is_no_number_is_named(tmp_path, word):
    path = tmp_path / "a.json"
    path.write_text("{}")
    message = f"a.json:{word} does not exist, but .*a.json does.*expected a number above zero"
    with pytest.raises(UsageError, match=message):
        parse_source(f"c4={path}:{word}")
    path.rename(tmp_path / f"a.json:{word}")
    assert parse_source(f"c4={path}:{word}").path == tmp_path / f"a.json:{word}"


# ---- files in general --------------------------------------------------------------------------


def test_unknown_kind_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="'pile', expected one of c4, ceval, alpaca, chat, text"):
        read("pile", tmp_path / "x")


@pytest.mark.parametrize("kind", sources.KINDS)
def test_missing_directory_empty_and_special_files_are_refused(tmp_path, kind):
    check_refused(kind, tmp_path / "nothing.here", "nothing.here does not exist")
    is_folder_read = kind in sources.FOLDER_KINDS
    message = "has no table such as" if is_folder_read else "is an empty directory. Give"
    check_refused(kind, tmp_path, message)
    check_refused(
        kind, tmp_path / "e.dat", r"e.dat is empty \(0 bytes\)[.] Download or write it", b""
    )
    os.mkfifo(tmp_path / "pipe")
    check_refused(kind, tmp_path / "pipe", "pipe is not an ordinary file")


@pytest.mark.parametrize("kind", sources.KINDS)
def test_a_closed_file_is_told_with_its_mode_and_owner(kind):
    with open_directory() as folder:
        path = folder / "f"
        path.write_text("data")
        path.chmod(0)
        with as_user():
            message = rf"cannot be read: Permission denied \(mode 0000, owned by {OWNER}\)[.] \w+ "
            check_refused(kind, path, message)
        folder.chmod(0)
        with as_user():
            check_refused(kind, path, "cannot be read: Permission denied .*has mode 0000")
        folder.chmod(0o755)


@pytest.mark.parametrize("kind", sources.KINDS)
def test_git_lfs_pointer_is_named(tmp_path, kind):
    data = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    message = (
        "p is a Git LFS pointer, not .*The data were never downloaded. Download the file again"
    )
    check_refused(kind, tmp_path / "p", message, data)


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("c4", "\n\n"),
        ("c4", gzip.compress(b"", mtime=0)),
        ("c4", lines({"text": " \n"})),
        ("alpaca", "[]"),
        ("text", "\n \n"),
    ],
)
def test_file_without_documents_is_refused(tmp_path, kind, data):
    check_refused(kind, tmp_path / "d.dat", f"d.dat holds no {kind} document", data)


@pytest.mark.parametrize("pack", [lambda data: data, gzip.compress])
def test_a_file_over_the_limit_is_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setattr(sources, "TRACES_BYTES", 99)
    traces = marked("[U]a[A]b" * 9).encode()
    message = "large holds more than 99 bytes of text"
    check_refused("traces", tmp_path / "large", message, pack(traces))


# ---- c4 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c4.json.gz", "c4.json"])
def test_c4_is_read_by_its_first_bytes_not_by_its_name(tmp_path, name):
    data = lines({"text": "one", "url": "u"}, {"text": "zwei ü 三"}, {"text": ""}) + "\n"
    for raw in (gzip.compress(data.encode()), data.encode()):
        assert read("c4", tmp_path / name, raw) == ["one", "zwei ü 三"]


def test_c4_accepts_a_byte_order_mark_and_a_last_line_without_end(tmp_path):
    data = b"\xef\xbb\xbf" + lines({"text": "a"}).encode().rstrip()
    assert read("c4", tmp_path / "c", data) == ["a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", "line 2 cannot be read: .*expected one JSON object a line"),
        (b'{"text": "\xff"}', "line 2 cannot be read: 'utf-8' codec"),
        (b"[1]", "line 2 holds list, expected an object with the key text"),
        (b'{"content": "x"}', 'line 2 has no text under "text": got no such key .its keys: conten'),
        (b'{"text": 5}', 'line 2 has no text under "text": got int'),
        (b'{"text": "a\\ud800"}', "line 2 holds text under .text. that is not valid Unicode"),
        (b"[" * 100_000, "line 2 cannot be read"),
        (b"9" * 10_000, "line 2 cannot be read"),
    ],
)
def test_c4_bad_line_is_an_error_with_its_number(tmp_path, line, message):
    check_refused("c4", tmp_path / "c4.json", message, b'{"text": "ok"}\n' + line + b"\n")


def test_c4_endless_line_is_not_read_to_its_end(tmp_path):
    bomb = gzip.compress(b" " * (3 * RECORD_BYTES), mtime=0)
    check_refused("c4", tmp_path / "bomb.gz", "line 1 is longer than 16,777,216 bytes", bomb)


@pytest.mark.parametrize("cut", [3, 12, 2000, -9, -1])
def test_c4_truncated_gzip_is_an_error(tmp_path, cut):
    data = gzip.compress(lines(*({"text": f"{n} " * 40} for n in range(2000))).encode())
    message = "gzip data that are cut off or damaged.*Download it again"
    check_refused("c4", tmp_path / "c4.json.gz", message, data[:cut])


def test_c4_gzip_damaged_anywhere_is_a_clear_error_or_reads_the_same(tmp_path):
    path, expected = tmp_path / "c4.json.gz", [str(number) for number in range(30)]
    whole = gzip.compress(lines(*({"text": text} for text in expected)).encode())
    refused = set()
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0xFF
        try:
            assert read("c4", path, bytes(data)) == expected
        except CalibrationError as err:
            refused.add(position)
            assert str(path) in str(err)
    # Its checksum is wrong.
    assert len(whole) - 8 in refused


@pytest.mark.parametrize("gap", [b"", b"\0", b"\0" * 3000])
def test_gzip_may_be_in_members_with_zeros_behind_them(tmp_path, gap):
    # As bgzip and cat write it, and as a tape pads it.
    members = [gzip.compress(lines({"text": str(number)}).encode()) for number in range(3)]
    data = b"".join(member + gap for member in members)
    assert read("c4", tmp_path / "c4.json.gz", data) == ["0", "1", "2"]
    message = "gzip data that are cut off or damaged: .*Download it again"
    check_refused("c4", tmp_path / "odd.json.gz", message, data + b"no member")


def test_gzip_of_very_many_members_is_refused_early(tmp_path):
    data = gzip.compress(lines({"text": "a"}).encode()) + gzip.compress(b"", mtime=0) * 100_000
    message = "gzip data that are cut off or damaged: they are in 4,097 frames, far more than any"
    check_refused("c4", tmp_path / "c4.json.gz", message, data)


def test_c4_may_be_one_json_array(tmp_path):
    data = json.dumps([{"text": "one"}, {"text": "two", "url": "u"}])
    assert read("c4", tmp_path / "c4.json", data) == ["one", "two"]
    message = 'record 2 has no text under "text"'
    check_refused("c4", tmp_path / "c4.json", message, '[{"text": "one"}, {"content": "x"}]')


def test_blank_lines_between_records_are_bounded_together(tmp_path):
    data = (lines({"text": "a"}) + "\n" * 100_000) * 3
    message = "has 262,187 bytes of blank lines up to line 262,190, expected at most 262,144 more"
    check_refused("c4", tmp_path / "c4.json", message, data)


def test_a_record_of_an_array_that_is_over_a_bound_is_no_damage(tmp_path):
    long = json.dumps([{"text": "one"}, {"text": "a" * (RECORD_BYTES + (1 << 16))}])
    message = "record 2 is over a bound: it is longer than 16,777,216 characters. Leave the record"
    check_refused("c4", tmp_path / "c4.json", message, long)


# ---- alpaca ------------------------------------------------------------------------------------


def test_alpaca_array_lines_and_gzip_give_the_same_conversations(tmp_path):
    examples = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "说", "input": "", "output": "好"},
        {"instruction": "No input key", "output": "ok"},
    ]
    expected = [chat("Add.\n\n1 2", "3"), chat("说", "好"), chat("No input key", "ok")]
    array = json.dumps(examples, ensure_ascii=False, indent=2).encode()
    forms = {
        "array.json": array,
        "bom.json": b"\xef\xbb\xbf\n " + array,
        "lines.jsonl": lines(*examples).encode(),
        "array.json.gz": gzip.compress(array, mtime=0),
    }
    for name, data in forms.items():
        assert read("alpaca", tmp_path / name, data) == expected, name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('[{"instruction": "a"', "is not valid JSON.*Expected an array"),
        ("[" * 100_000, "record 1 is over a bound: it is nested too deep"),
        ("[1]", "record 1 holds int, expected an object"),
        ('[{"instruction": "a", "output": "b"}, {"text": "c"}]', 'record 2 has no text under "ins'),
        ('[{"instruction": "a", "output": null}]', 'no text under "output": got NoneType'),
        ('[{"instruction": "a", "input": 3, "output": "b"}]', 'no text under "input": got int'),
        ('{"instruction": "a",\n"output": "b"}', "line 1 cannot be read"),
    ],
)
def test_alpaca_bad_record_is_an_error_with_its_number(tmp_path, data, message):
    check_refused("alpaca", tmp_path / "a.json", message, data)


# ---- text --------------------------------------------------------------------------------------


def test_text_pieces_join_to_the_file_and_end_at_line_ends(tmp_path):
    text = "".join(f"line {number} 数学\r\n\n" for number in range(20_000))
    pieces = read("text", tmp_path / "t.txt", text)
    assert "".join(pieces) == text
    assert len(pieces) == -(-len(text) // sources.TEXT_PIECE_CHARS)
    assert all(len(piece) <= sources.TEXT_PIECE_CHARS and piece[-1] == "\n" for piece in pieces)


def test_text_without_line_ends_is_cut_at_spaces_or_hard(tmp_path):
    size = sources.TEXT_PIECE_CHARS
    words, tail = "a" * (size - 2) + " ", "b" * (2 * size + 9)
    pieces = read("text", tmp_path / "t.txt", "\ufeff" + words + tail)
    assert pieces == [words, "b" * size, "b" * size, "b" * 9]


def test_text_and_traces_may_be_gzip(tmp_path):
    data = gzip.compress("plain 数\n".encode())
    assert read("text", tmp_path / "t.txt.gz", data) == ["plain 数\n"]
    data = gzip.compress(marked("[U]a[A]b").encode())
    assert read("traces", tmp_path / "t.gz", data) == [chat("a", "b")]


@pytest.mark.parametrize("position", [0, 9, 65_535, 65_536, 200_000])
def test_text_that_is_not_utf8_names_the_byte(tmp_path, position):
    data, message = b"a" * position, f"byte at byte {position:,}[.]"
    check_refused("text", tmp_path / "t", f"invalid start {message}", data + b"\xff" + b"a" * 10)
    check_refused("text", tmp_path / "t", "iconv -f GB18030 -t UTF-8 .*t.utf8", data + b"\xff ")
    message = f"at byte {position:,}[.] The file ends in the middle of a character[.] Copy or"
    check_refused("text", tmp_path / "t", message, data + "数".encode()[:2])


# ---- traces ------------------------------------------------------------------------------------


def test_traces_become_conversations_without_their_marks(tmp_path):
    text = marked(
        "[U]1 + 1?[A]<think>\nhm\n</think>\n\n2\n\n[U]2 + 2?[A]4[E]\n[U]cut off",
    )
    assert read("traces", tmp_path / "t", text) == [
        chat("1 + 1?", "<think>\nhm\n</think>\n\n2"),
        chat("2 + 2?", "4"),
    ]


def test_traces_with_bos_marks_may_have_several_turns_and_a_system_prompt(tmp_path):
    text = marked("[B]Be brief.[U]a[A]b[E][U]c[A]d[E][B][U]e[A]f")
    assert read("traces", tmp_path / "t", text) == [
        ({"role": "system", "content": "Be brief."}, *chat("a", "b", "c", "d")),
        chat("e", "f"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("just text", "holds no trace: expected [U]question"),
        ("[U]a question", "holds no trace"),
        ("[U]a[A]b[A]c", "[A] stands where [U] is expected, before 'c'"),
    ],
)
def test_traces_that_are_none_are_refused(tmp_path, text, message):
    check_refused("traces", tmp_path / "t", re.escape(marked(message)), marked(text))


def test_the_names_that_messages_list_are_those_with_a_reader():
    assert tuple(sources.KINDS) == KIND_NAMES


def test_traces_are_split_one_by_one(tmp_path):
    """The first is there before the last is looked at, so a file of many tiny ones is no list."""
    (tmp_path / "t").write_text(marked("[U]a[A]b" * 3 + "[U]c[A]d[A]e"), "utf-8")
    documents = read_documents(CalibrationSource("traces", tmp_path / "t"))
    assert [next(documents) for _ in range(3)] == [chat("a", "b")] * 3
    with pytest.raises(CalibrationError, match="Questions and answers must take turns"):
        next(documents)


@pytest.mark.parametrize(
    "text",
    [
        "f" * 9000,
        "zz=" + "\udcff" * 9000,
        "text=" + "x" * 9000 + "\0",
        "text=a:" + "1" * 9000,
        "text=a:-" + "1" * 9000,
    ],
)
def test_an_option_is_cut_in_its_message(text):
    with pytest.raises(UsageError, match="Calibration source") as caught:
        parse_source(text)
    assert len(str(caught.value)) < 1000
