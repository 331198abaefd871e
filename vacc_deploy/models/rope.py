"""Read how a model's rotary frequencies are stretched, and state yarn so that every runtime agrees.

yarn (arXiv 2309.00071) multiplies the tables of cosines and sines by a factor. Two keys of
``config.json`` say it: ``attention_factor`` is the factor itself, read by transformers and by vLLM
since 0.32; ``attn_factor`` multiplies the paper's own factor, read by SGLang and older vLLM. A file
with one of them gives two runtimes two models. The makers of DeepSeek-R1-0528-Qwen3-8B publish the
inverse of the paper's factor as ``attn_factor``: a number that makes sense only as a factor whose
product is one. So ``attn_factor`` multiplies here, and the result is written under both names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vacc_deploy.bounds import CONFIG_NUMBER, CONTEXT_TOKENS
from vacc_deploy.errors import UnsupportedModelError
from vacc_deploy.models.config import ModelConfig, RopeScaling
from vacc_deploy.models.config_reader import ConfigReader

YARN = "yarn"
# The rules by which settled values of yarn differ from the file's; docs/prepare.md tells of them.
ATTENTION_FACTOR, YARN_LENGTH = "attention-factor", "yarn-length"
# How attn_factor is read: as SGLang and older vLLM do, or as transformers and newer vLLM do.
MULTIPLY, IGNORE = "multiply", "ignore"
# What transformers computes for each architecture, and the compiled graph can hold as constants.
_ROPE_TYPES = {
    "qwen2": ("default", "linear", YARN),
    "qwen3": ("default", "linear", YARN),
    "llama": ("default", "linear", YARN, "llama3"),
}
# Other keys of yarn that change the result and that not every runtime reads: the one value of each
# that changes nothing.
_OTHER_YARN = {
    "mscale": None,
    "mscale_all_dim": None,
    "truncate": True,
    "extrapolation_factor": 1,
    "apply_yarn_scaling": True,
}
_SCALINGS = ("rope_scaling", "rope_parameters")
_ORIGINAL = "original_max_position_embeddings"


def paper_factor(factor: float) -> float:
    """Return the paper's factor on the tables for a context that is ``factor`` times as long."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def read_rope(reader: ConfigReader, model_type: str) -> tuple[float, RopeScaling | None]:
    """Return the base of the rotary frequencies, and how they are stretched; None for not at all.

    Problems with single values go to ``reader.problems``.

    Raises:
        UnsupportedModelError: a rule that the compiled graph or our decoder cannot compute.
    """
    parameters, older = reader.mapping("rope_parameters"), reader.mapping("rope_scaling")
    # A value under both names counts under the older one.
    scaling = {**parameters, **older}
    if any(isinstance(value, dict) for value in scaling.values()):
        raise UnsupportedModelError(
            f"{reader.where} has a rotary rule of its own for each kind of layer, expected one for "
            "all layers. The compiled graph has one only, so vacc-deploy cannot handle this model."
        )
    inner, outer = scaling.get("rope_theta"), reader.raw.get("rope_theta")
    if None not in (inner, outer) and inner != outer:
        both = f"{outer!r:.80} and, in the rotary rule, {inner!r:.80}"
        reader.problems.append(f"rope_theta: got {both}")
    rope_theta = reader.number("rope_theta", 10000.0, scaling if outer is None else reader.raw)
    types = [_type_of(s) for s in (older, parameters) if s]
    rope_type = types[0] if types else "default"
    if types[1:] and types[1] != rope_type:
        reader.problems.append(
            f"rope_scaling has type {rope_type!r:.80}, rope_parameters has {types[1]!r:.80}"
        )
    supported = _ROPE_TYPES[model_type]
    if rope_type not in supported:
        raise UnsupportedModelError(
            f"{reader.where} asks for rotary scaling of type {rope_type!r:.80}, expected one of "
            f"{', '.join(supported)}. The compiled graph would not compute what the "
            "model computes: remove rope_scaling to use the trained context length only."
        )
    if rope_type == "default":
        return rope_theta, None
    factor = reader.number("factor", None, scaling)
    if rope_type == "linear":
        return rope_theta, RopeScaling("linear", factor)
    original = reader.number(_ORIGINAL, None, scaling)
    if not 1 <= original <= CONTEXT_TOKENS or original % 1:
        reader.problems.append(
            f"{_ORIGINAL}: got {original:g}, expected a whole number from 1 to {CONTEXT_TOKENS}"
        )
    if rope_type == YARN and rope_theta <= 1:
        # The ramp divides by its logarithm.
        reader.problems.append(f"rope_theta: got {rope_theta:g}, expected above 1 for yarn")
    read = _read_yarn if rope_type == YARN else _read_llama3
    return rope_theta, read(reader, scaling, factor, int(original))


