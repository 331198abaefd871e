"""Which of llama.cpp's pre-tokenizers cuts a text as a ``tokenizer.json`` does.

llama.cpp holds them as code, each under a name. Its converter finds the name by the ids of one long
text. Here it is found by what ``tokenizer.json`` says: the same rules in the same order have the
same name. What no known tokenizer says is refused; ``--gguf-pre`` gives a name then.

Source: ``src/llama-vocab.cpp`` of llama.cpp, which names the regular expressions that each of its
pre-tokenizers stands for; the published ``tokenizer.json`` of the families.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from vacc_deploy.errors import UnsupportedModelError

# What is done to a text, in order: a pattern that it is cut at, or the name of a rule.
Rules: TypeAlias = tuple[str, ...]

_BYTES, _WORDS, _DIGITS = "bytes", "words and bytes", "single digits"
# Contractions, words, numbers, signs, line ends, blanks. Families differ in the digits of a number.
_FIRST = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_LAST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ONE_DIGIT, _THREE_DIGITS = rf"{_FIRST}\p{{N}}{_LAST}", rf"{_FIRST}\p{{N}}{{1,3}}{_LAST}"
# The first token of DeepSeek's distills. Their pre-tokenizer is that of Qwen2 by another name.
_DEEPSEEK_BOS = "<｜begin▁of▁sentence｜>"
# Rules, and whether a whole word of the vocabulary is taken without merges, to llama.cpp's name.
_NAMES: dict[tuple[Rules, bool], str] = {
    ((_ONE_DIGIT, _BYTES), False): "qwen2",
    ((_THREE_DIGITS, _BYTES), True): "llama-bpe",
    ((_DIGITS, _WORDS), False): "smollm",
    ((_WORDS,), False): "gpt-2",
}
_NORMALIZERS = (None, "NFC")


def find_pre_tokenizer(document: Mapping[str, Any], tokens: Mapping[str, int]) -> str:
    """Return llama.cpp's name of the pre-tokenizer of a ``tokenizer.json``.

    llama.cpp does not normalize: letters with combining marks get the ids of the two characters
    where the tokenizer (NFC, as Qwen's) makes one of them. Its converter passes over this too.

    Args:
        document: the settled ``tokenizer.json``.
        tokens: its added tokens.

    Raises:
        UnsupportedModelError: it is none of the known ones; says what it does.
    """
    model = _object(document.get("model"))
    if (kind := model.get("type")) != "BPE" or model.get("byte_fallback"):
        raise _unknown(f"its model is {kind!r:.40}, expected BPE of bytes")
    if any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
        raise _unknown("it puts marks in front of or behind the parts of a word")
    normalizer = _object(document.get("normalizer")).get("type")
    if normalizer not in _NORMALIZERS:
        raise _unknown(f"its normalizer is {normalizer!r:.40}, expected none or NFC")
    rules, whole_words = _read_rules(document), bool(model.get("ignore_merges"))
    name = _NAMES.get((rules, whole_words))
    if name is None:
        listed = "; ".join(f"{rule:.200}" for rule in rules) or "nothing"
        raise _unknown(f"its pre_tokenizer does: {listed}; its ignore_merges is {whole_words}")
    return "deepseek-r1-qwen" if name == "qwen2" and _DEEPSEEK_BOS in tokens else name


def _unknown(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"No pre-tokenizer of llama.cpp is known for this tokenizer.json: {what}. If you know the "
        "name that llama.cpp has for it (tokenizer.ggml.pre), give --gguf-pre NAME."
    )


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _read_rules(document: Mapping[str, Any]) -> Rules:
    """Return what the ``pre_tokenizer`` does; what is not known stands as its type."""
    stated = _object(document.get("pre_tokenizer"))
    inner = stated.get("pretokenizers") if stated.get("type") == "Sequence" else [stated]
    steps = inner if isinstance(inner, list) else [stated]
    return tuple(_name_rule(_object(step)) for step in steps if step)


def _name_rule(step: Mapping[str, Any]) -> str:
    kind = step.get("type")
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return _WORDS if step.get("use_regex", True) else _BYTES
    if kind == "Digits" and step.get("individual_digits"):
        return _DIGITS
    pattern = _object(step.get("pattern")).get("Regex")
    # Cut out what matches, or throw away what does not: the known patterns match every character.
    forms = (("Isolated", False), ("Removed", True))
    form = (step.get("behavior"), bool(step.get("invert")))
    if kind == "Split" and isinstance(pattern, str) and form in forms:
        return pattern
    return f"{kind} {dict(step)!r:.200}"
