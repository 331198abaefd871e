"""int8: the numbers, the save and load round trip, the guard and the exported node."""

from __future__ import annotations

from collections import Counter

import canonical
import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def naive_quantize(weight):
    """The published formula, row by row, in numpy."""
    codes, scales = [], []
    for row in weight.float().numpy():
        absmax = np.abs(row).max()
        scale = max(np.float16(absmax / np.float32(127)), np.float16(2.0**-24))
        scale = np.float16(1.0) if absmax == 0 else scale
        codes.append(np.clip(np.rint(row / np.float32(scale)), -127, 127).astype(np.int8))
        scales.append(scale)
    return torch.from_numpy(np.stack(codes)), torch.from_numpy(np.array(scales, dtype=np.float16))


def quantized_modules(model):
    return {name: m for name, m in model.named_modules() if hasattr(m, "weight_scale")}


def test_quantize_weight_literal(flat):
    weight = torch.tensor([[127.0, -63.5, 0.5], [0.0, 0.0, 0.0]])
    codes, scale = flat.quantization.quantize_weight(weight)
    assert codes.tolist() == [[127, -64, 0], [0, 0, 0]]  # halves go to the even code
    assert scale.tolist() == [1.0, 1.0]
    assert (codes.dtype, scale.dtype) == (torch.int8, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-30, 1e-7, 1e-6, 1e-3, 0.03, 1.0, 300.0])
