"""Parquet files that lie, that are made to take memory or time, or that end pyarrow's process."""

import datetime
import gzip
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from decimal import Decimal
from pathlib import Path

import pytest

from vacc_deploy.children import process as process_module
from vacc_deploy.datasets import ceval, ceval_tables, parquet
from vacc_deploy.datasets import parquet_worker as worker
from vacc_deploy.datasets.explain import explain_no_text
from vacc_deploy.datasets.odd import Tally
from vacc_deploy.datasets.parquet import list_columns, read_rows
from vacc_deploy.datasets.sources import CalibrationSource, read_documents
from vacc_deploy.errors import CalibrationError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
QUESTION = {"id": 0, "A": "1", "B": "2", "C": "3", "D": "4", "answer": "B"}


def write(path, rows, **options):
    """Write rows, a list of dictionaries or a table, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    pq.write_table(table, path, **options)
    return path


def varint(number):
    """Return a number as thrift's compact form has it."""
    number, data = number << 1, bytearray()
    while number >= 0x80:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(data) + bytes([number])


def lie(path):
    """Let the footer of a file with one column state 100 bytes for its row group."""
    true = varint(pq.read_metadata(path).row_group(0).total_byte_size)
    false = bytes([200 & 0x7F | 0x80, 0x81, *[0x80] * (len(true) - 3), 0])
    data = path.read_bytes()
    assert true in data
    path.write_bytes(data.replace(true, false))
    assert pq.read_metadata(path).row_group(0).total_byte_size == 100
    return path


def read(kind, path, tally=None):
    return list(read_documents(CalibrationSource(kind, path), tally))


def started(monkeypatch):
    """Return a list that the processes of the reader come into."""
    processes, start = [], subprocess.Popen

    def note(*args, **options):
        processes.append(start(*args, **options))
        return processes[-1]

    worker.close_idle()
    monkeypatch.setattr(process_module.subprocess, "Popen", note)
    return processes


# ---- sizes -------------------------------------------------------------------------------------


def test_a_footer_that_lies_does_not_buy_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "PARQUET_MEMORY", 16 * MIB)
    path = write(tmp_path / "t.parquet", [{"text": "x" * (40 * MIB)}], compression="zstd")
    assert path.stat().st_size < 20_000
    lie(path)
    message = "takes more than 16 MiB of memory to read, expected at most that for its size. Write"
    with pytest.raises(CalibrationError, match=message) as caught:
        read("c4", path)
    assert str(caught.value).startswith(f"{path} ")


@pytest.mark.parametrize("is_list", [False, True])
def test_a_giant_cell_is_refused_with_its_row(tmp_path, is_list):
    cell = "x" * (17 * MIB)
    column = pa.array([["t"], [cell]] if is_list else ["t", cell])
    path = lie(write(tmp_path / "t.parquet", pa.table({"text": column}), compression="zstd"))
    entries = read_rows(path, "text", ("text",))
    assert next(entries) == ("row 1", {"text": ["t"] if is_list else "t"})
    with pytest.raises(CalibrationError, match="row 2 holds 17,8.* bytes, expected at most 16,777"):
        next(entries)


def test_many_row_groups_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "PARQUET_GROUPS", 2)
    path = write(tmp_path / "t.parquet", [{"text": "t"}] * 3, row_group_size=1)
    with pytest.raises(CalibrationError, match="of 3 row groups, expected at most 2. Write the"):
        read("c4", path)


def test_a_wide_footer_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = write(tmp_path / "t.parquet", pa.table({f"column{n}": ["t"] for n in range(500)}))
    monkeypatch.setattr(parquet, "PARQUET_FOOTER_BYTES", 20_000)
    processes = started(monkeypatch)
    with pytest.raises(CalibrationError, match="a footer of .* bytes, expected at most 20,000"):
        read("c4", path)
    assert list_columns(path) is None
    assert "is a Parquet file, not plain text" in explain_no_text(path)
    assert not processes


def test_what_takes_too_long_is_an_error_of_the_file(tmp_path, monkeypatch):
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 99_999, pa.int32()), ["x" * 100_000])
    path = write(tmp_path / "t.parquet", pa.table({"text": column}), compression="zstd")
    monkeypatch.setattr(parquet, "PARQUET_CPU_SECONDS", 0)
    monkeypatch.setattr(parquet, "PARQUET_CPU_PER_MB", 0)
    processes = started(monkeypatch)
    with pytest.raises(CalibrationError, match="takes more than 0 s of processor time to read"):
        for _ in read_rows(path, "text", ("text",)):
            pass
    assert processes[0].returncode == -signal.SIGXCPU


