"""The six DeepSeek-R1-Distill models, and how tensor parallelism splits them.

The facts are those of the published ``config.json`` files, which lie in ``data/configs/`` and are
read when they are needed. ``yaml/`` and ``build_in/`` are generated from here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vacc_deploy.assets import published_config
from vacc_deploy.errors import UnsupportedModelError
from vacc_deploy.models.config import ModelConfig
from vacc_deploy.models.parse import parse_config, read_object
from vacc_deploy.results import format_table

TENSOR_PARALLEL_SIZES = (1, 2, 4, 8, 16)
ORGANIZATION = "deepseek-ai"
PLAIN, ALIGN_QKV, IMPOSSIBLE = "plain", "align_qkv", "impossible"
# Two configurations that agree in these compute the same function of the same weights, for as many
# tokens. Qwen2.5-Math-7B differs from the 7B distilled into it by max_position_embeddings only.
ARCHITECTURE_FIELDS = (
    *("model_type", "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps"),
    *("rope_theta", "rope_scaling", "tie_word_embeddings"),
)


@dataclass(frozen=True)
class CatalogModel:
    """One published model.

    Attributes:
        name: the repository's name, for example ``DeepSeek-R1-Distill-Qwen-7B``.
        base_model: the model it was distilled into.
    """

    name: str
    base_model: str

    @property
    def repository(self) -> str:
        """The repository id on the hub."""
        return f"{ORGANIZATION}/{self.name}"

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every accepted name, from short to long; matching ignores case."""
        return (
            self.name.removeprefix("DeepSeek-R1-"),
            self.name.removeprefix("DeepSeek-"),
            self.name,
            self.repository,
        )

    @cached_property
    def config_values(self) -> dict[str, Any]:
        """The published ``config.json``."""
        return read_object(published_config(self.name))

    @cached_property
    def config(self) -> ModelConfig:
        """The checked configuration."""
        return parse_config(self.config_values, where=f"{self.name}/config.json")


def tensor_parallel_rule(config: ModelConfig, tensor_parallel_size: int) -> str:
    """Return how the attention heads split over ``tensor_parallel_size`` dies.

    ``plain``: query and key-value heads divide evenly. ``align_qkv``: they do not, and the compiler
    has to pad or repeat heads (``model_kwargs.align_qkv``; the vendor's text says it "may be off
    if num_key_value_heads % tp == 0", the rest is our inference). ``impossible``: fewer query
    heads than dies, or the MLP does not divide.
    """
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    # A die holds whole heads, at least one, and an equal share of the MLP's width.
    if heads < tensor_parallel_size or config.intermediate_size % tensor_parallel_size:
        return IMPOSSIBLE
    if heads % tensor_parallel_size == 0 and kv_heads % tensor_parallel_size == 0:
        return PLAIN
    return ALIGN_QKV


def _rules(config: ModelConfig) -> dict[int, str]:
    return {size: tensor_parallel_rule(config, size) for size in TENSOR_PARALLEL_SIZES}


def plain_sizes(config: ModelConfig) -> list[int]:
    """Return the tensor-parallel sizes that divide the heads evenly."""
    return [size for size, rule in _rules(config).items() if rule == PLAIN]


_MODELS = (
    CatalogModel("DeepSeek-R1-Distill-Qwen-1.5B", "Qwen/Qwen2.5-Math-1.5B"),
    CatalogModel("DeepSeek-R1-Distill-Qwen-7B", "Qwen/Qwen2.5-Math-7B"),
    CatalogModel("DeepSeek-R1-Distill-Qwen-14B", "Qwen/Qwen2.5-14B"),
    CatalogModel("DeepSeek-R1-Distill-Qwen-32B", "Qwen/Qwen2.5-32B"),
    CatalogModel("DeepSeek-R1-Distill-Llama-8B", "meta-llama/Llama-3.1-8B"),
    CatalogModel("DeepSeek-R1-Distill-Llama-70B", "meta-llama/Llama-3.3-70B-Instruct"),
)
MODELS = {model.name: model for model in _MODELS}
_BY_ALIAS = {alias.lower(): model for model in _MODELS for alias in model.aliases}


