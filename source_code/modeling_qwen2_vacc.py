# vacc-deploy: Qwen2 or Qwen3 decoder that the Vastai VACC compiler traces and that CPU checks run.
# This file travels beside the weights and is named by `auto_map` in config.json.
# It needs only the standard library, torch >= 2.1, transformers >= 4.37 and its two sibling files.
"""Qwen2 with eager attention, tuple or library caches, an optional last-position slice and int8.

The same classes are dense Qwen3 where the config says so. Parameter names are those of Hugging
Face, so its checkpoints load unchanged.
"""

from __future__ import annotations

import importlib
import math
import os
import sys

import torch
import transformers
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

if __package__:
    from .configuration_qwen2_vacc import Qwen2Config
    from .quantization_vacc import QuantizedLinear, quantize
else:
    # Loaded as a plain file: the two siblings are found through sys.path, for these lines only.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    try:
        Qwen2Config = importlib.import_module("configuration_qwen2_vacc").Qwen2Config
        QuantizedLinear = importlib.import_module("quantization_vacc").QuantizedLinear
        quantize = importlib.import_module("quantization_vacc").quantize
    finally:
        sys.path.remove(os.path.dirname(os.path.abspath(__file__)))

# ---- switches for the version of transformers -------------------------------------------------
TRANSFORMERS_VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])
# 5.0 and newer name the source of a tied weight; older ones list the tied names.
TIED_WEIGHTS = {"lm_head.weight": "model.embed_tokens.weight"}
TIED_WEIGHTS_KEYS = TIED_WEIGHTS if TRANSFORMERS_VERSION >= (5, 0) else list(TIED_WEIGHTS)
# 4.50 and newer: PreTrainedModel no longer brings generate().
GENERATION_BASES = () if issubclass(PreTrainedModel, GenerationMixin) else (GenerationMixin,)
# Before 4.50, low_cpu_mem_usage and device_map cast all that is read, the int8 scales too.
META_LOADING_CASTS = TRANSFORMERS_VERSION < (4, 50)

ROTARY_ROWS_STEP = 256


class Qwen2RMSNorm(nn.Module):
    """Divide by the root mean square, in float32. Source: arXiv 1910.07467, equation 4."""

    def __init__(self, hidden_size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states):
        """Map [batch, seq, hidden_size] to the same shape and dtype."""
        values = hidden_states.to(torch.float32)
        values = values * torch.rsqrt(values.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * values.to(hidden_states.dtype)


class RotaryTables:
    """Cosine and sine tables [length, head_dim], one pair per device and dtype for all layers.

    A plain object with plain tensors: transformers 5 builds a model on the meta device and leaves
    buffers that are not in the checkpoint uninitialised.
    Source: Su et al., "RoFormer", arXiv 2104.09864, section 3.2.2; the halves layout of GPT-NeoX.
    """

    def __init__(self, config):
        self.head_dim = config.head_dim
        self.theta = config.rope_theta
        self.rope = config.rope_parameters
        self.cached = {}

    def lookup_tables(self, length, dtype, device):
        """Return (cos, sin), each [length, head_dim] on `device` in `dtype`."""
        key = (torch.device(device), dtype)
        rows = self.cached[key][0].shape[0] if key in self.cached else 0
        if rows < length:
            # Doubling keeps a long generation from building a table at every step.
            rows = max(2 * rows, ROTARY_ROWS_STEP * math.ceil(length / ROTARY_ROWS_STEP))
            self.cached[key] = self._build(rows, dtype, key[0])
        cos, sin = self.cached[key]
        return cos[:length], sin[:length]

    def _build(self, rows, dtype, device):
        # On the CPU whatever the device: the numbers are then the same everywhere.
        with torch.inference_mode(False), torch.no_grad():
            position = torch.arange(rows, device="cpu").float()
            angle = torch.outer(position, self._frequencies()).repeat(1, 2)
            factor = self.rope.get("attention_factor", 1.0)
            tables = (angle.cos() * factor, angle.sin() * factor)
            # `.data` leaves a trace: the graph holds the numbers, not the cos and sin nodes.
            return tuple(table.to(dtype).to(device).data for table in tables)

    def _frequencies(self):
        # Angle of each pair at position 1: float32 [head_dim / 2]. The order of the operations is
        # that of transformers: at position 100,000 a last bit is visible.
        factor = self.rope.get("factor", 1.0)
        pair = torch.arange(self.head_dim // 2, dtype=torch.float32, device="cpu")
        period = self.theta ** (2 * pair / self.head_dim)
        if self.rope["rope_type"] != "yarn":
            return 1.0 / period / factor
        # Pairs that make beta_fast turns or more in the trained length keep their frequency, those
        # below beta_slow are slowed, a ramp lies between. Source: arXiv 2309.00071, section 3.2.
        trained = self.rope["original_max_position_embeddings"]
        lengths = [trained / (self.rope[name] * 2 * math.pi) for name in ("beta_fast", "beta_slow")]
        low, high = (self.head_dim * math.log(n) / (2 * math.log(self.theta)) for n in lengths)
        low, high = max(math.floor(low), 0), min(math.ceil(high), self.head_dim - 1)
        kept = 1 - ((pair - low) / ((high - low) or 0.001)).clamp(0, 1)
        return 1.0 / (factor * period) * (1 - kept) + 1.0 / period * kept


class Qwen2MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)). Source: Shazeer, arXiv 2002.05202."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = make_linear(config, config.hidden_size, config.intermediate_size)
        self.up_proj = make_linear(config, config.hidden_size, config.intermediate_size)
        self.down_proj = make_linear(config, config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states):
        """Map [batch, seq, hidden_size] to the same shape."""
        gate = nn.functional.silu(self.gate_proj(hidden_states))
        return self.down_proj(gate * self.up_proj(hidden_states))


