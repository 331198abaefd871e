"""Which values of which tensors are a fault, which are worth a remark, and which are neither."""

import re
import struct

import pytest
import torch
from checkpoint_builders import build_config, build_tensors, write_checkpoint
from doubles import Recorder
from format_directories import write_format
from safetensors.torch import load_file, save_file

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.checkpoint.soundness import check_weights, find_unsound
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.layouts import LAYOUTS

LAYER = "model.layers.1."
NORMS = [f"{LAYER}input_layernorm", f"{LAYER}post_attention_layernorm", "model.norm"]
LINEARS = [f"{LAYER}self_attn.{x}_proj" for x in "qkvo"]
LINEARS += [f"{LAYER}mlp.{x}_proj" for x in ("gate", "up", "down")]
BIASES = [f"{LAYER}self_attn.{x}_proj.bias" for x in "qkv"]
TABLES = ["model.embed_tokens.weight", "lm_head.weight"]
MATRICES = [*TABLES, *(f"{name}.weight" for name in LINEARS)]
VECTORS = [*(f"{name}.weight" for name in NORMS), *BIASES]
MAY_BE_ZERO = ("o_proj.weight", "down_proj.weight", ".bias")


def write_with(tmp_path, change=None, *, name="model.norm.weight", **options):
    """Write a checkpoint of which ``change`` has changed one tensor in place."""
    tensors = build_tensors(build_config())
    if change:
        change(tensors[name])
    return Checkpoint.open(write_checkpoint(tmp_path / "m", extra_tensors=tensors, **options))


def fault_of(checkpoint, **options):
    (fault,) = find_unsound(checkpoint, **options).faults
    return fault


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("name", [*MATRICES, *VECTORS])
def test_nan_and_infinity_are_a_fault_everywhere(tmp_path, name, value):
    def change(tensor):
        tensor[(5,) if tensor.ndim == 1 else (5, 3)] = float(value)

    word = "NaN" if value == "nan" else "infinity"
    checkpoint = write_with(tmp_path, change, name=name)
    assert fault_of(checkpoint) == f"{name} in model.safetensors: row 5 holds {word}"
    found = find_unsound(checkpoint, whole=False)
    assert bool(found.faults) == (name not in MATRICES[2:])  # the run itself finds those of linears


def test_float64_beyond_float32_is_a_fault(tmp_path):
    tensors = {name: t.double() for name, t in build_tensors(build_config()).items()}
    tensors["model.norm.weight"][3] = 1e300
    directory = write_checkpoint(tmp_path / "m", extra_tensors=tensors)
    assert fault_of(Checkpoint.open(directory)) == (
        "model.norm.weight in model.safetensors: row 3 holds infinity, or more than float32 can, "
        "in which it is used"
    )


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", [*MATRICES, *VECTORS])
def test_a_tensor_of_zeros(tmp_path, name, whole):
    found = find_unsound(write_with(tmp_path, torch.Tensor.zero_, name=name), whole=whole)
    if name.endswith(MAY_BE_ZERO):
        assert not found.faults
        assert [line.partition(": ")[0] for line in found.remarks] == [name] * (
            not name.endswith("bias")
        )
    else:
        assert found.faults == [f"{name} in model.safetensors: all of its values are zero"]


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("name", [*MATRICES, *VECTORS])
def test_a_tensor_of_one_value(tmp_path, name, whole):
    checkpoint = write_with(tmp_path, lambda tensor: tensor.fill_(0.5), name=name)
    found = find_unsound(checkpoint, whole=whole)
    expected = f"{name} in model.safetensors: all of its values are the same number"
    assert found.faults == ([expected] if name in MATRICES else []) and not found.remarks


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("shape", [{}, {"tied": True}, {"model_type": "llama"}])
def test_a_sound_model_is_silent(tmp_path, dtype, shape):
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "m", dtype=dtype, **shape))
    assert check_weights(checkpoint) == check_weights(checkpoint, whole=False) == ()


def test_a_model_as_it_is_converted_or_begun_is_silent(tmp_path):
    """Ones as norms, zeros as biases, padding in table and linears, a few pruned rows."""
    tensors = build_tensors(build_config())
    for name, tensor in tensors.items():
        if "norm" in name:
            tensor.fill_(1)
        elif name.endswith("bias"):
            tensor.zero_()
        elif name in TABLES:
            tensor[260:] = 0
        elif "gate_proj" in name or "up_proj" in name:
            tensor[158:] = 0
            tensor[3:8] = 0
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "m", extra_tensors=tensors))
    assert check_weights(checkpoint) == check_weights(checkpoint, whole=False) == ()