def known_model(name: str) -> CatalogModel | None:
    """Return the catalogue model with the name or alias ``name``, ignoring case, or None."""
    return _BY_ALIAS.get(_as_alias(name))


def near_names(name: str, *, cutoff: float = 0.4) -> tuple[str, ...]:
    """Return the short names of the models that ``name`` is most like, the nearest first.

    Args:
        name: what the user typed.
        cutoff: how like they are at least, from 0 to 1 for equal.
    """
    near = difflib.get_close_matches(_as_alias(name), list(_BY_ALIAS), n=6, cutoff=cutoff)
    return tuple(dict.fromkeys(_BY_ALIAS[alias].aliases[0] for alias in near))[:3]


def find_model(name: str) -> CatalogModel:
    """Return the catalogue model with the name or alias ``name``, ignoring case.

    Raises:
        UnsupportedModelError: no such name; the message gives the nearest and lists all.
    """
    if model := known_model(name):
        return model
    near = near_names(name)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    known = ", ".join(model.aliases[0] for model in _MODELS)
    raise UnsupportedModelError(
        f"Unknown model {name!r:.200}.{hint} Known models: {known}. Another qwen2 or llama "
        "checkpoint is given by its directory or its repository id."
    )


def _as_alias(name: str) -> str:
    return name.strip().rstrip("/").lower()


def match_config(config: ModelConfig) -> CatalogModel | None:
    """Return the catalogue model whose architecture equals ``config``, or None.

    Fine-tunes of a model share its architecture, so this tells shapes, not identity.
    """
    for model in _MODELS:
        known = model.config
        if all(getattr(known, name) == getattr(config, name) for name in ARCHITECTURE_FIELDS):
            return model
    return None


class CatalogTable:
    """The catalogue as a command result."""

    def to_dict(self) -> dict[str, Any]:
        """Return one object per model: names, architecture, bytes and tensor-parallel rules."""
        return {"models": [_describe(model) for model in _MODELS]}

    def to_text(self) -> str:
        """Return one table row per model, and what the columns mean."""
        rows = []
        for model in _MODELS:
            config = model.config
            padded = [tp for tp, rule in _rules(config).items() if rule == ALIGN_QKV]
            rows.append(
                (
                    model.aliases[0],
                    config.num_hidden_layers,
                    config.hidden_size,
                    f"{config.num_attention_heads}/{config.num_key_value_heads}",
                    f"{config.num_parameters() * config.dtype_bytes / 1e9:.1f}",
                    f"{config.kv_bytes_per_token / 1024:.0f}",
                    " ".join(map(str, plain_sizes(config))),
                    " ".join(map(str, padded)) or "–",
                )
            )
        headers = (
            *("model", "layers", "hidden", "heads/kv", "weights GB", "KV KiB/token"),
            *("tp plain", "tp with align_qkv"),
        )
        return (
            f"{format_table(headers, rows)}\n\n"
            "weights: as published (bfloat16). KV: float16 cache of one token, all layers.\n"
            "Names are not case-sensitive; DeepSeek-R1-Distill-... and the hub's id work too."
        )


def _describe(model: CatalogModel) -> dict[str, Any]:
    config = model.config
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "repository": model.repository,
        "base_model": model.base_model,
        # These have one form in JSON; the others say how the weights are read.
        **{
            name: getattr(config, name)
            for name in ARCHITECTURE_FIELDS
            if name not in ("rope_scaling", "tie_word_embeddings")
        },
        "num_parameters": config.num_parameters(),
        "weight_bytes": config.num_parameters() * config.dtype_bytes,
        "kv_bytes_per_token": config.kv_bytes_per_token,
        "tensor_parallel": {str(tp): rule for tp, rule in _rules(config).items()},
    }