class Qwen2Attention(nn.Module):
    """Grouped-query attention: Qwen2 biases q, k and v, Qwen3 norms q and k. arXiv 2305.13245."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.num_key_value_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        self.attention_dropout = config.attention_dropout
        size, query_size = config.hidden_size, self.num_heads * self.head_dim
        key_value_size = self.num_key_value_heads * self.head_dim
        o_bias = config.is_qwen3 and config.attention_bias
        bias = o_bias or not config.is_qwen3
        self.q_proj = make_linear(config, size, query_size, bias)
        self.k_proj = make_linear(config, size, key_value_size, bias)
        self.v_proj = make_linear(config, size, key_value_size, bias)
        self.o_proj = make_linear(config, query_size, size, o_bias)
        make_norm = Qwen2RMSNorm if config.is_qwen3 else nn.Identity
        self.q_norm = make_norm(self.head_dim, config.rms_norm_eps)
        self.k_norm = make_norm(self.head_dim, config.rms_norm_eps)

    def forward(self, hidden_states, mask, position_ids, tables, past):
        """Return the output, (key, value) of all positions, and the attention weights.

        Args:
            hidden_states: [batch, seq, hidden_size], as is the output.
            mask: additive, [batch, 1, seq, past + seq].
            position_ids: int64 [batch or 1, seq].
            tables: (cos, sin), each [length, head_dim].
            past: None, this layer's (key, value) or a library cache.
        """
        batch, seq, _ = hidden_states.shape
        projected = [linear(hidden_states) for linear in (self.q_proj, self.k_proj, self.v_proj)]
        query = self.q_norm(self._split_heads(projected[0])).transpose(1, 2)
        key = self.k_norm(self._split_heads(projected[1])).transpose(1, 2)
        value = self._split_heads(projected[2]).transpose(1, 2)
        if torch.jit.is_tracing():
            # Cut by this layer's own length, or the exporter merges the lookups of all layers.
            rows = key.shape[2] + past_length(past and (past,))
            tables = [table[:rows] for table in tables]
        cos, sin = (table[position_ids].unsqueeze(1) for table in tables)  # [batch, 1, seq, dim]
        query, key = self._rotate(query, cos, sin), self._rotate(key, cos, sin)
        if is_library_cache(past):
            key, value = past.update(key, value, self.layer_idx)
            mask = mask[..., -key.shape[-2] :]  # a windowed cache returns the newest keys only
        elif past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        groups = self.num_heads // self.num_key_value_heads
        keys, values = repeat_heads(key, groups), repeat_heads(value, groups)
        scores = torch.matmul(query, keys.transpose(2, 3)) / math.sqrt(self.head_dim)
        scores = scores if mask is None else scores + mask
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        weights = nn.functional.dropout(weights, self.attention_dropout, self.training)
        output = torch.matmul(weights, values)  # [batch, heads, seq, dim]
        output = output.transpose(1, 2).reshape(batch, seq, -1)
        return self.o_proj(output), (key, value), weights

    def _split_heads(self, states):
        # [batch, seq, heads * head_dim] -> [batch, seq, heads, head_dim]
        batch, seq, _ = states.shape
        return states.view(batch, seq, -1, self.head_dim)

    def _rotate(self, states, cos, sin):
        # Turns each pair (i, i + head_dim / 2) of [batch, heads, seq, head_dim] by its angle.
        straight = states * cos
        first, second = states[..., : self.head_dim // 2], states[..., self.head_dim // 2 :]
        return straight + torch.cat((-second, first), dim=-1) * sin


class Qwen2DecoderLayer(nn.Module):
    """Attention, then MLP; each after its own norm and added to its input."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = Qwen2Attention(config, layer_idx)
        self.mlp = Qwen2MLP(config)
        self.input_layernorm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states, mask, position_ids, tables, past):
        """See Qwen2Attention.forward."""
        normed = self.input_layernorm(hidden_states)
        attended, present, weights = self.self_attn(normed, mask, position_ids, tables, past)
        hidden_states = hidden_states + attended
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states, present, weights


