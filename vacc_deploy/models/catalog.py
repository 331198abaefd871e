"""The models that are known by name, and how tensor parallelism splits them.

Two groups: the official distills of DeepSeek-R1, which this tool is for, and other models that the
vendor documents on the same compile path. The facts are those of the published ``config.json``
files, which lie in ``data/configs/`` and are read when they are needed; docs/models.md says where
each comes from. ``yaml/`` and ``build_in/`` are generated from the official ones.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vacc_deploy.assets import published_config
from vacc_deploy.errors import UnsupportedModelError
from vacc_deploy.models.config import ModelConfig, RopeScaling
from vacc_deploy.models.parse import read_object
from vacc_deploy.models.rope import names_attn_factor, rope_values, without_attn_factor
from vacc_deploy.models.settle import preview_config
from vacc_deploy.results import format_table

TENSOR_PARALLEL_SIZES = (1, 2, 4, 8, 16)
ORGANIZATION = "deepseek-ai"
# The groups, and what is said of each above its table.
OFFICIAL, VENDOR = "official", "vendor"
_TITLES = {
    OFFICIAL: "The official distills of DeepSeek-R1:",
    VENDOR: "Other models, which the vendor documents on the same compile path:",
}
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
        base_model: the model it was trained from; empty for a base model, or where we know none.
        organization: the owner of its repository.
        group: ``official`` or ``vendor``.
        other_lengths: ``max_position_embeddings`` of other published revisions.
        shape_of: the catalogue model that it was trained from, where no copy of its own
            configuration was at hand. Of that one its sizes are taken, its length is not.
    """

    name: str
    base_model: str
    organization: str = ORGANIZATION
    group: str = OFFICIAL
    other_lengths: tuple[int, ...] = ()
    shape_of: str = ""

    @property
    def repository(self) -> str:
        """The repository id on the hub."""
        return f"{self.organization}/{self.name}"

    @property
    def aliases(self) -> tuple[str, ...]:
        """Every accepted name, from short to long; matching ignores case."""
        shorter = [self.name.removeprefix(prefix) for prefix in ("DeepSeek-R1-", "DeepSeek-")]
        # "0528-Qwen3-8B" would not say whose.
        names = [name for name in shorter if not name[0].isdigit()]
        return tuple(dict.fromkeys((*names, self.name, self.repository)))

    @cached_property
    def config_values(self) -> dict[str, Any]:
        """The published ``config.json``, or that of the model whose shape this one has."""
        return read_object(published_config(self.shape_of or self.name))

    @cached_property
    def config(self) -> ModelConfig:
        """The checked configuration, settled as that of a checkpoint is."""
        return preview_config(self.config_values, where=f"{self.name}/config.json")

    def differences(self, config: ModelConfig) -> list[str]:
        """Return the fields of ``ARCHITECTURE_FIELDS`` in which ``config`` is another model."""
        mine, its = _shape(self.config), _shape(config)
        # How yarn's attn_factor is read is a choice of who prepares the model, see models.rope.
        if names_attn_factor(self.config_values):
            other = without_attn_factor(self.config).rope_scaling
            mine["rope_scaling"] = other if its["rope_scaling"] == other else mine["rope_scaling"]
        if self.shape_of or config.max_position_embeddings in self.other_lengths:
            mine["max_position_embeddings"] = config.max_position_embeddings
        return [name for name in ARCHITECTURE_FIELDS if mine[name] != its[name]]

    def difference(self, config: ModelConfig, field: str) -> str:
        """Return how ``config`` differs from the model in one field, as a clause."""
        got, expected = (_shown(getattr(each, field)) for each in (config, self.config))
        return f"{field} is {got}, expected {expected}"


def _shown(value: Any) -> Any:
    return rope_values(value) if isinstance(value, RopeScaling) else value


def _shape(config: ModelConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ARCHITECTURE_FIELDS}


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


def _vendor(name: str, base_model: str, **facts: Any) -> CatalogModel:
    return CatalogModel(name, base_model, **{"organization": "Qwen", "group": VENDOR, **facts})


