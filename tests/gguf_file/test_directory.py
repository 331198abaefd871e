"""A directory of ``--format gguf``: its files, what the consumer's library reads, and read back."""

import json
import shutil

import pytest
import torch
from checkpoint_builders import LLAMA3_ROPE, read_tensors, write_checkpoint
from texts import contents

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError, UnsupportedModelError, UsageError
from vacc_deploy.formats.int8 import dequantize, quantize_rounding
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.formats.q8_0 import interleave_rows
from vacc_deploy.lookup.recognize import recognize
from vacc_deploy.models.gguf_names import gguf_names
from vacc_deploy.outputs.damages import find_damages
from vacc_deploy.prepare import prepare
from vacc_deploy.quantize import plan as quantize_plan
from vacc_deploy.quantize.options import QuantizeOptions
from vacc_deploy.quantize.result import TIMING_NAME
from vacc_deploy.quantize.run import quantize

gguf = pytest.importorskip("gguf")
OPTIONS = QuantizeOptions("rtn", formats=("gguf",))
BIASED = {"attention_bias": True, "mlp_bias": True}
KINDS = {
    "qwen2": {"model_type": "qwen2"},
    "llama-tied-biased": {"model_type": "llama", "tied": True, "config_overrides": BIASED},
    "qwen3": {"model_type": "qwen3"},
}


@pytest.fixture(scope="module", params=KINDS)
def made(request, tmp_path_factory):
    """The float source, and the directory made of it."""
    root = tmp_path_factory.mktemp(request.param)
    source = write_checkpoint(root / "model", **KINDS[request.param])
    return source, quantize(source, options=OPTIONS).output_dir


@pytest.fixture
def copied(made, tmp_path):
    return shutil.copytree(made[1], tmp_path / "copied")


def test_the_directory_holds_one_file_and_what_lies_beside_it(made):
    source, output = made
    assert output == source.with_name("model-gguf")
    names = {path.name for path in output.iterdir()}
    assert names == {
        *("model-Q8_0.gguf", "Modelfile", "config.json", "generation_config.json"),
        *("tokenizer.json", "tokenizer_config.json"),
        *("quantize_report.json", TIMING_NAME, "vacc_deploy.json"),
    }
    manifest = json.loads((output / "vacc_deploy.json").read_text("utf-8"))
    assert manifest["files"].keys() == names - {TIMING_NAME, "vacc_deploy.json"}
    assert manifest["options"]["gguf_embeddings"] == "f16"
    assert find_damages(output) == []


def test_the_library_of_llama_cpp_reads_every_tensor(made):
    source, output = made
    stored, config = read_tensors(source), Checkpoint.open(source).config
    reader = gguf.GGUFReader(output / "model-Q8_0.gguf")
    theirs = {tensor.name: tensor for tensor in reader.tensors}
    assert theirs.keys() - {"rope_freqs.weight"} == set(gguf_names(config).values())
    for name, their_name in gguf_names(config).items():
        tensor, expected = theirs[their_name], stored[name]
        heads = heads_of(config).get(their_name.rpartition(".")[0], 0)
        if name.removesuffix(".weight") in config.linear_names():
            assert tensor.tensor_type == gguf.GGMLQuantizationType.Q8_0
            expected = dequantize(*quantize_rounding(expected))
        elif expected.dim() == 2:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F16
            expected = expected.half()
        else:
            assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        got = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        assert torch.equal(got, interleave_rows(expected.float(), heads)), name
    assert ("output.weight" in theirs) is not config.tie_word_embeddings


def heads_of(config):
    """By hand: of Llama models alone q has its 4 heads in llama.cpp's order, and k its 2."""
    if config.model_type != "llama":
        return {}
    return {"blk.0.attn_q": 4, "blk.1.attn_q": 4, "blk.0.attn_k": 2, "blk.1.attn_k": 2}


def test_read_back_under_the_published_names_and_in_their_order(made):
    source, output = made
    stored, checkpoint = read_tensors(source), Checkpoint.open(output)
    assert checkpoint.config.quantization_format == "gguf"
    for name in checkpoint.config.expected_tensors():
        linear = name.removesuffix(".weight")
        if linear in checkpoint.config.linear_names():
            codes, scale = codes_from("gguf", checkpoint.read, linear)
            expected, expected_scale = quantize_rounding(stored[name])
            assert torch.equal(codes, expected) and torch.equal(scale, expected_scale)
        else:
            assert torch.equal(checkpoint.read(name).float(), stored[name].half().float()), name
    rows = [5, 0, 271]
    table = stored["model.embed_tokens.weight"].half()
    assert torch.equal(checkpoint.read_rows("model.embed_tokens.weight", rows), table[rows])
    piece = checkpoint.read_slice("model.embed_tokens.weight", 270, 300)
    assert torch.equal(piece, table[270:])


