"""Checkpoints in the forms that trainers leave, each beside the clean model that it means."""

import torch
from checkpoint_builders import build_config, build_tensors, write_json, write_weights
from reference_logits import make_tokens
from safetensors.torch import load_file, save_file
from texts import read_json
from tokenizer_builders import ASSISTANT, ASSISTANT_ID, BOS_ID, EOS_ID, write_tokenizer

from vacc_deploy.checkpoint.reader import INDEX_NAME

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
GENERATION = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
TOKENS = make_tokens()


def write_found(directory, config, tensors, *, metadata=None, generation=None, shards=1):
    """Write a checkpoint as it was found, with its tokenizer."""
    directory.mkdir(parents=True)
    write_json(directory / "config.json", config)
    write_json(directory / "generation_config.json", {**GENERATION, **(generation or {})})
    write_weights(directory, tensors, shards=shards)
    if metadata:
        path = directory / "model.safetensors"
        save_file(load_file(path), path, metadata={"format": "pt", **metadata})
        path.chmod(0o644)
    write_tokenizer(directory)
    return directory


def published(model_type="qwen2", **options):
    config = build_config(model_type=model_type, **options)
    return config, build_tensors(config)


def renamed(tensors, change):
    return {change(name): tensor for name, tensor in tensors.items()}


def wrapped(name):
    """Return the name as torch.compile, FSDP and data parallelism leave it."""
    inner = name.replace("self_attn.", "self_attn._orig_mod.")
    return "module." + inner.replace("layers.0.", "layers.0._fsdp_wrapped_module.")


PREFIXES = {
    "bare": lambda name: name.removeprefix("model."),
    "peft": lambda name: f"base_model.model.{name}",
    "multimodal": lambda name: f"language_model.{name}",
    "multimodal-5": lambda n: n.replace("model.", "model.language_model.", n[:5] == "model"),
    "data-parallel": lambda name: f"module.{name}",
    "compiled": lambda name: f"_orig_mod.{name}",
    "unknown": lambda name: f"actor.policy.{name}",
    "head-elsewhere": lambda name: f"model.{name}" if name == HEAD else name,
    "wrapped": wrapped,
}


def other_head(tensors):
    return torch.flip(tensors[EMBEDDING], [0]).contiguous()


def found_form(kind, directory, model_type="qwen2"):
    """Write one form as it was found; return its directory, the clean model's, and its rules."""
    tied = kind in ("head-only", "equal-heads", "equal-heads-f32", "absent-entry", "alias-tied")
    config, tensors = published(model_type, tied=tied)
    options, clean_config, clean = {}, dict(config), dict(tensors)
    if kind in PREFIXES:
        tensors = renamed(tensors, PREFIXES[kind])
        compiled = {"data-parallel", "compiled", "wrapped"}
        rules = ["wrappers"] if kind in compiled else ["prefix"]
    elif kind == "two-heads":
        config = {**config, "tie_word_embeddings": True}
        rules = ["two-heads"]
    elif kind.startswith("equal-heads"):
        head = tensors[EMBEDDING].float() if kind.endswith("f32") else tensors[EMBEDDING].clone()
        tensors, rules = {**tensors, HEAD: head}, ["two-heads"]
    elif kind == "head-only":
        tensors[HEAD] = tensors.pop(EMBEDDING)
        options, rules = {"metadata": {EMBEDDING: HEAD}}, ["head-only"]
    elif kind == "alias-tied":
        config = {**config, "tie_word_embeddings": False}
        options, rules = {"metadata": {HEAD: EMBEDDING}}, ["embedding-only"]
    elif kind == "absent-entry":
        options, rules = {"shards": 2}, ["absent-entries"]
    elif kind == "index-places":
        options, rules = {"shards": 2}, ["index-places"]
    elif kind == "spare":
        layer = "model.layers.1.self_attn."
        spare = {
            "v_head.summary.weight": torch.ones(1, 64),
            "score.weight": torch.ones(1, 64),
            f"{layer}rotary_emb.cos_cached": torch.ones(1, 1, 8, 16),
            f"{layer}rotary_emb.inv_freq": torch.ones(8),
            f"{layer}masked_bias": torch.ones(1),
            f"{layer}bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
        }
        tensors, rules = {**tensors, **spare}, ["spare-tensors"]
    elif kind == "left-over":
        stated = {"quant_method": "bitsandbytes", "load_in_4bit": True}
        config, rules = {**config, "quantization_config": stated}, ["left-over-quantization"]
    elif kind == "float64":
        tensors = {name: tensor.double() for name, tensor in tensors.items()}
        clean = {name: tensor.float() for name, tensor in clean.items()}
        config = {**config, "torch_dtype": "float64"}
        clean_config["torch_dtype"], rules = "float32", ["float64", "dtype-name"]
    elif kind == "mixed":
        tensors = {n: t.float() if t.ndim == 1 else t for n, t in tensors.items()}
        rules = []
    elif kind == "run-flags":
        flags = {"output_attentions": True, "output_hidden_states": True, "return_dict": False}
        flags |= {"use_cache": False, "torchscript": True, "attn_implementation": "sdpa"}
        flags["pretraining_tp"] = 2
        config, rules = {**config, **flags}, ["run-flags"]
    elif kind == "base-class":
        name = "Qwen2Model" if model_type == "qwen2" else "LlamaModel"
        config, rules = {**config, "architectures": [name]}, ["architecture"]
    elif kind == "auto-map":
        code = {"AutoModelForCausalLM": "modeling_other.Model"}
        config, rules = {**config, "auto_map": code}, ["foreign-code"]
    elif kind == "pad-id":
        config, rules = {**config, "pad_token_id": 272}, ["token-ids"]
    elif kind == "eos-text":
        config, rules = {**config, "eos_token_id": [str(EOS_ID), ASSISTANT]}, ["token-ids"]
        clean_config["eos_token_id"] = [EOS_ID, ASSISTANT_ID]
    elif kind == "dtype-prefix":
        config, rules = {**config, "torch_dtype": "torch.bfloat16"}, ["dtype-name"]
    source = write_found(directory / "found", config, tensors, **options)
    if kind == "absent-entry":
        index = read_json(source / INDEX_NAME)
        index["weight_map"][HEAD] = "model-00002-of-00002.safetensors"
        write_json(source / INDEX_NAME, index)
    if kind == "index-places":
        index = read_json(source / INDEX_NAME)
        index["weight_map"][EMBEDDING] = "model-00002-of-00002.safetensors"
        del index["weight_map"]["model.layers.0.mlp.up_proj.weight"]
        write_json(source / INDEX_NAME, index)
    return source, write_found(directory / "clean", clean_config, clean), rules


FORMS = [
    *PREFIXES,
    *("two-heads", "equal-heads", "equal-heads-f32", "head-only", "alias-tied", "absent-entry"),
    *("spare", "left-over", "float64", "mixed", "run-flags", "pad-id", "eos-text", "dtype-prefix"),
    *("base-class", "auto-map", "index-places"),
]
