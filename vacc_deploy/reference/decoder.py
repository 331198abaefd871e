"""One decoder layer of the Qwen2, Qwen3 and Llama family as explicit stages.

    input norm -> q, k, v -> attention -> o -> post norm -> gate, up -> down

The verifier walks a layer with ``walk_layer``, the quantizer in an order of its own
(``quantize.layer_walk``). A linear is read just before its stage and released after it: memory
holds one stage, whatever the number of layers. A layer computes in the dtype of the hidden states
that it is given: float32, or bfloat16 with norms, rotation and softmax in float32.

Source: RMSNorm (arXiv 1910.07467), rotary embedding (arXiv 2104.09864), grouped-query attention
(arXiv 2305.13245), SwiGLU (arXiv 2002.05202), llama3 rotary scaling (arXiv 2407.21783, 3.4), yarn
(arXiv 2309.00071), norms of queries and keys (arXiv 2302.05442, as in Qwen3: a norm a head).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - the usual name

from vacc_deploy.checkpoint.reader import Checkpoint
from vacc_deploy.errors import CheckpointError
from vacc_deploy.formats.int8 import dequantize
from vacc_deploy.formats.linears import codes_from
from vacc_deploy.models.config import (
    EMBEDDING,
    ModelConfig,
    RopeScaling,
    layer_prefix,
    linear_name,
)
from vacc_deploy.models.rope import YARN

ReadTensor = Callable[[str], torch.Tensor]
QKV, OUTPUT, GATE_UP, DOWN = "qkv", "o", "gate_up", "down"
STAGE_LINEARS = {
    QKV: ("q_proj", "k_proj", "v_proj"),
    OUTPUT: ("o_proj",),
    GATE_UP: ("gate_proj", "up_proj"),
    DOWN: ("down_proj",),
}


def float_reader(checkpoint: Checkpoint) -> ReadTensor:
    """Return a function that reads a tensor as float32; codes of any layout come back dequantized.

    The name asked for is that of the float model: ``<linear>.weight``.
    """
    layout = checkpoint.config.quantization_format
    linears = checkpoint.config.linear_names() if layout else {}

    def read(name: str) -> torch.Tensor:
        module = name.removesuffix(".weight")
        if module in linears:
            return dequantize(*codes_from(layout, checkpoint.read, module))
        return checkpoint.read(name).float()

    return read


def embed(checkpoint: Checkpoint, tokens: torch.Tensor) -> torch.Tensor:
    """Return the embeddings of ``tokens`` [rows, seq] as float32 [rows, seq, hidden].

    Only the rows of the table that occur are read.
    """
    # unique [distinct ids], inverse [rows, seq]: where in `unique` each token stands.
    unique, inverse = torch.unique(tokens, return_inverse=True)
    table = checkpoint.read_rows(EMBEDDING, unique.tolist()).float()
    return table[inverse]  # [unique, hidden] -> [rows, seq, hidden]


def rms_norm(hidden_states: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Return ``hidden_states`` [..., hidden] scaled to unit root mean square, times ``weight``.

    Computed in float32, returned in the dtype of ``hidden_states``.
    """
    if hidden_states.is_cuda and hasattr(F, "rms_norm"):
        # One kernel that sums in float32, where the lines below take five.
        return F.rms_norm(hidden_states, weight.shape, weight.to(hidden_states.dtype), eps)
    states = hidden_states.float()
    variance = states.pow(2).mean(-1, keepdim=True)  # [..., hidden] -> [..., 1]
    # The weight multiplies in float32 too; only the product is rounded to a narrower dtype.
    return (states * torch.rsqrt(variance + eps) * weight).to(hidden_states.dtype)


def rotary_frequencies(config: ModelConfig) -> torch.Tensor:
    """Return the rotation per position of each pair of a head, float32 [head_dim / 2]."""
    # 0, 2/d, 4/d, ... below 1, for a head_dim of d: float32 [head_dim / 2].
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    periods = config.rope_theta**exponents
    frequencies = 1.0 / periods  # radians per position
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.rope_type == "linear":
        return frequencies / scaling.factor
    if scaling.rope_type == YARN:
        return _blend_yarn(config, scaling, periods)
    # llama3: long waves are stretched by the factor, short ones stay, those between are blended.
    # Full turns of each pair over the trained length: few turns are a long wave.
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return frequencies * blend + frequencies / scaling.factor * (1 - blend)


