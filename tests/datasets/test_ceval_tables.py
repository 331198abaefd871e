"""Where C-Eval's tables may be: folders, single files, and archives made by other programs."""

import gzip
import os
import shutil
import zipfile

import pytest

from vacc_deploy.datasets import ceval_tables
from vacc_deploy.datasets.ceval_tables import find_table
from vacc_deploy.datasets.odd import Tally
from vacc_deploy.datasets.sources import CalibrationSource, read_documents
from vacc_deploy.errors import CalibrationError

HEADER = "id,question,A,B,C,D,answer\n"
TABLE = HEADER + "0,q,1,2,3,4,A\n"
TEST = "id,question,A,B,C,D\n0,never,1,2,3,4\n"
NAMES = ("dev/law_dev.csv", "val/accountant_val.csv", "val/law_val.csv", "test/law_test.csv")
EXPECTED = ["法学", "注册会计师", "法学"]


def read(path, tally=None):
    return list(read_documents(CalibrationSource("ceval", path), tally))


def subjects(path):
    """Return the subjects of the questions in the order in which they are read."""
    prompts = [document[0]["content"] for document in read(path)]
    return [prompt[7 : prompt.index("考试")] for prompt in prompts]


def check_refused(path, message):
    with pytest.raises(CalibrationError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def write_folder(folder, names=NAMES):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(TEST if "test" in name.lower() else TABLE, "utf-8")
    return folder


# ---- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("val/law_val.csv", ("val", "law", "")),
        ("ceval-exam/dev/civil_servant_dev.csv", ("dev", "civil_servant", "")),
        ("ceval-exam\\val\\law_val.csv", ("val", "law", "")),
        ("Val/Law_Val.CSV", ("val", "law", "")),
        ("law_val.csv", ("val", "law", "")),
        ("law/val-00000-of-00001.parquet", ("val", "law", "-00000-of-00001")),
        ("law/validation-00000-of-00001.parquet", ("val", "law", "-00000-of-00001")),
        ("law/dev/0000.parquet", ("dev", "law", "0000")),
        ("law_val.parquet", ("val", "law", "")),
        ("test/law_test.csv", ("test", "law", "")),
        ("__MACOSX/val/._law_val.csv", None),
        ("__MACOSX/val/law_val.csv", None),
        ("val/._law_val.csv", None),
        ("val/law.csv", None),
        ("README.md", None),
    ],
)
def test_a_path_tells_its_table(name, found):
    table = find_table(name)
    assert (table and tuple(table[:3])) == found


# ---- archives ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("/", "\\"),
        lambda name: f"ceval-exam\\{name}".replace("/", "\\"),
        lambda name: name.upper(),
        lambda name: f"Downloads/ceval exam/{name.title()}",
    ],
)
def test_archives_of_other_programs_give_the_same_questions(tmp_path, rename):
    path = tmp_path / "ceval.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in NAMES:
            info = zipfile.ZipInfo("x")
            info.filename = rename(name)  # ZipInfo would mend the backslashes of other systems
            archive.writestr(info, TEST if "test" in name else TABLE)
            shadow = rename(f"__MACOSX/{name}".replace("law_", "._law_"))
            archive.writestr(shadow, b"\0\5\26\7")
    assert subjects(path) == EXPECTED


# ---- folders -----------------------------------------------------------------------------------


def test_the_unpacked_archive_gives_the_questions_of_the_archive(tmp_path):
    folder = write_folder(tmp_path / "ceval-exam")
    assert subjects(folder) == EXPECTED
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", folder)
    assert read(folder) == read(tmp_path / packed)


@pytest.mark.parametrize(
    ("names", "part", "expected"),
    [
        (NAMES, "val", EXPECTED[1:]),
        (NAMES, "dev", EXPECTED[:1]),
        (NAMES[2:], "", EXPECTED[2:]),
        ([f"wrapper/{name}" for name in NAMES], "", EXPECTED),
        (["Dev/Law_Dev.CSV", "VAL/accountant_val.csv", "val/law_val.csv"], "", EXPECTED),
        (["law_val.csv", "readme.txt", ".git/val/logic_val.csv"], "", EXPECTED[2:]),
    ],
)
def test_parts_of_the_archive_and_other_spellings_are_read(tmp_path, names, part, expected):
    assert subjects(write_folder(tmp_path / "d", names) / part) == expected


def test_a_folder_without_answers_is_refused(tmp_path):
    folder = write_folder(tmp_path / "d", ["test/law_test.csv", "val/law.csv"])
    check_refused(folder, "has no table such as dev/accountant_dev.csv")


def test_tables_of_no_subject_or_given_twice_are_refused(tmp_path):
    folder = write_folder(tmp_path / "d", ["val/law_val.csv", "old/val/law_val.csv"])
    check_refused(folder, "gives the val questions of law a second time. Remove it, or '")
    # As a whole, and in parts as the hub has it.
    for number, name in enumerate(("law/val-00000-of-00001.parquet", "law/val/0000.parquet")):
        folder = write_folder(tmp_path / f"both{number}", ["val/law_val.csv", name])
        check_refused(folder, "gives the val questions of law a second time. Remove it, or '")
    folder = write_folder(tmp_path / "e", ["val/alchemy_val.csv"])
    check_refused(folder, "'alchemy' is not one of the 52 subjects")


