"""Parquet files, as the hub serves the data sets, through pyarrow."""

import json
import sys
import types

import pytest

from vacc_deploy.datasets import extras, parquet
from vacc_deploy.datasets.odd import Tally
from vacc_deploy.datasets.recognize import recognize
from vacc_deploy.datasets.sources import CalibrationSource, read_documents
from vacc_deploy.errors import CalibrationError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

CHAT = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
QA = ({"role": "user", "content": "q"}, {"role": "assistant", "content": "a"})


def write(path, rows, **options):
    """Write rows, a list of dictionaries or a table, and return the path."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    pq.write_table(table, path, **options)
    return path


def read(kind, path, tally=None):
    return list(read_documents(CalibrationSource(kind, path), tally))


@pytest.mark.parametrize(
    ("kind", "row", "document"),
    [
        ("c4", {"text": "one 数学", "timestamp": "2019", "url": "u"}, "one 数学"),
        ("alpaca", {"instruction": "q", "input": "", "output": "a", "text": "t"}, QA),
        ("chat", {"conversations": CHAT, "id": "x"}, QA),
        ("chat", {"messages": MESSAGES, "problem": "p", "generations": ["g"]}, QA),
        ("chat", {"problem": "q", "generations": ["a", "b"], "answer": "42"}, QA),
        ("chat", {"Question": "q", "Response": "a", "score": 3}, QA),
    ],
)
def test_rows_become_the_documents_of_their_json(tmp_path, kind, row, document):
    path = write(tmp_path / "train-00000-of-00001.parquet", [row] * 30, row_group_size=12)
    assert read(kind, path) == [document] * 30
    lines = tmp_path / "train.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for _ in range(30)))
    assert read(kind, lines) == [document] * 30
    assert recognize(path).kind == kind


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
def test_every_usual_compression_and_type_of_text_is_read(tmp_path, compression):
    for kind in (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())):
        table = pa.table({"text": pa.array(["one", "two"]).cast(kind)})
        path = write(tmp_path / "t.parquet", table, compression=compression)
        assert read("c4", path) == ["one", "two"]


def test_odd_rows_are_skipped_and_counted(tmp_path):
    texts = ["t"] * 60
    texts[20] = None
    path, tally = write(tmp_path / "t.parquet", [{"text": text} for text in texts]), Tally()
    assert len(read("c4", path, tally)) == 59
    assert tally.first_skipped == 'row 21 has no text under "text": got NoneType'
    # Bytes that are not UTF-8, in a column of text.
    raw = pa.array([b"t"] * 40 + [b"\xff"]).view(pa.string())
    path, tally = write(tmp_path / "b.parquet", pa.table({"text": raw})), Tally()
    assert read("c4", path, tally) == ["t"] * 40
    assert tally.first_skipped.startswith("row 41 is not UTF-8: ")


def test_a_file_of_other_columns_is_named_with_the_option_that_is_right(tmp_path):
    path = write(tmp_path / "a.parquet", [{"conversations": CHAT}])
    with pytest.raises(CalibrationError) as caught:
        read("c4", path)
    assert str(caught.value) == (
        f"{path} is a Parquet file of chats with the columns conversations, not C4. Give "
        f"--calibration chat={path}."
    )
    path = write(tmp_path / "n.parquet", [{"passage": "x", "id": 1}])
    for kind in ("c4", "alpaca", "chat", "ceval", "text"):
        with pytest.raises(
            CalibrationError, match="is a Parquet file with the columns passage, id"
        ):
            read(kind, path)


@pytest.mark.parametrize("cut", [150, -40, -4, -1])
def test_a_file_that_is_cut_off_is_an_error(tmp_path, cut):
    path = write(tmp_path / "t.parquet", [{"text": "t"}])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CalibrationError, match="is a Parquet file that is cut off.*Download it ag"):
        read("c4", path)


def test_a_file_damaged_anywhere_is_a_clear_error_or_is_read(tmp_path):
    path = write(tmp_path / "t.parquet", [{"text": f"document {n}"} for n in range(50)])
    whole = path.read_bytes()
    for position in range(4, len(whole), 5):
        data = bytearray(whole)
        data[position] ^= 0xFF
        path.write_bytes(data)
        try:
            read("c4", path)
        except CalibrationError as err:
            assert str(path) in str(err)


def test_sizes_that_the_file_states_are_bounded_before_they_are_used(tmp_path, monkeypatch):
    path = write(tmp_path / "t.parquet", [{"text": "word " * 500}])
    monkeypatch.setattr(parquet, "PARQUET_GROUP_BYTES", 5000)
    message = "row group 1 states 7,.* bytes, expected at most 5,000. Write the file again with sm"
    with pytest.raises(CalibrationError, match=message):
        read("c4", path)
    monkeypatch.setattr(parquet, "PARQUET_FOOTER_BYTES", 100)
    with pytest.raises(CalibrationError, match="with a footer of .* bytes, expected at most 100"):
        read("c4", path)


def test_a_small_file_that_states_a_large_group_is_refused(tmp_path):
    path = write(tmp_path / "t.parquet", [{"text": "x" * (17 << 20)}], compression="zstd")
    assert path.stat().st_size < 10_000
    with pytest.raises(CalibrationError, match="row group 1 states 17,.* bytes, expected at most "):
        read("c4", path)


def test_a_value_that_is_repeated_is_in_memory_once(tmp_path):
    indices = pa.array([0] * 100_000, pa.int32())
    column = pa.DictionaryArray.from_arrays(indices, pa.array(["x" * (1 << 20)]))
    path = write(tmp_path / "bomb.parquet", pa.table({"text": column}), compression="zstd")
    assert path.stat().st_size < 10_000
    before = pa.default_memory_pool().max_memory()
    documents = read_documents(CalibrationSource("c4", path))
    assert [len(next(documents)) for _ in range(300)] == [1 << 20] * 300
    documents.close()
    assert pa.default_memory_pool().max_memory() - before < 64 << 20


# ---- without pyarrow ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["c4", "alpaca", "chat"])
def test_without_the_package_the_error_has_the_command_that_installs_it(
    tmp_path, monkeypatch, kind
):
    path = write(tmp_path / "t.parquet", [{"text": "t"}])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CalibrationError) as caught:
        read(kind, path)
    assert str(caught.value) == (
        f"{path} is a Parquet file. Reading it needs the package pyarrow 14.0.1 or newer. Install "
        "it, then rerun:\n  python3 -m pip install 'pyarrow>=14.0.1'"
    )
    with pytest.raises(
        CalibrationError, match="is a Parquet file, not plain text. Give it as c4, alpaca, chat"
    ):
        read("text", path)


@pytest.mark.parametrize(
    ("version", "is_taken"),
    [("13.0.0", False), ("14.0.0", False), ("14.0.1", True), ("21.0.0.dev5", True), ("", False)],
)
def test_a_release_that_unpickles_is_not_used(monkeypatch, version, is_taken):
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(__version__=version))
    assert (extras.find_package("pyarrow") is not None) == is_taken