def test_a_tensor_has_the_name_that_its_file_gives_it(tmp_path):
    tensors = build_tensors(build_config())
    tensors["model.norm.weight"].zero_()
    directory = write_checkpoint(tmp_path / "m")
    save_file({f"module.{n}": t for n, t in tensors.items()}, directory / "model.safetensors")
    assert fault_of(Checkpoint.open(directory)).startswith("module.model.norm.weight in model.saf")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", f"{LAYER}mlp.up_proj.weight"])
def test_many_rows_of_zeros_are_worth_a_remark(tmp_path, name):
    def change(tensor):
        tensor[20:50] = 0

    (remark,) = check_weights(write_with(tmp_path, change, name=name))
    assert remark.startswith(f"{name}: 30 of its ") and "the first is row 20." in remark


def test_equal_remarks_are_one(tmp_path):
    tensors = build_tensors(build_config(num_layers=3))
    for name, tensor in tensors.items():
        if name.endswith("o_proj.weight"):
            tensor.zero_()
    directory = write_checkpoint(tmp_path / "m", num_layers=3, extra_tensors=tensors)
    (remark,) = check_weights(Checkpoint.open(directory))
    assert remark.startswith("model.layers.0.self_attn.o_proj.weight and 2 more: all of its values")


def test_the_error_lists_ten_and_says_what_to_do(tmp_path):
    tensors = build_tensors(build_config())
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight"):
            tensor[1] = float("nan")
    directory = write_checkpoint(tmp_path / "m", shards=2, extra_tensors=tensors)
    with pytest.raises(CheckpointError) as caught:
        check_weights(Checkpoint.open(directory))
    first, *lines, more, advice = str(caught.value).splitlines()
    assert first == f"{directory} holds weights that no model can work with:"
    assert len(lines) == 10 and all(line.endswith(": row 1 holds NaN") for line in lines)
    assert more == "  - and 4 more"
    assert advice.startswith(
        "Download again: model-00001-of-00002.safetensors, model-00002-of-00002.safetensors. If "
    )


def test_progress_counts_the_bytes_that_are_read(tmp_path):
    checkpoint, recorder = Checkpoint.open(write_checkpoint(tmp_path / "m")), Recorder()
    check_weights(checkpoint, recorder)
    assert recorder.amount() == checkpoint.weight_bytes
    assert recorder.notes("start") == [f"Checking weights {checkpoint.weight_bytes} bytes"]
    assert recorder.notes() == ["model.safetensors"]


# ---- files that end in zeros -------------------------------------------------------------------


def cut(path, keep):
    """Fill a file with zeros behind ``keep`` bytes of its data."""
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    path.write_bytes(raw[: 8 + size + keep] + bytes(len(raw) - 8 - size - keep))


def begin_of(directory, name):
    info = Checkpoint.open(directory).info(name)
    header = struct.unpack("<Q", info.path.read_bytes()[:8])[0]
    return info.path, info.offset - 8 - header


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("rows", [0, 3.5])
def test_a_file_that_is_zero_from_somewhere_on(tmp_path, rows, whole):
    directory = write_checkpoint(tmp_path / "m")
    path, begin = begin_of(directory, f"{LAYER}mlp.up_proj.weight")
    cut(path, begin + int(rows * 128))
    fault = fault_of(Checkpoint.open(directory), whole=whole)
    start = re.match(
        r"model.safetensors is zero from byte ([\d,]+) of ([\d,]+) on: its down", fault
    )
    data = path.read_bytes()
    assert int(start[1].replace(",", "")) == len(data.rstrip(b"\0")) + len(data.rstrip(b"\0")) % 2
    assert int(start[2].replace(",", "")) == len(data)
    assert fault.endswith(f"the first is {LAYER}mlp.up_proj.weight")


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("rows", [10, 158.5])
@pytest.mark.parametrize("linear", ["mlp.gate_proj", "self_attn.o_proj"])
def test_a_cut_within_the_last_tensor_of_a_file(tmp_path, linear, rows, whole):
    name, tensors = f"{LAYER}{linear}.weight", build_tensors(build_config())
    directory = write_checkpoint(tmp_path / "m", shard_names=["a.safetensors"])
    save_file({name: tensors.pop(name)}, directory / "b.safetensors")
    save_file(tensors, directory / "a.safetensors")
    path, begin = begin_of(directory, name)
    rows = rows if linear.endswith("gate_proj") else rows / 3
    cut(path, begin + 2 * int(rows * 64))
    fault = fault_of(Checkpoint.open(directory), whole=whole)
    assert fault.startswith("b.safetensors is zero from byte ")
    assert fault.endswith(f"Zeros stand in 1 of its 1 tensors, the first is {name}")