# Official ones first: of models of one shape, match_config returns the first.
_MODELS = (
    CatalogModel("DeepSeek-R1-Distill-Qwen-1.5B", "Qwen/Qwen2.5-Math-1.5B"),
    CatalogModel("DeepSeek-R1-Distill-Qwen-7B", "Qwen/Qwen2.5-Math-7B"),
    CatalogModel("DeepSeek-R1-Distill-Qwen-14B", "Qwen/Qwen2.5-14B"),
    CatalogModel("DeepSeek-R1-Distill-Qwen-32B", "Qwen/Qwen2.5-32B"),
    CatalogModel("DeepSeek-R1-Distill-Llama-8B", "meta-llama/Llama-3.1-8B"),
    CatalogModel("DeepSeek-R1-Distill-Llama-70B", "meta-llama/Llama-3.3-70B-Instruct"),
    CatalogModel("DeepSeek-R1-0528-Qwen3-8B", "Qwen/Qwen3-8B-Base"),
    # Its makers lowered max_position_embeddings in May 2025; the weights stayed.
    _vendor("QwQ-32B", "Qwen/Qwen2.5-32B", other_lengths=(131072,)),
    _vendor(
        "Skywork-OR1-7B-Preview",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        organization="Skywork",
    ),
    _vendor(
        "Skywork-OR1-7B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        organization="Skywork",
        shape_of="DeepSeek-R1-Distill-Qwen-7B",
    ),
    _vendor(
        "Skywork-OR1-32B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        organization="Skywork",
        shape_of="DeepSeek-R1-Distill-Qwen-32B",
    ),
    _vendor("Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B"),
    _vendor("Qwen2.5-1.5B-Instruct", "Qwen/Qwen2.5-1.5B"),
    _vendor("Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B"),
    _vendor("Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
    _vendor("Qwen2.5-14B", ""),
    _vendor("Qwen2.5-14B-Instruct", "Qwen/Qwen2.5-14B", shape_of="Qwen2.5-14B"),
    _vendor("Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-32B"),
    _vendor("Qwen2.5-72B-Instruct", "Qwen/Qwen2.5-72B"),
    _vendor("Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base"),
    _vendor("Qwen3-1.7B", "Qwen/Qwen3-1.7B-Base"),
    _vendor("Qwen3-4B", "Qwen/Qwen3-4B-Base"),
    _vendor("Qwen3-4B-Instruct-2507", ""),
    _vendor("Qwen3-4B-Thinking-2507", ""),
    _vendor("Qwen3-8B", "Qwen/Qwen3-8B-Base"),
)
MODELS = {model.name: model for model in _MODELS}
_NUMBER = re.compile(r"[0-9.]+")
_BY_ALIAS = {alias.lower(): model for model in _MODELS for alias in model.aliases}


def official_models() -> tuple[CatalogModel, ...]:
    """Return the official distills of DeepSeek-R1."""
    return tuple(model for model in _MODELS if model.group == OFFICIAL)


def known_model(name: str) -> CatalogModel | None:
    """Return the catalogue model with the name or alias ``name``, ignoring case, or None."""
    return _BY_ALIAS.get(_as_alias(name))


def near_names(name: str, *, cutoff: float = 0.4, group: str = "") -> tuple[str, ...]:
    """Return the short names of the models that ``name`` is most like, the nearest first.

    Args:
        name: what the user typed.
        cutoff: how like they are at least, from 0 to 1 for equal.
        group: of the models; empty for all.
    """
    typed = _as_alias(name)
    # Qwen has many sizes that the vendor's pages lack: another number is another model.
    known = [
        alias
        for alias, model in _BY_ALIAS.items()
        if group in ("", model.group)
        and (model.group == OFFICIAL or _NUMBER.findall(alias) == _NUMBER.findall(typed))
    ]
    near = difflib.get_close_matches(typed, known, n=6, cutoff=cutoff)
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
    known = ", ".join(model.aliases[0] for model in official_models())
    others = len(_MODELS) - len(official_models())
    raise UnsupportedModelError(
        f"Unknown model {name!r:.200}.{hint} Known models: {known}, and {others} others that "
        "vacc-deploy models lists. Another qwen2, dense qwen3 or llama checkpoint is given by its "
        "directory or its repository id."
    )


def _as_alias(name: str) -> str:
    return name.strip().rstrip("/").lower()


def match_config(config: ModelConfig) -> CatalogModel | None:
    """Return the first catalogue model whose architecture equals ``config``, or None.

    Fine-tunes of a model share its architecture, and so do several models of the catalogue: this
    tells shapes, not identity.
    """
    # One whose length is not known would match too much.
    known = (model for model in _MODELS if not model.shape_of)
    return next((model for model in known if not model.differences(config)), None)


class CatalogTable:
    """The catalogue as a command result."""

    def to_dict(self) -> dict[str, Any]:
        """Return one object per model: names, architecture, bytes and tensor-parallel rules."""
        return {"models": [_describe(model) for model in _MODELS]}

    def to_text(self) -> str:
        """Return a table for each group, one row per model, and what the columns mean."""
        headers = (
            *("model", "layers", "hidden", "heads/kv", "GB", "KV KiB"),
            *("tp plain", "tp with align_qkv"),
        )
        # One table, so that the columns of the groups stand below each other.
        head, line, *rows = format_table(headers, [_row(model) for model in _MODELS]).splitlines()
        texts = []
        for group, title in _TITLES.items():
            mine = [row for row, model in zip(rows, _MODELS, strict=True) if model.group == group]
            texts.append("\n".join((title, head, line, *mine)))
        return "\n\n".join(
            (
                *texts,
                "heads/kv: with the size of a head where the heads are not as wide as hidden.\n"
                "GB: weights as published (bfloat16). KV KiB: float16 cache of one token, all "
                "layers.\n"
                "Names are not case-sensitive; DeepSeek-R1-Distill-... and the hub's id work too.",
            )
        )


def _row(model: CatalogModel) -> tuple[object, ...]:
    config = model.config
    heads = f"{config.num_attention_heads}/{config.num_key_value_heads}"
    if config.num_attention_heads * config.head_dim != config.hidden_size:
        heads += f" x {config.head_dim}"
    padded = [tp for tp, rule in _rules(config).items() if rule == ALIGN_QKV]
    return (
        model.aliases[0],
        config.num_hidden_layers,
        config.hidden_size,
        heads,
        f"{config.num_parameters() * config.dtype_bytes / 1e9:.1f}",
        f"{config.kv_bytes_per_token / 1024:.0f}",
        " ".join(map(str, plain_sizes(config))),
        " ".join(map(str, padded)) or "–",
    )


def _describe(model: CatalogModel) -> dict[str, Any]:
    config = model.config
    return {
        "name": model.name,
        "group": model.group,
        "aliases": list(model.aliases),
        "organization": model.organization,
        "repository": model.repository,
        "base_model": model.base_model or None,
        "shape_of": model.shape_of or None,
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