def _blend_yarn(config: ModelConfig, scaling: RopeScaling, periods: torch.Tensor) -> torch.Tensor:
    """Return the frequencies that yarn blends, float32 [head_dim / 2].

    Pairs that turn often over the trained length stay, those that turn little are stretched, and
    between the two a ramp over the pairs blends. As in transformers the ramp begins and ends at
    whole pairs. The operations have its order too: at position 100,000 a last bit is visible.
    """

    def pair_of(turns: float) -> float:
        """Return the pair, as a fraction, that turns so often over the trained length."""
        wave = scaling.original_max_position_embeddings / (turns * 2 * math.pi)
        return config.head_dim * math.log(wave) / (2 * math.log(config.rope_theta))

    first = max(math.floor(pair_of(scaling.beta_fast)), 0)
    last = min(math.ceil(pair_of(scaling.beta_slow)), config.head_dim - 1)
    # A ramp of no width would divide by zero; transformers gives it this one.
    width = last - first or 0.001
    ramp = ((torch.arange(config.head_dim // 2).float() - first) / width).clamp(0, 1)
    kept = 1 - ramp
    return 1.0 / (scaling.factor * periods) * (1 - kept) + 1.0 / periods * kept


def check_sequence_length(config: ModelConfig, sequence_length: int) -> None:
    """Refuse sequences that the model cannot see as a whole.

    Raises:
        CheckpointError: the length goes past the model's sliding window or context.
    """
    # `attend` masks the future only: longer than the window it would see more than the model.
    limit = min(config.max_position_embeddings, config.sliding_window or 1 << 62)
    if sequence_length > limit:
        raise CheckpointError(
            f"Sequences of {sequence_length} tokens are longer than the model's context or "
            f"sliding window of {limit}. Use a shorter --seq-len."
        )


@dataclass(frozen=True)
class Positions:
    """What attention needs to know of the positions 0 .. sequence_length − 1.

    Attributes:
        cos: float32 [sequence_length, head_dim], times the attention factor of yarn.
        sin: likewise.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    @classmethod
    def build(
        cls, config: ModelConfig, sequence_length: int, device: torch.device | None = None
    ) -> Positions:
        """Return the tables for one sequence length, on ``device`` or the CPU.

        Raises:
            CheckpointError: see ``check_sequence_length``.
        """
        check_sequence_length(config, sequence_length)
        # [seq] by [head_dim / 2] -> [seq, head_dim / 2], in radians. In float32, which holds every
        # position exactly; bfloat16 does so up to 256 only.
        angles = torch.outer(torch.arange(sequence_length).float(), rotary_frequencies(config))
        # Rotary pairs are (i, i + head_dim / 2), not neighbours: both halves turn alike.
        angles = torch.cat((angles, angles), dim=-1)  # [seq, head_dim / 2] -> [seq, head_dim]
        factor = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
        return cls((angles.cos() * factor).to(device), (angles.sin() * factor).to(device))

    def rotate(self, states: torch.Tensor) -> torch.Tensor:
        """Return ``states`` [batch, heads, seq, head_dim] turned by their positions."""
        first, second = states.chunk(2, dim=-1)  # each [batch, heads, seq, head_dim / 2]
        # The float32 tables lift a bfloat16 product to float32; it is rounded once, at the end.
        # [seq, head_dim] broadcasts over batch and heads.
        turned = states * self.cos + torch.cat((-second, first), dim=-1) * self.sin
        return turned.to(states.dtype)


@dataclass
class Linear:
    """One linear: weight float [out, in], bias float [out] or None."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return ``inputs`` [..., in] times the weight, plus the bias: [..., out]."""
        return F.linear(inputs, self.weight, self.bias)


ApplyLinear = Callable[[str], Callable[[torch.Tensor], torch.Tensor]]


class DecoderLayer:
    """One decoder layer whose linears are read when first used."""

    def __init__(
        self, config: ModelConfig, index: int, positions: Positions, read: ReadTensor
    ) -> None:
        """Bind a layer to its weights.

        Args:
            config: the architecture.
            index: which layer.
            positions: rotary tables, shared by all layers.
            read: function that returns the float32 tensor of a name; see ``float_reader``.
        """
        self.config, self.index, self.positions, self._read = config, index, positions, read
        prefix = layer_prefix(index)
        self._input_norm = read(f"{prefix}input_layernorm.weight")
        self._post_norm = read(f"{prefix}post_attention_layernorm.weight")
        self._head_norms = [
            read(f"{prefix}self_attn.{head}_norm.weight") if config.has_head_norms else None
            for head in ("q", "k")
        ]
        self._linears: dict[str, Linear] = {}
        self._quantized: dict[str, Linear] = {}

    def linear(self, name: str) -> Linear:
        """Return one of ``LAYER_LINEARS``, reading it if it is not in memory."""
        if name not in self._linears:
            full_name = linear_name(self.index, name)
            self._linears[name] = Linear(self._read(f"{full_name}.weight"), self._read_bias(name))
        return self._linears[name]

    def set_quantized(self, name: str, weight: torch.Tensor) -> None:
        """Let ``quantized`` return this weight [out, in] instead of the stored one."""
        self._quantized[name] = Linear(weight, self._read_bias(name))

    def quantized(self, name: str) -> Linear:
        """Return one of ``LAYER_LINEARS`` as ``set_quantized`` has set it."""
        return self._quantized[name]

    def _read_bias(self, name: str) -> torch.Tensor | None:
        if not self.config.has_bias(name):
            return None
        return self._read(f"{linear_name(self.index, name)}.bias")

    def release(self, stage: str) -> None:
        """Drop the linears of a stage from memory."""
        for name in STAGE_LINEARS[stage]:
            self._linears.pop(name, None)
            self._quantized.pop(name, None)

    def attention_input(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what q, k and v are applied to: [rows, seq, hidden]."""
        return rms_norm(hidden_states, self._input_norm, self.config.rms_norm_eps)

    def attend(self, inputs: torch.Tensor, apply: ApplyLinear | None = None) -> torch.Tensor:
        """Return what o is applied to: [rows, seq, heads · head_dim].

        Args:
            inputs: what ``attention_input`` returned.
            apply: ``linear``, which is the default, or ``quantized``.
        """
        query, key, value = self.heads(inputs, self.positions, apply)
        # Scores are scaled by the function's default, 1 / √head_dim, as in both architectures.
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        # [rows, heads, seq, head_dim] -> [rows, seq, heads · head_dim]
        return attended.transpose(1, 2).flatten(2)

    def heads(
        self, inputs: torch.Tensor, positions: Positions, apply: ApplyLinear | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return query, key and value of every head, each [rows, heads, seq, head_dim].

        The arguments are those of ``attend``, and the tables of the seq positions.
        """
        config, apply = self.config, apply or self.linear
        rows, seq, _ = inputs.shape
        # The -1 is num_attention_heads for q, num_key_value_heads for k and v.
        # [rows, seq, hidden] -> [rows, seq, heads, head_dim] -> [rows, heads, seq, head_dim]
        query, key, value = (
            self._norm_heads(
                apply(name)(inputs).view(rows, seq, -1, config.head_dim), norm
            ).transpose(1, 2)
            for name, norm in zip(STAGE_LINEARS[QKV], (*self._head_norms, None), strict=True)
        )
        query, key = positions.rotate(query), positions.rotate(key)
        # Grouped queries share a key and a value: [rows, kv heads, ...] -> [rows, heads, ...]
        groups = config.num_attention_heads // config.num_key_value_heads
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
        return query, key, value

    def _norm_heads(self, states: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """Return ``states`` [rows, seq, heads, head_dim], each head behind its norm if any."""
        return states if weight is None else rms_norm(states, weight, self.config.rms_norm_eps)

    def mlp_input(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what gate and up are applied to: [rows, seq, hidden]."""
        return rms_norm(hidden_states, self._post_norm, self.config.rms_norm_eps)

    def activate(self, inputs: torch.Tensor, apply: ApplyLinear | None = None) -> torch.Tensor:
        """Return what down is applied to: [rows, seq, intermediate]; ``apply`` as in ``attend``."""
        apply = apply or self.linear
        # In place: gate and up of a large model are the widest tensors of a layer.
        gate = F.silu(apply("gate_proj")(inputs), inplace=True)
        return gate.mul_(apply("up_proj")(inputs))


def batches(num_rows: int, batch_rows: int) -> list[slice]:
    """Return the slices that cut ``num_rows`` into batches of at most ``batch_rows``."""
    return [slice(i, min(i + batch_rows, num_rows)) for i in range(0, num_rows, batch_rows)]


def walk_layer(
    layer: DecoderLayer,
    hidden_states: torch.Tensor,
    *,
    batch_rows: int,
    attended_rows: Iterable[tuple[slice, torch.Tensor]] | None = None,
) -> None:
    """Apply a layer to all rows, stage by stage, in place.

    Args:
        layer: the layer.
        hidden_states: float [rows, seq, hidden], replaced by the layer's output.
        batch_rows: rows computed at a time.
        attended_rows: slices of the rows, each with what o is applied to there; default: each row
            attends to itself alone.
    """
    # All rows pass a stage before the next stage begins, so that its linears are read once.
    slices = batches(hidden_states.shape[0], batch_rows)
    width = layer.config.num_attention_heads * layer.config.head_dim
    attended = hidden_states.new_empty(*hidden_states.shape[:2], width)
    alone = ((rows, layer.attend(layer.attention_input(hidden_states[rows]))) for rows in slices)
    for rows, part in attended_rows or alone:
        attended[rows] = part
    layer.release(QKV)
    for rows in slices:
        # The residual: hidden_states still holds the layer's input here.
        hidden_states[rows] += layer.linear("o_proj")(attended[rows])
    # About as large as the hidden states of all rows: freed before the MLP.
    del attended
    layer.release(OUTPUT)
    for rows in slices:
        # Gate, up and down batch by batch: [rows, seq, intermediate] of all rows would be the
        # largest tensor of the walk.
        inner = layer.activate(layer.mlp_input(hidden_states[rows]))
        hidden_states[rows] += layer.linear("down_proj")(inner)
    layer.release(GATE_UP)
    layer.release(DOWN)
