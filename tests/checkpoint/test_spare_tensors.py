"""Tensors beside those of the model: which are left out, and which make it another model."""

import pytest
import torch
from checkpoint_builders import build_config, build_tensors, write_checkpoint
from found_forms import assert_means

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.prepare import prepare
from vacc_deploy.vamc.target import find_target

LAYER = "model.layers.1."
SPARE = {
    "mtp": {"mtp.layers.0.eh_proj.weight": torch.ones(64, 128), "mtp.norm.weight": torch.ones(64)},
    "mtp-in-model": {"model.mtp.layers.0.input_layernorm.weight": torch.ones(64)},
    "medusa": {"medusa_head.0.0.linear.weight": torch.ones(64, 64)},
    "cache-scales": {
        f"{LAYER}self_attn.k_scale": torch.ones(1),
        f"{LAYER}self_attn.attn.v_scale": torch.ones(1),
        f"{LAYER}self_attn.k_proj.k_scale": torch.ones(1),
    },
    "masks": {
        "model.causal_mask": torch.ones(8, 8, dtype=torch.bool),
        f"{LAYER}self_attn.attn_mask": torch.ones(8, 8),
    },
    "critic": {"critic_head.weight": torch.ones(1, 64)},
    "classifier": {"classifier.weight": torch.ones(2, 64), "score.weight": torch.ones(2, 64)},
}
BIASES = {
    "head": {"lm_head.bias": torch.zeros(272)},
    "o_proj": {f"{LAYER}self_attn.o_proj.bias": torch.zeros(64, dtype=torch.bfloat16)},
    "mlp": {f"{LAYER}mlp.down_proj.bias": torch.zeros(64, dtype=torch.float64)},
    "norm": {"model.norm.bias": torch.zeros(64)},
}


def check_left_out(tmp_path, extra, rule):
    """Prepare a model with more tensors; compare its logits, ours and theirs, with the model's."""
    clean = write_checkpoint(tmp_path / "clean", model_type="llama")
    source = write_checkpoint(tmp_path / "m", model_type="llama", extra_tensors=extra)
    assert [applied.rule for applied in Checkpoint.open(source).applied] == [rule]
    out = prepare(source, output=tmp_path / "out").output_dir
    assert_means(clean, source, out)
    find_target(str(out))


@pytest.mark.parametrize("kind", SPARE)
def test_tensors_that_no_loader_reads_are_left_out(tmp_path, kind):
    check_left_out(tmp_path, SPARE[kind], "spare-tensors")


@pytest.mark.parametrize("kind", BIASES)
def test_biases_of_zeros_are_left_out(tmp_path, kind):
    check_left_out(tmp_path, BIASES[kind], "zero-biases")


@pytest.mark.parametrize("kind", BIASES)
def test_biases_with_values_stay_refused(tmp_path, kind):
    extra = {name: tensor + 0.5 for name, tensor in BIASES[kind].items()}
    source = write_checkpoint(tmp_path / "m", model_type="llama", extra_tensors=extra)
    with pytest.raises(CheckpointError, match=r"\.bias in model.safetensors belongs to no part"):
        Checkpoint.open(source)


def test_biases_that_the_architecture_has_stay(tmp_path):
    biased = {name: torch.zeros(64) for name in ("q_proj", "k_proj")}
    extra = {
        f"{LAYER}self_attn.{n}.bias": t[: 64 if n == "q_proj" else 32] for n, t in biased.items()
    }
    source = write_checkpoint(tmp_path / "m", model_type="qwen2", extra_tensors=extra)
    assert Checkpoint.open(source).applied == ()


def test_a_tied_model_that_scores_texts_has_no_head_for_the_next_token(tmp_path):
    score = {"score.weight": torch.ones(1, 64)}
    scorer = {"architectures": ["Qwen2ForSequenceClassification"]}
    options = {"tied": True, "extra_tensors": score}
    source = write_checkpoint(tmp_path / "m", config_overrides=scorer, **options)
    with pytest.raises(CheckpointError, match="Qwen2ForSequenceClassification: it has no head"):
        Checkpoint.open(source)
    # A value head of a training is no other model.
    rules = Checkpoint.open(write_checkpoint(tmp_path / "n", **options)).applied
    assert [applied.rule for applied in rules] == ["spare-tensors"]


@pytest.mark.parametrize("last", [2, 99])
def test_layers_that_the_configuration_does_not_have_are_counted(tmp_path, last):
    tensors = build_tensors(build_config())
    extra = {n.replace(LAYER, f"model.layers.{last}."): t for n, t in tensors.items() if LAYER in n}
    source = write_checkpoint(tmp_path / "m", extra_tensors=extra)
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(source)
    assert (
        f"  - model.layers.{last} in model.safetensors is a layer more than config.json has: got "
        f"num_hidden_layers 2, the weights have {last + 1} layers\nDo config.json and"
    ) in str(caught.value)


def test_a_layer_number_of_thousands_of_digits_is_no_layer(tmp_path):
    extra = {f"model.layers.{'9' * 400}.mlp.up_proj.weight": torch.ones(1)}
    source = write_checkpoint(tmp_path / "m", extra_tensors=extra)
    with pytest.raises(CheckpointError, match="belongs to no part"):
        Checkpoint.open(source)