def _type_of(scaling: Mapping[str, Any]) -> Any:
    # "type" is the name that rope_type had before.
    return scaling.get("rope_type", scaling.get("type", "default"))


def _read_llama3(
    reader: ConfigReader, scaling: Mapping[str, Any], factor: float, original: int
) -> RopeScaling:
    low = reader.number("low_freq_factor", None, scaling)
    high = reader.number("high_freq_factor", None, scaling)
    if high <= low:
        reader.problems.append(f"rope_scaling: high_freq_factor {high} is not above {low}")
    return RopeScaling("llama3", factor, low, high, original)


def _read_yarn(
    reader: ConfigReader, scaling: Mapping[str, Any], factor: float, original: int
) -> RopeScaling:
    for key, expected in _OTHER_YARN.items():
        if scaling.get(key) not in (None, expected):
            raise UnsupportedModelError(
                f"{reader.where} has {key} {scaling[key]!r:.40} in its yarn rule, expected "
                f"{'none' if expected is None else str(expected).lower()}. Runtimes do not agree "
                "on what it means, so vacc-deploy cannot handle this model."
            )
    if factor < 1:
        reader.problems.append(f"factor: got {factor:g}, expected at least 1 for yarn")
    fast = reader.number("beta_fast", 32.0, scaling)
    slow = reader.number("beta_slow", 1.0, scaling)
    if fast <= slow:
        reader.problems.append(f"rope_scaling: beta_fast {fast:g} is not above beta_slow {slow:g}")
    multiplier = reader.number("attn_factor", 1.0, scaling)
    product = paper_factor(factor) * multiplier
    attention = reader.number("attention_factor", product, scaling)
    if scaling.get("attn_factor") is not None and not math.isclose(
        attention, product, rel_tol=1e-6
    ):
        reader.problems.append(
            f"rope_scaling: attention_factor {attention:g} and attn_factor {multiplier:g} "
            f"contradict each other (attn_factor multiplies {paper_factor(factor):g})"
        )
    made = {"attention_factor": attention, "beta_fast": fast, "beta_slow": slow}
    return RopeScaling(YARN, factor, original_max_position_embeddings=original, **made)


def rope_values(scaling: RopeScaling) -> dict[str, Any]:
    """Return the ``rope_scaling`` of a ``config.json`` in the form that every version reads."""
    if scaling.rope_type == "linear":
        # The two keys are all that older versions take.
        return {"type": "linear", "factor": scaling.factor}
    values: dict[str, Any] = {
        "rope_type": scaling.rope_type,
        "factor": scaling.factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }
    names = (
        ("attention_factor", "beta_fast", "beta_slow")
        if scaling.rope_type == YARN
        else ("low_freq_factor", "high_freq_factor")
    )
    return values | {name: getattr(scaling, name) for name in names}