def test_quantize_weight_equals_naive_formula(flat, dtype, size):
    generator = torch.Generator().manual_seed(3)
    weight = (torch.randn(64, 48, generator=generator) * size).to(dtype)
    before = weight.clone()
    codes, scale = flat.quantization.quantize_weight(weight)
    expected_codes, expected_scale = naive_quantize(weight)
    assert torch.equal(codes, expected_codes)
    assert torch.equal(scale, expected_scale)
    assert torch.equal(weight, before)
    assert codes.abs().max() <= 127 and (codes.float() * weight.float() >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quantize_weight_never_flips_a_sign(flat, dtype):
    # Every bfloat16 mantissa as a row maximum: computed in bfloat16, 21 of them wrap to -128.
    maxima = (1 + torch.arange(128) / 128).unsqueeze(1) * 2.0**-4
    weight = torch.cat((maxima, -maxima, maxima / 3), dim=1).to(dtype)
    if dtype == torch.bfloat16:
        own_dtype = weight / (weight.abs().amax(1, keepdim=True) / 127)
        assert (own_dtype.round().abs() > 127).any()
    codes, scale = flat.quantization.quantize_weight(weight)
    assert torch.equal(codes.sign().float(), weight.sign().float())
    assert codes.abs().min() > 0 and codes.abs().max() == 127
    restored = flat.quantization.dequantize_weight(codes, scale)
    assert ((restored - weight.float()).abs() <= 0.6 * scale.float().unsqueeze(1)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_choose_scale_non_finite_names_module_and_row(flat, bad):
    weight = torch.ones(6, 4)
    weight[4, 1] = bad
    with pytest.raises(ValueError, match=r"mlp.up_proj: a weight is NaN or infinite in row 4"):
        flat.quantization.choose_scale(weight, "mlp.up_proj")


def test_choose_scale_overflow_and_wrong_type_raise(flat):
    weight = torch.ones(3, 4)
    weight[2, 0] = 127 * 65600.0
    with pytest.raises(ValueError, match="weight: the scale is too large for float16 in row 2"):
        flat.quantization.choose_scale(weight)
    with pytest.raises(ValueError, match="expected a float matrix"):
        flat.quantization.choose_scale(torch.ones(3, 4, dtype=torch.int8))


@torch.no_grad()
def test_quantize_replaces_seven_linears_of_each_layer(make_own, ids):
    own = make_own()
    reference = own(ids).logits
    weights = {name: m.weight.clone() for name, m in own.named_modules() if hasattr(m, "weight")}
    assert own.quantize(8) is own
    assert own.config.quantization_bit == 8
    modules = quantized_modules(own)
    assert Counter(name.split(".")[-1] for name in modules) == dict.fromkeys(LINEARS, 2)
    for name, module in modules.items():
        codes, scale = naive_quantize(weights[name])
        assert torch.equal(module.weight, codes) and torch.equal(module.weight_scale, scale)
    assert own.lm_head.weight.dtype == own.model.embed_tokens.weight.dtype == torch.float32
    error = (own(ids).logits - reference).norm() / reference.norm()
    assert 0 < error < 0.05


@pytest.mark.parametrize("bits", [0, 2, 4, 16, None, "8"])
def test_quantize_other_widths_name_the_value(flat, make_own, bits):
    own = make_own()
    with pytest.raises(ValueError, match=f"weight_bit_width: got {bits!r}, expected 8"):
        own.quantize(bits)
    with pytest.raises(ValueError, match=f"weight_bit_width: got {bits!r}, expected 8"):
        flat.quantization.quantize(own, bits)
    with pytest.raises(ValueError, match="has no decoder layers"):
        flat.quantization.quantize(nn.Linear(2, 2), 8)
    assert quantized_modules(own) == {} and own.config.quantization_bit == 0


@torch.no_grad()
def test_quantize_twice_leaves_the_codes_alone(make_stock, make_dir, load, ids):
    own = load(make_dir(make_stock())).quantize(8)
    again = load(make_dir(own, "int8"))
    for model in (own, again):
        before = model(ids).logits
        with pytest.raises(ValueError, match=r"layers.0.self_attn.q_proj is already quantized"):
            model.quantize(8)
        assert torch.equal(model(ids).logits, before)


def test_quantize_non_finite_weight_leaves_the_model_alone(make_own):
    own = make_own()
    own.model.layers[1].mlp.down_proj.weight.data[7, 3] = float("nan")
    with pytest.raises(ValueError, match=r"model.layers.1.mlp.down_proj: .* in row 7$"):
        own.quantize(8)
    assert quantized_modules(own) == {} and own.config.quantization_bit == 0


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
def test_int8_save_and_load_is_exact(make_stock, make_dir, load, ids, tied):
    own = load(make_dir(make_stock(tie_word_embeddings=tied))).quantize(8)
    folder = make_dir(own, "int8")
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj"
    assert stored[f"{name}.weight"].dtype == torch.int8
    assert stored[f"{name}.weight_scale"].dtype == torch.float16
    assert stored[f"{name}.weight"].shape == (32, 64)
    again = load(folder)
    assert again.config.quantization_bit == 8
    assert torch.equal(again(ids).logits, own(ids).logits)
    arguments = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    arguments["attention_mask"] = torch.ones_like(ids)
    assert torch.equal(again.generate(ids, **arguments), own.generate(ids, **arguments))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_int8_scales_and_codes_stay_exact_in_any_dtype(make_stock, make_dir, load, ids, dtype):
    own = load(make_dir(make_stock())).quantize(8)
    expected = quantized_modules(own)
    folder = make_dir(own, "int8")
    loaded = load(folder, dtype=dtype)
    moved = load(folder, dtype=torch.float32).to(dtype)
    assert loaded.dtype == dtype
    travelled = load(folder, dtype=torch.float32).bfloat16().half().float()
    for model in (loaded, moved, travelled):
        actual = quantized_modules(model)
        assert sorted(actual) == sorted(expected)
        for name, module in actual.items():
            assert module.weight.dtype == torch.int8
            assert torch.equal(module.weight, expected[name].weight)
            assert module.weight_scale.dtype == torch.float16
            assert torch.equal(module.weight_scale, expected[name].weight_scale)
    assert loaded(ids).logits.dtype == torch.float32  # as in transformers 4.37
    assert torch.equal(loaded(ids).logits, moved(ids).logits)


def test_quantized_linear_refuses_what_a_loader_changed(flat):
    linear = flat.quantization.QuantizedLinear(4, 3)
    linear.weight_scale = linear.weight_scale.bfloat16()
    with pytest.raises(ValueError, match="expected torch.int8 and torch.float16"):
        linear(torch.ones(1, 4))
    linear = flat.quantization.QuantizedLinear(4, 3)
    linear.weight = linear.weight.float()
    with pytest.raises(ValueError, match="got codes torch.float32"):
        linear(torch.ones(1, 4))


def test_quantized_linear_gradient_equals_dense(flat):
    torch.manual_seed(0)
    dense = nn.Linear(6, 5)
    linear = flat.quantization.QuantizedLinear.from_linear(dense)
    dense.weight.data = flat.quantization.dequantize_weight(linear.weight, linear.weight_scale)
    inputs = torch.randn(2, 3, 6)
    gradients = []
    for module in (linear, dense):
        leaf = inputs.clone().requires_grad_(True)
        module(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.allclose(*gradients, atol=1e-5)
    assert list(dict(linear.named_parameters())) == ["bias"]


def test_int8_dir_is_refused_by_the_library(make_stock, make_dir, load):
    folder = make_dir(load(make_dir(make_stock())).quantize(8), "int8")
    with pytest.raises(ValueError, match="quant_method"):
        Qwen2ForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="quant_method"):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)


@torch.no_grad()
@pytest.mark.parametrize("on_meta", [False, True])
def test_replace_linears_loads_an_int8_llama(flat, make_llama, ids, on_meta):
    quantized = flat.quantization.quantize(make_llama(), 8)
    state = quantized.state_dict()
    with torch.device("meta" if on_meta else "cpu"):
        empty = LlamaForCausalLM(quantized.config).eval()
        assert flat.quantization.replace_linears(empty) is empty
    assert len(quantized_modules(empty)) == 14
    for module in quantized_modules(empty).values():
        assert module.weight.is_meta == on_meta and module.weight.dtype == torch.int8
        assert not module.training
    result = empty.load_state_dict(state, assign=on_meta)
    assert result.missing_keys == result.unexpected_keys == []
    if on_meta:  # the library's rotary buffer is not in a checkpoint
        empty.model.rotary_emb = quantized.model.rotary_emb
    assert torch.equal(empty(ids).logits, quantized(ids).logits)
    with pytest.raises(ValueError, match="is already quantized"):
        flat.quantization.replace_linears(empty)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_export_has_seven_custom_nodes_per_layer(make_own, tmp_path, dtype):
    own = make_own().quantize(8).to(dtype)
    graph = canonical.export(own, "prefill", tmp_path / "model.onnx").graph
    nodes = [node for node in graph.node if node.domain == "Vastai"]
    assert len(nodes) == 7 * 2
    stored = {tensor.name: tensor for tensor in graph.initializer}
    activation = onnx.TensorProto.FLOAT if dtype == torch.float32 else onnx.TensorProto.FLOAT16
    for node in nodes:
        assert node.op_type == "QuantizedLinearPerChannel"
        assert (len(node.input), len(node.output), len(node.attribute)) == (3, 1, 0)
        codes, scale = stored[node.input[1]], stored[node.input[2]]
        assert codes.data_type == onnx.TensorProto.INT8 and len(codes.dims) == 2
        assert scale.data_type == activation and list(scale.dims) == [codes.dims[0]]
    # cos and sin are stored numbers, looked up by each layer
    assert not {"Cos", "Sin"} & {node.op_type for node in graph.node}
