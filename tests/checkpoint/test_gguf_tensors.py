"""Names and types of a GGUF file's tensors: Q8_0 where it is expected, and nowhere else."""

import pytest
from checkpoint_builders import build_config
from gguf_bytes import build, tensor, write

from vacc_deploy.checkpoint.gguf_header import read_gguf_header
from vacc_deploy.checkpoint.gguf_tensors import read_gguf, read_gguf_shard
from vacc_deploy.errors import CheckpointError
from vacc_deploy.models.parse import parse_config

CONFIG = parse_config(build_config(model_type="llama"), where="config.json")


def shard(tmp_path, name, shape, num_bytes):
    entry = tensor(name, shape, 8)
    data = build(tensors=(entry,), data=bytes(num_bytes + -num_bytes % 32))
    return read_gguf_shard(read_gguf_header(write(tmp_path, data)), CONFIG)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("output_norm.weight", (64,)),
        ("blk.0.attn_norm.weight", (64, 1)),
        ("blk.0.attn_q.bias", (32,)),
        ("blk.0.attn_q.weight", (32,)),
        ("blk.0.attn_q.weight", (32, 2, 2)),
        ("token_embd.weight", (64,)),
        ("other.weight", (64, 2)),
    ],
)
def test_blocks_where_none_are_expected_are_refused(tmp_path, name, shape):
    num_bytes = 34
    for size in shape:
        num_bytes *= size
    with pytest.raises(CheckpointError) as caught:
        shard(tmp_path, name, shape, num_bytes // 32)
    assert str(caught.value) == (
        f"{tmp_path / 'a.gguf'}: tensor {name!r} of shape {list(shape)[::-1]} has the type Q8_0, "
        "expected that of the embedding, the head and the linears only, with rows and columns. "
        "Quantize the model again."
    )


def test_blocks_keep_their_name_or_say_whose_they_are(tmp_path):
    (info,) = shard(tmp_path, "blk.0.attn_v.weight", (64, 2), 2 * 68).tensors
    assert (info.name, info.dtype, info.shape) == (
        *("model.layers.0.self_attn.v_proj.q8_0", "U8", (2, 68)),
    )
    (info,) = shard(tmp_path, "output.weight", (64, 2), 2 * 68).tensors
    assert (info.name, info.dtype, info.shape) == ("lm_head.weight", "Q8_0", (2, 64))
    assert read_gguf(info).shape == (2, 64) and read_gguf(info, [1]).shape == (1, 64)


def test_a_head_in_blocks_is_compared_with_no_floats(tmp_path):
    """Bytes of blocks are no numbers: a table of another type is another table."""
    from vacc_deploy.checkpoint.stored import same_values

    (blocks,) = shard(tmp_path, "output.weight", (64, 2), 2 * 68).tensors
    data = build(tensors=(tensor("token_embd.weight", (64, 2), 0),), data=bytes(512))
    path = tmp_path / "b.gguf"
    path.write_bytes(data)
    (floats,) = read_gguf_shard(read_gguf_header(path), CONFIG).tensors
    assert same_values(blocks, blocks) and not same_values(blocks, floats)
