"""The calibration rows' hidden states in memory and in a file without a name."""

import errno
import os
from dataclasses import replace

import pytest
import torch
from checkpoint_builders import read_tensors, write_checkpoint

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, OutputError
from vacc_deploy.quantize import row_buffers as hidden_rows_module
from vacc_deploy.quantize.compute import choose_compute
from vacc_deploy.quantize.row_buffers import (
    DEVICE,
    DISK,
    HOST,
    HiddenRows,
    choose_storage,
    embed_rows,
)

CPU = choose_compute("cpu", "float32")
HALF = choose_compute("cpu", "bfloat16")
SHAPE = (5, 8, 64)
NUM_BYTES = 5 * 8 * 64 * 4


@pytest.fixture(params=["memory", "file"])
def place(request, monkeypatch):
    """Where the buffers of a test lie."""
    available = 1 << 40 if request.param == "memory" else 0
    monkeypatch.setattr(hidden_rows_module, "available_memory_bytes", lambda: available)
    return request.param


def mapped_files(directory):
    """Return the lines of this process's memory map that lie in ``directory``."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return [line for line in maps if f"{directory}/" in line]


def filled(spool_dir, compute=CPU):
    rows = HiddenRows.allocate(SHAPE, compute, spool_dir)
    states = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)).to(compute.dtype)
    for row in range(0, SHAPE[0], 2):
        rows.write(slice(row, row + 2), states[row : row + 2])
    return rows, states


@pytest.mark.parametrize("compute", [CPU, HALF], ids=["float32", "bfloat16"])
def test_hidden_rows_hold_what_was_written(tmp_path, place, compute):
    rows, states = filled(tmp_path, compute)
    assert rows.buffer.shape == SHAPE and rows.buffer.dtype == compute.dtype
    assert torch.equal(rows.read(slice(0, 5)), states)
    rows.write(slice(1, 3), states[3:5])
    assert torch.equal(rows.read(slice(0, 5)), states[[0, 3, 4, 3, 4]])


def test_hidden_rows_leave_no_file(tmp_path, place):
    rows, _ = filled(tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(mapped_files(tmp_path)) == (place == "file")
    if place == "file":
        assert mapped_files(tmp_path)[0].rstrip().endswith("(deleted)")
    del rows
    assert mapped_files(tmp_path) == []


@pytest.mark.parametrize(("spare", "is_file"), [(0, False), (-1, True)])
def test_hidden_rows_take_half_of_the_available_memory_and_no_more(
    tmp_path, monkeypatch, spare, is_file
):
    monkeypatch.setattr(hidden_rows_module, "available_memory_bytes", lambda: 2 * NUM_BYTES + spare)
    rows = HiddenRows.allocate(SHAPE, CPU, tmp_path)
    assert rows.buffer.numel() * 4 == NUM_BYTES
    assert bool(mapped_files(tmp_path)) is is_file


@pytest.mark.parametrize(
    ("num_bytes", "storage"), [(45, DEVICE), (46, HOST), (50, HOST), (51, DISK)]
)
def test_rows_take_the_fastest_storage_that_holds_them(num_bytes, storage):
    assert choose_storage(num_bytes, 100, 100) == storage
    if storage == DEVICE:
        assert choose_storage(num_bytes, None, 100) == HOST


def test_clone_first_is_a_copy_of_its_own(tmp_path, place):
    rows, states = filled(tmp_path)
    copy = rows.clone_first(3, CPU, tmp_path)
    assert copy.buffer.shape == (3, 8, 64)
    rows.write(slice(0, 5), torch.zeros(SHAPE))
    assert torch.equal(copy.read(slice(0, 3)), states[:3])
    copy.write(slice(0, 3), torch.ones(3, 8, 64))
    assert not rows.read(slice(0, 5)).any()


@pytest.mark.parametrize("compute", [CPU, HALF], ids=["float32", "bfloat16"])
def test_embed_rows_equals_the_table(tmp_path, place, compute):
    source = write_checkpoint(tmp_path / "model")
    spool_dir = tmp_path / "spool"
    spool_dir.mkdir()
    tokens = torch.randint(0, 272, (4, 9), generator=torch.Generator().manual_seed(1))
    rows = embed_rows(Checkpoint.open(source), tokens, compute, spool_dir)
    table = read_tensors(source)["model.embed_tokens.weight"].to(compute.dtype)
    assert torch.equal(rows.read(slice(0, 4)), table[tokens])
    assert os.listdir(spool_dir) == []
    assert len(mapped_files(spool_dir)) == (place == "file")


def test_hidden_rows_on_a_full_disk_are_an_error_not_a_signal(tmp_path, monkeypatch):
    """A sparse file would end the process by SIGBUS at the first page without a block."""
    asked = []

    def full(descriptor, offset, length):
        asked.append((offset, length))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hidden_rows_module, "available_memory_bytes", lambda: 0)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"):
        HiddenRows.allocate(SHAPE, HALF, tmp_path)
    assert asked == [(0, NUM_BYTES // 2)]
    assert os.listdir(tmp_path) == []


def test_embed_rows_token_outside_the_table_is_an_error(tmp_path):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "model"))
    with pytest.raises(CheckpointError, match="272"):
        embed_rows(checkpoint, torch.tensor([[1, 272]]), CPU, tmp_path)


def test_hidden_rows_on_a_full_device_go_to_the_host(tmp_path, monkeypatch):
    """The device's memory decides first, then the host's; no device is needed to see it."""
    free = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free.append(device) or 0, 0))
    cuda = replace(CPU, device=torch.device("cuda", 0))
    rows = HiddenRows.allocate(SHAPE, cuda, tmp_path)
    assert rows.buffer.device.type == "cpu" and free == [cuda.device]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_file_system_that_reserves_no_space_gets_zeros(tmp_path, monkeypatch, number):
    def refused(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refused)
    rows = hidden_rows_module._map_file((3, 5, 70_001), torch.float32, tmp_path)
    assert rows.shape == (3, 5, 70_001) and not rows.any()
    rows.fill_(1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_that_maps_no_files_is_one_error(tmp_path, monkeypatch):
    def refused(*args, **options):
        raise RuntimeError("unable to mmap 64 bytes from file: No such device (19)\nmore")

    monkeypatch.setattr(torch, "from_file", refused)
    with pytest.raises(OutputError) as caught:
        hidden_rows_module._map_file((1, 4, 4), torch.float32, tmp_path)
    assert str(caught.value) == (
        f"The calibration rows fit no memory, and the file system of {tmp_path} cannot map a file "
        "into it (unable to mmap 64 bytes from file: No such device (19)). Choose an --output on a "
        "local disk, or fewer rows with --num-samples."
    )
    assert list(tmp_path.iterdir()) == []
