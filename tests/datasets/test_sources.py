import csv
import gzip
import io
import json
import os
import struct
import zipfile
from pathlib import Path

import pytest

from vacc_deploy.datasets import ceval, files, sources
from vacc_deploy.datasets.sources import CalibrationSource, parse_source, read_documents
from vacc_deploy.errors import CalibrationError, UsageError

HEADER = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
LAW = ["0", "第一题____。", "甲", "乙", "丙", "丁", "B", "因为乙。"]


def read(kind, path):
    return list(read_documents(CalibrationSource(kind, path)))


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


def to_csv(*rows, header=HEADER):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([header, *rows])
    return file.getvalue()


def write_zip(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def lines(*records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def talk(user, assistant):
    return ({"role": "user", "content": user}, {"role": "assistant", "content": assistant})


# parse_source


def test_parse_source_reads_kind_path_and_weight():
    assert parse_source("c4=a/b.json.gz") == CalibrationSource("c4", Path("a/b.json.gz"))
    assert parse_source("C4=b.gz").kind == "c4"
    source = parse_source("ceval=/data/ceval-exam.zip:0.5")
    assert (str(source.path), source.weight) == ("/data/ceval-exam.zip", 0.5)
    assert parse_source("text=a=b.txt:2").path.name == "a=b.txt"


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("text=C:notes.txt", "C:notes.txt", 1.0),
        ("text=a:b:3", "a:b", 3.0),
        ("text=a:1e-3", "a", 0.001),
        ("text=a:", "a:", 1.0),
        ("text=:5", ":5", 1.0),
    ],
)
def test_parse_source_takes_the_last_part_as_weight_only_if_it_is_a_number(text, path, weight):
    source = parse_source(text)
    assert (str(source.path), source.weight) == (path, weight)


def test_parse_source_prefers_an_existing_file_to_a_weight(tmp_path):
    path = write(tmp_path / "part:2", "text")
    assert parse_source(f"text={path}") == CalibrationSource("text", path)
    assert parse_source(f"text={path}:3") == CalibrationSource("text", path, 3.0)


def test_parse_source_knows_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_source("text=~/a.txt:2") == CalibrationSource("text", tmp_path / "a.txt", 2.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c4", "not of the form NAME=PATH.*c4, ceval, alpaca, text"),
        ("c4=", "not of the form NAME=PATH"),
        ("=a.json", "unknown kind '', expected one of c4, ceval, alpaca, text"),
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


# files in general


def test_unknown_kind_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="'pile', expected one of c4, ceval, alpaca, text"):
        read("pile", tmp_path / "x")


@pytest.mark.parametrize("kind", sources.KINDS)
def test_missing_directory_empty_and_special_files_are_refused(tmp_path, kind):
    with pytest.raises(CalibrationError, match="nothing.here does not exist"):
        read(kind, tmp_path / "nothing.here")
    with pytest.raises(CalibrationError, match="is a directory. Give the data file in it"):
        read(kind, tmp_path)
    with pytest.raises(CalibrationError, match=r"e.dat is empty \(0 bytes\)"):
        read(kind, write(tmp_path / "e.dat", b""))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CalibrationError, match="pipe is no ordinary file"):
        read(kind, tmp_path / "pipe")


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
    with pytest.raises(CalibrationError, match=f"d.dat holds no {kind} document"):
        read(kind, write(tmp_path / "d.dat", data))


@pytest.mark.parametrize("kind", sources.KINDS)
def test_git_lfs_pointer_is_named(tmp_path, kind):
    path = write(tmp_path / "p", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CalibrationError, match="a Git LFS pointer: the data themselves were never"):
        read(kind, path)


# c4


@pytest.mark.parametrize("compressed", [True, False])
def test_c4_is_read_by_its_first_bytes_not_by_its_name(tmp_path, compressed):
    data = lines({"text": "one", "url": "u"}, {"text": "zwei ü 三"}, {"text": ""}) + "\n"
    raw = gzip.compress(data.encode()) if compressed else data.encode()
    for name in ("c4.json.gz", "c4.json"):
        assert read("c4", write(tmp_path / name, raw)) == ["one", "zwei ü 三"]


