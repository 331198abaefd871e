"""Hostile headers: the same are refused as by the library of safetensors, at once and in a line."""

import struct
import time
import tracemalloc

import pytest
from safetensors import SafetensorError, safe_open

from vacc_deploy.checkpoint.header import read_header
from vacc_deploy.errors import CheckpointError

ENTRY = '"dtype":"F32","shape":[1],"data_offsets":[0,4]'


def write(path, header, data=b"\0" * 4):
    header = header.encode("utf-8") if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def shaped(shape, offsets="0,4"):
    return f'{{"a":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{offsets}]}}}}'


BOTH_TAKE = {
    "plain": f'{{"a":{{{ENTRY}}}}}',
    "no metadata": f'{{"__metadata__":null,"a":{{{ENTRY}}}}}',
    "metadata": f'{{"__metadata__":{{"format":"pt"}},"a":{{{ENTRY}}}}}',
    "another key": f'{{"a":{{{ENTRY},"x":[1]}}}}',
    "empty name": f'{{"":{{{ENTRY}}}}}',
    "a pair of escapes": f'{{"\\ud83d\\ude00":{{{ENTRY}}}}}',
    "blanks": f' {{"a":{{{ENTRY}}}}}   ',
    "scalar": shaped(""),
    "rank 8": shaped("1,1,1,1,1,1,1,1"),
}
BOTH_REFUSE = {
    **{
        f"metadata {value}": f'{{"__metadata__":{value},"a":{{{ENTRY}}}}}'
        for value in ("[1]", '"x"', "5", "false", '{"a":[1]}', '{"format":5}', '{"a":null}')
    },
    "metadata half a character": f'{{"__metadata__":{{"a":"\\ud800"}},"a":{{{ENTRY}}}}}',
    "name half a character": f'{{"\\ud800":{{{ENTRY}}}}}',
    "a key twice": f'{{"a":{{{ENTRY},"dtype":"F32"}}}}',
    "behind the object": f'{{"a":{{{ENTRY}}}}}x',
    "byte order mark": f'\ufeff{{"a":{{{ENTRY}}}}}',
    "minus zero": shaped("1", "-0,4"),
    "fraction": shaped("1.0"),
    "exponent": shaped("1e400"),
    "NaN": shaped("NaN"),
    "NaN elsewhere": f'{{"a":{{{ENTRY},"x":NaN}}}}',
    "large elsewhere": f'{{"a":{{{ENTRY},"x":1e400}}}}',
    "many digits": shaped("9" * 5000),
    "true": shaped("true"),
    "negative": shaped("-1"),
    "overflow": shaped("4294967296,4294967296,4294967296"),
    "overflow before a zero": shaped(",".join(["1099511627776"] * 3) + ",0", "0,0"),
}
# Two readers would take different ones, or a message could not print it.
WE_REFUSE = {
    "name twice": f'{{"a":{{{ENTRY}}},"a":{{{ENTRY}}}}}',
    "rank 9": shaped("1,1,1,1,1,1,1,1,1"),
    "a line end in a name": f'{{"a\\nError: b":{{{ENTRY}}}}}',
    "a mark of direction in a name": f'{{"a\\u202eb":{{{ENTRY}}}}}',
    "a long name": f'{{"{"a" * 513}":{{{ENTRY}}}}}',
}


def is_read_by_the_library(path):
    try:
        with safe_open(path, "np") as file:
            file.keys()
    except SafetensorError:
        return False
    return True


@pytest.mark.parametrize("kind", BOTH_TAKE)
def test_what_the_library_reads_is_read(tmp_path, kind):
    path = write(tmp_path / "a.safetensors", BOTH_TAKE[kind])
    assert is_read_by_the_library(path) and len(read_header(path).tensors) == 1


@pytest.mark.parametrize("kind", [*BOTH_REFUSE, *WE_REFUSE])
def test_what_the_library_or_a_message_cannot_take_is_refused(tmp_path, kind):
    path = write(tmp_path / "a.safetensors", (BOTH_REFUSE | WE_REFUSE)[kind])
    assert is_read_by_the_library(path) == (kind in WE_REFUSE)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 + len(str(path))


HOSTILE = {
    "a long shape": lambda: shaped(",".join(["1099511627776"] * 200_000)),
    "a long shape of -1": lambda: shaped(",".join(["-1"] * 1_000_000)),
    "many lists": lambda: '{"a":[' + "[]," * 1_000_000 + "[]]}",
    "many empty tensors": lambda: (
        "{"
        + ",".join(
            f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(50_000)
        )
        + "}"
    ),
    "one key often": lambda: "{" + ",".join(['"a":1'] * 500_000) + "}",
    "a long number": lambda: '{"a":' + "9" * 3_000_000 + "}",
    "deep": lambda: '{"a":' * 500_000,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_header_takes_little_time_and_memory(tmp_path, kind):
    header = HOSTILE[kind]()
    path = write(tmp_path / "a.safetensors", header)
    begun = time.process_time()
    tracemalloc.start()
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(header) + (16 << 20)
    assert time.process_time() - begun < 5
    assert len(str(caught.value)) < 400 + len(str(path))
