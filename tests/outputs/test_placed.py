"""A weight file that was placed is compared with the one that was checked."""

import errno
import os

import pytest
from checkpoint_builders import write_checkpoint

from vacc_deploy.checkpoint import header
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, OutputError
from vacc_deploy.outputs import files
from vacc_deploy.outputs.files import LINK_MODES, place_shard

WEIGHTS = "model.safetensors"


@pytest.fixture
def shard(tmp_path):
    return Checkpoint.open(write_checkpoint(tmp_path / "in")).shards[WEIGHTS]


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ESTALE])
@pytest.mark.parametrize("link_mode", LINK_MODES)
def test_what_the_system_says_of_a_placed_file_is_no_change_of_the_source(
    tmp_path, shard, monkeypatch, number, link_mode
):
    out = tmp_path / "out"
    out.mkdir()
    plain = header.open_ordinary

    def fails(path, **options):
        if path == out / WEIGHTS:
            raise OSError(number, os.strerror(number), str(path))
        return plain(path, **options)

    monkeypatch.setattr(header, "open_ordinary", fails)
    with pytest.raises(CheckpointError) as caught:
        place_shard(shard, out, link_mode)
    assert str(caught.value).startswith(f"{out / WEIGHTS} cannot be read: {os.strerror(number)}. ")


@pytest.mark.parametrize("damage", [lambda data: data[:4], lambda data: b"\0" + data[1:]])
def test_a_damaged_copy_is_named_itself(tmp_path, shard, monkeypatch, damage):
    target, plain = tmp_path / WEIGHTS, files.copy_file

    def damaged(*args):
        written = plain(*args)
        target.write_bytes(damage(target.read_bytes()))
        return written

    monkeypatch.setattr(files, "copy_file", damaged)
    with pytest.raises(OutputError) as caught:
        place_shard(shard, tmp_path, "copy")
    assert str(caught.value) == (
        f"{target} is not the copy of {shard.path} that was written. Look into the system's log "
        "(dmesg) for errors of the disk, then rerun, if need be with another --output."
    )
