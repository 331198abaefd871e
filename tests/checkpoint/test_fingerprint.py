"""Whether weight files are the same ones."""

import pytest
from checkpoint_builders import write_checkpoint

from vacc_deploy.checkpoint.fingerprint import fingerprint_weights
from vacc_deploy.checkpoint.reader import Checkpoint


@pytest.mark.parametrize("whole_bytes", [0, 1 << 20])
def test_a_changed_bit_at_either_end_of_any_tensor_is_noticed(tmp_path, whole_bytes):
    source = write_checkpoint(tmp_path / "model")
    path = source / "model.safetensors"
    checkpoint, plain = Checkpoint.open(source), path.read_bytes()

    def fingerprint():
        opened = Checkpoint.open(source)
        return fingerprint_weights(opened, whole_bytes=whole_bytes)["model.safetensors"]

    first = fingerprint()
    for info in checkpoint.tensors.values():
        for position in (info.offset, info.offset + info.num_bytes - 1):
            data = bytearray(plain)
            data[position] ^= 1
            path.write_bytes(data)
            assert fingerprint() != first
    path.write_bytes(plain)
    assert fingerprint() == first


def test_small_weights_are_read_whole_and_large_ones_in_pieces(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    checkpoint, path = Checkpoint.open(source), source / "model.safetensors"
    largest = max(checkpoint.tensors.values(), key=lambda info: info.num_bytes)
    before = [fingerprint_weights(checkpoint, whole_bytes=size) for size in (0, 1 << 20)]
    data = bytearray(path.read_bytes())
    data[largest.offset + largest.num_bytes // 4] ^= 1  # between the first piece and the middle
    path.write_bytes(data)
    checkpoint = Checkpoint.open(source)
    after = [fingerprint_weights(checkpoint, whole_bytes=size) for size in (0, 1 << 20)]
    assert after[0] == before[0] and after[1] != before[1]