class Qwen2PreTrainedModel(PreTrainedModel):
    """What transformers' loaders need to know of both models."""

    config_class = Qwen2Config
    base_model_prefix = "model"
    _no_split_modules = ["Qwen2DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_cache_class = True  # 4.42 to 4.5x: generate() may hand over a DynamicCache

    @classmethod
    def _load_pretrained_model(cls, *args, **kwargs):
        if META_LOADING_CASTS:  # without it each tensor takes the dtype its module was built with
            kwargs["dtype"] = None
        return super()._load_pretrained_model(*args, **kwargs)

    def get_input_embeddings(self):
        return self.base_model.embed_tokens

    def _init_weights(self, module):
        # 5.0 runs this over loaded weights too and marks each of them: those are left alone.
        # An int8 linear has no sensible random state and is never touched.
        if isinstance(module, (nn.Linear, nn.Embedding)):
            if is_fresh(module.weight):
                nn.init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)
            if is_fresh(getattr(module, "bias", None)):
                nn.init.zeros_(module.bias)
        elif isinstance(module, Qwen2RMSNorm) and is_fresh(module.weight):
            nn.init.ones_(module.weight)


class Qwen2Model(Qwen2PreTrainedModel):
    """Embeddings, decoder layers and the final norm."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        layers = range(config.num_hidden_layers)
        self.layers = nn.ModuleList(Qwen2DecoderLayer(config, idx) for idx in layers)
        self.norm = Qwen2RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryTables(config)
        self.post_init()

    @property
    def is_sliced(self):
        """True when only the last position leaves the model: a prefill graph with the slice."""
        return bool(self.config.insert_slice) and self.config.iter_num == 0

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
        inputs_embeds=None, use_cache=None, output_attentions=None, output_hidden_states=None,
        return_dict=None,
    ):  # fmt: skip
        """Run the decoder.

        Args:
            input_ids: int64 [batch, seq]; or inputs_embeds [batch, seq, hidden_size].
            attention_mask: [batch, past + seq], 0 on padding; or additive, 4-D, used as it is.
            position_ids: int64 [batch, seq]; counted from the length of the past by default.
            past_key_values: None, a tuple of (key, value) per layer, or a library cache.
        Returns:
            BaseModelOutputWithPast or a tuple; the past is of the kind that went in, or a tuple.
        """
        use_cache = pick(use_cache, self.config.use_cache)
        output_attentions = pick(output_attentions, self.config.output_attentions)
        output_hidden_states = pick(output_hidden_states, self.config.output_hidden_states)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if position_ids is not None:
            position_ids = position_ids.view(-1, pick(input_ids, inputs_embeds).shape[1]).long()
        hidden_states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds

        inputs = (hidden_states, attention_mask, position_ids, past_length(past_key_values))
        masks, position_ids, tables = self._prepare(*inputs)
        cache = past_key_values if is_library_cache(past_key_values) else None
        presents, all_hidden_states, all_weights = (), (), ()
        for idx, layer in enumerate(self.layers):
            all_hidden_states += (hidden_states,) if output_hidden_states else ()
            past = cache if cache is not None or not past_key_values else past_key_values[idx]
            mask = masks[idx in self.config.window_layers]
            hidden_states, present, weights = layer(hidden_states, mask, position_ids, tables, past)
            presents += (present,) if use_cache and cache is None else ()
            all_weights += (weights,) if output_attentions else ()

        hidden_states = self.norm(hidden_states)
        if self.is_sliced:
            hidden_states = hidden_states[:, -1:, :]
        past = (presents if cache is None else cache) if use_cache else None
        states = all_hidden_states + (hidden_states,) if output_hidden_states else None
        weights = all_weights if output_attentions else None
        output = BaseModelOutputWithPast(hidden_states, past, states, weights)
        return output if pick(return_dict, self.config.return_dict) else output.to_tuple()

    def _prepare(self, hidden_states, attention_mask, position_ids, past_len):
        """Return {is windowed: mask}, the position ids and the rotary tables."""
        device = hidden_states.device
        length = past_len + hidden_states.shape[1]
        if position_ids is None:
            position_ids = torch.arange(past_len, length, device=device).unsqueeze(0)
        elif not torch.jit.is_tracing():  # a trace cannot read the ids; they stay below `length`
            length = max(length, int(position_ids.max()) + 1)
        tables = self.rotary.lookup_tables(int(length), hidden_states.dtype, device)
        if attention_mask is not None and attention_mask.dim() == 4:
            return {False: attention_mask, True: attention_mask}, position_ids, tables

        args = (hidden_states, attention_mask, past_len)
        masks = {False: build_causal_mask(*args)}
        if self.config.window_layers:
            masks[True] = build_causal_mask(*args, window=self.config.sliding_window)
        return masks, position_ids, tables


class Qwen2ForCausalLM(Qwen2PreTrainedModel, *GENERATION_BASES):
    """Qwen2Model and the vocabulary projection."""

    _tied_weights_keys = TIED_WEIGHTS_KEYS

    def __init__(self, config):
        super().__init__(config)
        self.model = Qwen2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head

    def quantize(self, weight_bit_width=8):
        """Quantize the decoder linears in place (8 bits only) and return self."""
        quantize(self, weight_bit_width)
        self.config.quantization_bit = 8
        return self

    def forward(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None,
        inputs_embeds=None, labels=None, use_cache=None, output_attentions=None,
        output_hidden_states=None, return_dict=None,
    ):  # fmt: skip
        """Run the decoder and project on the vocabulary; see Qwen2Model.forward for the inputs.

        Args:
            labels: int64 [batch, seq], -100 where there is nothing to predict.
        Returns:
            CausalLMOutputWithPast or a tuple; logits are [batch, seq or 1 if sliced, vocab_size].
        """
        if labels is not None and self.model.is_sliced:
            raise ValueError(
                "labels need the logits of every position, got insert_slice true and iter_num 0: "
                "set insert_slice to false in the config"
            )
        inputs = (input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        options = (use_cache, output_attentions, output_hidden_states, True)
        output = self.model(*inputs, *options)
        logits = self.lm_head(output.last_hidden_state).float()
        loss = None
        if labels is not None:  # of each label given the positions before it
            scores = logits[:, :-1].transpose(1, 2)
            loss = nn.functional.cross_entropy(scores, labels[:, 1:].to(logits.device))
        past = output.cache if hasattr(output, "cache") else output.past_key_values
        states, weights = output.hidden_states, output.attentions
        output = CausalLMOutputWithPast(loss, logits, past, states, weights)
        return output if pick(return_dict, self.config.return_dict) else output.to_tuple()

    def prepare_inputs_for_generation(
        self, input_ids, past_key_values=None, attention_mask=None, inputs_embeds=None, **kwargs
    ):
        """Return the inputs of one generation step; positions follow the 2-D mask."""
        past_key_values = pick(past_key_values, kwargs.get("cache"))  # its name in newer 5.x
        past_len = int(past_length(past_key_values))
        if inputs_embeds is not None and past_len == 0:
            # The ids are then the tokens made so far; without a cache both are needed again.
            made = self.get_input_embeddings()(input_ids)
            inputs = {"inputs_embeds": torch.cat((inputs_embeds, made), dim=1)}
            new = inputs["inputs_embeds"].shape[1]
        else:
            # With an embedded prompt the ids are shorter than the mask.
            total = input_ids.shape[1] if attention_mask is None else attention_mask.shape[1]
            new = max(total - past_len, 1) if past_len else input_ids.shape[1]
            inputs = {"input_ids": input_ids[:, -new:]}
        if attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)
            inputs["position_ids"] = position_ids[:, -new:]
        inputs.update(past_key_values=past_key_values, attention_mask=attention_mask)
        return dict(inputs, use_cache=kwargs.get("use_cache"))

    @staticmethod
    def _reorder_cache(past_key_values, beam_idx):
        # Beam search: row i of the cache becomes row beam_idx[i].
        if is_library_cache(past_key_values):
            past_key_values.reorder_cache(beam_idx)
            return past_key_values
        return tuple(tuple(s[beam_idx.to(s.device)] for s in layer) for layer in past_key_values)


def make_linear(config, in_features, out_features, bias=False):
    """Return a float linear, or an empty int8 one when the config says 8 bits."""
    kind = QuantizedLinear if config.quantization_bit == 8 else nn.Linear
    return kind(in_features, out_features, bias=bias)


def repeat_heads(states, groups):
    """Repeat each key/value head: [batch, heads, seq, dim] -> [batch, heads * groups, seq, dim]."""
    if groups == 1:
        return states
    batch, heads, seq, dim = states.shape
    states = states[:, :, None].expand(batch, heads, groups, seq, dim)
    return states.reshape(batch, heads * groups, seq, dim)


def build_causal_mask(hidden_states, attention_mask, past_len, window=None):
    """Return the additive mask [batch, 1, seq, past_len + seq]: 0 where a query sees a key.

    Args:
        hidden_states: [batch, seq, hidden_size]; gives sizes, dtype and device.
        attention_mask: [batch, past_len + seq], 0 on padding, or None.
        window: query i sees the keys in (i - window, i]; None for all up to i.
    """
    batch, seq, _ = hidden_states.shape
    dtype, device = hidden_states.dtype, hidden_states.device
    length, lowest = past_len + seq, torch.finfo(dtype).min
    mask = None  # stays so in the trace of one query that sees every key
    if seq > 1 or window is not None or not torch.jit.is_tracing():
        query_idx = torch.arange(past_len, length, device=device).unsqueeze(1)
        key_idx = torch.arange(length, device=device).unsqueeze(0)
        hidden = (key_idx > query_idx) | (key_idx <= query_idx - pick(window, length))
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill(hidden, lowest)
        # `.data` leaves a trace: the graph holds the numbers, not the nodes that make them.
        mask = mask.data[None, None].expand(batch, 1, seq, length)
    if attention_mask is None:
        return mask
    if (columns := attention_mask.shape[-1]) != length:
        raise ValueError(f"attention_mask: got {columns} columns, expected {length}")
    padding = 1.0 - attention_mask[:, None, None, :].expand(batch, 1, seq, length).to(dtype)
    if mask is None:
        return padding.masked_fill(padding.to(torch.bool), lowest).to(device)
    # A padded query keeps its own key: a row without any key is NaN in float16, and NaN
    # in a padded value would spread to the real tokens.
    return mask.masked_fill(padding.to(torch.bool) & (key_idx != query_idx), lowest)


def is_library_cache(past):
    """Tell a transformers Cache of any version from a tuple and from None."""
    return hasattr(past, "update") and hasattr(past, "get_seq_length")


def past_length(past):
    """Return the number of positions in a tuple, a library cache or None."""
    if past is None:
        return 0
    return past.get_seq_length() if is_library_cache(past) else past[0][0].shape[2]


def pick(value, default):
    """Return value, or default when it is None."""
    return default if value is None else value


def is_fresh(tensor):
    """Tell whether the tensor exists and no loader has filled it."""
    return tensor is not None and not getattr(tensor, "_is_hf_initialized", False)