def test_one_dead_row_at_the_end_of_a_file_is_no_cut(tmp_path):
    name, tensors = f"{LAYER}self_attn.v_proj.weight", build_tensors(build_config())
    tensors[name][-1] = 0
    directory = write_checkpoint(tmp_path / "m", shard_names=["a.safetensors"])
    save_file({name: tensors.pop(name)}, directory / "b.safetensors")
    save_file(tensors, directory / "a.safetensors")
    found = find_unsound(Checkpoint.open(directory))
    assert not found.faults and not found.remarks


def test_a_cut_within_a_table_and_within_a_norm(tmp_path):
    tensors = build_tensors(build_config())
    for name, values in (("lm_head.weight", 100 * 64 + 32), ("model.norm.weight", 32)):
        directory = tmp_path / name
        names = [n for n in tensors if n != name]
        write_checkpoint(directory, with_index=False)
        (directory / "model.safetensors").unlink()
        save_file({n: tensors[n] for n in names}, directory / "a.safetensors")
        tensors[name].view(-1)[values:] = 0
        save_file({name: tensors[name]}, directory / "b.safetensors")
        assert fault_of(Checkpoint.open(directory)).startswith("b.safetensors is zero from byte ")


@pytest.mark.parametrize("whole", [True, False])
def test_a_layer_that_adds_nothing_is_worth_a_remark(tmp_path, whole):
    """Converters pad a model with such layers; its norms are as in every layer."""
    tensors = {name: torch.zeros_like(t) for name, t in build_tensors(build_config()).items()}
    padded = {f"{name}.weight": tensors[f"{name}.weight"] for name in LINEARS}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "m", extra_tensors=padded))
    found = find_unsound(checkpoint, whole=whole)
    assert not found.faults and len(found.remarks) == 1
    assert " and 6 more: all of its values are zero" in found.remarks[0]
    # An output that is not zero needs what feeds it.
    del padded[f"{LAYER}mlp.down_proj.weight"]
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path / "n", extra_tensors=padded))
    faults = find_unsound(checkpoint, whole=whole).faults
    assert sorted(fault.partition(" ")[0] for fault in faults) == [
        f"{LAYER}mlp.gate_proj.weight",
        f"{LAYER}mlp.up_proj.weight",
    ]


def test_padding_of_all_linears_is_no_cut(tmp_path):
    tensors = build_tensors(build_config(tied=True))
    for name, tensor in tensors.items():
        if name.endswith("up_proj.weight"):
            tensor[156:] = 0
    tensors = dict(sorted(tensors.items(), key=lambda item: not item[0].endswith("norm.weight")))
    directory = write_checkpoint(tmp_path / "m", tied=True)
    save_file(tensors, directory / "model.safetensors")
    assert check_weights(Checkpoint.open(directory)) == ()


# ---- quantized directories ---------------------------------------------------------------------


# All linears of a model of these sizes can be cut into groups of 128 columns.
WIDE = {"hidden_size": 128, "intermediate_size": 256}


# Each is one safetensors file; for gguf see ``test_gguf_soundness.py``.
STORED = [name for name in LAYOUTS if name != "gguf"]


@pytest.mark.parametrize("layout", STORED)
def test_a_quantized_directory_is_silent_and_its_scales_are_judged(tmp_path, layout):
    directory = write_format(write_checkpoint(tmp_path / "model", **WIDE), layout, tmp_path / "out")
    assert check_weights(Checkpoint.open(directory)) == ()
    (path,) = directory.glob("*.safetensors")
    kept = load_file(path)
    scales = [n for n in kept if n.endswith(("weight_scale", "scales"))]
    assert bool(scales) == (layout != "vamc")
    for name in scales[:1]:
        for value, problem in ((float("nan"), "holds NaN"), (0, "is a scale of zero")):
            damaged = kept[name].clone()
            rows = damaged[-1] if name.endswith("scales") else damaged.view(-1)
            rows[5] = value
            save_file({**kept, name: damaged}, path)
            fault = fault_of(Checkpoint.open(directory))
            # The last group of a row that has several.
            assert fault == f"{name} in {path.name}: row 5 {problem}"


@pytest.mark.parametrize("layout", [name for name in STORED if name != "vamc"])
def test_codes_that_are_all_the_same(tmp_path, layout):
    directory = write_format(write_checkpoint(tmp_path / "model", **WIDE), layout, tmp_path / "out")
    (path,) = directory.glob("*.safetensors")
    ends = (".weight", ".qweight", ".weight_packed")
    for linear, count in (("q_proj", 2), ("o_proj", 0)):
        tensors = load_file(path)
        kept = {n: t.clone() for n, t in tensors.items()}
        for name, tensor in tensors.items():
            if linear in name and name.endswith(ends):
                tensor.fill_(0 if tensor.dtype == torch.int8 else 7)
        save_file(tensors, path)
        assert len(find_unsound(Checkpoint.open(directory)).faults) == count
        save_file(kept, path)
