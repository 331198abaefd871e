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


def gguf() -> bytes:
    """Return a GGUF file with a key-value of each form and a tensor of each type."""

    def text(value: bytes) -> bytes:
        return struct.pack("<Q", len(value)) + value

    pairs = [text(b"general.architecture") + struct.pack("<I", 8) + text(b"llama")]
    pairs.append(text(b"tokens") + struct.pack("<IIQ", 9, 8, 2) + text(b"a") + text(b"bc"))
    pairs.append(text(b"types") + struct.pack("<IIQ2i", 9, 5, 2, 1, 3))
    pairs.append(text(b"general.alignment") + struct.pack("<II", 4, 32))
    shapes = [(b"q", (32, 2), 8, 0), (b"e", (4, 2), 1, 96), (b"n", (5,), 0, 128)]
    entries = [
        text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
        for name, sizes, kind, offset in shapes
    ]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(entries), len(pairs))
    head += b"".join((*pairs, *entries))
    return head + bytes(-len(head) % 32) + bytes(160)


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
