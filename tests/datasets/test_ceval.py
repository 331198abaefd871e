import copy
import csv
import gzip
import io
import struct
import zipfile

import pytest

from vacc_deploy.bounds import (
    CEVAL_ARCHIVE_BYTES,
    CEVAL_DIRECTORY_BYTES,
    CEVAL_FILES,
    CEVAL_TABLE_BYTES,
)
from vacc_deploy.datasets import ceval_tables
from vacc_deploy.datasets.ceval import read_ceval, read_questions
from vacc_deploy.datasets.odd import Tally
from vacc_deploy.errors import CalibrationError

HEADER = ["id", "question", "A", "B", "C", "D", "answer", "explanation"]
LAW = ["0", "第一题____。", "甲", "乙", "丙", "丁", "B", "因为乙。"]


def to_csv(*rows, header=HEADER):
    file = io.StringIO(newline="")
    csv.writer(file).writerows([header, *rows])
    return file.getvalue()


@pytest.fixture
def write_zip(tmp_path):
    """Return a function that writes an archive, member to data, and returns its path."""

    def write(members):
        path = tmp_path / "ceval-exam.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
        return path

    return write


def check_refused(path, message, data=None):
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(CalibrationError, match=message) as caught:
        list(read_ceval(path, Tally()))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_prompt_has_the_published_form(write_zip):
    question, answer = next(read_ceval(write_zip({"dev/law_dev.csv": to_csv(LAW)}), Tally()))
    assert question == {
        "role": "user",
        "content": "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
        "第一题____。\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：",
    }
    assert answer == {"role": "assistant", "content": "B\n因为乙。"}


@pytest.mark.parametrize("prefix", ["", "data/", "../../", "/abs/"])
def test_dev_and_val_are_read_in_order_and_test_never(tmp_path, write_zip, prefix):
    members = {
        "val/logic_val.csv": to_csv([*LAW[:6], "C"], header=HEADER[:-1]),
        "test/logic_test.csv": b"\xff not even text",
        "dev/logic_dev.csv": to_csv(LAW),
        "dev/accountant_dev.csv": to_csv(LAW),
        "__MACOSX/dev/._logic_dev.csv": b"\x00",
        "README.md": "x",
    }
    path = write_zip({prefix + name: data for name, data in members.items()})
    found = [
        (question["content"][7 : question["content"].index("考试")], answer["content"])
        for question, answer in read_ceval(path, Tally())
    ]
    assert found == [("注册会计师", "B\n因为乙。"), ("逻辑学", "B\n因为乙。"), ("逻辑学", "C")]
    assert list(tmp_path.iterdir()) == [path]


def test_csv_with_bom_mixed_line_ends_quotes_and_other_column_order(write_zip):
    text = (
        "\ufeffanswer,question,A,B,C,D\r\n"
        'A,"two\nlines, and ""quotes""",a,b,c,d\r\n'
        "\r\n"
        "D,next\u2028one,a,b,c,d\n"
    )
    first, second = read_ceval(write_zip({"val/law_val.csv": text.encode("utf-8")}), Tally())
    assert 'two\nlines, and "quotes"\nA. a\nB. b' in first[0]["content"]
    assert first[1]["content"] == "A"
    assert "\n\nnext\u2028one\nA. a" in second[0]["content"]


def test_there_are_52_subjects_with_distinct_chinese_names():
    assert len(ceval_tables.SUBJECTS) == len(set(ceval_tables.SUBJECTS.values())) == 52
    assert list(ceval_tables.SUBJECTS) == sorted(ceval_tables.SUBJECTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lacks the columns question, A, B, C, D, answer"),
        ("id,question,A,B,C\n", "lacks the columns D, answer: got 'id,"),
        (to_csv(LAW[:6]), "line 2 has 6 fields, expected 8"),
        (to_csv(LAW, [*LAW, "x"]), "line 3 has 9 fields, expected 8"),
        (to_csv([*LAW[:6], "E", ""]), "line 2 has the answer 'E', expected A, B, C or D"),
        (to_csv([*LAW[:6], "", ""]), "has the answer ''"),
        (to_csv(LAW).encode("gb18030"), "is not UTF-8.*not a converted one"),
        (to_csv([*LAW[:7], "x" * 200_000]), "not readable CSV: field larger than"),
    ],
)
def test_a_bad_table_is_an_error_that_names_the_member(write_zip, text, message):
    path = write_zip({"dev/law_dev.csv": text})
    check_refused(path, f"member 'dev/law_dev.csv'.*{message}")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not a zip at all", "is not a readable zip archive: .*expected ceval-exam.zip"),
        (gzip.compress(b"x", mtime=0), "is not a readable zip archive"),
        (b"PK\x03\x04" + b"\0" * 100, "is not a readable zip archive: .*Download it again"),
    ],
)
def test_what_is_not_a_zip_is_refused(tmp_path, data, message):
    check_refused(tmp_path / "ceval-exam.zip", message, data)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test/law_test.csv"], "has no table such as dev/accountant_dev.csv"),
        (["dev/alchemy_dev.csv"], "'alchemy' is not one of the 52 subjects"),
        (["dev/law_dev.csv", "a/dev/law_dev.csv"], "gives the dev questions of law a second time"),
        (
            map(str, range(CEVAL_FILES + 1)),
            "has 4,097 members, expected at most 4,096",
        ),
    ],
)
def test_other_members_than_those_published_are_refused(write_zip, names, message):
    check_refused(write_zip(dict.fromkeys(names, to_csv(LAW))), message)


