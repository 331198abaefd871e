"""Records that are of no use: skipped and counted up to a limit, then an error."""

import json

import pytest

from vacc_deploy.datasets import odd
from vacc_deploy.datasets.odd import Tally
from vacc_deploy.datasets.sources import CalibrationSource, read_documents
from vacc_deploy.errors import CalibrationError

SOUND = {"instruction": "q", "input": "", "output": "a"}
ODD_ALPACA = [
    {"指示": "写", "输入": "", "输出": "河"},
    {"instruction": "q", "output": 42},
    {"instruction": "q", "input": [], "output": "a"},
    {"instruction": "q", "input": "", "output": None},
    {"instruction": {"text": "q"}, "output": "a"},
    {"instruction": "q", "output": "\ud800"},
    7,
    None,
    ["q", "a"],
]


def read(path, records, kind="alpaca", *, as_lines=False):
    """Return the documents of records that are written first, and their tally."""
    if as_lines:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        path.write_text(json.dumps(records))
    tally = Tally()
    return list(read_documents(CalibrationSource(kind, path), tally)), tally


def with_odd(count, *odd_records, at=37):
    """Return ``count`` records, of which some from ``at`` on are odd."""
    records = [SOUND] * count
    records[at : at + len(odd_records)] = odd_records
    return records


@pytest.mark.parametrize("as_lines", [False, True])
@pytest.mark.parametrize("record", ODD_ALPACA, ids=str)
def test_an_odd_record_is_skipped_and_counted(tmp_path, record, as_lines):
    documents, tally = read(tmp_path / "a", with_odd(400, record), as_lines=as_lines)
    assert len(documents) == 399
    assert (tally.num_read, tally.num_skipped) == (400, 1)
    assert tally.first_skipped.startswith("line 38 " if as_lines else "record 38 ")


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        ("c4", {"content": "x"}, 'has no text under "text": got no such key (its keys: content)'),
        ("c4", {"text": 5}, 'has no text under "text": got int'),
        ("c4", {"text": None}, 'has no text under "text": got NoneType'),
        ("chat", {"text": ["x"]}, 'has no text under "text": got list'),
        ("chat", {"id": 1}, "has the keys id; expected messages, conversations, a question"),
    ],
)
def test_the_first_odd_record_is_named_with_its_place_and_reason(tmp_path, kind, record, reason):
    _, tally = read(
        tmp_path / "a", [{"text": "t"}] * 20 + [record] * 2 + [{"text": "t"}] * 20, kind
    )
    assert tally.num_skipped == 2
    assert tally.first_skipped.startswith(f"record 21 {reason}")


@pytest.mark.parametrize(
    ("count", "num_odd"), [(100, 5), (400, 20), (2000, 50), (40, 2), (12, 1), (10, 1)]
)
def test_up_to_five_percent_are_skipped_wherever_they_stand(tmp_path, count, num_odd):
    for at in (0, count - num_odd, count // 2 - num_odd // 2):
        documents, tally = read(tmp_path / "a", with_odd(count, *[7] * num_odd, at=at))
        assert (len(documents), tally.num_skipped) == (count - num_odd, num_odd)


@pytest.mark.parametrize(
    ("count", "num_odd"),
    [(100, 6), (400, 21), (39, 2), (9, 1), (2, 1), (1, 1), (12, 12), (5000, 251)],
)
def test_more_are_an_error_that_names_the_first_and_the_number(tmp_path, count, num_odd):
    path = tmp_path / "a.json"
    with pytest.raises(CalibrationError) as caught:
        read(path, with_odd(count, *[7] * num_odd, at=count - num_odd))
    text = str(caught.value)
    first = count - num_odd + 1
    assert text.startswith(f"{path}, record {first} holds int, expected an object with the keys ")
    verb = "is" if num_odd == 1 else "are"
    assert f"Of the first {count:,} records {num_odd} {verb} odd; at most 5 % are skipped." in text


def test_a_file_of_odd_records_is_not_read_to_its_end(tmp_path):
    path, tally = tmp_path / "a.jsonl", Tally()
    path.write_text('{"instruction": 7, "output": ""}\n' * 20_000)
    with pytest.raises(CalibrationError, match="Of the first 10,000 records 10,000 are odd"):
        list(read_documents(CalibrationSource("alpaca", path), tally))
    assert tally.num_read == odd.PATIENCE


def test_whoever_stops_early_has_a_share_that_is_allowed(tmp_path):
    path, tally = tmp_path / "a.json", Tally()
    path.write_text(json.dumps(with_odd(400, 7, 7, 7, at=2)))
    documents = read_documents(CalibrationSource("alpaca", path), tally)
    for _ in range(30):
        next(documents)
        assert tally.num_skipped <= max(1, tally.num_read // 20)
    documents.close()


def test_documents_that_wait_for_the_verdict_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(odd, "WAITING_CHARACTERS", 100)
    with pytest.raises(CalibrationError, match=r"Of the first 5\d records 3 are odd"):
        read(tmp_path / "a", with_odd(400, 7, 7, 7, at=0))


def test_a_document_that_waits_is_counted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(odd, "WAITING_CHARACTERS", 1000)
    records = [7, {"text": "t" * 600}, 7, *({"text": "t"} for _ in range(97))]
    documents, tally = read(tmp_path / "a", records, kind="c4")
    assert len(documents) == 98 and tally.num_skipped == 2


def test_a_damaged_line_is_odd_but_a_cut_last_line_is_an_error(tmp_path):
    path, tally = tmp_path / "a.jsonl", Tally()
    sound = json.dumps({"text": "t"}) + "\n"
    path.write_text(sound * 30 + '{"text": "brok\n' + sound * 30)
    assert len(list(read_documents(CalibrationSource("c4", path), tally))) == 60
    assert tally.first_skipped.startswith("line 31 cannot be read: ")
    path.write_text(sound * 30 + '{"text": "brok')
    message = "line 31 cannot be read: .*ends in the middle of a record, .* Download it again"
    with pytest.raises(CalibrationError, match=message):
        list(read_documents(CalibrationSource("c4", path)))


def test_empty_documents_are_counted_apart(tmp_path):
    records = [{"text": " \n"}, {"text": "t"}, {"text": ""}]
    documents, tally = read(tmp_path / "a", records, "c4")
    assert (documents, tally.num_empty, tally.num_skipped) == (["t"], 2, 0)


@pytest.mark.parametrize(
    "blanks", [b"", b"\xef\xbb\xbf", b" \n" * 5000, b"\xef\xbb\xbf" + b"\t" * 9000]
)
def test_an_array_is_known_behind_a_mark_and_blanks(tmp_path, blanks):
    path = tmp_path / "c4_demo.json"
    path.write_bytes(blanks + json.dumps([{"text": "one"}, {"text": "two"}]).encode())
    assert list(read_documents(CalibrationSource("c4", path))) == ["one", "two"]
