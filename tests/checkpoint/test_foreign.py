"""What other programs store is named, with the way to a checkpoint."""

import shlex

import pytest
import torch
from checkpoint_builders import build_config, build_tensors, write_checkpoint, write_json
from safetensors.torch import save_file

from vacc_deploy.checkpoint.reader import SINGLE_FILE, Checkpoint
from vacc_deploy.errors import CheckpointError, UnsupportedModelError
from vacc_deploy.lookup.recognize import recognize

UP = "model.layers.0.mlp.up_proj."
AGAIN = "Download the files named again"


def message_of(directory):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(directory)
    return str(caught.value)


def write_with(tmp_path, more, *, without=(), **changes):
    tensors = {n: t for n, t in build_tensors(build_config()).items() if n not in without}
    directory = write_checkpoint(tmp_path / "m", config_overrides=changes)
    save_file({**tensors, **more}, directory / SINGLE_FILE)
    return directory


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"weight.absmax": torch.uint8, "weight.quant_map": torch.float32}, "bitsandbytes (4 bit)"),
        ({"weight.quant_state.bitsandbytes__nf4": torch.uint8}, "bitsandbytes (4 bit)"),
        ({"SCB": torch.float32, "weight": torch.int8}, "bitsandbytes (8 bit)"),
        ({"qweight": torch.int32, "g_idx": torch.int32, "scales": torch.float16}, "GPTQ"),
        ({"qweight": torch.int32, "qzeros": torch.int32}, "AWQ or GPTQ"),
        ({"weight_scale_inv": torch.float32, "weight": torch.float8_e4m3fn}, "FP8 in blocks"),
        ({"weight_scale": torch.float32, "weight": torch.float8_e4m3fn}, "FP8"),
        ({"weight": torch.uint32, "scales": torch.float16, "biases": torch.float16}, "MLX"),
        ({"q_weight": torch.int32, "q_scale": torch.int32}, "ExLlamaV2 (EXL2)"),
        ({"trellis": torch.int16, "suh": torch.float16}, "ExLlamaV3 (EXL3)"),
        ({"W_q": torch.uint8, "meta": torch.uint8}, "HQQ"),
        ({"weight_packed": torch.int32, "weight_scale": torch.float16}, "compressed-tensors"),
        ({"weight": torch.int8, "weight_scale": torch.float32}, "integers"),
        ({"weight": torch.uint8, "weight_scale_2": torch.float32}, "FP4 of ModelOpt"),
        ({"weight_blocks": torch.uint8, "weight_scales": torch.uint8}, "MXFP4"),
        ({"weight_qdata": torch.int8, "weight_scale": torch.float32}, "torchao or quanto"),
        ({"weight._data": torch.int8, "weight._scale": torch.float32}, "torchao or quanto"),
        ({"centroids.weight": torch.float16, "indices": torch.int32}, "VPTQ"),
    ],
)
def test_weights_that_others_have_quantized(tmp_path, more, named):
    tensors = {f"{UP}{name}": torch.ones(4, 4).to(dtype) for name, dtype in more.items()}
    directory = write_with(tmp_path, tensors, without=[f"{UP}weight"])
    text = message_of(directory)
    assert f"{directory} holds weights that are quantized already ({named}). Start from the" in text
    assert AGAIN not in text and len(text.splitlines()) <= 6


def test_a_stub_of_zero_3_names_the_script(tmp_path):
    empty = {f"{UP}weight": torch.empty(0, dtype=torch.bfloat16)}
    directory = write_with(tmp_path, empty)
    text = message_of(directory)
    assert "1 of 27 tensors in" in text and "DeepSpeed ZeRO-3" in text and AGAIN not in text
    assert "stage3_gather_16bit_weights_on_model_save" in text
    (line,) = [line for line in text.splitlines() if "zero_to_fp32" in line]
    expected = [str(directory), f"{directory}-hf", "--safe_serialization"]
    assert shlex.split(line) == ["python3", "zero_to_fp32.py", *expected]
    (directory / "zero_to_fp32.py").touch()
    assert f"  python3 {directory / 'zero_to_fp32.py'} {directory}" in message_of(directory)


@pytest.mark.parametrize(
    ("names", "what", "way"),
    [
        (["global_step500", "zero_to_fp32.py", "latest"], "with DeepSpeed", "--safe_serialization"),
        (["__0_0.distcp", ".metadata"], "with FSDP", "accelerate merge-weights DIR/ DIR-hf"),
        (["pytorch_model_fsdp_0"], "FSDP", "accelerate merge-weights DIR/pytorch_model_fsdp_0"),
        (["iter_0000100", "latest_checkpointed_iteration.txt"], "Megatron", "convert.py"),
        (["mp_rank_00", "config.json"], "Megatron", "convert.py"),
        (["consolidated.00.pth", "params.json"], "Meta's own form", "convert_llama_weights_to_hf"),
    ],
)
def test_the_state_of_a_training(tmp_path, names, what, way):
    directory = tmp_path / "m"
    for name in names:
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.touch() if path.suffix or name == "latest" else path.mkdir()
    text = recognize(directory).to_text()
    assert text.startswith(f"{directory} holds ") and what in text
    assert way.replace("DIR/ ", f"{directory} ").replace("DIR", str(directory)) in text
    # With a config.json copied in, and without the commands' own look at what was given.
    write_json(directory / "config.json", build_config())
    assert what in message_of(directory)


def test_names_of_meta_and_flat_parameters(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    save_file({"layers.0.attention.wq.weight": torch.ones(2, 2)}, directory / SINGLE_FILE)
    assert "Meta's own form" in message_of(directory)
    save_file({"_fsdp_wrapped_module._flat_param": torch.ones(2)}, directory / SINGLE_FILE)
    assert "FULL_STATE_DICT" in message_of(directory)


@pytest.mark.parametrize("stated", [["Qwen2ForSequenceClassification"], ["Qwen2ForCausalLM"]])
def test_a_classifier_has_no_head_for_the_next_token(tmp_path, stated):
    more = {"score.weight": torch.ones(1, 64)}
    directory = write_with(tmp_path, more, without=["lm_head.weight"], architectures=stated)
    text = message_of(directory)
    assert "it has no head for the next token" in text and AGAIN not in text
    named = "a model that scores texts (score.weight)"
    assert ("a Qwen2ForSequenceClassification" if "Sequence" in stated[0] else named) in text


def test_a_model_that_was_saved_without_its_head(tmp_path):
    directory = write_with(tmp_path, {}, without=["lm_head.weight"], architectures=["Qwen2Model"])
    text = message_of(directory)
    assert "holds a Qwen2Model, which is a model without its head" in text
    assert "Save it once more as the class ...ForCausalLM" in text and AGAIN not in text


def test_a_model_for_more_than_text_is_named(tmp_path):
    directory = write_checkpoint(tmp_path / "m")
    values = {"model_type": "qwen2_vl", "architectures": ["Qwen2VLForConditionalGeneration"]}
    write_json(directory / "config.json", {**values, "text_config": build_config()})
    with pytest.raises(UnsupportedModelError) as caught:
        Checkpoint.open(directory)
    assert (
        "expected one of qwen2, qwen3, llama. Its class is Qwen2VLForConditionalGeneration. It is a"
        in (str(caught.value))
    )
    assert "its language part is text_config." in str(caught.value)