def settle_yarn(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """State yarn in the one way that every runtime reads alike.

    Args:
        values: of a ``config.json``, unchecked; where they are no yarn rule, or not sound, nothing
            is changed, and ``models.parse`` says what is wrong.

    Returns:
        what changes in the values, and a note for each rule that applies.
    """
    changes, notes = dict[str, Any](), dict[str, str]()
    scaling = _merged(values)
    factor = _positive(scaling.get("factor"))
    if _type_of(scaling) != YARN or factor < 1:
        return {}, {}
    key = _name_of(values)
    multiplier, attention = scaling.get("attn_factor"), scaling.get("attention_factor")
    if (number := _positive(multiplier)) and attention is None:
        if not _positive(product := paper_factor(factor) * number):
            return {}, {}
        changes[key] = {**values[key], "attention_factor": _tidy(product)}
        notes[ATTENTION_FACTOR] = (
            f"attn_factor {number:g} multiplies yarn's own factor {paper_factor(factor):g}, as its "
            f"makers mean it (our reading): attention_factor {product:g} is written beside it. "
            "Without that, transformers and newer vLLM would compute with "
            f"{paper_factor(factor):g} (--attn-factor {IGNORE})."
        )
    elif (number := _positive(attention)) and multiplier is None:
        changes[key] = {**values[key], "attn_factor": _tidy(number / paper_factor(factor))}
        notes[ATTENTION_FACTOR] = (
            f"attention_factor {number:g} is written as attn_factor too, which SGLang and older "
            "vLLM read instead."
        )
    stated, original = values.get("max_position_embeddings"), scaling.get(_ORIGINAL)
    length = factor * _positive(original)
    # A length below 1 is refused instead, by models.parse.
    is_sound = stated is None or (type(stated) is int and stated > 0)
    if is_sound and 1 <= length <= CONTEXT_TOKENS and int(length) != stated:
        changes["max_position_embeddings"] = int(length)
        was = "is not stated: it" if stated is None else f"{stated}"
        notes[YARN_LENGTH] = (
            f"max_position_embeddings {was} is read as {int(length)}, factor {factor:g} times "
            f"the trained length {original:g}: some runtimes would take another factor from it."
        )
    return changes, notes


def _positive(value: Any) -> float:
    """Return a positive number; 0 for anything else."""
    is_number = type(value) in (int, float) and 0 < value <= CONFIG_NUMBER
    return float(value) if is_number else 0.0


def _tidy(value: float) -> float:
    """Return ``value`` without the last digits, which only the product has made: 1.0 for 1 − ε."""
    return float(f"{value:.12g}")


def names_attn_factor(values: Mapping[str, Any]) -> bool:
    """Return whether a ``config.json`` leaves open how its ``attn_factor`` is read."""
    scaling = _merged(values)
    has_one = scaling.get("attn_factor") is not None
    return _type_of(scaling) == YARN and has_one and scaling.get("attention_factor") is None


def _merged(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rotary rule under both names; a value under both counts under the older one."""
    found = [values[key] for key in _SCALINGS if isinstance(values.get(key), dict)]
    return {key: value for scaling in reversed(found) for key, value in scaling.items()}


def _name_of(values: Mapping[str, Any]) -> str:
    """Return the name under which a file has its rotary rule; of two the older one counts."""
    return next(key for key in _SCALINGS if isinstance(values.get(key), dict) and values[key])


def without_attn_factor(config: ModelConfig) -> ModelConfig:
    """Return a yarn model as transformers computes it: by the paper's factor alone."""
    assert config.rope_scaling is not None, "names_attn_factor has seen a yarn rule"
    factor = paper_factor(config.rope_scaling.factor)
    # A second rule under the other name has to say the same; one that states no type is none.
    raw = {
        key: {**value, "attention_factor": factor, "attn_factor": 1.0}
        if key in _SCALINGS and isinstance(value, dict) and _type_of(value) == YARN
        else value
        for key, value in config.raw.items()
    }
    return replace(
        config, rope_scaling=replace(config.rope_scaling, attention_factor=factor), raw=raw
    )


def with_attention_factor_of(other: ModelConfig, config: ModelConfig) -> ModelConfig:
    """Return ``config`` with the attention factor of another yarn model, where both are one."""
    mine, its = config.rope_scaling, other.rope_scaling
    if mine is None or its is None or {mine.rope_type, its.rope_type} != {YARN}:
        return config
    return replace(config, rope_scaling=replace(mine, attention_factor=its.attention_factor))