def test_c4_accepts_a_byte_order_mark_and_a_last_line_without_end(tmp_path):
    path = write(tmp_path / "c", b"\xef\xbb\xbf" + lines({"text": "a"}).encode().rstrip())
    assert read("c4", path) == ["a"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "line 2 cannot be read: .*expected one JSON object a line"),
        (b'{"text": "\xff"}', "line 2 cannot be read: 'utf-8' codec"),
        ("[1]", "line 2 holds list, expected one JSON object a line"),
        ('{"content": "x"}', 'line 2 has no text under "text": got no such key .its keys: content'),
        ('{"text": 5}', 'line 2 has no text under "text": got int'),
        ('{"text": "a\\ud800"}', "line 2: the text under .text. is not valid Unicode"),
        ("[" * 100_000, "line 2 cannot be read"),
        ("9" * 10_000, "line 2 cannot be read"),
    ],
)
def test_c4_bad_line_is_an_error_with_its_number(tmp_path, line, message):
    data = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path / "c4.json", b'{"text": "ok"}\n' + data + b"\n")
    with pytest.raises(CalibrationError, match=message):
        read("c4", path)


def test_c4_endless_line_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 1000)
    path = write(tmp_path / "bomb.gz", gzip.compress(b" " * 50_000_000, mtime=0))
    with pytest.raises(CalibrationError, match="line 1 is longer than 1,000 bytes"):
        read("c4", path)


@pytest.mark.parametrize("cut", [3, 12, 2000, -9, -1])
def test_c4_truncated_gzip_is_an_error(tmp_path, cut):
    records = ({"text": f"{number} " * 40} for number in range(2000))
    data = gzip.compress(lines(*records).encode())
    with pytest.raises(CalibrationError, match="gzip data that are cut off or damaged"):
        read("c4", write(tmp_path / "c4.json.gz", data[:cut]))


def test_c4_gzip_with_a_wrong_checksum_is_an_error(tmp_path):
    data = bytearray(gzip.compress(lines({"text": "a"}).encode()))
    data[-8] ^= 0xFF
    with pytest.raises(CalibrationError, match="cut off or damaged.*Download it again"):
        read("c4", write(tmp_path / "c4.json.gz", bytes(data)))


def test_c4_gzip_damaged_anywhere_is_a_clear_error_or_reads_the_same(tmp_path):
    path = tmp_path / "c4.json.gz"
    whole = gzip.compress(lines(*({"text": str(number)} for number in range(30))).encode())
    expected = [str(number) for number in range(30)]
    for position in range(len(whole)):
        data = bytearray(whole)
        data[position] ^= 0xFF
        try:
            assert read("c4", write(path, bytes(data))) == expected
        except CalibrationError as err:
            assert str(path) in str(err)


@pytest.mark.parametrize(
    ("data", "looks"),
    [
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"PK\x03\x04zip", "a zip archive"),
        (b"<!DOCTYPE html>", "an HTML page"),
        (b"\x00\x01\x02", "a file that begins with"),
    ],
)
def test_c4_of_another_format_is_named(tmp_path, data, looks):
    with pytest.raises(CalibrationError, match=f"line 1 cannot be read.*looks like {looks}"):
        read("c4", write(tmp_path / "c4.json.gz", data))


# alpaca


def test_alpaca_array_lines_and_gzip_give_the_same_conversations(tmp_path):
    records = [
        {"instruction": "Add.", "input": "1 2", "output": "3"},
        {"instruction": "说", "input": "", "output": "好"},
        {"instruction": "No input key", "output": "ok"},
    ]
    expected = [talk("Add.\n\n1 2", "3"), talk("说", "好"), talk("No input key", "ok")]
    array = json.dumps(records, ensure_ascii=False, indent=2).encode()
    forms = {
        "array.json": array,
        "bom.json": b"\xef\xbb\xbf\n " + array,
        "lines.jsonl": lines(*records).encode(),
        "array.json.gz": gzip.compress(array, mtime=0),
    }
    for name, data in forms.items():
        assert read("alpaca", write(tmp_path / name, data)) == expected, name


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('[{"instruction": "a"', "is not valid JSON.*expected an array"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "record 1 holds int, expected an object"),
        ('[{"instruction": "a", "output": "b"}, {"text": "c"}]', 'record 2 has no text under "ins'),
        ('[{"instruction": "a", "output": null}]', 'no text under "output": got NoneType'),
        ('[{"instruction": "a", "input": 3, "output": "b"}]', 'no text under "input": got int'),
        ('{"instruction": "a",\n"output": "b"}', "line 1 cannot be read"),
    ],
)
def test_alpaca_bad_record_is_an_error_with_its_number(tmp_path, data, message):
    with pytest.raises(CalibrationError, match=f"(?i){message}"):
        read("alpaca", write(tmp_path / "a.json", data))