# ---- C-Eval ------------------------------------------------------------------------------------


def test_a_folder_of_ceval_counts_what_a_table_unpacks_to(tmp_path, monkeypatch):
    rows = [{**QUESTION, "question": "q" * 10_000}] * 100
    path = write(tmp_path / "law/val-00000-of-00001.parquet", rows, compression="zstd")
    assert path.stat().st_size < 10_000
    assert len(read("ceval", tmp_path)) == 100
    monkeypatch.setattr(ceval_tables, "CEVAL_TABLE_BYTES", 900_000)
    for given in (tmp_path, path):
        with pytest.raises(CalibrationError, match="01.parquet holds more than 900,000 bytes. Use"):
            read("ceval", given)
    # The wanted columns of several tables together.
    monkeypatch.setattr(ceval_tables, "CEVAL_TABLE_BYTES", 2_000_000)
    write(tmp_path / "logic/val-00000-of-00001.parquet", rows, compression="zstd")
    assert len(read("ceval", tmp_path)) == 200
    monkeypatch.setattr(ceval, "CEVAL_UNPACKED_BYTES", 1_500_000)
    with pytest.raises(CalibrationError, match="The tables of .* hold more than 1,500,000 bytes"):
        read("ceval", tmp_path)


def test_tables_of_csv_on_the_disk_are_counted_too(tmp_path, monkeypatch):
    text = f"id,question,A,B,C,D,answer\n1,{'q' * 5000},1,2,3,4,B\n".encode()
    (tmp_path / "law_val.csv").write_bytes(text)
    (tmp_path / "law_dev.csv").write_bytes(text)
    packed = tmp_path / "law_val.csv.gz"
    packed.write_bytes(gzip.compress(text))
    monkeypatch.setattr(ceval, "CEVAL_UNPACKED_BYTES", 8000)
    assert len(read("ceval", packed)) == 1
    with pytest.raises(CalibrationError, match="The tables of .* hold more than 8,000 bytes"):
        read("ceval", tmp_path)
    monkeypatch.setattr(ceval, "CEVAL_UNPACKED_BYTES", 4000)
    with pytest.raises(CalibrationError, match="law_val.csv.gz hold more than 4,000 bytes"):
        read("ceval", packed)


# ---- the process -------------------------------------------------------------------------------


def begin(tmp_path, monkeypatch):
    """Return a file that is read up to its first row, the entries, and the process."""
    processes = started(monkeypatch)
    path = write(tmp_path / "t.parquet", [{"text": str(n) * 500} for n in range(5000)])
    entries = read_rows(path, "text", ("text",))
    assert next(entries)[0] == "row 1"
    return path, entries, processes[0]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="the limits are read from /proc")
def test_the_process_has_the_limits_and_nothing_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    _, entries, process = begin(tmp_path, monkeypatch)
    with closing(entries):
        folder = Path(f"/proc/{process.pid}")
        limits = (folder / "limits").read_text()
        soft = {line[:26].strip(): line[26:].split()[0] for line in limits.splitlines()[1:]}
        assert soft["Max file size"] == soft["Max core file size"] == "0"
        assert soft["Max open files"] == "32" and int(soft["Max cpu time"]) < 10
        assert int(soft["Max address space"]) < 2 << 30
        assert b"PYTHONPATH" not in (folder / "environ").read_bytes()
        assert os.readlink(folder / "cwd") == "/"


def test_a_reader_that_is_left_leaves_no_process(tmp_path, monkeypatch):
    _, entries, process = begin(tmp_path, monkeypatch)
    entries.close()
    assert process.returncode == -signal.SIGKILL and not worker._idle


def test_one_process_reads_one_file_after_another(tmp_path, monkeypatch):
    processes = started(monkeypatch)
    path = write(tmp_path / "t.parquet", [{"text": "t"}])
    bad = write(tmp_path / "b.parquet", [{"text": "t"}])
    bad.write_bytes(bad.read_bytes().replace(b"text", b"te\xfft"))
    for _ in range(2):
        assert read("c4", path) == ["t"] and list_columns(path) == ["text"]
        with pytest.raises(CalibrationError):
            read("c4", bad)
    assert len(processes) == 1
    # One that ended while it waited is replaced.
    processes[0].stdin.close()
    processes[0].wait(5)
    worker._idle[0]._input = open(os.devnull, "wb")  # noqa: SIM115
    assert read("c4", path) == ["t"] and len(processes) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SIGKILL", "The process that reads .* was ended from outside .SIGKILL.*Free memory, then"),
        ("SIGSEGV", "is a Parquet file that cannot be read: pyarrow ends its process .SIGSEGV"),
    ],
)
def test_a_process_that_is_killed_in_the_middle_is_one_clear_error(
    tmp_path, monkeypatch, name, message
):
    path, entries, process = begin(tmp_path, monkeypatch)
    process.send_signal(getattr(signal, name))
    with pytest.raises(CalibrationError, match=message) as caught:
        list(entries)
    assert str(path) in str(caught.value)


