import re
import shutil

import pytest
import torch
from checkpoint_builders import (
    build_config,
    build_tensors,
    read_tensors,
    write_checkpoint,
    write_json,
)
from safetensors.torch import load_file, save_file
from texts import read_json

from vacc_deploy.checkpoint.reader import INDEX_NAME, SINGLE_FILE, Checkpoint, examine
from vacc_deploy.errors import CheckpointError, UnsupportedModelError

FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
UP, EMBEDDING = "model.layers.1.mlp.up_proj.weight", "model.embed_tokens.weight"


def problems_of(directory):
    return sorted(examine(directory)[1])


def message_of(directory):
    """Return the message of an error that names the directory."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    assert str(directory) in str(caught.value)
    return str(caught.value)


def change_index(directory, **changes):
    """Set entries of the weight map; ``...`` takes one out."""
    path = directory / INDEX_NAME
    index = read_json(path)
    weight_map = {**index["weight_map"], **changes}
    index["weight_map"] = {name: file for name, file in weight_map.items() if file is not ...}
    write_json(path, index)


@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"shards": 2},
        {"shard_names": ["weights-b.safetensors", "weights-a.safetensors"]},
        {"shard_names": ["y.safetensors", "x.safetensors"], "with_index": False},
        {"shard_names": ["only.safetensors"]},
        {"with_index": True},
    ],
    ids=["single", "sharded", "odd-names", "no-index", "one-odd-name", "single-and-index"],
)
def test_open_reads_every_layout(tmp_path, model_type, tied, layout):
    directory = write_checkpoint(tmp_path / "m", model_type=model_type, tied=tied, **layout)
    checkpoint = Checkpoint.open(directory)
    expected = read_tensors(directory)
    assert set(checkpoint.tensors) == set(expected)
    assert ("lm_head.weight" in expected) is not tied
    assert set(checkpoint.shards) == {path.name for path in directory.glob("*.safetensors")}
    assert checkpoint.weight_bytes == sum(t.nbytes for t in expected.values())
    for name, tensor in expected.items():
        got = checkpoint.read(name)
        assert got.dtype == tensor.dtype
        assert torch.equal(got, tensor)
        got.zero_()  # in memory of its own
        assert torch.equal(checkpoint.read(name), tensor)


def test_has_index_is_false_where_model_safetensors_wins(tmp_path):
    both = write_checkpoint(tmp_path / "both", with_index=True)
    # A stale index of another download beside a whole file: transformers reads the whole file.
    change_index(both, **{UP: "gone.safetensors"})
    checkpoint = Checkpoint.open(both)
    assert not checkpoint.has_index
    assert set(checkpoint.shards) == {SINGLE_FILE}
    assert Checkpoint.open(write_checkpoint(tmp_path / "two", shards=2)).has_index


def test_a_shard_that_the_index_does_not_name_is_left_alone(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    (directory / "consolidated.safetensors").write_bytes(b"not even a header")
    assert set(Checkpoint.open(directory).shards) == {FIRST, SECOND}


def test_read_rows_equals_the_library(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    checkpoint, table = Checkpoint.open(directory), read_tensors(directory)[EMBEDDING]
    rows = [271, 0, 5, 5, 17]
    assert torch.equal(checkpoint.read_rows(EMBEDDING, rows), table[rows])
    assert checkpoint.read_rows(EMBEDDING, []).shape == (0, 64)


@pytest.mark.parametrize("row", [-1, 272, 10_000])
def test_read_rows_outside_the_matrix_never_reads_another_tensor(tmp_path, row):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "m"))
    with pytest.raises(
        CheckpointError, match=f"{EMBEDDING} has 272 rows, but an id asks for row {row}"
    ):
        checkpoint.read_rows(EMBEDDING, [0, row])


def test_read_slice_equals_the_library(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    checkpoint, tensor = Checkpoint.open(directory), read_tensors(directory)["lm_head.weight"]
    for start, stop in ((0, 272), (0, 1), (100, 200), (256, 1000), (5, 5)):
        got = checkpoint.read_slice("lm_head.weight", start, stop)
        assert torch.equal(got, tensor[start:stop])


def test_read_an_unknown_name(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    checkpoint = Checkpoint.open(directory)
    with pytest.raises(CheckpointError, match=re.escape(f"{directory} has no tensor x.weight.")):
        checkpoint.read("x.weight")


@pytest.mark.parametrize(
    "read",
    [
        lambda checkpoint: checkpoint.read("lm_head.weight"),
        lambda checkpoint: checkpoint.read_rows("lm_head.weight", [0, 200]),
        lambda checkpoint: checkpoint.read_slice("lm_head.weight", 200, 201),
    ],
)
def test_a_file_that_shrinks_while_it_is_read(tmp_path, read):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "m"))
    info = checkpoint.info("lm_head.weight")
    size, left = info.path.stat().st_size, info.offset + 64
    with info.path.open("r+b") as file:
        file.truncate(left)
    with pytest.raises(CheckpointError) as caught:
        read(checkpoint)
    assert str(caught.value) == (
        f"{info.path} was changed while it was read: it had {size:,} bytes, and has {left:,}. Wait "
        "until what writes it has ended, then rerun."
    )


def test_open_without_directory_config_or_weights(tmp_path):
    assert "none does not exist. Give a checkpoint directory." in message_of(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "file is a file. Give a checkpoint directory." in message_of(tmp_path / "file")
    directory = write_checkpoint(tmp_path / "m")
    (directory / SINGLE_FILE).unlink()
    assert f"holds neither {SINGLE_FILE} nor {INDEX_NAME}" in message_of(directory)
    (directory / "config.json").unlink()
    assert "config.json is missing. Give a directory in the Hugging" in message_of(directory)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_open_refuses_pickles(tmp_path, name):
    directory = write_checkpoint(tmp_path / "m")
    (directory / SINGLE_FILE).rename(directory / name)
    message = message_of(directory)
    assert "holds pickled weights (.bin, .pt) and no safetensors" in message
    assert "can run code when read, so they are refused" in message


def test_missing_and_truncated_shards_are_one_error(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=3)
    names = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    count, size = len(load_file(directory / names[2])), (directory / names[0]).stat().st_size
    with (directory / names[0]).open("r+b") as file:
        file.truncate(size - 10)
    (directory / names[2]).unlink()
    (directory / names[2]).symlink_to(tmp_path / "blobs" / "gone")  # as the hub's cache may have it
    assert problems_of(directory) == [
        f"{names[0]}: the file is truncated: got {size - 10:,} bytes, expected {size:,}. "
        "Download it again.",
        f"{names[2]} is missing ({INDEX_NAME} puts {count} tensors in it): it is a link to "
        f"{tmp_path}/blobs/gone, which does not exist",
    ]


def test_shape_and_dtype_against_the_config(tmp_path):
    other = "model.layers.0.mlp.up_proj.weight"
    extra = {
        UP: torch.ones(160, 63, dtype=torch.bfloat16),
        "model.norm.weight": torch.ones(64, dtype=torch.int32),
        other: torch.ones(160, 64, dtype=torch.int8),
    }
    directory = write_checkpoint(tmp_path / "m", extra_tensors=extra)
    assert problems_of(directory) == [
        f"{other} in model.safetensors is I8, expected F32 or F16 or BF16 or F64",
        f"{UP} in model.safetensors has shape [160, 63], config.json needs [160, 64]",
        "model.norm.weight in model.safetensors is I32, expected F32 or F16 or BF16 or F64",
    ]


def test_missing_and_unexpected_tensors(tmp_path):
    bias = "model.layers.0.self_attn.o_proj.bias"
    extra = {UP: None, bias: torch.ones(64), "model.q_norm.weight": torch.ones(64)}
    directory = write_checkpoint(tmp_path / "m", extra_tensors=extra)
    assert problems_of(directory) == [
        f"{bias} in model.safetensors belongs to no part of this config.json",
        f"{UP} is missing (config.json needs it, shape [160, 64])",
        "model.q_norm.weight in model.safetensors belongs to no part of this config.json",
    ]


def test_an_untied_model_needs_its_head(tmp_path):
    directory = write_checkpoint(tmp_path / "m", tied=True)
    write_json(directory / "config.json", build_config(tied=False))
    assert problems_of(directory) == [
        "lm_head.weight is missing (config.json needs it, shape [272, 64]; or set "
        "tie_word_embeddings there)"
    ]


def test_llama_biases_follow_the_config(tmp_path):
    biases = {"attention_bias": True, "mlp_bias": True, "head_dim": 32}
    options = {"model_type": "llama", "config_overrides": biases}
    directory = write_checkpoint(tmp_path / "m", **options)
    assert Checkpoint.open(directory).info("model.layers.1.self_attn.q_proj.bias").shape == (128,)
    config = build_config(model_type="llama", overrides={"head_dim": 32})
    write_json(directory / "config.json", config)
    problems = problems_of(directory)
    assert len(problems) == 14 and all("_proj.bias in model.safe" in line for line in problems)


def test_all_problems_come_in_one_error_cut_at_ten(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    write_json(directory / "config.json", build_config(num_layers=3))
    problems = problems_of(directory)
    assert len(problems) == 12
    assert problems[0].startswith("model.layers.2.input_layernorm.weight is missing")
    assert message_of(directory).split("\n") == [
        f"{directory} is not a usable checkpoint:",
        *(f"  - {problem}" for problem in problems[:10]),
        "  - and 2 more",
        "Do config.json and the weights belong to the same model? If in doubt, download both "
        "again from the model's repository.",
    ]


def test_a_tensor_in_two_shards(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    tensors = load_file(directory / SECOND)
    save_file({**tensors, EMBEDDING: torch.ones(272, 64)}, directory / SECOND)
    assert f"{EMBEDDING} is in both {FIRST} and {SECOND}" in problems_of(directory)
    no_index = write_checkpoint(tmp_path / "n", shards=2, with_index=False)
    shutil.copy(no_index / FIRST, no_index / "copy.safetensors")
    assert f"{EMBEDDING} is in both copy.safetensors and {FIRST}" in problems_of(no_index)


def test_the_index_and_the_shards_disagree(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    change_index(directory, **{EMBEDDING: SECOND, UP: ..., "lm_head.bias": FIRST})
    assert problems_of(directory) == [
        f"lm_head.bias should be in {FIRST} by the index, it is in no file",
        f"{EMBEDDING} should be in {SECOND} by the index, it is in {FIRST}",
        f"{UP} in {SECOND} is not in the index",
    ]


@pytest.mark.parametrize(
    "file",
    [
        "../x.safetensors",
        "/abs/x.safetensors",
        "sub/x.safetensors",
        "..\\x.safetensors",
        "C:x.safetensors",
        ".hidden.safetensors",
        "x\0.safetensors",
        "x.bin",
        "config.json",
        "..",
        "",
        7,
        None,
        ["model.safetensors"],
    ],
)
def test_an_index_that_names_another_place_is_refused_unread(tmp_path, file):
    outside = tmp_path / "x.safetensors"
    outside.write_bytes(b"x")
    directory = write_checkpoint(tmp_path / "m", shards=2)
    (directory / "sub").mkdir()
    shutil.copy(directory / FIRST, directory / "sub" / "x.safetensors")
    change_index(directory, **{UP: file})
    message = message_of(directory)
    assert f"{INDEX_NAME} names files that are not plain .safetensors names" in message
    assert f"  - {UP} -> {file!r}" in message
    assert message.endswith("Nothing was read. Do not trust this checkpoint.")


def test_an_index_that_names_a_file_no_system_can_have_is_refused_in_few_words(tmp_path):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    change_index(directory, **{UP: "x" * 188 + ".safetensors"})
    assert "is missing" in message_of(directory)
    change_index(directory, **{UP: "x" * 189 + ".safetensors"})
    message = message_of(directory)
    assert f"{INDEX_NAME} names files that are not plain .safetensors names" in message
    assert len(message) < 600


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "has no weight_map. Download it again."),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": [1]}', "has no weight_map"),
        ("{", "is not valid JSON"),
    ],
)
def test_an_index_without_weight_map(tmp_path, content, problem):
    directory = write_checkpoint(tmp_path / "m", shards=2)
    (directory / INDEX_NAME).write_text(content)
    assert f"{directory / INDEX_NAME} {problem}" in message_of(directory)


def test_another_architecture_is_named(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    write_json(directory / "config.json", {**build_config(), "model_type": "mistral"})
    with pytest.raises(UnsupportedModelError, match="model_type 'mistral', expected one of qwen2,"):
        Checkpoint.open(directory)


def test_an_int8_directory_needs_codes_and_scales(tmp_path):
    tensors = {}
    for name, weight in build_tensors(build_config()).items():
        if name.endswith("_proj.weight"):
            tensors[name] = torch.ones(weight.shape, dtype=torch.int8)
            tensors[f"{name}_scale"] = torch.ones(len(weight), dtype=torch.float16)
    options = {"config_overrides": {"quantization_bit": 8}}
    directory = write_checkpoint(tmp_path / "m", extra_tensors=tensors, **options)
    assert Checkpoint.open(directory).read(UP).dtype == torch.int8
    problems = problems_of(write_checkpoint(tmp_path / "n", **options))
    assert len(problems) == 28
    assert f"{UP} in model.safetensors is BF16, expected I8" in problems
    assert f"{UP}_scale is missing (config.json needs it, shape [160])" in problems