def test_alpaca_array_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_ARRAY_BYTES", 1000)
    path = write(tmp_path / "a.gz", gzip.compress(b"[" + b" " * 10_000_000, mtime=0))
    with pytest.raises(CalibrationError, match="more than 1,000 bytes in one JSON array"):
        read("alpaca", path)


# text


def test_text_pieces_join_to_the_file_and_end_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TEXT_PIECE_CHARS", 100)
    text = "".join(f"line {number} 数学\r\n\n" for number in range(20_000))
    pieces = read("text", write(tmp_path / "t.txt", text))
    assert "".join(pieces) == text
    assert len(pieces) > 1000
    assert all(len(piece) <= 100 and piece.endswith("\n") for piece in pieces)


def test_text_without_line_ends_is_cut_at_spaces_or_hard(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "TEXT_PIECE_CHARS", 10)
    pieces = read("text", write(tmp_path / "t.txt", "\ufeffaaaa bbbb cccc" + "x" * 25))
    assert pieces == ["aaaa bbbb ", "ccccxxxxxx", "x" * 10, "x" * 9]


@pytest.mark.parametrize("position", [0, 9, 65_535, 65_536, 200_000])
def test_text_that_is_not_utf8_names_the_byte(tmp_path, position):
    data = b"a" * position + b"\xff" + b"a" * 10
    with pytest.raises(CalibrationError, match=f"invalid start byte at byte {position:,}[.]"):
        read("text", write(tmp_path / "t.txt", data))


def test_text_cut_inside_a_character_names_the_byte(tmp_path):
    path = write(tmp_path / "t.txt", b"a" * 65_535 + "数".encode()[:2])
    with pytest.raises(CalibrationError, match="at byte 65,535"):
        read("text", path)


def test_text_in_utf16_is_named(tmp_path):
    path = write(tmp_path / "t.txt", "hello".encode("utf-16"))
    with pytest.raises(CalibrationError, match="is not UTF-8 text.*looks like UTF-16 text"):
        read("text", path)


# ceval


def test_ceval_prompt_has_the_published_form(tmp_path):
    path = write_zip(tmp_path / "ceval-exam.zip", {"dev/law_dev.csv": to_csv(LAW)})
    prompt = (
        "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
        "第一题____。\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案："
    )
    assert read("ceval", path) == [talk(prompt, "B\n因为乙。")]


def test_ceval_reads_dev_and_val_in_order_and_never_test(tmp_path):
    bare = HEADER[:-1]
    members = {
        "val/logic_val.csv": to_csv([*LAW[:6], "C"], header=bare),
        "test/logic_test.csv": b"\xff not even text",
        "dev/logic_dev.csv": to_csv(LAW),
        "dev/accountant_dev.csv": to_csv(LAW),
        "__MACOSX/dev/._logic_dev.csv": b"\x00",
        "README.md": "x",
    }
    expected = [("注册会计师", "B\n因为乙。"), ("逻辑学", "B\n因为乙。"), ("逻辑学", "C")]
    for prefix in ("", "data/", "../../", "/abs/"):
        named = {prefix + name: data for name, data in members.items()}
        documents = read("ceval", write_zip(tmp_path / "c.zip", named))
        assert [
            (d[0]["content"][7 : d[0]["content"].index("考试")], d[1]["content"]) for d in documents
        ] == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.zip"]