def test_the_same_run_gives_the_same_bytes(made, tmp_path):
    source, output = made
    again = quantize(source, options=OPTIONS, output=output.with_name("again")).output_dir
    assert contents(again, without=(TIMING_NAME,)) == contents(output, without=(TIMING_NAME,))


def test_embeddings_as_q8_0_are_rounded_in_blocks_and_read_as_what_they_are(made, tmp_path):
    source, _ = made
    options = QuantizeOptions("rtn", formats=("gguf",), gguf_embeddings="q8_0")
    output = quantize(source, options=options, output=tmp_path / "q8").output_dir
    table = read_tensors(source)["model.embed_tokens.weight"]
    checkpoint, name = Checkpoint.open(output), "model.embed_tokens.weight"
    got = checkpoint.read(name)
    blocks = table.reshape(-1, 32)
    assert torch.equal(got, dequantize(*quantize_rounding(blocks)).view_as(table))
    assert got.dtype == torch.float32 and not torch.equal(got, table.half().float())
    assert torch.equal(checkpoint.read_rows(name, [7, 3]), got[[7, 3]])
    assert torch.equal(checkpoint.read_slice(name, 2, 9), got[2:9])
    manifest = json.loads((output / "vacc_deploy.json").read_text("utf-8"))
    assert manifest["options"]["gguf_embeddings"] == "q8_0"


def test_llama3_scaling_is_a_tensor_of_factors(tmp_path):
    rope = LLAMA3_ROPE | {"original_max_position_embeddings": 256}
    source = write_checkpoint(
        tmp_path / "model", model_type="llama", config_overrides={"rope_scaling": rope}
    )
    path = quantize(source, options=OPTIONS).output_dir / "model-Q8_0.gguf"
    tensor = gguf.GGUFReader(path).tensors[0]
    assert tensor.name == "rope_freqs.weight" and tensor.tensor_type.name == "F32"
    from vacc_deploy.reference.decoder import rotary_frequencies

    config = Checkpoint.open(source).config
    scaled = rotary_frequencies(config)
    plain = config.rope_theta ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
    assert torch.allclose(torch.tensor(tensor.data), plain / scaled, rtol=1e-5)
    assert 1 < tensor.data[2] < 8 and tensor.data[0] == 1 and tensor.data[-1] == 8


# ---- refused -----------------------------------------------------------------------------------


def test_a_directory_of_ours_is_taken_and_one_of_others_is_named(copied):
    assert recognize(copied) is None
    config = json.loads((copied / "config.json").read_text("utf-8"))
    del config["quantization_config"]
    (copied / "config.json").write_text(json.dumps(config), "utf-8")
    assert "holds a model as a GGUF file" in recognize(copied).to_text()
    (copied / "config.json").unlink()
    assert "holds a model as a GGUF file" in recognize(copied).to_text()
    assert "is a GGUF file" in recognize(copied / "model-Q8_0.gguf").to_text()


def test_two_files_or_none_are_refused(copied):
    path = copied / "model-Q8_0.gguf"
    shutil.copy(path, copied / "other.gguf")
    with pytest.raises(CheckpointError, match=r"several weight files: model-Q8_0.gguf.*other.gguf"):
        Checkpoint.open(copied)
    assert find_damages(copied) == [
        "other.gguf: quantize did not write it, but a loader may read it. Move it away"
    ]
    (copied / "other.gguf").unlink()
    path.unlink()
    with pytest.raises(CheckpointError, match=r"holds no \.gguf file"):
        Checkpoint.open(copied)


