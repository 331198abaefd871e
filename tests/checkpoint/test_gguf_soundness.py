"""Values of a GGUF directory: judged through its blocks, and named by their published rows."""

import pytest
import torch
from checkpoint_builders import write_checkpoint
from format_directories import write_format

from vacc_deploy.checkpoint import scan
from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.scan import scan_tensor
from vacc_deploy.checkpoint.soundness import check_weights, find_unsound

pytest.importorskip("gguf")
NAN, INFINITY = b"\x00\x7e", b"\x00\x7c"  # as float16
ATTENTION = "model.layers.1.self_attn"


@pytest.fixture(params=["F16", "Q8_0"])
def made(request, tmp_path):
    source = write_checkpoint(tmp_path / "model", model_type="llama")
    return write_format(source, "gguf", tmp_path / "out", embeddings=request.param)


def change(directory, name, place, data):
    """Write some bytes into a tensor."""
    info = Checkpoint.open(directory).info(name)
    with info.path.open("r+b") as file:
        file.seek(info.offset + place)
        file.write(data)


def faults_of(directory):
    return find_unsound(Checkpoint.open(directory)).faults


def test_a_sound_directory_is_silent(made):
    assert check_weights(Checkpoint.open(made)) == ()


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize("linear", ["o_proj", "q_proj", "k_proj"])
@pytest.mark.parametrize(
    ("value", "problem"),
    [(NAN, "holds NaN"), (INFINITY, "holds infinity"), (bytes(2), "is a scale of zero")],
)
def test_the_scales_of_a_linear_are_judged(made, monkeypatch, linear, value, problem, chunk):
    monkeypatch.setattr(scan, "CHUNK_BYTES", chunk)
    # Rows of 64 columns, two blocks. Heads of 16 rows: llama.cpp's row 5 of a head is the published
    # row 10, the partner of row 2.
    change(made, f"{ATTENTION}.{linear}.q8_0", (16 + 5) * 68 + 34, value)
    row = 16 + (5 if linear == "o_proj" else 10)
    stored = {"o_proj": "attn_output", "q_proj": "attn_q", "k_proj": "attn_k"}[linear]
    assert faults_of(made) == [f"blk.1.{stored}.weight in model-Q8_0.gguf: row {row} {problem}"]


def test_codes_that_are_all_the_same(made):
    info = Checkpoint.open(made).info(f"{ATTENTION}.v_proj.q8_0")
    blocks = (b"\x00\x3c" + b"\x07" * 32) * (info.num_bytes // 34)
    change(made, info.name, 0, blocks)
    assert faults_of(made) == [
        "blk.1.attn_v.weight in model-Q8_0.gguf: all of its codes are the same"
    ]


@pytest.mark.parametrize(("value", "word"), [(NAN, "NaN"), (INFINITY, "")])
def test_a_table_is_judged_by_its_values(tmp_path, value, word):
    source = write_checkpoint(tmp_path / "model")
    made = write_format(source, "gguf", tmp_path / "out", embeddings="Q8_0")
    change(made, "lm_head.weight", 7 * 68, value)
    values = Checkpoint.open(made).read("lm_head.weight")[7]
    word = word or ("NaN" if values.isnan().any() else "infinity")
    assert not values.isfinite().all()
    assert faults_of(made) == [f"output.weight in model-Q8_0.gguf: row 7 holds {word}"]


@pytest.mark.parametrize("chunk", [1, 200, 1 << 20])
def test_a_scan_of_a_table_is_that_of_its_values(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(scan, "CHUNK_BYTES", chunk)
    source = write_checkpoint(tmp_path / "model")
    made = write_format(source, "gguf", tmp_path / "out", embeddings="Q8_0")
    name = "model.embed_tokens.weight"
    for row in (3, 9, 271):
        change(made, name, row * 68, bytes(68))
    checkpoint = Checkpoint.open(made)
    facts, values = scan_tensor(checkpoint.info(name)), checkpoint.read(name)
    zero = (values == 0).all(1).nonzero().flatten().tolist()
    assert zero == [3, 9, 271] == [facts.first_zero_row, 9, facts.num_rows - 1]
    assert (facts.num_zero_rows, facts.trailing_zero_rows, facts.row_values) == (3, 1, 64)
    assert facts.broken_row is None and not facts.is_constant
    assert values.dtype == torch.float32


def test_a_bias_has_its_published_row(tmp_path):
    overrides = {"attention_bias": True}
    source = write_checkpoint(tmp_path / "model", model_type="llama", config_overrides=overrides)
    made = write_format(source, "gguf", tmp_path / "out")
    change(made, f"{ATTENTION}.q_proj.bias", 4 * 5, b"\x00\x00\xc0\x7f")
    assert faults_of(made) == ["blk.1.attn_q.bias in model-Q8_0.gguf: row 10 holds NaN"]


def test_a_file_that_ends_in_zeros_is_named_tensor_by_tensor(made):
    """It is no download, and its blocks are no numbers."""
    (path,) = made.glob("*.gguf")
    data = path.read_bytes()
    path.write_bytes(data[:-40000] + bytes(40000))
    faults = faults_of(made)
    assert len(faults) >= 3 and all(" in model-Q8_0.gguf: " in fault for fault in faults)
