"""The names that llama.cpp gives the tensors of these architectures, and the order of their rows.

Source: the tensor maps of llama.cpp's gguf-py; ``conversion/llama.py`` of llama.cpp for the rows.
"""

from __future__ import annotations

from vacc_deploy.models.config import EMBEDDING, FINAL_NORM, LM_HEAD, ModelConfig

# Factors of the rotary frequencies: computed from the configuration, so no checkpoint has it.
ROPE_FACTORS = "rope_freqs.weight"
_WHOLE = {
    EMBEDDING: "token_embd.weight",
    FINAL_NORM: "output_norm.weight",
    LM_HEAD: "output.weight",
}
_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_names(config: ModelConfig) -> dict[str, str]:
    """Return every float tensor of a model with the name that llama.cpp gives it, in their order.

    Those of a layer are such as ``blk.0.attn_q.weight``. A tied head has none: llama.cpp takes the
    embedding where there is no head.
    """
    names = dict[str, str]()
    for name in config.expected_tensors():
        layer, _, rest = name.removeprefix("model.layers.").partition(".")
        part, _, kind = rest.rpartition(".")
        names[name] = _WHOLE.get(name) or f"blk.{layer}.{_PARTS[part]}.{kind}"
    return names


def interleaved_heads(config: ModelConfig, name: str) -> int:
    """Return the heads whose rows llama.cpp orders for neighbours to be rotated; 0 for no such.

    In Llama models it rotates neighbours, in the others the two halves of a head, as published.

    Args:
        config: of the model.
        name: of a tensor, or of what is stored in its place; any that belongs to the linear.
    """
    if config.model_type != "llama":
        return 0
    if ".self_attn.q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".self_attn.k_proj." in name else 0