def test_a_file_of_another_model_is_refused(copied):
    config = json.loads((copied / "config.json").read_text("utf-8"))
    config["vocab_size"] += 1
    (copied / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(CheckpointError, match=r"model-Q8_0.gguf (has shape|tells of another comp)"):
        Checkpoint.open(copied)


def test_stock_transformers_refuses_the_directory(made):
    from transformers import AutoModelForCausalLM

    with pytest.raises((OSError, ValueError), match="(?i)gguf|no file named"):
        AutoModelForCausalLM.from_pretrained(made[1])


def test_the_directory_is_quantized_already(made, tmp_path):
    with pytest.raises(CheckpointError, match="is quantized already"):
        quantize(made[1], options=OPTIONS, output=tmp_path / "out")
    with pytest.raises(CheckpointError, match="int8 values already .format gguf"):
        prepare(weights=made[1], output=tmp_path / "out")


def test_a_value_beyond_float16_is_named_before_any_work(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    table = read_tensors(source)["lm_head.weight"]
    table[131, 7] = 70000.0
    source = write_checkpoint(tmp_path / "model", extra_tensors={"lm_head.weight": table})
    with pytest.raises(UnsupportedModelError) as caught:
        quantize(source, options=OPTIONS)
    assert str(caught.value) == (
        f"lm_head.weight in {source / 'model.safetensors'}: row 131 holds 70144, the largest "
        "that F16 can store is 65504. Give --gguf-embeddings q8_0, or use another --format."
    )
    assert not list(tmp_path.glob("model-*"))
    options = QuantizeOptions("rtn", formats=("gguf",), gguf_embeddings="q8_0")
    output = quantize(source, options=options).output_dir
    assert Checkpoint.open(output).read("lm_head.weight")[131, 7] == pytest.approx(70144, rel=1e-3)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_a_value_beyond_every_kind_is_named_before_any_work_and_sends_in_no_circle(tmp_path, kind):
    source = write_checkpoint(tmp_path / "model")
    table = read_tensors(source)["model.embed_tokens.weight"]
    table[3, 0] = 1e7
    source = write_checkpoint(
        tmp_path / "model", extra_tensors={"model.embed_tokens.weight": table}
    )
    options = QuantizeOptions("rtn", formats=("gguf",), gguf_embeddings=kind)
    with pytest.raises(UnsupportedModelError) as caught:
        quantize(source, options=options)
    limit = {"f16": "F16 can store is 65504", "q8_0": "Q8_0 can store is 8.31901e+06"}[kind]
    assert str(caught.value).endswith(f"the largest that {limit}. Use another --format.")
    assert "row 3 holds" in str(caught.value)
    assert not list(tmp_path.glob("model-*"))


def test_a_chat_template_that_fails_is_told_before_any_work(tmp_path):
    source = write_checkpoint(tmp_path / "model")
    path = source / "tokenizer_config.json"
    values = json.loads(path.read_text("utf-8")) | {"chat_template": "{% if %}"}
    path.write_text(json.dumps(values), "utf-8")
    result = quantize(source, options=OPTIONS)
    (warning,) = [line for line in result.warnings if "chat template" in line]
    assert warning.startswith(f"The chat template in {path} does not compile (line 1): ")
    assert warning.endswith(" It is left out of the GGUF file and of the Modelfile.")
    reader = gguf.GGUFReader(result.output_dir / "model-Q8_0.gguf")
    assert "tokenizer.chat_template" not in reader.fields
    report = json.loads((result.output_dir / "quantize_report.json").read_text("utf-8"))
    assert warning in report["warnings"]


def test_options_of_the_format_without_it_are_refused():
    for change in ({"gguf_embeddings": "q8_0"}, {"gguf_embeddings": "f16"}, {"gguf_pre": "qwen2"}):
        with pytest.raises(UsageError, match="is of --format gguf. Add that format"):
            QuantizeOptions("rtn", **change).check()
    with pytest.raises(UsageError, match="--gguf-embeddings is 'q4', expected f16 or q8_0"):
        QuantizeOptions("rtn", formats=("gguf",), gguf_embeddings="q4").check()
    with pytest.raises(UsageError, match="--gguf-pre is 'a b', expected a name"):
        QuantizeOptions("rtn", formats=("gguf",), gguf_pre="a b").check()


def test_the_space_check_counts_the_shards_too(tmp_path, monkeypatch):
    source, asked = write_checkpoint(tmp_path / "model"), []
    monkeypatch.setattr(quantize_plan, "check_space", lambda path, needed: asked.append(needed))
    for formats in (("gguf",), ("int8",), ("int8", "gguf")):
        quantize(source, options=QuantizeOptions("rtn", formats=formats), output=tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
    both = (tmp_path / "out").parent
    assert both.is_dir() and asked[2] == asked[0] + asked[1]
    output = quantize(source, options=OPTIONS).output_dir
    size = (output / "model-Q8_0.gguf").stat().st_size
    assert asked[0] > 1.8 * size * 0.75
