"""Makes ``tokenizer.json`` of ``vocab.json`` and ``merges.txt``, for the classes that save these.

The result is what transformers builds for the same class. Merges are written as texts, which all
releases of the tokenizers library read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vacc_deploy.bounds import TOKENIZER_BYTES, VOCABULARY_MEMORY
from vacc_deploy.errors import CheckpointError
from vacc_deploy.json_files import read_json
from vacc_deploy.text.files import (
    MERGES_NAME,
    SENTENCEPIECE_NAME,
    TOKENIZER_CONFIG_NAME,
    TOKENIZER_NAME,
    VOCAB_NAME,
    damaged,
    read_large,
)
from vacc_deploy.text.token_statements import check_content

# The pre-tokenizer of Qwen2. Source: transformers, models/qwen2/tokenization_qwen2.py.
_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2, GPT2 = "Qwen2Tokenizer", "GPT2Tokenizer"
# The tokens that a class takes for the roles that tokenizer_config.json does not mention.
_END = "<|endoftext|>"
_DEFAULTS = {
    QWEN2: dict.fromkeys(("eos_token", "unk_token", "pad_token"), _END),
    GPT2: dict.fromkeys(("bos_token", "eos_token", "unk_token"), _END),
}
# They say nothing of the form: transformers then goes by the model.
_GENERAL_CLASSES = ("", "PreTrainedTokenizer", "TokenizersBackend")
_CLASS_BY_MODEL = {"qwen2": QWEN2, "qwen3": QWEN2}


@dataclass(frozen=True)
class BuiltTokenizer:
    """What ``vocab.json`` and ``merges.txt`` give.

    Attributes:
        document: the content of ``tokenizer.json``, still without added tokens.
        defaults: what the class takes for roles that the checkpoint does not mention.
        class_name: the class in transformers that builds the same.
    """

    document: dict[str, Any]
    defaults: Mapping[str, str]
    class_name: str


def build_tokenizer(
    directory: Path, config: Mapping[str, Any], model_config: Mapping[str, Any]
) -> BuiltTokenizer:
    """Return what the vocabulary files of ``directory`` give.

    Args:
        directory: a checkpoint without ``tokenizer.json``.
        config: the content of its ``tokenizer_config.json``.
        model_config: the content of its ``config.json``.

    Raises:
        CheckpointError: there are no such files, they are damaged, or the class is another one.
    """
    vocab_path, merges_path = directory / VOCAB_NAME, directory / MERGES_NAME
    if not (vocab_path.is_file() and merges_path.is_file()):
        raise CheckpointError(_explain_missing(directory))
    class_name = _choose_class(directory, config, model_config)
    prefix_space = config.get("add_prefix_space") or False
    if not isinstance(prefix_space, bool):
        got = f"add_prefix_space is {prefix_space!r:.40}, expected true or false"
        raise damaged(directory / TOKENIZER_CONFIG_NAME, got)
    vocab = _read_vocab(vocab_path)
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": prefix_space,
        "trim_offsets": True,
        "use_regex": class_name == GPT2,
    }
    split = {
        "type": "Split",
        "pattern": {"Regex": _QWEN2_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    qwen2 = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": {"type": "NFC"} if class_name == QWEN2 else None,
        "pre_tokenizer": qwen2 if class_name == QWEN2 else byte_level,
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": _read_merges(merges_path, vocab),
        },
    }
    return BuiltTokenizer(document, _DEFAULTS[class_name], class_name)


def _explain_missing(directory: Path) -> str:
    """Return why there is no tokenizer, and what to do."""
    path = directory / TOKENIZER_NAME
    present = [name for name in (VOCAB_NAME, MERGES_NAME) if (directory / name).is_file()]
    if (directory / SENTENCEPIECE_NAME).is_file():
        return (
            f"{directory} has only {SENTENCEPIECE_NAME}, the SentencePiece form; {TOKENIZER_NAME} "
            "is needed. Load the tokenizer once with transformers (use_fast=True), save it with "
            f"save_pretrained, and copy its {TOKENIZER_NAME} here."
        )
    if present:
        (missing,) = {VOCAB_NAME, MERGES_NAME} - set(present)
        return (
            f"{path} is missing, and of the two files that could replace it {missing} is missing "
            f"too ({present[0]} is there). Download {TOKENIZER_NAME} or {missing} from the model's "
            "repository into this directory."
        )
    return f"{path} is missing. Download it from the model's repository into this directory."


def _choose_class(
    directory: Path, config: Mapping[str, Any], model_config: Mapping[str, Any]
) -> str:
    """Return the class by which the vocabulary is read."""
    stated = config.get("tokenizer_class") or model_config.get("tokenizer_class") or ""
    name = str(stated).removesuffix("Fast")
    model_type = str(model_config.get("model_type", ""))
    if name in _GENERAL_CLASSES:
        name = _CLASS_BY_MODEL.get(model_type, "")
    if name in _DEFAULTS:
        return name
    said = f"the tokenizer class {stated!r:.80}" if stated else "no tokenizer class"
    classes = " or ".join(f'"{known}"' for known in sorted(_DEFAULTS))
    raise CheckpointError(
        f"{directory} has {VOCAB_NAME} and {MERGES_NAME} but no {TOKENIZER_NAME}, and names {said} "
        f"(model type {model_type!r:.40}), which does not tell how text is split. If the model was "
        f'trained with one of {classes}, write it as "tokenizer_class" into '
        f"{directory / TOKENIZER_CONFIG_NAME}. If not, load the tokenizer with transformers where "
        f"the model was trained, save it with save_pretrained, and copy its {TOKENIZER_NAME} here."
    )


def _read_vocab(path: Path) -> dict[str, int]:
    """Return token to id."""
    vocab = read_json(path, limit_bytes=TOKENIZER_BYTES, times=VOCABULARY_MEMORY)
    if not isinstance(vocab, dict) or not vocab:
        raise damaged(path, "it holds no tokens, expected a JSON object of token and id")
    tokens: dict[int, str] = {}
    for token, token_id in vocab.items():
        check_content(token, path, "a token")
        # The library makes room for every id up to the largest: one is at most a vocabulary off.
        if type(token_id) is not int or not 0 <= token_id < 2 * len(vocab):
            got = f"{token!r:.80} has the id {token_id!r:.40}"
            raise damaged(path, f"{got}, expected a number below {2 * len(vocab):,}")
        if token_id in tokens:
            both = f"{tokens[token_id]!r:.80} and {token!r:.80}"
            raise damaged(path, f"it gives the id {token_id} to two tokens, {both}")
        tokens[token_id] = token
    return vocab


def _read_merges(path: Path, vocab: Mapping[str, int]) -> list[str]:
    """Return the merges, each two tokens with a space between them."""
    try:
        text = read_large(path).decode("utf-8")
    except UnicodeDecodeError as err:
        raise damaged(path, f"it is not UTF-8: {err}") from err
    merges = []
    # Not splitlines: a token may hold a sign that Python takes for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2 or not all(pair):
            raise damaged(path, f"line {number} is {line!r:.80}, expected two tokens and a space")
        for token in (*pair, "".join(pair)):
            if token not in vocab:
                raise damaged(path, f"line {number} needs {token!r:.80}, not in {VOCAB_NAME}")
        merges.append(line)
    return merges
