"""Checkpoints in the forms that trainers leave, each beside the clean model that it means."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from checkpoint_builders import build_config, build_tensors, write_json, write_weights
from reference_logits import decoder_logits, make_tokens
from safetensors.torch import load_file, save_file
from texts import read_json
from tokenizer_builders import ASSISTANT, ASSISTANT_ID, BOS_ID, EOS_ID, write_tokenizer
from transformers import AutoModelForCausalLM

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


def renamed(change, tensors):
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


@dataclass(frozen=True)
class Form:
    """A form of checkpoint, as changes of the published one.

    Attributes:
        rules: the names of the rules that read it.
        config: keys of ``config.json`` that differ.
        tensors: makes its tensors of the published ones.
        index: changes its weight map in place.
        clean_config, clean_tensors: the same of the clean model that it means.
        tied, shards, metadata: of the checkpoint, and of its weight file.
    """

    rules: Sequence[str]
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Callable[[dict], dict] = dict
    index: Callable[[dict], Any] | None = None
    clean_config: Mapping[str, Any] = field(default_factory=dict)
    clean_tensors: Callable[[dict], dict] = dict
    tied: bool = False
    shards: int = 1
    metadata: Mapping[str, str] | None = None


def as_head_only(tensors):
    return {HEAD if name == EMBEDDING else name: tensor for name, tensor in tensors.items()}


def misplace(weight_map):
    weight_map[EMBEDDING] = "model-00002-of-00002.safetensors"
    del weight_map["model.layers.0.mlp.up_proj.weight"]


SPARE = {
    "v_head.summary.weight": torch.ones(1, 64),
    "score.weight": torch.ones(1, 64),
    "model.layers.1.self_attn.rotary_emb.cos_cached": torch.ones(1, 1, 8, 16),
    "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(8),
    "model.layers.1.self_attn.masked_bias": torch.ones(1),
    "model.layers.1.self_attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.bool),
}
RUN_FLAGS = {
    **dict.fromkeys(("output_attentions", "output_hidden_states", "torchscript"), True),
    **dict.fromkeys(("return_dict", "use_cache"), False),
    "attn_implementation": "sdpa",
    "pretraining_tp": 2,
}
LEFT_OVER = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
WRAPPED = ("data-parallel", "compiled", "wrapped")
FORMS = {
    **{
        kind: Form(["wrappers" if kind in WRAPPED else "prefix"], tensors=partial(renamed, change))
        for kind, change in PREFIXES.items()
    },
    "two-heads": Form(["two-heads"], {"tie_word_embeddings": True}),
    "equal-heads": Form(
        ["two-heads"], tensors=lambda t: {**t, HEAD: t[EMBEDDING].clone()}, tied=True
    ),
    "equal-heads-f32": Form(
        ["two-heads"], tensors=lambda t: {**t, HEAD: t[EMBEDDING].float()}, tied=True
    ),
    "head-only": Form(["head-only"], tensors=as_head_only, tied=True, metadata={EMBEDDING: HEAD}),
    "alias-tied": Form(
        ["embedding-only"],
        {"tie_word_embeddings": False},
        tied=True,
        metadata={HEAD: EMBEDDING},
    ),
    "absent-entry": Form(
        ["absent-entries"],
        index=lambda places: places.update({HEAD: "model-00002-of-00002.safetensors"}),
        tied=True,
        shards=2,
    ),
    "index-places": Form(["index-places"], index=misplace, shards=2),
    "spare": Form(["spare-tensors"], tensors=lambda t: t | SPARE),
    "left-over": Form(["left-over-quantization"], LEFT_OVER),
    "float64": Form(
        ["float64", "dtype-name"],
        {"torch_dtype": "float64"},
        tensors=lambda t: {name: tensor.double() for name, tensor in t.items()},
        clean_config={"torch_dtype": "float32"},
        clean_tensors=lambda t: {name: tensor.float() for name, tensor in t.items()},
    ),
    "mixed": Form([], tensors=lambda t: {n: x.float() if x.ndim == 1 else x for n, x in t.items()}),
    "run-flags": Form(["run-flags"], RUN_FLAGS),
    "pad-id": Form(["token-ids"], {"pad_token_id": 272}),
    "eos-text": Form(
        ["token-ids"],
        {"eos_token_id": [str(EOS_ID), ASSISTANT]},
        clean_config={"eos_token_id": [EOS_ID, ASSISTANT_ID]},
    ),
    "dtype-prefix": Form(["dtype-name"], {"torch_dtype": "torch.bfloat16"}),
    "base-class": Form(["architecture"], {"architectures": ["Qwen2Model"]}),
    "base-class-of-llama": Form(["architecture"], {"architectures": ["LlamaModel"]}),
    "auto-map": Form(
        ["foreign-code"], {"auto_map": {"AutoModelForCausalLM": "modeling_other.Model"}}
    ),
}


def found_form(kind, directory, model_type="qwen2"):
    """Write one form as it was found; return its directory, the clean model's, and its rules."""
    form = FORMS[kind]
    config, tensors = published(model_type, tied=form.tied)
    source = write_found(
        directory / "found",
        config | form.config,
        form.tensors(tensors),
        metadata=form.metadata,
        shards=form.shards,
    )
    if form.index:
        index = read_json(source / INDEX_NAME)
        form.index(index["weight_map"])
        write_json(source / INDEX_NAME, index)
    clean = write_found(
        directory / "clean", config | form.clean_config, form.clean_tensors(tensors)
    )
    return source, clean, list(form.rules)


def assert_means(clean, *directories):
    """Compare our logits of directories, and stock transformers' of the last, with the clean ones.

    The last one is prepared, of the type llama.
    """
    with torch.inference_mode():
        expected = decoder_logits(clean, TOKENS)
        for directory in directories:
            assert torch.equal(decoder_logits(directory, TOKENS), expected), directory
        stock = AutoModelForCausalLM.from_pretrained(directories[-1], dtype=torch.float32)
        assert torch.allclose(stock(TOKENS).logits, expected, atol=1e-4)