def test_odd_rows_are_skipped_over_all_tables(tmp_path):
    folder, tally = write_folder(tmp_path / "d"), Tally()
    rows = "".join(f"{n},q{n},1,2,3,4,B\n" for n in range(40))
    (folder / "val/accountant_val.csv").write_text(HEADER + rows + "41,q,1,2,3,4\n42,q,1,2,3,4,E\n")
    assert len(read(folder, tally)) == 42
    assert (tally.num_read, tally.num_skipped) == (44, 2)
    where = "table 'val/accountant_val.csv', line 42"
    assert tally.first_skipped == f"{where} has 6 fields, expected 7 as in the header"


def test_links_are_not_followed_out_of_the_folder(tmp_path):
    outside = write_folder(tmp_path / "outside")
    folder = write_folder(tmp_path / "d", ["val/logic_val.csv"])
    (folder / "dev").symlink_to(outside / "dev")  # a linked folder is not looked into
    assert subjects(folder) == ["逻辑学"]
    (folder / "val/law_val.csv").symlink_to(folder / "val/logic_val.csv")
    assert subjects(folder) == ["法学", "逻辑学"]
    (folder / "val/law_val.csv").unlink()
    (folder / "val/law_val.csv").symlink_to(outside / "val/law_val.csv")
    check_refused(folder, "val/law_val.csv is a link to .*, outside of .*, and is not followed")
    (folder / "val/law_val.csv").unlink()
    (folder / "val/law_val.csv").symlink_to("law_val.csv")
    check_refused(folder, "val/law_val.csv is not an ordinary file")
    linked = tmp_path / "linked"
    linked.symlink_to(outside)
    assert subjects(linked) == EXPECTED


def test_a_snapshot_of_the_hub_s_cache_is_read_through_its_links(tmp_path):
    cache = tmp_path / "datasets--ceval--ceval-exam"
    snapshot = cache / "snapshots" / "3923b519"
    for number, name in enumerate(NAMES[:3]):
        blob = cache / "blobs" / f"{number:040x}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(TABLE)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    assert subjects(snapshot) == EXPECTED
    assert subjects(snapshot / NAMES[0]) == EXPECTED[:1]


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    folder = write_folder(tmp_path / "d", ["val/logic_val.csv"])
    os.mkfifo(folder / "val/law_val.csv")
    check_refused(folder, "law_val.csv is not an ordinary file")


def test_counts_and_sizes_of_a_folder_are_bounded(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "d")
    monkeypatch.setattr(ceval_tables, "CEVAL_TABLE_BYTES", 40)
    check_refused(folder, "law_dev.csv holds more than 40 bytes")
    monkeypatch.setattr(ceval_tables, "CEVAL_ARCHIVE_BYTES", 100)
    check_refused(folder, "The tables of .* hold more than 100 bytes")
    monkeypatch.setattr(ceval_tables, "CEVAL_FILES", 5)
    check_refused(folder, "holds more than 5 files and folders: this is not the unpacked")


def test_the_hash_of_a_folder_is_that_of_its_tables(tmp_path):
    first, second = write_folder(tmp_path / "a"), write_folder(tmp_path / "b")
    (second / "README.md").write_text("other")
    (second / "test/law_test.csv").write_text("other")
    hashes = [CalibrationSource("ceval", folder).compute_sha256() for folder in (first, second)]
    assert hashes[0] == hashes[1] and len(hashes[0]) == 64
    (second / "val/law_val.csv").write_text(TABLE + "1,r,1,2,3,4,A\n")
    assert CalibrationSource("ceval", second).compute_sha256() != hashes[0]


def test_a_folder_that_is_named_by_a_dot_has_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path / "exam"))
    assert CalibrationSource("ceval", ceval_tables.Path()).name == "exam"
    assert subjects(ceval_tables.Path()) == EXPECTED


# ---- single tables -----------------------------------------------------------------------------


def test_a_single_table_is_known_by_its_name(tmp_path):
    folder = write_folder(tmp_path / "d")
    assert subjects(folder / "val/accountant_val.csv") == ["注册会计师"]
    check_refused(folder / "test/law_test.csv", "is a test table, whose questions have no answers")
    path = folder / "questions.csv"
    path.write_text(TABLE)
    check_refused(path, "does not name its subject and its split. .* such as accountant_val.csv")


def test_parquet_as_the_hub_serves_it(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    row = {"id": 0, "question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"}
    for name, explanation in (("law/dev", "e"), ("law/val", ""), ("logic/val", None)):
        path = tmp_path / f"{name}-00000-of-00001.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist([{**row, "explanation": explanation}] * 2), path)
    unread = tmp_path / "law/test-00000-of-00001.parquet"
    unread.write_bytes(b"PAR1\xff never opened")
    assert subjects(tmp_path) == ["法学"] * 4 + ["逻辑学"] * 2
    answers = [document[1]["content"] for document in read(tmp_path)]
    assert answers == ["B\ne", "B\ne", "B", "B", "B", "B"]
    assert subjects(path) == ["逻辑学"] * 2
    assert subjects(tmp_path / "law") == ["法学"] * 4
    check_refused(unread, "is a test table")


def test_a_packed_table(tmp_path):
    path = tmp_path / "law_val.csv.gz"
    path.write_bytes(gzip.compress(TABLE.encode()))
    assert subjects(path) == ["法学"]
