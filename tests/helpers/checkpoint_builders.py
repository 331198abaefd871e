"""Small random checkpoints in the published layout, for every test that reads or writes weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizer_builders import BOS_ID, EOS_ID, write_tokenizer

# As in DeepSeek-R1-0528-Qwen3-8B, with a trained length that short tests reach beyond.
YARN_ROPE = {
    "attn_factor": 0.8782488562869419,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_type": "yarn",
}
LLAMA3_ROPE = {
    "factor": 8.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}


def build_config(
    *,
    model_type: str = "qwen2",
    tied: bool = False,
    num_layers: int = 2,
    hidden_size: int = 64,
    intermediate_size: int = 160,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    vocab_size: int = 272,
    dtype: torch.dtype = torch.bfloat16,
    overrides: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a config.json with the keys that R1-Distill publishes; ``...`` takes a key out."""
    is_llama = model_type == "llama"
    config: dict[str, Any] = {
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": BOS_ID,
        "eos_token_id": EOS_ID,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": intermediate_size,
        "max_position_embeddings": 131072,
        "model_type": model_type,
        "num_attention_heads": num_heads,
        "num_hidden_layers": num_layers,
        "num_key_value_heads": num_kv_heads,
        "tie_word_embeddings": tied,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
        "vocab_size": vocab_size,
    }
    if not is_llama:
        config |= {
            "max_window_layers": num_layers,
            "rms_norm_eps": 1e-06,
            "rope_theta": 10000,
            "sliding_window": 4096,
            "transformers_version": "4.44.0",
            "use_mrope": False,
            "use_sliding_window": False,
        }
    else:
        config |= {
            "attention_bias": False,
            "mlp_bias": False,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-05,
            "rope_scaling": dict(LLAMA3_ROPE),
            "rope_theta": 500000.0,
            "transformers_version": "4.43.0.dev0",
        }
    if model_type == "qwen3":
        # As published: no use_mrope, and a head size that the hidden size does not give.
        del config["use_mrope"]
        config |= {"attention_bias": False, "head_dim": 32, "transformers_version": "4.51.0"}
    config |= overrides or {}
    return {key: value for key, value in sorted(config.items()) if value is not ...}


def build_tensors(
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    scale: float = 1.0,
) -> dict[str, torch.Tensor]:
    """Return the weights that ``config`` needs: linears N(0, scale / sqrt(in)), norms near one.

    The names are written out here and not taken from the package, so that tests compare the two.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float, mean: float = 0.0) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * std + mean).to(dtype)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    linears = {
        "self_attn.q_proj": (heads * head_dim, hidden),
        "self_attn.k_proj": (kv_heads * head_dim, hidden),
        "self_attn.v_proj": (kv_heads * head_dim, hidden),
        "self_attn.o_proj": (hidden, heads * head_dim),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    biased = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    if config["model_type"] == "llama":
        asked = {"self_attn": config["attention_bias"], "mlp": config["mlp_bias"]}
        biased = {name for name in linears if asked[name.partition(".")[0]]}
    if config["model_type"] == "qwen3":
        biased = {name for name in linears if config["attention_bias"] and "self" in name}
    tensors = {"model.embed_tokens.weight": normal(config["vocab_size"], hidden, std=0.3)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = normal(hidden, std=0.1, mean=1.0)
        for head in ("q", "k") if config["model_type"] == "qwen3" else ():
            tensors[f"{prefix}self_attn.{head}_norm.weight"] = normal(head_dim, std=0.1, mean=1.0)
        for name, (out_features, in_features) in linears.items():
            std = scale / in_features**0.5
            tensors[f"{prefix}{name}.weight"] = normal(out_features, in_features, std=std)
            if name in biased:
                tensors[f"{prefix}{name}.bias"] = normal(out_features, std=0.1)
    tensors["model.norm.weight"] = normal(hidden, std=0.1, mean=1.0)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = normal(config["vocab_size"], hidden, std=scale / hidden**0.5)
    return tensors


def write_weights(
    directory: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    shards: int = 1,
    shard_names: Sequence[str] | None = None,
    with_index: bool | None = None,
) -> dict[str, str]:
    """Write the weight files, and the index when there are several; return its weight map."""
    if shard_names is None:
        shard_names = ["model.safetensors"]
        if shards > 1:
            shard_names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
    names = list(tensors)
    per_shard = -(-len(names) // len(shard_names))
    weight_map: dict[str, str] = {}
    for idx, file in enumerate(shard_names):
        part = names[idx * per_shard : (idx + 1) * per_shard]
        save_file(
            {name: tensors[name].contiguous() for name in part},
            directory / file,
            metadata={"format": "pt"},
        )
        (directory / file).chmod(0o644)  # the library's files are for their owner alone
        weight_map |= dict.fromkeys(part, file)
    if len(shard_names) > 1 if with_index is None else with_index:
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        write_json(directory / "model.safetensors.index.json", index)
    return weight_map


def write_json(path: Path, values: Any) -> Path:
    """Write ``values`` the way the hub's files are written."""
    path.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    return path


def write_checkpoint(
    directory: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    shards: int = 1,
    shard_names: Sequence[str] | None = None,
    with_index: bool | None = None,
    seed: int = 0,
    scale: float = 1.0,
    config_overrides: Mapping[str, Any] | None = None,
    extra_tensors: Mapping[str, torch.Tensor | None] | None = None,
    with_tokenizer: bool = True,
    **sizes: Any,
) -> Path:
    """Write a whole checkpoint directory and return it.

    ``config_overrides`` are merged into config.json (``...`` takes a key out) before the weights
    are made; ``extra_tensors`` replace or add tensors, None takes one out; ``shard_names`` gives
    odd file names; ``with_index`` forces or leaves out the index; ``sizes`` are those of
    ``build_config``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    config = build_config(dtype=dtype, overrides=config_overrides, **sizes)
    tensors = build_tensors(config, dtype=dtype, seed=seed, scale=scale) | dict(extra_tensors or {})
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    write_json(directory / "config.json", config)
    generation = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID, "temperature": 0.6, "top_p": 0.95}
    write_json(directory / "generation_config.json", generation)
    write_weights(directory, tensors, shards=shards, shard_names=shard_names, with_index=with_index)
    if with_tokenizer:
        write_tokenizer(directory)
    return directory


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of a directory through the safetensors library."""
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors
