"""Valid weights, configurations and directories, all tiny."""

import struct

from seed_forms import dump, join

_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_LLAMA3 |= {"original_max_position_embeddings": 8192}
_SIZES = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "vocab_size": 3}
_SIZES |= {"num_attention_heads": 1, "num_key_value_heads": 1, "rms_norm_eps": 1e-6}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", **_SIZES}
QWEN2 |= {"rope_theta": 10000, "torch_dtype": "bfloat16", "tie_word_embeddings": True}
QWEN2 |= {"hidden_act": "silu", "use_sliding_window": False, "sliding_window": 4096}
QWEN2 |= {"bos_token_id": 1, "eos_token_id": [2], "max_window_layers": 1, "use_cache": True}
LLAMA = {**QWEN2, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
LLAMA |= {"rope_scaling": _LLAMA3, "attention_bias": False, "mlp_bias": False, "head_dim": 2}


def safetensors(tensors: dict[str, tuple], metadata: dict | None = None) -> bytes:
    """Return a weight file of zeros but for a one in front; name to dtype, shape, byte count."""
    entries, end = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (dtype, shape, num_bytes) in tensors.items():
        offsets = [end, end := end + num_bytes]
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    text = dump(entries)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + b"\x80\x3f" * (end // 2) + b"\0" * (end % 2)


def _text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def _gguf(pairs: list[bytes], shapes: list[tuple], num_bytes: int) -> bytes:
    """Return a GGUF file; of each tensor name, sizes, type and offset."""
    entries = [
        _text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        for name, sizes, kind, offset in shapes
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(pairs))
    head += b"".join((*pairs, *entries))
    return head + bytes(-len(head) % 32) + bytes(num_bytes)


def gguf() -> bytes:
    """Return a GGUF file with a key-value of each form and a tensor of each type."""
    pairs = [_text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama")]
    pairs.append(_text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + _text(b"a") + _text(b"bc"))
    pairs.append(_text(b"types") + struct.pack("<IIQ2i", 9, 5, 2, 1, 3))
    pairs.append(_text(b"general.alignment") + struct.pack("<II", 4, 32))
    return _gguf(pairs, [(b"q", (32, 2), 8, 0), (b"e", (4, 2), 1, 96), (b"n", (5,), 0, 128)], 160)


_WIDE = {"hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
_WIDE |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
_WIDE |= {"attention_bias": True, "torch_dtype": "float16"}
_WIDE |= {"quantization_config": {"quant_method": "gguf", "format": "q8_0", "bits": 8}}
_WIDE["quantization_config"] |= {"meta": {"quantizer": ["vacc-deploy:1"]}}


def gguf_directory() -> bytes:
    """Return ``config.json`` and the GGUF file of a Llama with an embedding of blocks."""
    config = LLAMA | _WIDE
    config["rope_scaling"] = {"rope_type": "linear", "factor": 2.0}
    numbers = {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": 32,
        "vocab_size": 3,
        "feed_forward_length": 32,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "rope.scaling.factor": 2.0,
        "rope.freq_base": 1e4,
        "rope.dimension_count": 16,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }
    pairs = [
        _text(f"llama.{key}".encode())
        + struct.pack(
            "<If" if isinstance(value, float) else "<II", 6 - 2 * (type(value) is int), value
        )
        for key, value in numbers.items()
    ]
    pairs.append(_text(b"general.architecture") + struct.pack("<I", 8) + _text(b"llama"))
    pairs.append(_text(b"llama.rope.scaling.type") + struct.pack("<I", 8) + _text(b"linear"))
    tensors = [(b"token_embd", (32, 3), 8), (b"output_norm", (32,), 0)]
    parts = {"attn_norm": 0, "attn_q": 32, "attn_k": 16, "attn_v": 16, "attn_output": 32}
    parts |= {"ffn_norm": 0, "ffn_gate": 32, "ffn_up": 32, "ffn_down": 32}
    for part, rows in parts.items():
        shape = (32, rows) if rows else (32,)
        tensors.append((f"blk.0.{part}".encode(), shape, 8 if rows else 0))
    shapes, offset = [], 0
    for name, shape, kind in tensors:
        shapes.append((name + b".weight", shape, kind, offset))
        offset += shape[-1] * 34 if kind else 128
        offset += -offset % 32
    for part, size in (("attn_q", 32), ("attn_k", 16), ("attn_v", 16), ("attn_output", 32)):
        shapes.append((f"blk.0.{part}.bias".encode(), (size,), 0, offset))
        offset += size * 4
    return join(dump(config), _gguf(pairs, shapes, offset))


def weights(*, biases: bool) -> tuple[dict, dict]:
    """Return the tensors of the two files of a model with ``_SIZES``."""
    layer = "model.layers.0."
    first = {"model.embed_tokens.weight": ("BF16", [3, 2], 12)}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
        first[f"{layer}{name}.weight"] = ("BF16", [2, 2], 8)
        if biases:
            first[f"{layer}{name}.bias"] = ("BF16", [2], 4)
    second = {"model.norm.weight": ("BF16", [2], 4)}
    for name in ("input_layernorm", "post_attention_layernorm"):
        second[f"{layer}{name}.weight"] = ("BF16", [2], 4)
    for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
        second[f"{layer}{name}.weight"] = ("F32", [2, 2], 16)
    return first, second


def checkpoints() -> list[bytes]:
    found = []
    for values, biases, prefix in (
        (QWEN2, True, ""),
        (LLAMA, False, ""),
        (LLAMA, False, "module."),
    ):
        names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
        files = [{prefix + n: info for n, info in w.items()} for w in weights(biases=biases)]
        index = {n: file for file, held in zip(names, files, strict=True) for n in held}
        total = {"total_size": 100}
        parts = [dump({"metadata": total, "weight_map": index}), *map(safetensors, files)]
        found.append(join(dump(values), *parts))
    # A file that says which tensor stands for the head.
    tied = weights(biases=True)[0] | weights(biases=True)[1]
    alias = {"format": "pt", "lm_head.weight": "model.embed_tokens.weight"}
    found.append(join(dump(QWEN2), b"", safetensors(tied, alias)))
    return found


def seeds() -> dict[str, list[bytes]]:
    first, second = weights(biases=True)
    empty = safetensors({"a": ("I8", [0, 3], 0), "b": ("F64", [], 8)})
    rotary = {"rope_type": "default", "rope_theta": 1e4}
    newer = {**QWEN2, "rope_parameters": rotary, "dtype": "float32"}
    quantized = {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 8}}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "eos_token_id": [1, 2]}
    texts = {"temperature": "0.6", "top_k": -1, "pad_token_id": "7", "do_sample": "true"}
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "a/b", "target_modules": ["q_proj"]}
    configs = [dump(values) for values in (QWEN2, LLAMA, newer, quantized)]
    return {
        "header": [safetensors(first), safetensors(second, {"format": "pt"}), empty],
        "gguf_header": [gguf()],
        "gguf_directory": [gguf_directory()],
        "checkpoint": checkpoints(),
        "config": [*configs, join(configs[0], configs[0])],
        "generation_config": [dump(sampling), dump(texts)],
        "adapter": [dump(adapter)],
        "hub_cache": [b"0123abcd\n0123abcd\nffff", b"main\nmain"],
        "directory_names": [
            b"a-Q4.gguf\nREADME.md",
            b"checkpoint-10\ntrainer_state.json\noptimizer.pt",
            b"config.json={}\npytorch_model.bin",
            b'config.json={"a":1}\na.safetensors\nmodel.safetensors.index.json={}',
            b"adapter_config.json={}\nadapter_model.safetensors",
            b"models--a--b\nsnapshots\nrefs\na.tar.gz",
        ],
    }