def test_ceval_csv_with_bom_mixed_line_ends_quotes_and_other_column_order(tmp_path):
    text = (
        "\ufeffanswer,question,A,B,C,D\r\n"
        'A,"two\nlines, and ""quotes""",a,b,c,d\r\n'
        "\r\n"
        "D,next\u2028one,a,b,c,d\n"
    )
    path = write_zip(tmp_path / "c.zip", {"val/law_val.csv": text.encode("utf-8")})
    first, second = read("ceval", path)
    assert 'two\nlines, and "quotes"\nA. a\nB. b' in first[0]["content"]
    assert first[1]["content"] == "A"
    assert "\n\nnext\u2028one\nA. a" in second[0]["content"]


def test_ceval_has_52_subjects_with_distinct_chinese_names():
    assert len(ceval.SUBJECTS) == len(set(ceval.SUBJECTS.values())) == 52
    assert list(ceval.SUBJECTS) == sorted(ceval.SUBJECTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns question, A, B, C, D, answer"),
        ("id,question,A,B,C\n", "lacks the columns D, answer: got 'id,"),
        (to_csv(LAW[:6]), "line 2 has 6 fields, expected 8"),
        (to_csv(LAW, [*LAW, "x"]), "line 3 has 9 fields, expected 8"),
        (to_csv([*LAW[:6], "E", ""]), "line 2: the answer is 'E', expected A, B, C or D"),
        (to_csv([*LAW[:6], "", ""]), "the answer is ''"),
        (to_csv(LAW).encode("gb18030"), "is not UTF-8.*not a converted one"),
        (to_csv([*LAW[:7], "x" * 200_000]), "no readable CSV: field larger than"),
    ],
)
def test_ceval_bad_table_is_an_error_that_names_the_member(tmp_path, text, message):
    path = write_zip(tmp_path / "c.zip", {"dev/law_dev.csv": text})
    with pytest.raises(CalibrationError, match=f"member 'dev/law_dev.csv'.*{message}"):
        read("ceval", path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a zip at all", "is no readable zip archive.*begins with b'not a zip"),
        (gzip.compress(b"x", mtime=0), "is no readable zip archive.*looks like gzip data"),
        (b"PK\x03\x04" + b"\0" * 100, "is no readable zip archive"),
        (b"<html>login</html>", "looks like an HTML page"),
    ],
)
def test_ceval_that_is_no_zip_is_refused(tmp_path, data, message):
    with pytest.raises(CalibrationError, match=message):
        read("ceval", write(tmp_path / "ceval-exam.zip", data))


def test_ceval_zip_without_tables_is_refused(tmp_path):
    path = write_zip(tmp_path / "c.zip", {"test/law_test.csv": to_csv(LAW)})
    with pytest.raises(CalibrationError, match="has no member such as dev/accountant_dev.csv"):
        read("ceval", path)


def test_ceval_unknown_or_repeated_subject_is_refused(tmp_path):
    path = write_zip(tmp_path / "c.zip", {"dev/alchemy_dev.csv": to_csv(LAW)})
    with pytest.raises(CalibrationError, match="'alchemy' is none of the 52 subjects"):
        read("ceval", path)
    twice = {"dev/law_dev.csv": to_csv(LAW), "data/dev/law_dev.csv": to_csv(LAW)}
    with pytest.raises(CalibrationError, match="gives the dev questions of law a second time"):
        read("ceval", write_zip(tmp_path / "c.zip", twice))


def test_ceval_zip_bomb_is_refused_by_its_declared_size(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "c.zip", {"dev/law_dev.csv": b"0" * (ceval.MAX_MEMBER_BYTES + 1)})
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # nothing may be unpacked
    with pytest.raises(CalibrationError, match="declares 8,388,609 bytes, expected at most 8,388"):
        read("ceval", path)


def test_ceval_member_with_a_false_declared_size_is_an_error(tmp_path):
    path = write_zip(tmp_path / "c.zip", {"dev/law_dev.csv": b"0" * 20_000_000})
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\x01\x02")
    struct.pack_into("<I", data, central + 24, 100)
    with pytest.raises(CalibrationError, match="member 'dev/law_dev.csv' cannot be read"):
        read("ceval", write(path, bytes(data)))


def test_ceval_too_many_members_or_too_large_an_archive_is_refused(tmp_path, monkeypatch):
    path = write_zip(tmp_path / "c.zip", {f"{number}": b"" for number in range(50)})
    monkeypatch.setattr(ceval, "MAX_MEMBERS", 49)
    with pytest.raises(CalibrationError, match="has 50 members, expected at most 49"):
        read("ceval", path)
    monkeypatch.setattr(ceval, "MAX_ARCHIVE_BYTES", 100)
    with pytest.raises(CalibrationError, match="which is far smaller"):
        read("ceval", path)


@pytest.mark.parametrize("offset", [6, 8])
def test_ceval_encrypted_or_unknown_compression_is_an_error(tmp_path, offset):
    path = write_zip(tmp_path / "c.zip", {"dev/law_dev.csv": to_csv(LAW)})
    data = bytearray(path.read_bytes())
    for start, shift in ((data.index(b"PK\x03\x04"), 0), (data.index(b"PK\x01\x02"), 2)):
        data[start + offset + shift] = 1 if offset == 6 else 93
    with pytest.raises(CalibrationError, match="cannot be read"):
        read("ceval", write(path, bytes(data)))


def test_ceval_archive_damaged_anywhere_is_a_clear_error_or_reads_the_same(tmp_path):
    path = write_zip(tmp_path / "c.zip", {"dev/law_dev.csv": to_csv(*[LAW] * 50)})
    whole, expected = path.read_bytes(), read("ceval", path)
    for position in range(0, len(whole), 3):
        for value in (0x00, 0xFF):
            data = bytearray(whole)
            data[position] = value
            try:
                assert read("ceval", write(path, bytes(data))) == expected
            except CalibrationError as err:
                assert str(path) in str(err)


# ---- traces -----------------------------------------------------------------------------------


def read_traces(directory, text):
    path = directory / "traces.txt"
    path.write_text(text, "utf-8")
    return list(read_documents(CalibrationSource("traces", path)))


def chat(*contents):
    roles = ("user", "assistant")
    return tuple(
        {"role": roles[number % 2], "content": content} for number, content in enumerate(contents)
    )


def test_traces_become_conversations_without_their_marks(tmp_path):
    text = (
        "<｜User｜>1 + 1?<｜Assistant｜><think>\nhm\n</think>\n\n2\n\n"
        "<｜User｜>2 + 2?<｜Assistant｜>4<｜end▁of▁sentence｜>\n<｜User｜>cut off"
    )
    assert read_traces(tmp_path, text) == [
        chat("1 + 1?", "<think>\nhm\n</think>\n\n2"),
        chat("2 + 2?", "4"),
    ]


def test_traces_with_bos_marks_may_have_several_turns_and_a_system_prompt(tmp_path):
    text = (
        "<｜begin▁of▁sentence｜>Be brief.<｜User｜>a<｜Assistant｜>b<｜end▁of▁sentence｜>"
        "<｜User｜>c<｜Assistant｜>d<｜end▁of▁sentence｜><｜begin▁of▁sentence｜>"
        "<｜User｜>e<｜Assistant｜>f"
    )
    assert read_traces(tmp_path, text) == [
        ({"role": "system", "content": "Be brief."}, *chat("a", "b", "c", "d")),
        chat("e", "f"),
    ]


def test_traces_without_an_answer_are_refused(tmp_path):
    for text in ("just text", "<｜User｜>a question"):
        with pytest.raises(CalibrationError, match="holds no trace: expected <｜User｜>question"):
            read_traces(tmp_path, text)


def test_traces_whose_turns_do_not_alternate_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match="<｜Assistant｜> stands where <｜User｜> is exp"):
        read_traces(tmp_path, "<｜User｜>a<｜Assistant｜>b<｜Assistant｜>c")


def test_traces_over_the_limit_and_not_utf8_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "traces.txt"
    path.write_bytes(b"<\xff>")
    with pytest.raises(CalibrationError, match="is not UTF-8 text: invalid start byte at byte 1"):
        list(read_documents(CalibrationSource("traces", path)))
    monkeypatch.setattr(sources, "MAX_TRACES_BYTES", 2)
    with pytest.raises(CalibrationError, match="holds more than 2 bytes of traces"):
        list(read_documents(CalibrationSource("traces", path)))