def test_a_zip_bomb_is_refused_by_its_declared_size(write_zip, monkeypatch):
    path = write_zip({"dev/law_dev.csv": b"0" * (CEVAL_TABLE_BYTES + 1)})
    monkeypatch.setattr(zipfile.ZipFile, "open", None)  # nothing may be unpacked
    check_refused(path, "declares 8,388,609 bytes, expected at most 8,388,608")


def test_a_member_with_a_false_declared_size_is_an_error(write_zip):
    path = write_zip({"dev/law_dev.csv": b"0" * 20_000_000})
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"PK\x01\x02") + 24, 100)
    check_refused(path, "member 'dev/law_dev.csv' cannot be read", data)


def test_too_large_an_archive_is_refused_unread(tmp_path):
    path = tmp_path / "c.zip"
    with path.open("wb") as file:
        file.truncate(CEVAL_ARCHIVE_BYTES + 1)  # sparse: takes no space
    check_refused(path, "holds 16,777,217 bytes, .*which is far smaller")


@pytest.mark.parametrize(
    ("offset", "value", "problem"),
    [(6, 1, "cannot be read"), (8, 93, "is packed by the method 93, expected deflate")],
    ids=["encrypted", "unknown"],
)
def test_encryption_or_an_unknown_compression_is_an_error(write_zip, offset, value, problem):
    path = write_zip({"dev/law_dev.csv": to_csv(LAW)})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x03\x04") + offset] = value
    data[data.index(b"PK\x01\x02") + offset + 2] = value
    check_refused(path, problem, data)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_packing_whose_unpacking_has_no_bound_is_refused(tmp_path, method):
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("dev/law_dev.csv", b"0" * 1_000_000)
    check_refused(path, f"member 'dev/law_dev.csv' is packed by the method {method}, expected")


def test_members_that_lie_over_one_another_do_not_unpack_to_gigabytes(tmp_path):
    path, table = (
        tmp_path / "c.zip",
        to_csv(*[["1", "q" * 100_000, *"abcd", "A"]] * 79, header=HEADER[:-1]),
    )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("dev/law_dev.csv", table)
        one = archive.getinfo("dev/law_dev.csv")
        for name in ("logic", "marxism", "physician", "art_studies"):
            other = copy.copy(one)
            other.filename = other.orig_filename = f"dev/{name}_dev.csv"
            archive.filelist.append(other)
            archive.NameToInfo[other.filename] = other
    assert path.stat().st_size < 20_000
    # Newer Pythons notice the overlap, or the name in front of the member, by themselves.
    check_refused(path, "cannot be read|hold more than 33,554,432 bytes")


def test_the_name_of_a_member_is_cut(tmp_path):
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a" * 60_000 + "/dev/zzz_dev.csv", "")
    assert len(check_refused(path, "'zzz' is not one of the 52 subjects")) < 500


def test_the_list_of_members_is_bounded_before_it_is_read(tmp_path):
    path = tmp_path / "c.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "")
    data, size = bytearray(path.read_bytes()), CEVAL_DIRECTORY_BYTES + 1
    end = data.index(b"PK\x05\x06")
    struct.pack_into("<I", data, end + 12, size)
    data[end:end] = bytes(size)
    check_refused(path, "not a readable zip archive: 1,048,577 bytes are to be read at once", data)


def test_an_archive_damaged_anywhere_is_a_clear_error_or_reads_the_same(write_zip):
    path = write_zip({"dev/law_dev.csv": to_csv(*[LAW] * 50)})
    whole, expected = path.read_bytes(), list(read_ceval(path, Tally()))
    for position in range(0, len(whole), 3):
        for value in (0x00, 0xFF):
            data = bytearray(whole)
            data[position] = value
            path.write_bytes(data)
            try:
                assert list(read_ceval(path, Tally())) == expected
            except CalibrationError as err:
                assert str(path) in str(err)


# ---- questions to judge by ---------------------------------------------------------------------


def test_questions_tell_their_split_and_subject(write_zip):
    members = {
        "val/logic_val.csv": to_csv([*LAW[:6], "C"], header=HEADER[:-1]),
        "dev/law_dev.csv": to_csv(LAW),
    }
    questions = read_questions(write_zip(members))
    assert [(q.split, q.subject, q.row["answer"]) for q in questions] == [
        ("dev", "law", "B"),
        ("val", "logic", "C"),
    ]
    assert questions[0].row["question"] == "第一题____。"


def test_a_question_that_is_odd_is_never_left_out(write_zip):
    """Calibration skips it; a share of right answers would be another one without it."""
    rows = [LAW, [*LAW[:6], "E", ""], *[LAW] * 30]
    path = write_zip({"val/law_val.csv": to_csv(*rows)})
    assert len(list(read_ceval(path, Tally()))) == 31
    with pytest.raises(CalibrationError, match=r"law_val.csv', line 3 has the answer 'E'"):
        read_questions(path)


def test_questions_of_a_missing_file_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match="does not exist"):
        read_questions(tmp_path / "ceval-exam.zip")
