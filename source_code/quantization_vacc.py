# vacc-deploy: int8 weights (W8A16, one scale per output row) for the Vastai VACC compiler.
# This file travels beside the weights; modeling_qwen2_vacc.py imports it.
# It needs only the standard library and torch >= 2.1.
"""Symmetric per-channel int8 quantization of the seven linears of each decoder layer.

The one rule for the numbers: the scale is rounded to float16 first, and the codes are computed in
float32 with that rounded scale. Embeddings, norms, biases and `lm_head` stay as they are.
"""

from __future__ import annotations

from typing import Iterator, Optional, Tuple

import torch
from torch import nn

INT8_MAX = 127
SCALE_DTYPE = torch.float16
SMALLEST_SCALE = 2.0**-24  # the smallest positive float16

LINEAR_NAMES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


def choose_scale(weight: torch.Tensor, name: str = "weight") -> torch.Tensor:
    """Return the symmetric int8 scale of each output row.

    Args:
        weight: float tensor [out_features, in_features].
        name: the module's name, for the error text.
    Returns:
        float16 tensor [out_features], at least 2**-24; an all-zero row gets 1.0.
    Raises:
        ValueError: a weight is NaN or infinite, or a scale does not fit float16.
    """
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"{name}: got {weight.dtype} of shape {tuple(weight.shape)}, expected a float matrix"
        )
    absmax = weight.detach().abs().amax(dim=1).float()  # a maximum is exact in any dtype
    _require_rows(torch.isfinite(absmax), f"{name}: a weight is NaN or infinite")
    scale = (absmax / INT8_MAX).to(SCALE_DTYPE)
    _require_rows(torch.isfinite(scale), f"{name}: the scale is too large for float16")
    scale = torch.where(scale < SMALLEST_SCALE, torch.full_like(scale, SMALLEST_SCALE), scale)
    return torch.where(absmax == 0, torch.ones_like(scale), scale)