def test_a_process_that_stands_still_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "WALL_SECONDS", 0.05)
    monkeypatch.setattr(worker, "WALL_PER_SECOND", 0.0)
    monkeypatch.setattr(worker, "_begin", slow_start(worker._begin))
    _, entries, process = begin(tmp_path, monkeypatch)
    process.send_signal(signal.SIGSTOP)
    with pytest.raises(CalibrationError, match="was stopped and does not go on. Rerun."):
        list(entries)
    assert process.returncode == -signal.SIGKILL


def slow_start(begin_reading):
    """Let the start of a process take what it takes."""
    return lambda line, silence: begin_reading(line, silence + 60)


def test_too_little_memory_of_the_system_is_no_fault_of_the_file(tmp_path, monkeypatch):
    path = write(tmp_path / "t.parquet", [{"text": "t"}])
    failure = {"text": "", "is_short": True}
    error = parquet._explain_failure(failure, 512 * MIB, path)
    assert str(error).startswith(f"The process that reads {path} gets less than 512 MiB of memory")
    error = parquet._explain_end(3, 5, path)
    assert "ended with the code 3. Check the package: python3 -c 'import pyarrow.parquet'" in str(
        error
    )


def test_no_process_outlives_a_killed_parent(tmp_path):
    path = write(tmp_path / "t.parquet", [{"text": "t" * 500}] * 5000)
    code = (
        "import os, sys, time; from vacc_deploy.datasets import parquet, parquet_worker as w\n"
        "rows = parquet.read_rows(parquet.Path(sys.argv[1]), 'text', ('text',)); start = w._begin\n"
        "def begin(*args):\n    found = start(*args)\n"
        "    print(found[0].pid, flush=True)\n    return found\n"
        "w._begin = begin; next(rows); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not is_running(child)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ---- values ------------------------------------------------------------------------------------


def test_values_that_are_no_json_make_odd_records(tmp_path):
    for value, name in (
        (b"bytes", "bytes"),
        (datetime.datetime(2020, 1, 1), "datetime"),
        (Decimal("1.5"), "Decimal"),
        (float("nan"), "float"),
        (7, "int"),
        ([1], "list"),
    ):
        rows = pa.table({"text": pa.array([value])})
        tally = Tally()
        with pytest.raises(CalibrationError):
            read("c4", write(tmp_path / "t.parquet", rows), tally)
        assert tally.first_skipped == f'row 1 has no text under "text": got {name}'


def test_texts_lists_and_objects_come_as_they_are(tmp_path):
    text = 'a "b" \\ \x00 \u2028 数学 \U0001f600 \x7f'
    row = {"text": text, "list": [1, None, 0.1, 1e300], "object": {"a": [{"b": text}]}}
    path = write(tmp_path / "t.parquet", [row] * 20)
    entries = read_rows(path, "text", ("text", "list", "object"))
    expected = pq.read_table(path).to_pylist()
    assert [value for _, value in entries] == expected
    strange = write(tmp_path / "s.parquet", [{"text": {"a": [b"x", None], "b": text}}])
    numbers = write(tmp_path / "n.parquet", [{"text": -(2**63)}, {"text": 2**63 - 1}])
    values = [value["text"] for _, value in read_rows(numbers, "text", ("text",))]
    assert values == [-(2**63), 2**63 - 1]
    ((_, value),) = read_rows(strange, "text", ("text",))
    assert type(value["text"]["a"][0]).__name__ == "bytes" and value["text"]["b"] == text


def test_the_reader_imports_no_pyarrow_itself(tmp_path):
    path = write(tmp_path / "t.parquet", [{"text": "t"}])
    code = (
        "import sys; from vacc_deploy.datasets.sources import parse_source, read_documents\n"
        "print(list(read_documents(parse_source(sys.argv[1]))), 'pyarrow' in sys.modules)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, f"c4={path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "['t'] False\n"