def quantize_weight(
    weight: torch.Tensor, name: str = "weight"
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Round a weight to int8 codes.

    Args:
        weight: float tensor [out_features, in_features], left unchanged.
        name: the module's name, for the error text.
    Returns:
        codes int8 [out_features, in_features] in -127..127, scale float16 [out_features].
    Raises:
        ValueError: see `choose_scale`.
    """
    scale = choose_scale(weight, name)
    # float32 whatever the weight's dtype: in bfloat16 the quotient 127.5 would round to 128 and
    # wrap to -128, the wrong sign on the row's largest weight. torch.round is half-to-even.
    quotient = torch.div(weight.detach().float(), scale.float().unsqueeze(1))
    return quotient.round_().clamp_(-INT8_MAX, INT8_MAX).to(torch.int8), scale


def dequantize_weight(
    codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """Return codes * scale, computed in float32 and then cast: [out_features, in_features]."""
    return (codes.float() * scale.float().unsqueeze(1)).to(dtype)


class QuantizedMatmul(torch.autograd.Function):
    """`hidden_states @ dequantized.T`, exported as one node of the domain Vastai."""

    @staticmethod
    def forward(ctx, hidden_states, codes, scale):
        ctx.save_for_backward(codes, scale)
        weight = dequantize_weight(codes, scale, hidden_states.dtype)
        return torch.matmul(hidden_states, weight.t())

    @staticmethod
    def backward(ctx, grad_output):
        codes, scale = ctx.saved_tensors
        weight = dequantize_weight(codes, scale, grad_output.dtype)
        return torch.matmul(grad_output, weight), None, None

    @staticmethod
    def symbolic(g, hidden_states, codes, scale):
        """Emit Vastai::QuantizedLinearPerChannel(hidden_states, codes [N, K] int8, scale [N])."""
        if hidden_states.type().scalarType() == "Float":
            # Activation and scale share one type in the vendor's graphs. float16 fits float32
            # exactly, and the exporter folds this Cast into the stored scale.
            scale = g.op("Cast", scale, to_i=1)
        output = g.op("Vastai::QuantizedLinearPerChannel", hidden_states, codes, scale)
        sizes, code_sizes = hidden_states.type().sizes(), codes.type().sizes()
        if sizes is not None and code_sizes is not None:
            # Without a type and a shape, shape inference stops here.
            output.setType(hidden_states.type().with_sizes(sizes[:-1] + [code_sizes[0]]))
        return output


class QuantizedLinear(nn.Module):
    """A linear with int8 codes and one float16 scale per output row.

    `weight` (int8 [out_features, in_features]) and `weight_scale` (float16 [out_features]) are
    buffers: loaders make Parameters of what they load, and then ask gradients of float ones.
    They keep their dtype through `from_pretrained(dtype=...)`, because they are declared with it,
    and through `module.to(dtype)`, see `_apply`.
    """

    def __init__(self, in_features, out_features, bias=False, device=None, dtype=None):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        codes = torch.zeros(out_features, in_features, dtype=torch.int8, device=device)
        scale = torch.ones(out_features, dtype=SCALE_DTYPE, device=device)
        self.register_buffer("weight", codes)
        self.register_buffer("weight_scale", scale)
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device))
        else:
            self.register_parameter("bias", None)

    @classmethod
    def from_linear(cls, linear: nn.Linear, name: str = "weight") -> QuantizedLinear:
        """Quantize a linear; its bias is taken over as it is.

        Raises:
            ValueError: see `choose_scale`.
        """
        module = cls(linear.in_features, linear.out_features, device="meta")
        module.weight, module.weight_scale = quantize_weight(linear.weight, name)
        module.bias = linear.bias
        return module.train(linear.training)

    def _apply(self, fn, recurse=True):
        # `.to(torch.bfloat16)` reaches every float buffer; the scale would lose up to 0.4 %.
        exact = self.weight_scale
        super()._apply(fn, recurse)
        if self.weight_scale.dtype != exact.dtype:
            self.weight_scale = exact.to(self.weight_scale.device)
        return self

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map [..., in_features] to [..., out_features] in the dtype of `hidden_states`."""
        if self.weight.dtype != torch.int8 or self.weight_scale.dtype == torch.bfloat16:
            raise ValueError(
                f"a loader changed the int8 weights: got codes {self.weight.dtype} and scales "
                f"{self.weight_scale.dtype}, expected torch.int8 and torch.float16. Load with "
                f"low_cpu_mem_usage=False, or in float32 and call .to(dtype) afterwards"
            )
        output = QuantizedMatmul.apply(hidden_states, self.weight, self.weight_scale)
        return output if self.bias is None else output + self.bias

    def extra_repr(self) -> str:
        """Return the sizes shown by `print(model)`."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, bits=8"
        )


def quantize(model: nn.Module, weight_bit_width: int = 8) -> nn.Module:
    """Quantize the seven linears of every decoder layer in place and return the model.

    Args:
        model: a Qwen2, Qwen3 or Llama model with float weights (ours or the library's).
        weight_bit_width: 8.
    Raises:
        ValueError: other widths, a model that is already quantized, or see `choose_scale`. The
            model is then unchanged.
    """
    if weight_bit_width != 8:
        raise ValueError(f"weight_bit_width: got {weight_bit_width!r}, expected 8")
    for name, _, _, linear in find_linears(model):
        choose_scale(linear.weight, name)
    for name, parent, attribute, linear in find_linears(model):
        setattr(parent, attribute, QuantizedLinear.from_linear(linear, name))
    return model


def replace_linears(model: nn.Module, dtype: Optional[torch.dtype] = None) -> nn.Module:
    """Swap the seven linears of every decoder layer for empty int8 ones, and return the model.

    Nothing is computed, so it works on the meta device: the way to load an int8 checkpoint.

    Args:
        model: a Qwen2, Qwen3 or Llama model (ours or the library's).
        dtype: of the new biases; that of the old weight by default.
    Raises:
        ValueError: a linear is missing or already quantized.
    """
    for _, parent, attribute, linear in list(find_linears(model)):  # all checked first
        module = QuantizedLinear(
            linear.in_features,
            linear.out_features,
            bias=linear.bias is not None,
            device=linear.weight.device,
            dtype=dtype or linear.weight.dtype,
        )
        setattr(parent, attribute, module.train(linear.training))
    return model


def find_linears(model: nn.Module) -> Iterator[Tuple[str, nn.Module, str, nn.Linear]]:
    """Yield (full name, parent module, attribute, linear) of every linear to quantize.

    Raises:
        ValueError: the model has no decoder layers, or one of the seven is not an nn.Linear.
    """
    decoder, prefix = model, "layers"
    if not hasattr(decoder, "layers"):
        decoder, prefix = getattr(model, "model", None), "model.layers"
    if not hasattr(decoder, "layers"):
        raise ValueError(f"{type(model).__name__} has no decoder layers (model.layers)")
    for idx, layer in enumerate(decoder.layers):
        for short_name in LINEAR_NAMES:
            name = f"{prefix}.{idx}.{short_name}"
            block, attribute = short_name.split(".")
            parent = getattr(layer, block, None)
            linear = getattr(parent, attribute, None)
            if isinstance(linear, QuantizedLinear):
                raise ValueError(f"{name} is already quantized")
            if not isinstance(linear, nn.Linear):
                raise ValueError(f"{name}: got {type(linear).__name__}, expected nn.Linear")
            yield name, parent, attribute, linear


def _require_rows(is_good: torch.Tensor, problem: str) -> None:
    bad = torch.nonzero(~is_good).flatten().tolist()
    if bad:
        listed = ", ".join(str(row) for row in bad[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ValueError(f"{problem} in row {listed}{more}")
